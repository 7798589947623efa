//! Coders that know symbols and bytes, but no tensors: varints, fixed-point logarithms, frequency
//! tables, rANS blocks, and Rice, Golomb and Elias codes.

pub mod block;
pub mod bytes;
pub mod frame;
pub mod log2;
pub(crate) mod rice;
pub(crate) mod rows;
pub mod table;
