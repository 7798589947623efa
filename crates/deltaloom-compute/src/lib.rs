//! Products with packed weights: a fine-tune's matrices are never in memory as a whole, only their
//! base and their differences. It multiplies and times; it knows no layers, models or tenants.
//!
//! A [`PackedMatrix`] is opened from a tensor of a container in one of five [`Form`]s. It
//! multiplies activations `x` [tokens, in] to `y` [tokens, out], in FP32. In [`Mode::Exact`] the
//! result has the bits of the dense product for any form, token count, thread count and instruction
//! set. [`Mode::Fast`] stays within a [`Tolerance`].

mod dense;
mod forms;
mod matrix;
mod mode;
mod timing;
mod tolerance;
mod vector;

pub use dense::{DenseMatrix, MatrixShape, WeightType};
pub use matrix::{Changes, Choice, Form, PackedMatrix, Segment, matmul_shared};
pub use mode::Mode;
pub use timing::{Phase, Run, Timers, Times};
pub use tolerance::Tolerance;
pub use vector::PatchedVector;

/// Additional items for this project's laboratory. They may change at any time.
#[doc(hidden)]
pub mod __internals {
    pub use crate::dense::{Panel, Rows, multiply_by, panel_rows};
}

/// The programs of the README, compiled as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
