//! Longer context without training: which layers moved in a fine-tune, and recipes that change what
//! tokens attend to.
//!
//! It changes plans of attention, never weights.

mod moved;
pub mod recipe;

pub use moved::{Moved, MovedLayer, moved, stillest};
