//! LOSSY: threshold methods over checkpoint series, as published and corrected, measured next to
//! the exact container.
//!
//! Packing, unpacking and series use nothing from here. Its files have their own magic and say
//! `lossy` in their index (docs/lossy.md).

mod closed_loop;
mod corrected;
mod errors;
mod file;
mod laboratory;
mod open_loop;
mod positions;
mod published;
mod reconstruction;
mod report;
mod tensors;
mod threshold;
mod values;
mod verify;

pub use file::LossyFile;
pub use laboratory::{Laboratory, Row};
pub use published::Method;
pub use report::{RowReport, StepReport, Thresholds};
pub use threshold::Rule;
pub use verify::{StepCheck, verify, verify_steps};
