//! A file that is packed as patches of a file of a base, which may have another length;
//! docs/format.md section 3.8.
//! It names the reference. [`crate::codec::patch`] has the patches.

use std::slice;

use super::fields;
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::Result;
use crate::tensor::DType;

/// Bytes of a file that exists, at most. So low that no sum of sizes overflows.
const MAX_BYTES: u64 = (1 << 56) - 1;

/// The file that patches apply to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    /// `None` stands for the name of the predicted tensor.
    pub(crate) name: Option<String>,
    pub(crate) len_bytes: u64,
}

impl Text {
    /// Name, dtype and shape of that file.
    pub(super) fn shaped(&self) -> (&Option<String>, &DType, &[u64]) {
        (&self.name, &DType::U8, slice::from_ref(&self.len_bytes))
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        fields::push_name(meta, &self.name);
        push_varint(meta, self.len_bytes);
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        let name = fields::name(meta)?;
        Ok(Self { name, len_bytes: fields::within(meta, 1..=MAX_BYTES, "length")? })
    }
}
