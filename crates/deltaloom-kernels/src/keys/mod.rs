//! Keys: how many ULPs a weight is expected to move; docs/format.md section 8. A key depends on the
//! exponent of the prediction and the step scales of row and column. The caller decides which table
//! a key uses.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::isa::per_isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};
use crate::number::{by_number, by_size, load};
use crate::{Number, NumberKind};

/// Key steps per octave, that is per step of the exponent.
pub const KEY_STEPS_PER_OCTAVE: i32 = 4;
/// Number of keys; a key selects the table.
pub const KEYS: usize = 256;

/// How the keys of a run of whole rows are computed: `4 E(p) - offset - row scale - column scale`,
/// clamped to 0..=255.
#[derive(Debug, Clone, Copy)]
pub struct KeyRule<'a> {
    /// Bit layout of the elements.
    pub number: Number,
    /// Number of elements of a row.
    pub cols: usize,
    /// Offset of all keys, in quarter octaves.
    pub offset: i32,
    /// One scale per row of the run, or empty.
    pub row_scales: &'a [i32],
    /// One scale per column, or empty.
    pub col_scales: &'a [i32],
}

impl KeyRule<'_> {
    /// Computes the keys of all elements of `prediction`.
    ///
    /// # Panics
    /// If the scales are not empty and their number is not that of the rows or columns.
    pub fn keys(&self, prediction: &[u8], out: &mut [u8]) {
        assert!(self.row_scales.is_empty() || self.row_scales.len() * self.cols == out.len());
        assert!(self.col_scales.is_empty() || self.col_scales.len() == self.cols);
        all_keys(self, prediction, out);
    }

    /// Number of elements that share a row scale: all of `elems` if nothing depends on rows and
    /// columns.
    fn elems_of_row(&self, elems: usize) -> usize {
        let is_matrix = !self.row_scales.is_empty() || !self.col_scales.is_empty();
        if is_matrix { self.cols } else { elems.max(1) }
    }

    /// Computes the keys of the elements of `prediction` at `positions`.
    #[must_use]
    pub fn keys_at(&self, prediction: &[u8], positions: &[u32]) -> Vec<u8> {
        fn run<const B: usize>(rule: &KeyRule<'_>, prediction: &[u8], positions: &[u32]) -> Vec<u8> {
            let exponent = |i: usize| rule.number.exponent(load::<B>(prediction, i));
            if rule.row_scales.is_empty() && rule.col_scales.is_empty() {
                return positions.iter().map(|&i| key(exponent(i as usize), rule.offset)).collect();
            }
            let scale = |scales: &[i32], at: usize| scales.get(at).copied().unwrap_or(0);
            let key_of = |&i: &u32| {
                let i = i as usize;
                let scales = scale(rule.row_scales, i / rule.cols) + scale(rule.col_scales, i % rule.cols);
                key(exponent(i), rule.offset + scales)
            };
            positions.iter().map(key_of).collect()
        }
        by_size!(self.number, run(self, prediction, positions))
    }
}

per_isa! {
    /// Computes keys by a rule whose scales fit.
    fn all_keys(rule: &KeyRule<'_>, prediction: &[u8], out: &mut [u8]) = all_keys_body;
}

#[inline(always)]
fn all_keys_body(rule: &KeyRule<'_>, prediction: &[u8], out: &mut [u8]) {
    let cols = rule.elems_of_row(out.len());
    if rule.number.kind() != NumberKind::Float && rule.row_scales.is_empty() {
        // All rows are alike.
        assert_eq!(prediction.len(), out.len() * rule.number.bytes());
        let (first, rest) = out.split_at_mut(cols.min(out.len()));
        row_keys(rule, 0, rule.col_scales, &prediction[..first.len() * rule.number.bytes()], first);
        rest.chunks_mut(cols).for_each(|row| row.copy_from_slice(&first[..row.len()]));
        return;
    }
    let rows = out.chunks_mut(cols).zip(prediction.chunks(cols * rule.number.bytes()));
    for (row, (out, values)) in rows.enumerate() {
        row_keys(rule, row, rule.col_scales, values, out);
    }
}

/// Computes the keys of a part of a row; `col_scales` starts with the scale of its first element.
#[inline(always)]
fn row_keys(rule: &KeyRule<'_>, row: usize, col_scales: &[i32], values: &[u8], out: &mut [u8]) {
    #[inline(always)]
    fn run<const B: usize>(number: Number, base: i32, col_scales: &[i32], values: &[u8], out: &mut [u8]) {
        let exponents = values.chunks_exact(B).map(|value| number.exponent(load::<B>(value, 0)));
        if col_scales.is_empty() {
            out.iter_mut().zip(exponents).for_each(|(out, e)| *out = key(e, base));
        } else {
            let scaled = exponents.zip(col_scales);
            out.iter_mut().zip(scaled).for_each(|(out, (e, scale))| *out = key(e, base + scale));
        }
    }
    let base = rule.offset + rule.row_scales.get(row).copied().unwrap_or(0);
    assert_eq!(values.len(), out.len() * rule.number.bytes());
    if rule.number.kind() != NumberKind::Float {
        // Integers have no exponents.
        if col_scales.is_empty() {
            out.fill(key(0, base));
        } else {
            out.iter_mut().zip(col_scales).for_each(|(out, scale)| *out = key(0, base + scale));
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx512
        && rule.number.kind() == NumberKind::Float
        && matches!(rule.number.bits(), 16 | 32)
    {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and the length was checked.
        return unsafe {
            match rule.number.bits() {
                16 => avx512::row_keys_16(rule.number, base, col_scales, values, out),
                _ => avx512::row_keys_32(rule.number, base, col_scales, values, out),
            }
        };
    }
    by_number!(rule.number, run(base, col_scales, values, out));
}

/// Replaces every key by its table.
pub fn map_keys(keys: &mut [u8], map: &[u8; KEYS]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => avx512::map_keys(keys, map),
                _ => avx2::map_keys(keys, map),
            }
        };
    }
    keys.iter_mut().for_each(|key| *key = map[usize::from(*key)]);
}

