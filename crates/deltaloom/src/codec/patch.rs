//! Patches: chunks of files as zstd frames that refer to a part of a file of a base; docs/format.md
//! section 17.
//! It does not choose the part.

use std::ops::Range;

use crate::entropy::bytes::{ByteReader, push_varint};
use crate::entropy::frame;
use crate::error::{Error, Result};
use crate::scratch::Bytes;

/// Bytes of the reference that a chunk may refer to.
pub(crate) const MOST_PREFIX_BYTES: u64 = 8 << 20;

/// The payload of a chunk, if zstd has one. `prefix` are the bytes of the reference from `start`
/// on.
pub(crate) fn encode(prefix: &[u8], start: u64, target: &[u8], level: i32) -> Option<Vec<u8>> {
    let frame = frame::compress_against(prefix, target, level)?;
    let mut payload = Vec::with_capacity(frame.len() + 16);
    push_varint(&mut payload, start);
    push_varint(&mut payload, prefix.len() as u64);
    payload.extend_from_slice(&frame);
    Some(payload)
}

/// Fills `out` with a chunk. `read` reads the reference, which has `reference_bytes` bytes.
pub(crate) fn decode<'a>(
    payload: &[u8],
    reference_bytes: u64,
    read: impl FnOnce(Range<u64>) -> Result<Bytes<'a>>,
    out: &mut [u8],
) -> Result<()> {
    let mut reader = ByteReader::new(payload, "a patch");
    let (start, len_bytes) = (reader.varint()?, reader.varint()?);
    let end = start.checked_add(len_bytes).filter(|end| *end <= reference_bytes);
    match end.filter(|_| len_bytes <= MOST_PREFIX_BYTES) {
        Some(end) => frame::decompress_against(&read(start..end)?, reader.rest(), out),
        None => Err(Error::corrupt("a patch refers to bytes that its reference does not have")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::to_usize;

    #[test]
    fn parts_that_the_reference_does_not_have_are_refused() {
        let reference: Vec<u8> = (0..1000u32).map(|i| (i * i % 251).to_le_bytes()[0]).collect();
        let target = [&reference[700..900], b"new", &reference[600..800]].concat();
        let payload = encode(&reference[600..1000], 600, &target, 9).unwrap();
        assert!(payload.len() < 60, "{}", payload.len());
        let mut out = vec![0; target.len()];
        let mut decoded = |payload: &[u8], bytes: u64| {
            let read = |range: Range<u64>| {
                assert!(range.end <= bytes, "only bytes that exist are read");
                Ok(Bytes::Read(reference[to_usize(range.start)..to_usize(range.end)].to_vec().into()))
            };
            decode(payload, bytes, read, &mut out).map(|()| out.clone())
        };
        assert_eq!(decoded(&payload, 1000).unwrap(), target);
        assert!(decoded(&payload, 999).is_err() && decoded(&[&payload[..], &[0]].concat(), 1000).is_err());
        for cut in 0..payload.len() {
            assert!(decoded(&payload[..cut], 1000).is_err(), "{cut}");
        }
        let with = |start: u64, len_bytes: u64| {
            let mut fields = Vec::new();
            push_varint(&mut fields, start);
            push_varint(&mut fields, len_bytes);
            fields.extend_from_slice(&payload[4..]);
            fields
        };
        assert_eq!(with(600, 400), payload);
        assert!(decoded(&with(u64::MAX, 2), 1000).is_err() && decoded(&with(0, u64::MAX), 1000).is_err());
        assert!(decode(&with(0, MOST_PREFIX_BYTES + 1), u64::MAX, |_| unreachable!(), &mut [0]).is_err());
    }
}
