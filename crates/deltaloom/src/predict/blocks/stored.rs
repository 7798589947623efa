//! The scales of blocks as a payload of the tensor: those bytes of each block that are not codes,
//! in planes; docs/format.md section 3.9. What chose the scales is not known, so they are data.

use std::ops::Range;

use crate::checkpoint::gguf::BlockKind;
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::entropy::frame;
use crate::error::{Error, Result};
use crate::limits::to_usize;

/// Blocks whose planes are compressed together. A chunk has about a thousand.
pub(crate) const PART_BLOCKS: u64 = 4096;
const LEVEL: i32 = 9;

/// Appends the planes of up to [`PART_BLOCKS`] blocks to a payload.
pub(crate) fn push_part(kind: BlockKind, blocks: &[u8], payload: &mut Vec<u8>) {
    let mut body = Vec::new();
    for at in kind.scale_bytes() {
        let plane: Vec<u8> = blocks.chunks_exact(kind.bytes()).map(|block| block[at]).collect();
        let packed = frame::compress(&plane, LEVEL).ok().filter(|packed| packed.len() < plane.len());
        let is_raw = packed.is_none();
        let stored = packed.unwrap_or(plane);
        push_varint(payload, 2 * stored.len() as u64 + u64::from(is_raw));
        body.extend(stored);
    }
    payload.extend(body);
}

/// The scales of the blocks of a tensor.
#[derive(Debug)]
pub(crate) struct StoredScales {
    kind: BlockKind,
    blocks: u64,
    payload: Vec<u8>,
    /// Where each part starts, in the payload.
    parts: Vec<usize>,
}

impl StoredScales {
    /// Finds the parts of a payload for so many blocks. Each has at least a byte for each plane, so
    /// that memory grows with the bytes that exist.
    pub(crate) fn new(kind: BlockKind, blocks: u64, payload: Vec<u8>) -> Result<Self> {
        let mut parts = Vec::new();
        let mut reader = ByteReader::new(&payload, "the scales of blocks");
        for _ in 0..blocks.div_ceil(PART_BLOCKS) {
            parts.push(payload.len() - reader.clone().rest().len());
            let mut len = 0u64;
            for _ in kind.scale_bytes() {
                len = len.saturating_add(reader.varint()? >> 1);
            }
            reader.take(to_usize(len))?;
        }
        reader.finish()?;
        Ok(Self { kind, blocks, payload, parts })
    }

    /// The planes of some blocks.
    pub(super) fn load(&self, blocks: Range<u64>) -> Result<Loaded> {
        let end = blocks.end.min(self.blocks);
        let mut planes = vec![Vec::new(); self.kind.scale_bytes().count()];
        let parts = blocks.start / PART_BLOCKS..end.div_ceil(PART_BLOCKS);
        for part in parts.clone() {
            let count = to_usize(PART_BLOCKS.min(self.blocks - part * PART_BLOCKS));
            let start = self.parts.get(to_usize(part)).copied().unwrap_or(self.payload.len());
            let mut reader = ByteReader::new(&self.payload[start..], "the scales of blocks");
            let stored = planes.iter().map(|_| reader.varint()).collect::<Result<Vec<u64>>>()?;
            for (plane, stored) in planes.iter_mut().zip(stored) {
                let bytes = reader.take(to_usize(stored >> 1))?;
                let before = plane.len();
                match stored & 1 {
                    1 => plane.extend_from_slice(bytes),
                    _ => plane.extend(frame::decompress(bytes, count as u64)?),
                }
                if plane.len() != before + count {
                    return Err(Error::corrupt("a plane does not have a byte for every block"));
                }
            }
        }
        Ok(Loaded { first: parts.start * PART_BLOCKS, places: self.kind.scale_bytes().collect(), planes })
    }
}

/// The planes of some blocks.
pub(super) struct Loaded {
    first: u64,
    places: Vec<usize>,
    planes: Vec<Vec<u8>>,
}

impl Loaded {
    /// Sets the scales of the block with this number.
    pub(super) fn set(&self, number: u64, block: &mut [u8]) {
        let at = to_usize(number - self.first);
        for (place, plane) in self.places.iter().zip(&self.planes) {
            block[*place] = plane[at];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn scales_are_stored(kind in prop::sample::select(&BlockKind::ALL[..]), count in 1u64..5000, seed in any::<u32>()) {
            let byte = |i: u64| (u64::from(seed) | 1).wrapping_mul(i * i).to_be_bytes()[2] & 0x1f;
            let blocks: Vec<u8> = (0..count * kind.bytes() as u64).map(byte).collect();
            let mut payload = Vec::new();
            for part in blocks.chunks(to_usize(PART_BLOCKS) * kind.bytes()) {
                push_part(kind, part, &mut payload);
            }
            let stored = StoredScales::new(kind, count, payload.clone()).unwrap();
            let first = count / 3;
            let loaded = stored.load(first..count).unwrap();
            for i in first..count {
                let block = &blocks[to_usize(i) * kind.bytes()..][..kind.bytes()];
                let mut restored = block.to_vec();
                kind.scale_bytes().for_each(|at| restored[at] = 0);
                loaded.set(i, &mut restored);
                prop_assert_eq!(&restored[..], block);
            }
            prop_assert!(StoredScales::new(kind, count, payload[..payload.len() - 1].to_vec()).is_err());
            prop_assert!(StoredScales::new(kind, count + PART_BLOCKS, payload).is_err());
        }

        #[test]
        fn any_payload_is_read_or_refused(kind in prop::sample::select(&BlockKind::ALL[..]), bytes in prop::collection::vec(any::<u8>(), 0..100), count in 0u64..9000) {
            if let Ok(stored) = StoredScales::new(kind, count, bytes) {
                // Planes may be broken, which reading them says.
                _ = stored.load(0..count);
            }
        }
    }
}
