//! Coders that know symbols and bytes, but no tensors: varints, fixed-point logarithms, frequency
//! tables, rANS blocks, and Rice, Golomb and Elias codes.

mod bit_source;
pub(crate) mod block;
pub(crate) mod bytes;
pub(crate) mod elias;
pub(crate) mod frame;
pub(crate) mod golomb;
pub(crate) mod log2;
pub(crate) mod rice;
pub(crate) mod table;
