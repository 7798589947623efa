//! Builds rows of a tensor from the rows of its base and the differences, which are masks and bytes
//! in memory. Nothing is decoded bit by bit.
//!
//! It copies bits and knows no numbers; the caller knows where a row's bytes begin.
//!
//! A mask has a bit for every element, the lowest bit of a 64-bit word first. A row begins with a
//! new word.

#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};

/// Number of elements per word of a mask.
pub const WORD_ELEMS: usize = 64;

/// Number of words in the mask of one row.
#[must_use]
pub fn row_words(cols: usize) -> usize {
    cols.div_ceil(WORD_ELEMS)
}

/// Size of the rows of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Number of elements of a row.
    pub cols: usize,
    /// Bytes of an element: 2 or 4.
    pub element_bytes: usize,
}

impl RowShape {
    /// Number of bytes of a row.
    #[must_use]
    pub fn row_bytes(self) -> usize {
        self.cols * self.element_bytes
    }
}

/// Copies the rows of `base` to `out` and replaces the elements whose bit in `mask` is set by
/// `values`, one after another. Returns how many bytes of `values` were used.
///
/// # Panics
/// If `base`, `out` and `mask` do not have the same number of rows, a bit is set past the last
/// element of a row, or `values` ends too early.
pub fn bitmap_rows(shape: RowShape, base: &[u8], mask: &[u64], values: &[u8], out: &mut [u8]) -> usize {
    check(shape, base, mask, out);
    match shape.element_bytes {
        2 => bitmap_of::<2>(shape.cols, base, mask, values, out),
        _ => bitmap_of::<4>(shape.cols, base, mask, values, out),
    }
}

/// The differences of rows. Changed elements get new low bytes; their top byte (sign and the upper
/// bits of the exponent) changes in only some of them.
#[derive(Debug, Clone, Copy)]
pub struct Planes<'a> {
    /// Which elements change.
    pub mask: &'a [u64],
    /// For each changed element, in order and from the lowest bit of the first word on: whether its
    /// top byte changes. Rows follow each other without gaps.
    pub tops: &'a [u64],
    /// The bit of `tops` at which these rows begin.
    pub first_top: usize,
    /// All bytes but the top one of the changed elements.
    pub lows: &'a [u8],
    /// The new top bytes.
    pub highs: &'a [u8],
}

/// As [`bitmap_rows`], from planes. Returns how many bytes of `lows` and of `highs` were used.
///
/// # Panics
/// As [`bitmap_rows`], and if `lows`, `highs` or `tops` end too early.
pub fn planes_rows(shape: RowShape, base: &[u8], planes: Planes<'_>, out: &mut [u8]) -> (usize, usize) {
    check(shape, base, planes.mask, out);
    match shape.element_bytes {
        2 => planes_of::<2>(shape.cols, base, planes, out),
        _ => planes_of::<4>(shape.cols, base, planes, out),
    }
}

fn check(shape: RowShape, base: &[u8], mask: &[u64], out: &[u8]) {
    assert!(shape.cols > 0 && matches!(shape.element_bytes, 2 | 4));
    let rows = base.len() / shape.row_bytes();
    assert!(base.len() == rows * shape.row_bytes() && out.len() == base.len());
    assert_eq!(mask.len(), rows * row_words(shape.cols));
}

/// Patches elements of `B` bytes on the instruction set in use.
fn bitmap_of<const B: usize>(cols: usize, base: &[u8], mask: &[u64], values: &[u8], out: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and lengths have been checked.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => avx512::bitmap::<B>(cols, base, mask, values, out),
                _ => bitmap_avx2::<B>(cols, base, mask, values, out),
            }
        };
    }
    bitmap_body::<B>(cols, base, mask, values, out)
}

