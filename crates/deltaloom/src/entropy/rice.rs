//! Scales as Rice codes around a base; docs/format.md section 7.
//! Source: R. F. Rice, "Some practical universal noiseless coding techniques", JPL 79-22.

use deltaloom_kernels::bits::{BitReader, BitWriter};

use super::bytes::{ByteReader, push_varint, push_zigzag};
use crate::error::{Error, Result};

const MAX_PARAMETER: u8 = 15;
const MAX_UNARY: u64 = 4096;
/// Largest size of a scale.
pub(crate) const MAX_SCALE: i32 = 100_000;

fn fold(value: i32, base: i32) -> u64 {
    let d = i64::from(value) - i64::from(base);
    ((d << 1) ^ (d >> 63)).cast_unsigned()
}

/// Appends `scales`, each within +-[`MAX_SCALE`].
pub(crate) fn push_scales(out: &mut Vec<u8>, scales: &[i32]) {
    let mut sorted = scales.to_vec();
    sorted.sort_unstable();
    let base = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    let folded: Vec<u64> = scales.iter().map(|&s| fold(s, base)).collect();
    let bits_with = |k: u8| folded.iter().map(|u| (u >> k) + 1 + u64::from(k)).sum::<u64>();
    // 2 * MAX_SCALE >> 7 is below MAX_UNARY.
    let least = if folded.iter().any(|u| *u > MAX_UNARY) { 7 } else { 0 };
    let parameter = (least..=MAX_PARAMETER).min_by_key(|k| bits_with(*k)).unwrap_or(0);
    let mut bits = BitWriter::default();
    for u in folded {
        let mut ones = u >> parameter;
        while ones > 0 {
            let run = ones.min(32) as u32;
            bits.push((1 << run) - 1, run);
            ones -= u64::from(run);
        }
        bits.push(0, 1);
        bits.push(u & ((1 << parameter) - 1), parameter.into());
    }
    let coded = bits.finish();
    push_zigzag(out, i64::from(base));
    out.push(parameter);
    push_varint(out, coded.len() as u64);
    out.extend_from_slice(&coded);
}

/// Reads `count` scales.
pub(crate) fn read_scales(reader: &mut ByteReader<'_>, count: usize) -> Result<Vec<i32>> {
    let bad = || Error::corrupt("scales are not well-formed");
    let base = reader.zigzag()?;
    let parameter = reader.u8()?;
    let length = reader.size()?;
    let coded = reader.take(length)?;
    // A scale takes at least one bit, so the bytes that exist bound the allocation.
    if parameter > MAX_PARAMETER
        || base.unsigned_abs() > u64::from(MAX_SCALE.unsigned_abs())
        || count > length.saturating_mul(8)
    {
        return Err(bad());
    }
    let mut bits = BitReader::new(coded);
    let mut scales = Vec::with_capacity(count);
    for _ in 0..count {
        let mut ones = 0;
        while bits.take(1) == 1 {
            ones += 1;
            if ones > MAX_UNARY {
                return Err(bad());
            }
        }
        let u = ones << parameter | bits.take(parameter.into());
        let value = base + ((u >> 1).cast_signed() ^ -(u & 1).cast_signed());
        let value = i32::try_from(value).ok().filter(|v| v.abs() <= MAX_SCALE).ok_or_else(bad)?;
        scales.push(value);
    }
    bits.finish(0)?;
    Ok(scales)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(scales in prop::collection::vec(prop_oneof![-20..20i32, -MAX_SCALE..=MAX_SCALE], 0..300)) {
            let mut bytes = Vec::new();
            push_scales(&mut bytes, &scales);
            let mut reader = ByteReader::new(&bytes, "test");
            prop_assert_eq!(read_scales(&mut reader, scales.len()).unwrap(), scales);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn hostile_counts_do_not_allocate() {
        let mut bytes = Vec::new();
        push_scales(&mut bytes, &[1, 2, 3]);
        assert!(read_scales(&mut ByteReader::new(&bytes, "test"), usize::MAX).is_err());
    }
}
