//! Coders that know symbols and bytes and nothing of tensors: varints, fixed-point logarithms, frequency tables, rANS blocks, Rice codes.

pub(crate) mod block;
pub(crate) mod bytes;
pub(crate) mod frame;
pub(crate) mod log2;
pub(crate) mod rice;
pub(crate) mod table;