/// As [`bitmap_of`].
fn planes_of<const B: usize>(cols: usize, base: &[u8], planes: Planes<'_>, out: &mut [u8]) -> (usize, usize) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and lengths have been checked.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => avx512::planes::<B>(cols, base, planes, out),
                _ => planes_avx2::<B>(cols, base, planes, out),
            }
        };
    }
    planes_body::<B>(cols, base, planes, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn bitmap_avx2<const B: usize>(
    cols: usize,
    base: &[u8],
    mask: &[u64],
    values: &[u8],
    out: &mut [u8],
) -> usize {
    bitmap_body::<B>(cols, base, mask, values, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn planes_avx2<const B: usize>(
    cols: usize,
    base: &[u8],
    planes: Planes<'_>,
    out: &mut [u8],
) -> (usize, usize) {
    planes_body::<B>(cols, base, planes, out)
}

#[inline(always)]
fn bitmap_body<const B: usize>(
    cols: usize,
    base: &[u8],
    mask: &[u64],
    values: &[u8],
    out: &mut [u8],
) -> usize {
    out.copy_from_slice(base);
    let mut taken = 0;
    for_pieces::<B>(cols, mask, out, |elements, changed| {
        let (values, _) = values[taken..][..B * changed.len()].as_chunks::<B>();
        changed.iter().zip(values).for_each(|(at, value)| elements[usize::from(*at)] = *value);
        taken += B * changed.len();
    });
    taken
}

#[inline(always)]
fn planes_body<const B: usize>(
    cols: usize,
    base: &[u8],
    planes: Planes<'_>,
    out: &mut [u8],
) -> (usize, usize) {
    out.copy_from_slice(base);
    let (mut low, mut high, mut top) = (0, 0, planes.first_top);
    for_pieces::<B>(cols, planes.mask, out, |elements, changed| {
        let lows = planes.lows[low..][..(B - 1) * changed.len()].chunks_exact(B - 1);
        changed
            .iter()
            .zip(lows)
            .for_each(|(at, low)| elements[usize::from(*at)][..B - 1].copy_from_slice(low));
        low += (B - 1) * changed.len();
        let mut words = [0; PIECE];
        let mut found = Found::default();
        let tops = words.iter_mut().zip(changed.chunks(WORD_ELEMS));
        let used = tops.map(|(word, changed)| {
            *word = bits_at(planes.tops, top, changed.len());
            top += changed.len();
        });
        let used = used.count();
        let tops = found.bits_of(&words[..used]);
        let highs = &planes.highs[high..][..tops.len()];
        for (at, high) in tops.iter().zip(highs) {
            elements[usize::from(changed[usize::from(*at)])][B - 1] = *high;
        }
        high += tops.len();
    });
    (low, high)
}

/// Number of words of a mask that are processed together.
const PIECE: usize = 32;

/// Calls `change` with the elements of each piece of a row and the positions of those that change.
#[inline(always)]
fn for_pieces<const B: usize>(
    cols: usize,
    mask: &[u64],
    out: &mut [u8],
    mut change: impl FnMut(&mut [[u8; B]], &[u16]),
) {
    let mut found = Found::default();
    for (row, mask) in out.chunks_exact_mut(cols * B).zip(mask.chunks_exact(row_words(cols))) {
        let (elements, _) = row.as_chunks_mut::<B>();
        for (elements, words) in elements.chunks_mut(PIECE * WORD_ELEMS).zip(mask.chunks(PIECE)) {
            change(elements, found.bits_of(words));
        }
    }
}

/// Positions of set bits.
struct Found([u16; PIECE * WORD_ELEMS + Self::AT_ONCE]);

impl Default for Found {
    fn default() -> Self {
        Self([0; PIECE * WORD_ELEMS + Self::AT_ONCE])
    }
}

impl Found {
    /// Positions that are written before checking whether there are that many. Most words of a
    /// sparse mask have fewer, so the branch is easy to predict.
    const AT_ONCE: usize = 4;

    #[inline(always)]
    fn bits_of(&mut self, words: &[u64]) -> &[u16] {
        let mut count = 0;
        for (word, first) in words.iter().zip((0u16..).step_by(WORD_ELEMS)) {
            let (mut left, end) = (*word, count + word.count_ones() as usize);
            while count < end {
                for place in self.0[count..].iter_mut().take(Self::AT_ONCE) {
                    // The remainder matters only past the last bit.
                    *place = first + (left.trailing_zeros() % 64) as u16;
                    left &= left.wrapping_sub(1);
                }
                count += Self::AT_ONCE;
            }
            count = end;
        }
        &self.0[..count]
    }
}

/// Reads `count` bits, up to 64, of a list of words from bit `first` on.
///
/// # Panics
/// If the list has fewer bits.
#[inline(always)]
fn bits_at(words: &[u64], first: usize, count: usize) -> u64 {
    if count == 0 {
        return 0;
    }
    let (word, shift) = (first / WORD_ELEMS, first % WORD_ELEMS);
    let mut bits = words[word] >> shift;
    if shift + count > WORD_ELEMS {
        bits |= words[word + 1] << (WORD_ELEMS - shift);
    }
    if count < WORD_ELEMS { bits & ((1 << count) - 1) } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    /// A base, its changes, and the expected result.
    #[derive(Debug)]
    struct Case {
        shape: RowShape,
        base: Vec<u8>,
        mask: Vec<u64>,
        values: Vec<u8>,
        lows: Vec<u8>,
        highs: Vec<u8>,
        tops: Vec<u64>,
        first_top: usize,
        from_values: Vec<u8>,
        from_planes: Vec<u8>,
    }

    fn case(
        rows: usize,
        cols: usize,
        element_bytes: usize,
        of_256: [u64; 2],
        first_top: usize,
        seed: u64,
    ) -> Case {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 40
        };
        let shape = RowShape { cols, element_bytes };
        let base: Vec<u8> = (0..rows * shape.row_bytes()).map(|_| next().to_le_bytes()[0]).collect();
        let mut made = Case {
            shape,
            mask: vec![0; rows * row_words(cols)],
            values: Vec::new(),
            lows: Vec::new(),
            highs: Vec::new(),
            tops: (0..first_top.div_ceil(64)).map(|_| u64::MAX).collect(),
            first_top,
            from_values: base.clone(),
            from_planes: base.clone(),
            base,
        };
        if !first_top.is_multiple_of(64) {
            *made.tops.last_mut().unwrap() = (1 << (first_top % 64)) - 1;
        }
        let mut top = first_top;
        for i in 0..rows * cols {
            if next() % 256 >= of_256[0] {
                continue;
            }
            let (row, col, at) = (i / cols, i % cols, i * element_bytes);
            made.mask[row * row_words(cols) + col / 64] |= 1 << (col % 64);
            let value =
                &next().to_le_bytes()[..element_bytes].iter().map(|b| b ^ 0x5a).collect::<Vec<_>>()[..];
            let (low, high) = value.split_at(element_bytes - 1);
            made.values.extend(value);
            made.from_values[at..at + element_bytes].copy_from_slice(value);
            made.lows.extend(low);
            made.from_planes[at..at + element_bytes - 1].copy_from_slice(low);
            if top.is_multiple_of(64) {
                made.tops.push(0);
            }
            if next() % 256 < of_256[1] {
                *made.tops.last_mut().unwrap() |= 1 << (top % 64);
                made.highs.extend(high);
                made.from_planes[at + element_bytes - 1] = high[0];
            }
            top += 1;
        }
        made
    }

    impl Case {
        fn planes(&self) -> Planes<'_> {
            Planes {
                mask: &self.mask,
                tops: &self.tops,
                first_top: self.first_top,
                lows: &self.lows,
                highs: &self.highs,
            }
        }
    }

    proptest! {
        #[test]
        fn rows_are_those_of_an_obvious_loop(
            rows in 0usize..5, cols in prop_oneof![1usize..300, Just(64), Just(128), 2000usize..2200], wide in any::<bool>(),
            density in prop_oneof![Just(0u64), Just(256), 1u64..12, 0u64..257], top_density in prop_oneof![Just(0u64), Just(256), 0u64..257], first_top in 0usize..200, behind in 0usize..200, seed in any::<u64>(),
        ) {
            let mut case = case(rows, cols, if wide { 4 } else { 2 }, [density, top_density], first_top, seed);
            let taken = (case.values.len(), case.lows.len(), case.highs.len());
            // These belong to the rows that follow.
            for list in [&mut case.values, &mut case.lows, &mut case.highs] {
                list.extend(vec![0xee; behind]);
            }
            for_each_isa(|isa| {
                let mut out = vec![0xcc; case.base.len()];
                prop_assert_eq!(bitmap_rows(case.shape, &case.base, &case.mask, &case.values, &mut out), taken.0, "{:?}", isa);
                prop_assert!(out == case.from_values, "{:?}", isa);
                out.fill(0xcc);
                prop_assert_eq!(planes_rows(case.shape, &case.base, case.planes(), &mut out), (taken.1, taken.2), "{:?}", isa);
                prop_assert!(out == case.from_planes, "{:?}", isa);
                Ok(())
            })?;
        }

        #[test]
        fn what_ends_too_early_or_lies_outside_panics(
            rows in 1usize..4, cols in 1usize..400, wide in any::<bool>(), density in 1u64..257, what in 0..6, seed in any::<u64>(),
        ) {
            let mut case = case(rows, cols, if wide { 4 } else { 2 }, [density, 200], 5, seed);
            prop_assume!(!case.highs.is_empty() && cols % 64 != 0);
            for_each_isa(|isa| {
                let mut out = vec![0; case.base.len()];
                match what {
                    0 => drop(case.values.pop()),
                    1 => drop(case.lows.pop()),
                    2 => drop(case.highs.pop()),
                    3 => drop(case.tops.pop()),
                    4 => *case.mask.last_mut().unwrap() |= 1 << 63,
                    _ => drop(case.mask.pop()),
                }
                let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match what {
                    0 => drop(bitmap_rows(case.shape, &case.base, &case.mask, &case.values, &mut out)),
                    _ => drop(planes_rows(case.shape, &case.base, case.planes(), &mut out)),
                }));
                prop_assert!(all.is_err(), "{:?}", isa);
                Ok(())
            })?;
        }
    }
}
