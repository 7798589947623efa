//! Coders that know symbols and bytes and nothing of tensors: varints, fixed-point logarithms, frequency tables, rANS blocks, Rice codes.

pub mod block;
pub mod bytes;
pub mod frame;
pub mod log2;
pub(crate) mod rice;
pub mod table;
