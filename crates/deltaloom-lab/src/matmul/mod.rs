//! Multiplies one matrix of a fine-tune in every way: with our resident forms and, for comparison,
//! with tiles and blocks that zstd has compressed.
//!
//! It measures and checks, and [`MatmulReport`] holds the results. Only the laboratory uses it.

mod compressed;
mod goals;
mod measure;
mod pair;
mod report;
#[cfg(test)]
mod tests;
mod way;

pub use measure::{MatmulOptions, run};
pub use pair::Pair;
pub use report::{Goal, MatmulReport, ProductReport, WayReport};
pub use way::Way;
