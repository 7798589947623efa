//! Step scales: by how much the weights of a row and a column typically move, which with the exponent of a prediction says how many ULPs to expect.
//! The residuals themselves are computed in deltaloom-kernels.

pub(crate) mod scales;
