//! Magnitudes relative to the magnitude that prediction, row and column lead us to expect;
//! docs/format.md section 9.1. Estimating the expectation is not done here.

use crate::Number;
use crate::NumberKind;
use crate::isa::per_isa;
use crate::number::{by_number, load, store};

/// Steps per octave of an expected magnitude, as a power of two.
pub const STEPS_LOG2: u32 = 3;
/// Levels per step: logarithms of magnitudes are measured more finely than they are used.
pub const LEVELS_PER_STEP: i32 = 1 << (LEVELS_LOG2 - STEPS_LOG2);
const LEVELS_LOG2: u32 = 8;
/// A slope of one.
pub const UNIT_SLOPE: i32 = 16;

/// The expected magnitudes of a run of whole rows: `slope / 16` times the magnitude of the
/// prediction, plus offset, row scale and column scale. All are logarithms in eighths of an octave.
#[derive(Debug, Clone, Copy)]
pub struct Expectation<'a> {
    number: Number,
    cols: usize,
    slope: i32,
    offset: i32,
    row_scales: &'a [i32],
    col_scales: &'a [i32],
}

impl<'a> Expectation<'a> {
    /// Creates an expectation. Scales are one per row of the run and one per column, or empty.
    /// `None` if docs/format.md does not allow the number type.
    ///
    /// # Panics
    /// If the number of column scales differs from the number of columns.
    #[must_use]
    pub fn new(
        number: Number,
        cols: usize,
        slope: u8,
        offset: i32,
        row_scales: &'a [i32],
        col_scales: &'a [i32],
    ) -> Option<Self> {
        assert!(col_scales.is_empty() || col_scales.len() == cols);
        let allowed = number.kind() == NumberKind::Float && number.mantissa_bits() >= STEPS_LOG2;
        allowed.then_some(Self { number, cols, slope: slope.into(), offset, row_scales, col_scales })
    }

    /// Writes the elements of `target` with magnitudes relative to the expected ones.
    ///
    /// # Panics
    /// If the slices differ in length, or their rows are not those with scales.
    pub fn subtract(&self, target: &[u8], prediction: &[u8], out: &mut [u8]) {
        self.check(target, prediction);
        out.copy_from_slice(target);
        subtract(self, prediction, out);
    }

    /// Turns predictions into elements, with the output of [`Self::subtract`].
    ///
    /// # Panics
    /// As [`Self::subtract`].
    pub fn add(&self, relative: &[u8], values: &mut [u8]) {
        self.check(relative, values);
        add(self, relative, values);
    }

    fn check(&self, one: &[u8], other: &[u8]) {
        assert_eq!(one.len(), other.len());
        assert!(
            self.row_scales.is_empty()
                || self.row_scales.len() * self.cols * self.number.bytes() == one.len()
        );
    }

    /// Number of elements that share a row scale: all of `elems` if nothing depends on rows and
    /// columns.
    fn elems_of_row(&self, elems: usize) -> usize {
        let is_matrix = !self.row_scales.is_empty() || !self.col_scales.is_empty();
        if is_matrix { self.cols } else { elems.max(1) }
    }

    /// The part of the expectation that all elements of a row share.
    fn of_row(&self, row: usize) -> i32 {
        self.offset + self.row_scales.get(row).copied().unwrap_or(0)
    }
}

per_isa! {
    /// Logarithms of the magnitudes of floats in 1/256 octaves, from an arbitrary origin, and 0 for
    /// zeros. For estimates only.
    pub fn levels(number: Number, values: &[u8], out: &mut [i32]) = levels_body;
}

