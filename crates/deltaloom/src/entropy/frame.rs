//! zstd frames, with a compressor that each thread keeps: making one takes longer than compressing a sample or an index.

use std::cell::RefCell;
use std::io;

use zstd::bulk::Compressor;

/// One frame with all of `bytes`.
pub(crate) fn compress(bytes: &[u8], level: i32) -> io::Result<Vec<u8>> {
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
