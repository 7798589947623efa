//! Step scales: how far the weights of a row and a column typically move. Together with the
//! exponent of a prediction they say how many ULPs to expect.
//! The residuals themselves are computed in deltaloom-kernels.

pub(crate) mod scales;
