//! Products with packed weights: a fine-tune's matrices are never there as a whole, only their base and what is different.
//! It multiplies and times; it knows nothing of layers, models or tenants.
//!
//! A [`PackedMatrix`] is opened from a tensor of a container in one of five resident [`Form`]s and multiplied with activations `x` [tokens, in] to `y` [tokens, out], in FP32.
//! In [`Mode::BitExact`] the result has the bits of the dense product for any form, number of tokens, number of threads and instruction set; [`Mode::Fast`] may add in any order.

mod dense;
mod forms;
mod matrix;
mod shared;
mod sizes;
mod timing;
mod vector;

pub use dense::{DenseMatrix, MatrixShape, WeightType};
pub use matrix::{Choice, Form, PackedMatrix};
pub use shared::{Segment, matmul_shared};
pub use sizes::Changes;
pub use timing::{Phase, Run, Timers, Times};
pub use vector::PatchedVector;

/// What the laboratory of this project needs besides the public API. It may change at any time.
#[doc(hidden)]
pub mod __internals {
    pub use crate::dense::{Panel, Rows, multiply_by, panel_rows};
}

/// What of a product may depend on how it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing: rows are patched and multiplied in one order of additions.
    #[default]
    BitExact,
    /// The last bits: sparse differences are multiplied by themselves and added to the product of the base, and many tokens go through a blocked matrix product. Errors stay below
    /// 1e-5 of the sum of the absolute products of base and fine-tune. Where a result is not finite, that token's is the bit-exact one.
    Fast,
}

impl Mode {
    /// Its name in reports and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BitExact => "bit-exact",
            Self::Fast => "fast",
        }
    }
}
