//! Published methods beside ours, for comparison on the same bytes.
//! Nothing here is used to pack a checkpoint.

/// Sums of integers from bitwise operations and back, on packed lanes; docs/integer-identity.md.
pub use deltaloom_kernels::carry as identity;

mod clock;
pub mod layer;
pub mod matmul;
pub mod positions;
pub mod reference;
pub mod simhash;
pub mod statistics;
pub mod tenants;
pub mod timing;