#[inline(always)]
fn levels_body(number: Number, values: &[u8], out: &mut [i32]) {
    #[inline(always)]
    fn run<const B: usize>(number: Number, values: &[u8], out: &mut [i32]) {
        let mantissa_bits = number.mantissa_bits();
        let (right, left) =
            (mantissa_bits.saturating_sub(LEVELS_LOG2), LEVELS_LOG2.saturating_sub(mantissa_bits));
        for (out, value) in out.iter_mut().zip(values.chunks_exact(B)) {
            let magnitude = load::<B>(value, 0) & (number.top_bit() - 1);
            #[expect(clippy::cast_possible_truncation, reason = "at most 2048 octaves of 256 levels")]
            let level = (magnitude >> right << left) as i32;
            *out = level;
        }
    }
    by_number!(number, run(values, out));
}

/// The expected magnitude of an element, as the bits of a magnitude.
#[inline(always)]
fn expected(number: Number, slope: i32, base: i32, prediction: u64) -> u64 {
    let unit = number.mantissa_bits() - STEPS_LOG2;
    #[expect(clippy::cast_possible_truncation, reason = "at most 2048 octaves of 8 steps")]
    let steps = ((prediction & (number.top_bit() - 1)) >> unit) as i32;
    let mask = (1 << (number.exponent_bits() + STEPS_LOG2)) - 1;
    u64::from((((slope * steps) >> 4) + base).cast_unsigned() & mask) << unit
}

/// A zero stays zero, and a number that would become zero uses the code that this leaves free.
#[inline(always)]
fn relative(number: Number, x: u64, expected: u64) -> u64 {
    let mask = number.top_bit() - 1;
    let magnitude = x & mask;
    let difference = magnitude.wrapping_sub(expected) & mask;
    let moved = if difference == 0 { expected.wrapping_neg() & mask } else { difference };
    x & number.top_bit() | if magnitude == 0 { 0 } else { moved }
}

/// Inverse of [`relative`].
#[inline(always)]
fn absolute(number: Number, x: u64, expected: u64) -> u64 {
    let mask = number.top_bit() - 1;
    let magnitude = x & mask;
    let sum = magnitude.wrapping_add(expected) & mask;
    let moved = if sum == 0 { expected } else { sum };
    x & number.top_bit() | if magnitude == 0 { 0 } else { moved }
}

