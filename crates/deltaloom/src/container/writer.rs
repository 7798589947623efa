//! Writes a container in one pass: head, payloads in order, index, trailer.
//! It does not know where it writes to; see [`crate::checkpoint::output`].

use std::io::{self, Write};

use crate::entropy::frame;

use super::ends::{self, HEAD_BYTES, Trailer};
use super::index::{Index, PayloadEntry};
use super::layout;

/// A container being written.
pub(crate) struct ContainerWriter<W: Write> {
    out: io::BufWriter<W>,
    head: [u8; 16],
    offset: u64,
}

/// Sizes of a finished container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WrittenBytes {
    pub(crate) total: u64,
    pub(crate) payloads: u64,
}

/// Small payloads are collected up to this size. Larger ones are written directly.
const BUFFER_BYTES: usize = 64 << 10;

impl<W: Write> ContainerWriter<W> {
    /// Begins a container. `version` must be that of its index.
    pub(crate) fn new(out: W, version: u16) -> io::Result<Self> {
        let mut out = io::BufWriter::with_capacity(BUFFER_BYTES, out);
        let head = ends::head(version);
        out.write_all(&head)?;
        Ok(Self { out, head, offset: HEAD_BYTES })
    }

    /// Appends a payload and returns its entry.
    pub(crate) fn push(&mut self, payload: &[u8], crc: u32) -> io::Result<PayloadEntry> {
        self.out.write_all(payload)?;
        let entry = PayloadEntry { offset: self.offset, len_bytes: payload.len(), crc };
        self.offset += payload.len() as u64;
        Ok(entry)
    }

    /// Writes the index, compressed at `zstd_level`, and the trailer.
    pub(crate) fn finish(mut self, index: &Index, zstd_level: i32) -> io::Result<WrittenBytes> {
        let parts = layout::serialise(index);
        let meta = frame::compress(&parts.meta, zstd_level)?;
        let tables = frame::compress(&parts.tables, zstd_level)?;
        let stored = [&meta[..], &tables, &parts.checks].concat();
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len())
                .map_err(|_| io::Error::other("the index is too large for the container"))
        };
        let trailer = Trailer {
            index_offset: self.offset,
            meta_packed: length(&meta)?,
            meta_len: length(&parts.meta)?,
            tables_packed: length(&tables)?,
            tables_len: length(&parts.tables)?,
            checks_len: length(&parts.checks)?,
            index_crc: ends::index_crc(Some(&self.head), &stored),
        };
        let end = trailer.to_bytes();
        self.out.write_all(&stored)?;
        self.out.write_all(&end)?;
        self.out.flush()?;
        let total = self.offset + (stored.len() + end.len()) as u64;
        Ok(WrittenBytes { total, payloads: self.offset - HEAD_BYTES })
    }
}
