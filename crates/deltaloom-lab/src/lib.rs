//! Published methods measured beside those of deltaloom, on the same bytes: position coding,
//! threshold methods (LOSSY), products from hashes (EXPERIMENT), and harnesses that time products,
//! layers and tenants. Nothing here is used to pack, unpack or serve.

/// Sums of integers from bitwise operations and back, on packed lanes; docs/integer-identity.md.
pub use deltaloom_kernels::carry as identity;

mod activations;
mod clock;
mod entropy;
pub mod layer;
pub mod lossy;
pub mod matmul;
pub mod positions;
mod products;
pub mod reference;
mod rounds;
pub mod simhash;
pub mod statistics;
pub mod tenants;
pub mod timing;

pub use rounds::{Rounds, Turn};
