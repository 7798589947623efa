//! Products with packed weights: a fine-tune's matrices are never there as a whole, only their base and what is different.
//! It multiplies and times; which tenant's tokens are multiplied with what is said by [`crate::tenancy`].
//!
//! A [`PackedMatrix`] is opened from a tensor of a container in one of five resident [`Form`]s and multiplied with activations `x` [tokens, in] to `y` [tokens, out], in FP32.
//! In [`Mode::BitExact`] the result has the bits of the dense product for any form, number of tokens, number of threads and instruction set; [`Mode::Fast`] may add in any order.

mod dense;
mod forms;
pub mod layer;
mod matrix;
mod shared;
pub mod simhash;
mod sizes;
mod timing;

pub use dense::{DenseMatrix, MatrixShape, WeightType};
pub(crate) use dense::{Rows, multiply_by, panel_rows};
pub use matrix::{Choice, Form, PackedMatrix};
pub use shared::{Segment, matmul_shared};
pub use sizes::Changes;
pub use timing::{Phase, Run, Timers, Times};

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