#[inline]
fn key(exponent: u32, shift: i32) -> u8 {
    (KEY_STEPS_PER_OCTAVE * exponent.cast_signed() - shift).clamp(0, 255) as u8
}

/// Number of keys that are computed before they are counted.
const KEY_BLOCK: usize = 1024;

per_isa! {
    /// Adds the pairs (key, symbol) of all elements of `prediction` to
    /// `histogram[key * 256 + symbol]`.
    ///
    /// # Panics
    /// If the slices differ in length, or the histogram does not have `KEYS * 256` counters.
    pub fn count_pairs(rule: &KeyRule<'_>, prediction: &[u8], symbols: &[u8], histogram: &mut [u32]) = count_pairs_body;
}

#[inline(always)]
fn count_pairs_body(rule: &KeyRule<'_>, prediction: &[u8], symbols: &[u8], histogram: &mut [u32]) {
    let size = rule.number.bytes();
    assert_eq!(symbols.len() * size, prediction.len());
    let histogram: &mut [u32; KEYS * 256] = histogram.try_into().expect("a counter per key and symbol");
    let mut keys = [0u8; KEY_BLOCK];
    let cols = rule.elems_of_row(symbols.len());
    let rows = symbols.chunks(cols).zip(prediction.chunks(cols * size));
    for (row, (symbols, values)) in rows.enumerate() {
        let blocks = symbols.chunks(KEY_BLOCK).zip(values.chunks(KEY_BLOCK * size));
        for (block, (symbols, values)) in blocks.enumerate() {
            let keys = &mut keys[..symbols.len()];
            let col_scales = rule.col_scales.get(block * KEY_BLOCK..).unwrap_or_default();
            row_keys(rule, row, col_scales, values, keys);
            for (&key, &symbol) in keys.iter().zip(symbols) {
                histogram[(usize::from(key) << 8) | usize::from(symbol)] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_isa_gives_the_same_keys(
            words in prop::collection::vec(any::<u32>(), 1..150), cols in 1usize..150, offset in -100_000..100_000i32, spread in 0u32..17,
            has_rows in any::<bool>(), has_cols in any::<bool>(),
        ) {
            let elems = (words.len() / cols.min(words.len())) * cols.min(words.len());
            let cols = cols.min(words.len());
            let scale = |i: usize| (words[i % words.len()].cast_signed() >> 15) >> (16 - spread.min(16));
            let row_scales: Vec<i32> = (0..elems / cols).filter(|_| has_rows).map(scale).collect();
            let col_scales: Vec<i32> = (0..cols).filter(|_| has_cols).map(|i| scale(i + 7)).collect();
            for number in [Number::float(8, 7), Number::float(5, 10), Number::float(8, 23), Number::float(4, 3), Number::float(11, 52), Number::signed(8), Number::unsigned(32)] {
                let prediction: Vec<u8> = words[..elems].iter()
                    .flat_map(|w| (u64::from(*w) << 32 | u64::from(*w)).to_le_bytes()[8 - number.bytes()..].to_vec()).collect();
                let offset = if spread > 8 { offset } else { offset / 100 };
                let rule = KeyRule { number, cols, offset, row_scales: &row_scales, col_scales: &col_scales };
                let all: Vec<u32> = (0..u32::try_from(elems).unwrap()).collect();
                let expected = rule.keys_at(&prediction, &all);
                let map: [u8; KEYS] = std::array::from_fn(|key| u8::try_from(key * 7 % 251).unwrap());
                for_each_isa(|isa| {
                    let mut keys = vec![0; elems];
                    rule.keys(&prediction, &mut keys);
                    prop_assert_eq!(&keys, &expected, "{:?} {:?}", number, isa);
                    map_keys(&mut keys, &map);
                    prop_assert!(keys.iter().zip(&expected).all(|(k, e)| *k == map[usize::from(*e)]));
                    Ok(())
                })?;
            }
        }
    }

    #[test]
    fn every_key_is_mapped_at_every_place_of_a_vector() {
        let map: [u8; KEYS] =
            std::array::from_fn(|key| u8::try_from((key * 59 + key / 16 * 3) % 256).unwrap());
        for first in 0..=255u8 {
            for len in [first.into(), 31, 32, 33, 64, 96] {
                let keys: Vec<u8> = (0..=255u8).map(|i| first.wrapping_add(i)).take(len).collect();
                let expected: Vec<u8> = keys.iter().map(|key| map[usize::from(*key)]).collect();
                for_each_isa(|isa| {
                    let mut keys = keys.clone();
                    map_keys(&mut keys, &map);
                    assert_eq!(keys, expected, "{first} {len} {isa:?}");
                    Ok::<_, ()>(())
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn keys_follow_exponent_and_scales() {
        let rule = KeyRule {
            number: Number::float(8, 7),
            cols: 2,
            offset: 400,
            row_scales: &[0, 4],
            col_scales: &[0, -8],
        };
        let prediction: Vec<u8> =
            [0x3f80u16, 0x3f80, 0x3f80, 0x0000].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut keys = [0; 4];
        rule.keys(&prediction, &mut keys);
        assert_eq!(keys, [108, 116, 104, 0]);
        assert_eq!(rule.keys_at(&prediction, &[1, 2]), [116, 104]);
    }
}
