//! One matrix of a fine-tune, multiplied in every way that there is: our resident forms and, beside them, tiles and blocks that zstd has compressed.
//! It measures and checks; what comes out of it is said by [`MatmulReport`], and nothing here is used outside the laboratory.

mod compressed;
mod goals;
mod measure;
mod pair;
mod report;
#[cfg(test)]
mod tests;
mod way;

pub use goals::Goal;
pub use measure::{MatmulOptions, run};
pub use pair::Pair;
pub use report::{MatmulReport, ProductReport, WayReport};
pub use way::Way;
