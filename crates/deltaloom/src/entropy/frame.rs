//! zstd frames. Each thread keeps its compressor: making one takes longer than compressing a sample
//! or an index.

use std::cell::RefCell;
use std::io::{self, Read as _};

use zstd::bulk::Compressor;

use crate::error::{Error, Result};

/// One frame with all of `bytes`.
pub fn compress(bytes: &[u8], level: i32) -> io::Result<Vec<u8>> {
    thread_local! {
        static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|kept| {
        let mut compressor = match kept.take() {
            Some(compressor) => compressor,
            None => Compressor::new(level)?,
        };
        compressor.set_compression_level(level)?;
        let frame = compressor.compress(bytes);
        *kept = Some(compressor);
        frame
    })
}

/// All bytes of one frame, at most `limit_bytes`. Memory grows with the bytes that exist, not with
/// what the frame claims.
pub fn decompress(frame: &[u8], limit_bytes: u64) -> Result<Vec<u8>> {
    let bad = |e: io::Error| Error::corrupt(format!("a zstd frame: {e}"));
    let mut out = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(bad)?.single_frame();
    let mut limited = decoder.take(limit_bytes.saturating_add(1));
    limited.read_to_end(&mut out).map_err(bad)?;
    if out.len() as u64 > limit_bytes || !limited.into_inner().finish().is_empty() {
        return Err(Error::corrupt("a zstd frame has trailing bytes"));
    }
    Ok(out)
}
