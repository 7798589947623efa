//! Longer context without training: which layers moved in a fine-tune, recipes that change what
//! tokens attend to, and measurements of what that gains over cutting the text.
//!
//! It changes plans of attention, never weights.

mod applied;
mod export;
mod gains;
mod losses;
mod moved;
mod probe;
pub mod recipe;
mod resolve;
mod sensitivity;
mod statistics;
pub mod tester;

pub use applied::{Applied, CONTEXT_FILE, End, Limit, admit, limit, open, with_plans_of};
pub use export::{ExportFamily, export};
pub use gains::gains;
pub use losses::Measuring;
pub use moved::{Moved, MovedLayer, moved, stillest};
pub use probe::{Outcome, Probed, longest, probe};
pub use resolve::{Finder, Resolved, controls, resolve, trained_tokens};
pub use sensitivity::{least, sensitivities};
pub use statistics::{Estimate, Word};
