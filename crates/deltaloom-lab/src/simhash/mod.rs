//! EXPERIMENT: estimates products from signatures of random hyperplanes (SimHash; Charikar, 2002),
//! with exact columns to correct them, and indexes near-duplicate tensors.
//!
//! Estimates are far from exact; nothing that packs, unpacks or serves uses them.

mod columns;
mod dense;
mod directions;
mod hashed;
mod index;
mod matrix;
pub mod measure;
#[cfg(test)]
mod tests;

pub use columns::{ColumnStore, Selection, share_of};
pub use dense::Dense;
pub use directions::Projection;
pub use hashed::{HashSettings, HashedActivations, HashedMatrix, Pieces};
pub use index::{DuplicatePair, IndexReport, IndexSettings, index};
pub use matrix::Matrix;
