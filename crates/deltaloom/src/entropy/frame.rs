//! zstd frames. Each thread keeps its compressor: making one takes longer than compressing a sample
//! or an index.

use std::cell::RefCell;
use std::io::{self, Read as _};

use zstd::bulk::Compressor;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use crate::error::{Error, Result};
use crate::scratch::Scratch;

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

/// One frame with all of `bytes`, which may refer to any part of `prefix`.
pub(crate) fn compress_against(prefix: &[u8], bytes: &[u8], level: i32) -> Option<Vec<u8>> {
    // zstd codes bytes that lie right behind the prefix in memory in another way. The byte before
    // them keeps them apart, so that the frame does not depend on addresses.
    let mut apart = Scratch::of_len(1 + bytes.len());
    apart[1..].copy_from_slice(bytes);
    let window_log = (prefix.len() + bytes.len()).next_power_of_two().ilog2().clamp(10, 27);
    let mut context = CCtx::create();
    context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
    context.set_parameter(CParameter::WindowLog(window_log)).ok()?;
    context.ref_prefix(prefix).ok()?;
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    context.compress2(&mut frame, &apart[1..]).ok()?;
    Some(frame)
}

/// Fills `out` with all bytes of one frame that may refer to `prefix`.
pub(crate) fn decompress_against(prefix: &[u8], frame: &[u8], out: &mut [u8]) -> Result<()> {
    let bad = |code| Error::corrupt(format!("a patch: {}", zstd_safe::get_error_name(code)));
    if zstd_safe::find_frame_compressed_size(frame).map_err(bad)? != frame.len() {
        return Err(Error::corrupt("a patch has trailing bytes"));
    }
    let mut context = DCtx::create();
    context.ref_prefix(prefix).map_err(bad)?;
    if context.decompress(out, frame).map_err(bad)? != out.len() {
        return Err(Error::corrupt("a patch does not have the length of its chunk"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_does_not_depend_on_where_its_bytes_are() {
        let bytes: Vec<u8> = (0..60_000u32).map(|i| (i * i % 253).to_le_bytes()[0]).collect();
        let (prefix, target) = bytes.split_at(30_000);
        let adjacent = compress_against(prefix, target, 9).unwrap();
        let own = [prefix.to_vec(), target.to_vec()];
        assert_eq!(adjacent, compress_against(&own[0], &own[1], 9).unwrap());
        let mut out = vec![0; target.len()];
        decompress_against(prefix, &adjacent, &mut out).unwrap();
        assert_eq!(out, target);
        assert!(decompress_against(prefix, &adjacent, &mut out[1..]).is_err());
        assert!(decompress_against(prefix, &[&adjacent[..], &adjacent[..]].concat(), &mut out).is_err());
    }
}
