//! A file that is packed as patches of a file of a base, which may have another length or, if it is
//! JSON, another layout; docs/format.md sections 3.8 and 3.11.
//! It names the reference. [`crate::codec::patch`] has the patches.

use std::slice;

use super::fields;
use super::json::Layout;
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::tensor::DType;

/// Bytes of a file that exists, at most. So low that no sum of sizes overflows.
const MAX_BYTES: u64 = (1 << 56) - 1;
/// Bytes of a text that is laid out, before and after. It is in memory as a whole.
pub(crate) const MOST_LAID_OUT: u64 = 1 << 26;

/// The file that patches apply to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    /// `None` stands for the name of the predicted tensor.
    pub(crate) name: Option<String>,
    pub(crate) len_bytes: u64,
    /// How the file is laid out before patches apply to it, and its length then.
    pub(crate) layout: Option<(Layout, u64)>,
}

impl Text {
    /// Name, dtype and shape of that file.
    pub(super) fn shaped(&self) -> (&Option<String>, &DType, &[u64]) {
        (&self.name, &DType::U8, slice::from_ref(&self.len_bytes))
    }

    /// Bytes of what patches apply to.
    pub(crate) fn patched_bytes(&self) -> u64 {
        self.layout.map_or(self.len_bytes, |(_, len_bytes)| len_bytes)
    }

    /// What patches apply to, if that is not the file itself, whose bytes `read` reads.
    pub(crate) fn laid_out(&self, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
        let Some((layout, len_bytes)) = self.layout else { return Ok(None) };
        let text = layout.apply(&read()?, to_usize(len_bytes));
        match text.filter(|text| text.len() as u64 == len_bytes) {
            Some(text) => Ok(Some(text)),
            None => Err(Error::corrupt("a text that is laid out anew has another length")),
        }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        fields::push_name(meta, &self.name);
        push_varint(meta, self.len_bytes);
        if let Some((layout, len_bytes)) = self.layout {
            layout.push_to(meta);
            push_varint(meta, len_bytes);
        }
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>, has_layout: bool) -> Result<Self> {
        let most = if has_layout { MOST_LAID_OUT } else { MAX_BYTES };
        let name = fields::name(meta)?;
        let len_bytes = fields::within(meta, 1..=most, "length")?;
        let layout = match has_layout {
            true => Some((Layout::parse(meta)?, fields::within(meta, 1..=most, "length")?)),
            false => None,
        };
        Ok(Self { name, len_bytes, layout })
    }
}
