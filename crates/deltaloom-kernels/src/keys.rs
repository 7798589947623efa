//! Keys: how many ULPs a weight is expected to move, from the exponent of its prediction and the step scales of its row and column; docs/format.md section 8.
//! Which table serves a key is the caller's.

use crate::Number;
use crate::isa::per_isa;
use crate::number::{by_number, by_size, load};

/// Quarter octaves of an exponent step in a key.
pub const KEY_STEPS_PER_OCTAVE: i32 = 4;
/// Number of keys; a key picks the table.
pub const KEYS: usize = 256;

/// How the keys of a run of whole rows are computed: `4 E(p) - offset - row scale - column scale`, clamped to 0..=255.
#[derive(Debug, Clone, Copy)]
pub struct KeyRule<'a> {
    /// Bit layout of the elements.
    pub number: Number,
    /// Elements of a row.
    pub cols: usize,
    /// Offset of all keys, in quarter octaves.
    pub offset: i32,
    /// One scale per row of the run, or empty.
    pub row_scales: &'a [i32],
    /// One scale per column, or empty.
    pub col_scales: &'a [i32],
}

impl KeyRule<'_> {
    /// Keys of all elements of `prediction`.
    ///
    /// # Panics
    /// When scales are given and their number is not that of the rows or columns.
    pub fn keys(&self, prediction: &[u8], out: &mut [u8]) {
        assert!(self.row_scales.is_empty() || self.row_scales.len() * self.cols == out.len());
        assert!(self.col_scales.is_empty() || self.col_scales.len() == self.cols);
        all_keys(self, prediction, out);
    }

    /// Keys of the elements of `prediction` at `positions`.
    #[must_use]
    pub fn keys_at(&self, prediction: &[u8], positions: &[u32]) -> Vec<u8> {
        fn run<const B: usize>(rule: &KeyRule<'_>, prediction: &[u8], positions: &[u32]) -> Vec<u8> {
            let scale = |scales: &[i32], at: usize| scales.get(at).copied().unwrap_or(0);
            let key_of = |&i: &u32| {
                let i = i as usize;
                let scales = scale(rule.row_scales, i / rule.cols) + scale(rule.col_scales, i % rule.cols);
                key(rule.number.exponent(load::<B>(prediction, i)), rule.offset + scales)
            };
            positions.iter().map(key_of).collect()
        }
        by_size!(self.number, run(self, prediction, positions))
    }
}

per_isa! {
    /// Keys by a rule whose scales fit.
    pub(crate) fn all_keys(rule: &KeyRule<'_>, prediction: &[u8], out: &mut [u8]) = all_keys_body;
}

#[inline(always)]
fn all_keys_body(rule: &KeyRule<'_>, prediction: &[u8], out: &mut [u8]) {
    let rows = out.chunks_mut(rule.cols).zip(prediction.chunks(rule.cols * rule.number.bytes()));
    for (row, (out, values)) in rows.enumerate() {
        row_keys(rule, row, rule.col_scales, values, out);
    }
}

/// Keys of a part of a row; `col_scales` starts with that of its first element.
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
    by_number!(rule.number, run(base, col_scales, values, out));
}

/// Replaces every key by its table.
pub fn map_keys(keys: &mut [u8], map: &[u8; KEYS]) {
    keys.iter_mut().for_each(|key| *key = map[usize::from(*key)]);
}

#[inline]
fn key(exponent: u32, shift: i32) -> u8 {
    (KEY_STEPS_PER_OCTAVE * exponent.cast_signed() - shift).clamp(0, 255) as u8
}

/// Keys that are computed before they are counted.
const KEY_BLOCK: usize = 1024;

per_isa! {
    /// Adds the pairs (key, symbol) of all elements of `prediction` to `histogram[key * 256 + symbol]`.
    ///
    /// # Panics
    /// When the slices differ in length or the histogram has not `KEYS * 256` counters.
    pub fn count_pairs(rule: &KeyRule<'_>, prediction: &[u8], symbols: &[u8], histogram: &mut [u32]) = count_pairs_body;
}

#[inline(always)]
fn count_pairs_body(rule: &KeyRule<'_>, prediction: &[u8], symbols: &[u8], histogram: &mut [u32]) {
    let size = rule.number.bytes();
    assert_eq!(symbols.len() * size, prediction.len());
    let histogram: &mut [u32; KEYS * 256] = histogram.try_into().expect("a counter per key and symbol");
    let mut keys = [0u8; KEY_BLOCK];
    let rows = symbols.chunks(rule.cols).zip(prediction.chunks(rule.cols * size));
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
