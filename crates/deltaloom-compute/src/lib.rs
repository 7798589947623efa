//! Products with packed weights: a fine-tune's matrices are never in memory as a whole, only their
//! base and their differences. It multiplies and times; it knows no layers, models or tenants.
//!
//! A [`PackedMatrix`] is opened from a tensor of a container in one of five [`Form`]s. It
//! multiplies activations `x` [tokens, in] to `y` [tokens, out], in FP32. In [`Mode::Exact`] the
//! result has the bits of the dense product for any form, token count, thread count and instruction
//! set. [`Mode::Fast`] stays within a [`Tolerance`].
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use deltaloom::{Bases, Container, Limits, ResolvedContainer, checkpoint::Checkpoint};
//! use deltaloom_compute::{Choice, Mode, PackedMatrix, Run};
//!
//! fn main() -> deltaloom::Result<()> {
//!     let (limits, base_path) = (Limits::default(), Path::new("base.safetensors"));
//!     let base = Checkpoint::open(base_path, &limits)?;
//!     // SAFETY: nobody writes to the base's file while this program runs.
//!     let base = unsafe { base.into_mapped() }?;
//!     let mut bases = Bases::default();
//!     bases.push_checkpoint(base_path, base);
//!
//!     let container = Container::open(Path::new("tuned.loom"), &limits)?;
//!     let tuned = Arc::new(ResolvedContainer::new(container, &bases)?);
//!     let name = "model.layers.0.mlp.up_proj.weight";
//!     // The fastest format that takes at most 64 MiB.
//!     let matrix = PackedMatrix::open(&tuned, name, Choice::Budget(64 << 20))?;
//!
//!     let (tokens, shape) = (4, matrix.shape());
//!     let x = vec![1.0; tokens * shape.cols]; // activations, [tokens, in]
//!     let mut y = vec![0.0; tokens * shape.rows]; // results, [tokens, out]
//!     matrix.matmul(&x, &mut y, &Run::new(Mode::Exact))?;
//!     Ok(())
//! }
//! ```

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

/// The program of the README, compiled as doctests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
