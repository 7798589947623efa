//! Rows of a tensor from the rows of its base and what is different in them, as masks and bytes that stand ready in memory: nothing is decoded bit by bit.
//! It copies bits and knows no numbers; where a row's bytes begin is known above.
//!
//! A mask has a bit for every element, the lowest bit of a 64-bit word first; a row begins with a new word.

use crate::isa::per_isa;

/// Elements of a word of a mask.
pub const WORD_ELEMS: usize = 64;

/// Words of a mask of one row.
#[must_use]
pub fn row_words(cols: usize) -> usize {
    cols.div_ceil(WORD_ELEMS)
}

/// Sizes of the rows of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Elements of a row.
    pub cols: usize,
    /// Bytes of an element: 2 or 4.
    pub element_bytes: usize,
}

impl RowShape {
    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(self) -> usize {
        self.cols * self.element_bytes
    }
}

/// Writes rows into `out`: those of `base`, with elements whose bit in `mask` is set taken from `values`, one after another. Returns how many bytes of `values` were taken.
///
/// # Panics
/// When `base`, `out` and `mask` are not of the same number of rows, or `values` ends too early.
pub fn bitmap_rows(shape: RowShape, base: &[u8], mask: &[u64], values: &[u8], out: &mut [u8]) -> usize {
    check(shape, base, mask, out);
    match shape.element_bytes {
        2 => bitmap_2(shape.cols, base, mask, values, out),
        _ => bitmap_4(shape.cols, base, mask, values, out),
    }
}

/// What is different in rows: elements that change get new low bytes; their top byte (sign and the upper bits of the exponent) changes only in some of them.
#[derive(Debug, Clone, Copy)]
pub struct Planes<'a> {
    /// Which elements change.
    pub mask: &'a [u64],
    /// For each element that changes, in order and from the lowest bit of the first word on: whether its top byte changes. Rows follow each other without gaps.
    pub tops: &'a [u64],
    /// The bit of `tops` at which the rows begin.
    pub first_top: usize,
    /// All bytes but the top one of elements that change.
    pub lows: &'a [u8],
    /// Top bytes that change.
    pub highs: &'a [u8],
}

/// As [`bitmap_rows`], from planes. Returns how many bytes of `lows` and of `highs` were taken.
///
/// # Panics
/// As [`bitmap_rows`].
pub fn planes_rows(shape: RowShape, base: &[u8], planes: Planes<'_>, out: &mut [u8]) -> (usize, usize) {
    check(shape, base, planes.mask, out);
    match shape.element_bytes {
        2 => planes_2(shape.cols, base, planes, out),
        _ => planes_4(shape.cols, base, planes, out),
    }
}

fn check(shape: RowShape, base: &[u8], mask: &[u64], out: &[u8]) {
    assert!(shape.cols > 0 && matches!(shape.element_bytes, 2 | 4));
    let rows = base.len() / shape.row_bytes();
    assert!(base.len() == rows * shape.row_bytes() && out.len() == base.len());
    assert_eq!(mask.len(), rows * row_words(shape.cols));
}

per_isa! {
    fn bitmap_2(cols: usize, base: &[u8], mask: &[u64], values: &[u8], out: &mut [u8]) -> usize = bitmap_body::<2>;
}
per_isa! {
    fn bitmap_4(cols: usize, base: &[u8], mask: &[u64], values: &[u8], out: &mut [u8]) -> usize = bitmap_body::<4>;
}
per_isa! {
    fn planes_2(cols: usize, base: &[u8], planes: Planes<'_>, out: &mut [u8]) -> (usize, usize) = planes_body::<2>;
}
per_isa! {
    fn planes_4(cols: usize, base: &[u8], planes: Planes<'_>, out: &mut [u8]) -> (usize, usize) = planes_body::<4>;
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
    let (values, _) = values.as_chunks::<B>();
    let mut taken = 0;
    for_changed::<B>(cols, mask, out, |element| {
        *element = values[taken];
        taken += 1;
    });
    taken * B
}

#[inline(always)]
fn planes_body<const B: usize>(
    cols: usize,
    base: &[u8],
    planes: Planes<'_>,
    out: &mut [u8],
) -> (usize, usize) {
    out.copy_from_slice(base);
    let (mut changed, mut tops) = (0, 0);
    for_changed::<B>(cols, planes.mask, out, |element| {
        element[..B - 1].copy_from_slice(&planes.lows[changed * (B - 1)..][..B - 1]);
        let at = planes.first_top + changed;
        if planes.tops[at / WORD_ELEMS] >> (at % WORD_ELEMS) & 1 == 1 {
            element[B - 1] = planes.highs[tops];
            tops += 1;
        }
        changed += 1;
    });
    (changed * (B - 1), tops)
}

#[inline(always)]
fn for_changed<const B: usize>(
    cols: usize,
    mask: &[u64],
    out: &mut [u8],
    mut change: impl FnMut(&mut [u8; B]),
) {
    for (row, mask) in out.chunks_exact_mut(cols * B).zip(mask.chunks_exact(row_words(cols))) {
        let (elements, _) = row.as_chunks_mut::<B>();
        for (elements, word) in elements.chunks_mut(WORD_ELEMS).zip(mask) {
            let mut word = *word;
            while word != 0 {
                change(&mut elements[word.trailing_zeros() as usize]);
                word &= word - 1;
            }
        }
    }
}
