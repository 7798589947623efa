//! The hot loops of deltaloom, on plain slices.
//!
//! They cover interleaved rANS, ULP residuals, stand-alone float fields, bit streams, predicted
//! products, mixed contexts, gaps between positions and prefix codes for them. They also multiply
//! weights with activations and patch the weights for that.
//!
//! This crate does no I/O, knows nothing of containers or tensors, and decides nothing: the plan
//! above it does.

pub mod adapter;
pub mod bits;
pub mod bounds;
#[cfg(feature = "lab")]
pub mod carry;
pub mod changes;
pub mod dense;
pub mod drift;
pub mod fields;
pub mod functions;
#[cfg(feature = "lab")]
pub mod gaps;
pub mod history;
pub mod isa;
pub mod keys;
pub mod matrix;
pub mod mixing;
#[cfg(feature = "lab")]
pub mod msb;
pub mod number;
pub mod pairs;
pub mod patch;
#[cfg(feature = "lab")]
pub mod prefix;
pub mod product;
#[cfg(feature = "lab")]
pub mod quantised;
pub mod rans;
pub mod scaled;
#[cfg(feature = "lab")]
pub mod signature;
pub mod sparse;
pub mod steps;
pub mod tokens;
pub mod ulp;

pub use number::{Number, NumberKind};

/// Why coded bytes cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The coded data ended before all elements were decoded.
    Truncated,
    /// Data is left over, or the coder did not end in the state in which every encoder starts.
    Trailing,
    /// A symbol that does not exist for this number type.
    BadSymbol,
}