per_isa! {
    /// [`Expectation::subtract`] in place.
    fn subtract(rule: &Expectation<'_>, prediction: &[u8], values: &mut [u8]) = subtract_body;
}

per_isa! {
    /// [`Expectation::add`].
    fn add(rule: &Expectation<'_>, coded: &[u8], values: &mut [u8]) = add_body;
}

/// Calls `f` with each element of `values`, its counterpart in `others`, and the base of its row
/// and column.
#[inline(always)]
fn each_element<const B: usize>(
    rule: &Expectation<'_>,
    values: &mut [u8],
    others: &[u8],
    mut f: impl FnMut(&mut [u8], &[u8], i32),
) {
    let row_bytes = rule.elems_of_row(values.len()) * B;
    for (row, (values, others)) in values.chunks_mut(row_bytes).zip(others.chunks(row_bytes)).enumerate() {
        let base = rule.of_row(row);
        let pairs = values.chunks_exact_mut(B).zip(others.chunks_exact(B));
        if rule.col_scales.is_empty() {
            pairs.for_each(|(value, other)| f(value, other, base));
        } else {
            pairs.zip(rule.col_scales).for_each(|((value, other), col)| f(value, other, base + col));
        }
    }
}

#[inline(always)]
fn subtract_body(rule: &Expectation<'_>, prediction: &[u8], values: &mut [u8]) {
    #[inline(always)]
    fn run<const B: usize>(number: Number, rule: &Expectation<'_>, predictions: &[u8], values: &mut [u8]) {
        each_element::<B>(rule, values, predictions, |value, p, base| {
            let expected = expected(number, rule.slope, base, load::<B>(p, 0));
            store::<B>(value, 0, relative(number, load::<B>(value, 0), expected));
        });
    }
    by_number!(rule.number, run(rule, prediction, values));
}

#[inline(always)]
fn add_body(rule: &Expectation<'_>, coded: &[u8], values: &mut [u8]) {
    #[inline(always)]
    fn run<const B: usize>(number: Number, rule: &Expectation<'_>, coded: &[u8], values: &mut [u8]) {
        each_element::<B>(rule, values, coded, |value, coded, base| {
            let expected = expected(number, rule.slope, base, load::<B>(value, 0));
            store::<B>(value, 0, absolute(number, load::<B>(coded, 0), expected));
        });
    }
    by_number!(rule.number, run(rule, coded, values));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    const FLOATS: [Number; 5] = [
        Number::float(8, 7),
        Number::float(5, 10),
        Number::float(8, 23),
        Number::float(4, 3),
        Number::float(11, 52),
    ];

    proptest! {
        #[test]
        fn any_bits_come_back_on_every_isa(
            words in prop::collection::vec(any::<u64>(), 2..150), cols in 1usize..40, slope in any::<u8>(), offset in -100_000..100_000i32,
            has_rows in any::<bool>(), has_cols in any::<bool>(), zeros in any::<bool>(),
        ) {
            let cols = cols.min(words.len() / 2);
            let rows = words.len() / 2 / cols;
            let scale = |i: &usize| i32::try_from(words[*i] >> 48).unwrap() - 30_000;
            let row_scales: Vec<i32> = (0..rows).filter(|_| has_rows).map(|i| scale(&i)).collect();
            let col_scales: Vec<i32> = (0..cols).filter(|_| has_cols).map(|i| scale(&(i + 1))).collect();
            for number in FLOATS {
                let bytes = |words: &[u64]| -> Vec<u8> {
                    let word = |w: &u64| if zeros && w.is_multiple_of(3) { 0 } else { *w };
                    words[..rows * cols].iter().flat_map(|w| word(w).to_le_bytes()[8 - number.bytes()..].to_vec()).collect()
                };
                let (target, prediction) = (bytes(&words), bytes(&words[words.len() / 2..]));
                let rule = Expectation::new(number, cols, slope, offset, &row_scales, &col_scales).unwrap();
                let mut first = None;
                for_each_isa(|isa| {
                    let mut coded = vec![0; target.len()];
                    rule.subtract(&target, &prediction, &mut coded);
                    prop_assert_eq!(first.get_or_insert(coded.clone()), &coded, "{:?} {:?}", number, isa);
                    let mut values = prediction.clone();
                    rule.add(&coded, &mut values);
                    prop_assert_eq!(&values, &target, "{:?} {:?}", number, isa);
                    Ok(())
                })?;
            }
        }
    }

    #[test]
    fn magnitudes_are_relative_to_slope_offset_and_scales() {
        let number = Number::float(8, 7);
        let words = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let rule = Expectation::new(number, 2, 8, -64, &[0, 4], &[0, -8]).unwrap();
        // Half of 0x3f80 >> 4 = 1016 is 508; minus 64 that is 444 eighths of an octave, or 0x1bc0.
        let prediction = words(&[0x3f80; 4]);
        let mut coded = [0; 8];
        rule.subtract(&words(&[0x3f80, 0xbf81, 0, 0x8000]), &prediction, &mut coded);
        assert_eq!(coded.to_vec(), words(&[0x3f80 - 0x1bc0, 0xbf81 - 0x1b40, 0, 0x8000]));
        rule.subtract(&words(&[0x1bc0, 0x1b41, 0x1bc0, 0x9b80]), &prediction, &mut coded);
        assert_eq!(coded.to_vec(), words(&[0x6440, 1, 0x7fc0, 0xe480]));
    }

    #[test]
    fn number_types_that_the_format_does_not_have() {
        assert!(Expectation::new(Number::float(5, 2), 1, 0, 0, &[], &[]).is_none());
        assert!(Expectation::new(Number::signed(32), 1, 0, 0, &[], &[]).is_none());
    }
}
