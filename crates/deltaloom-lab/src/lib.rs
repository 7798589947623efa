//! Measures published methods next to those of deltaloom, on the same bytes.
//!
//! It covers position coding, threshold methods (LOSSY) and products from hashes (EXPERIMENT).
//! Harnesses time products, layers, tenants and servers. Nothing here is used to pack, unpack or
//! serve.

/// Integer sums from bitwise operations and back, on packed lanes; docs/integer-identity.md.
pub use deltaloom_kernels::carry as identity;

mod activations;
mod clock;
mod entropy;
pub mod layer;
pub mod load;
pub mod lossy;
pub mod matmul;
pub mod mixed;
pub mod positions;
mod products;
pub mod reference;
mod rounds;
pub mod simhash;
pub mod statistics;
pub mod tenants;
pub mod timing;

pub use rounds::{Rounds, Turn};
