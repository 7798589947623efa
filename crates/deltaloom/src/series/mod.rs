//! Checkpoints of a training run, stored together.
//! So far: where they are stored. What is in a step is not decided here.

mod store;

pub use store::{ObjectInfo, Revision, Store};
