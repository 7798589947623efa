//! A reference plus a product of two factors of small integers, rounded to the reference's dtype;
//! docs/format.md section 3.12.
//!
//! Sums of products are exact in 32 bits, so every order of additions gives the same bits.
//! [`crate::product`] has the products of larger integers.

use crate::Number;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};
use crate::product::{self, MAX_RANK, MAX_SCALE};

/// Columns of a panel.
const COLS: usize = 32;
/// Two numbers of each column of a panel, those of a column next to each other.
type Run = [i16; 2 * COLS];
type Sums = [i32; COLS];

/// A right factor, ready to be multiplied with rows of the left one: panels of columns, each with a
/// run for every two ranks. What is missing is 0.
#[derive(Debug, Clone)]
pub struct DriftFactor {
    number: Number,
    unit: f32,
    runs: usize,
    cols: usize,
    panels: Vec<Run>,
}

/// Rows of a left factor: two numbers in each word.
#[derive(Debug, Clone, Default)]
pub struct DriftRows {
    words: Vec<i32>,
}

impl DriftRows {
    /// Prepares rows of `rank` numbers.
    #[must_use]
    pub fn new(left: &[i16], rank: usize) -> Self {
        let word = |pair: &[i16]| {
            let high = pair.get(1).copied().unwrap_or(0);
            i32::from(pair[0]) & 0xffff | i32::from(high) << 16
        };
        Self { words: left.chunks_exact(rank).flat_map(|row| row.chunks(2).map(word)).collect() }
    }
}

impl DriftFactor {
    /// Prepares `factor`, which has `rank` rows of `cols`. A product counts in multiples of `unit`.
    /// `None` if a product cannot have this number type, unit or size.
    #[must_use]
    pub fn new(number: Number, unit: f32, factor: &[i16], rank: usize, cols: usize) -> Option<Self> {
        let is_unit = unit.is_normal() && unit > 0.0 && unit < MAX_SCALE;
        let is_size = (1..=MAX_RANK).contains(&rank) && rank.checked_mul(cols) == Some(factor.len());
        if !product::is_supported(number) || !is_unit || !is_size || cols == 0 {
            return None;
        }
        let runs = rank.div_ceil(2);
        let mut panels = vec![[0; 2 * COLS]; runs * cols.div_ceil(COLS)];
        for (k, row) in factor.chunks_exact(cols).enumerate() {
            for (panel, part) in row.chunks(COLS).enumerate() {
                let places = panels[panel * runs + k / 2].iter_mut().skip(k % 2).step_by(2);
                places.zip(part).for_each(|(place, v)| *place = *v);
            }
        }
        Some(Self { number, unit, runs, cols, panels })
    }

    /// Bytes of a row of the tensor.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.cols * self.number.bytes()
    }

    /// Turns `values`, whole rows of the reference, into their prediction, with the rows of the
    /// left factor from `first` on.
    ///
    /// # Panics
    /// If the left factor does not have these rows.
    pub fn predict(&self, left: &DriftRows, first: usize, values: &mut [u8]) {
        let rows = values.len() / self.row_bytes();
        assert!(values.len().is_multiple_of(self.row_bytes()), "whole rows are predicted");
        let left = &left.words[first * self.runs..][..rows * self.runs];
        #[cfg(target_arch = "x86_64")]
        if isa() >= Isa::Avx2 {
            #[expect(unsafe_code, reason = "calling functions with detected target features")]
            // SAFETY: `isa` returns only what was detected.
            return unsafe {
                match isa() {
                    Isa::Avx512 | Isa::Amx => wide::predict_avx512(self, left, values),
                    _ => wide::predict_avx2(self, left, values),
                }
            };
        }
        self.predict_body(left, values, sums::<4>, sums::<1>);
    }

    #[inline(always)]
    fn predict_body<const R: usize>(
        &self,
        left: &[i32],
        values: &mut [u8],
        sums: impl Fn(&[Run], &[i32]) -> [Sums; R] + Copy,
        sums_of_one: impl Fn(&[Run], &[i32]) -> [Sums; 1] + Copy,
    ) {
        let unit = self.unit;
        match (self.number.bits(), self.number.mantissa_bits()) {
            (16, 7) => self.panels_of::<R, 2>(left, values, sums, sums_of_one, |r, p| bf16(r, p, unit)),
            (16, _) => self.panels_of::<R, 2>(left, values, sums, sums_of_one, |r, p| f16(r, p, unit)),
            _ => self.panels_of::<R, 4>(left, values, sums, sums_of_one, |r, p| single(r, p, unit)),
        }
    }

    /// Computes all panels of all rows. `predict` turns a reference and its sum of products into
    /// the prediction in the low bits.
    #[inline(always)]
    fn panels_of<const R: usize, const B: usize>(
        &self,
        left: &[i32],
        values: &mut [u8],
        sums: impl Fn(&[Run], &[i32]) -> [Sums; R],
        sums_of_one: impl Fn(&[Run], &[i32]) -> [Sums; 1],
        predict: impl Fn(u32, i32) -> u32 + Copy,
    ) {
        let row_bytes = self.cols * B;
        let groups = left.chunks_exact(R * self.runs);
        let (rest, whole) = (groups.remainder(), groups.len() * R * row_bytes);
        let (values, rest_values) = values.split_at_mut(whole);
        for (panel, start) in self.panels.chunks_exact(self.runs).zip((0..row_bytes).step_by(COLS * B)) {
            let place = start..row_bytes.min(start + COLS * B);
            for (left, rows) in left.chunks_exact(R * self.runs).zip(values.chunks_exact_mut(R * row_bytes)) {
                let sums = sums(panel, left);
                for (row, sums) in rows.chunks_exact_mut(row_bytes).zip(&sums) {
                    finish::<B>(&mut row[place.clone()], sums, predict);
                }
            }
            for (left, row) in rest.chunks_exact(self.runs).zip(rest_values.chunks_exact_mut(row_bytes)) {
                let [sums] = sums_of_one(panel, left);
                finish::<B>(&mut row[place.clone()], &sums, predict);
            }
        }
    }
}

/// Sums of products of `R` rows with a panel.
#[inline(always)]
fn sums<const R: usize>(panel: &[Run], left: &[i32]) -> [Sums; R] {
    let mut sums = [[0i32; COLS]; R];
    for (sums, left) in sums.iter_mut().zip(left.chunks_exact(panel.len())) {
        for (run, word) in panel.iter().zip(left) {
            let (low, high) = (*word << 16 >> 16, *word >> 16);
            for (sum, pair) in sums.iter_mut().zip(run.as_chunks::<2>().0) {
                let product =
                    low.wrapping_mul(pair[0].into()).wrapping_add(high.wrapping_mul(pair[1].into()));
                *sum = sum.wrapping_add(product);
            }
        }
    }
    sums
}

/// Predicts the elements of a row in a panel.
#[inline(always)]
fn finish<const B: usize>(values: &mut [u8], sums: &Sums, predict: impl Fn(u32, i32) -> u32) {
    let (values, _) = values.as_chunks_mut::<B>();
    let one = |value: &mut [u8; B], sum: i32| {
        let mut word = [0; 4];
        word[..B].copy_from_slice(value);
        value.copy_from_slice(&predict(u32::from_le_bytes(word), sum).to_le_bytes()[..B]);
    };
    // A whole panel gets its own loop with a known length.
    if let Ok(values) = <&mut [[u8; B]; COLS]>::try_from(&mut *values) {
        for c in 0..COLS {
            one(&mut values[c], sums[c]);
        }
    } else {
        values.iter_mut().zip(sums).for_each(|(value, sum)| one(value, *sum));
    }
}

/// The prediction, or the reference where either is infinite or NaN.
#[inline(always)]
fn if_finite(reference: u32, predicted: u32, infinite: u32) -> u32 {
    let is_finite = reference & infinite != infinite && predicted & infinite != infinite;
    product::select(is_finite, predicted, reference)
}

#[inline(always)]
fn bf16(reference: u32, sum: i32, unit: f32) -> u32 {
    let predicted = product::bf16_bits(f32::from_bits(reference << 16) + sum as f32 * unit);
    if_finite(reference, predicted, 0x7f80)
}

#[inline(always)]
fn f16(reference: u32, sum: i32, unit: f32) -> u32 {
    let predicted = product::f16_bits(product::f16_value(reference) + sum as f32 * unit);
    if_finite(reference, predicted, 0x7c00)
}

#[inline(always)]
fn single(reference: u32, sum: i32, unit: f32) -> u32 {
    let predicted = (f32::from_bits(reference) + sum as f32 * unit).to_bits();
    if_finite(reference, predicted, 0x7f80_0000)
}

/// The same loops with instructions that multiply and add pairs.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector loads and stores")]
mod wide {
    use std::arch::x86_64::*;

    use super::{COLS, DriftFactor, Run, Sums};

    macro_rules! widened {
        ($name:ident, $sums:ident, $rows:literal, $features:literal, $vector:ty, $count:literal, $zero:ident, $load:ident, $store:ident, $broadcast:ident, $madd:ident, $add:ident) => {
            #[target_feature(enable = $features)]
            #[inline]
            fn $sums<const R: usize>(panel: &[Run], left: &[i32]) -> [Sums; R] {
                let mut sums = [[$zero(); $count]; R];
                for (k, run) in panel.iter().enumerate() {
                    let run = run.as_ptr().cast::<$vector>();
                    for i in 0..$count {
                        // SAFETY: a run has that many vectors.
                        let pairs = unsafe { $load(run.add(i)) };
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let factors = $broadcast(left[r * panel.len() + k]);
                            sums[i] = $add(sums[i], $madd(pairs, factors));
                        }
                    }
                }
                let mut out = [[0; COLS]; R];
                for (out, sums) in out.iter_mut().zip(&sums) {
                    let out = out.as_mut_ptr().cast::<$vector>();
                    for (i, sum) in sums.iter().enumerate() {
                        // SAFETY: there are as many sums as that many vectors have.
                        unsafe { $store(out.add(i), *sum) };
                    }
                }
                out
            }

            #[target_feature(enable = $features)]
            pub(super) fn $name(factor: &DriftFactor, left: &[i32], values: &mut [u8]) {
                factor.predict_body(
                    left,
                    values,
                    |panel, left| $sums::<$rows>(panel, left),
                    |panel, left| $sums::<1>(panel, left),
                );
            }
        };
    }

    widened!(
        predict_avx2,
        sums_avx2,
        2,
        "avx2,bmi1,bmi2,lzcnt,popcnt",
        __m256i,
        4,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_storeu_si256,
        _mm256_set1_epi32,
        _mm256_madd_epi16,
        _mm256_add_epi32
    );
    widened!(
        predict_avx512,
        sums_avx512,
        4,
        "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt",
        __m512i,
        2,
        _mm512_setzero_si512,
        _mm512_loadu_si512,
        _mm512_storeu_si512,
        _mm512_set1_epi32,
        _mm512_madd_epi16,
        _mm512_add_epi32
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    const BF16: Number = Number::float(8, 7);
    const F16: Number = Number::float(5, 10);
    const F32: Number = Number::float(8, 23);

    /// One element as docs/format.md has it.
    fn expected(number: Number, unit: f32, pairs: &[(i16, i16)], reference: u32) -> u32 {
        let sum: i32 = pairs.iter().map(|(u, v)| i32::from(*u) * i32::from(*v)).sum();
        match number {
            BF16 => bf16(reference, sum, unit),
            F16 => f16(reference, sum, unit),
            _ => single(reference, sum, unit),
        }
    }

    proptest! {
        #[test]
        fn every_isa_gives_the_prediction_of_the_format(
            words in prop::collection::vec(any::<u32>(), 1..300), rows in 1usize..10, rank in 1usize..9,
            u in prop::collection::vec(-8000..8000i16, 48), v in prop::collection::vec(-8000..8000i16, 64), exponent in -60..50i32,
        ) {
            let cols = words.len().div_ceil(rows);
            let left: Vec<i16> = (0..rows * rank).map(|i| u[i % u.len()]).collect();
            let right: Vec<i16> = (0..rank * cols).map(|i| v[i * 7 % v.len()]).collect();
            let unit = 1.37 * 2f32.powi(exponent);
            for number in [BF16, F16, F32] {
                let reference: Vec<u32> = (0..rows * cols).map(|i| words[i % words.len()] >> (32 - number.bits())).collect();
                let bytes: Vec<u8> = reference.iter().flat_map(|x| x.to_le_bytes()[..number.bytes()].to_vec()).collect();
                let factor = DriftFactor::new(number, unit, &right, rank, cols).unwrap();
                let predictions = (0..rows * cols).flat_map(|i| {
                    let pairs: Vec<(i16, i16)> = (0..rank).map(|k| (left[i / cols * rank + k], right[k * cols + i % cols])).collect();
                    expected(number, unit, &pairs, reference[i]).to_le_bytes()[..number.bytes()].to_vec()
                });
                let predictions: Vec<u8> = predictions.collect();
                for_each_isa(|isa| {
                    let mut values = bytes.clone();
                    factor.predict(&DriftRows::new(&left, rank), 0, &mut values);
                    prop_assert_eq!(&values, &predictions, "{:?} {:?}", number, isa);
                    Ok(())
                })?;
            }
        }
    }

    #[test]
    fn an_overflow_leaves_the_reference() {
        let predict = |number, unit, reference: u32| {
            let bytes = Number::bytes(number);
            let mut values = reference.to_le_bytes()[..bytes].to_vec();
            let factor = DriftFactor::new(number, unit, &[30_000], 1, 1).unwrap();
            factor.predict(&DriftRows::new(&[30_000], 1), 0, &mut values);
            values.resize(4, 0);
            u32::from_le_bytes(values.try_into().unwrap())
        };
        let largest = 0.99 * MAX_SCALE;
        assert_eq!(predict(F16, 1.0, 0x3c00), 0x3c00);
        assert_ne!(predict(F16, 1e-9, 0x3c00), 0x3c00);
        assert_eq!([predict(BF16, largest, 0x7f7f), predict(BF16, largest, 0x7fc1)], [0x7f7f, 0x7fc1]);
        assert_eq!(predict(F32, 1.0, 0xff80_0000), 0xff80_0000);
    }

    #[test]
    fn what_no_product_can_have_is_refused() {
        let factor = |unit, rank, cols| DriftFactor::new(BF16, unit, &[1; 6], rank, cols).is_some();
        assert!(factor(1.0, 2, 3) && factor(0.9 * MAX_SCALE, 3, 2));
        for unit in [0.0, -1.0, MAX_SCALE, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE / 2.0] {
            assert!(!factor(unit, 2, 3), "{unit}");
        }
        assert!(
            !factor(1.0, 0, 3) && !factor(1.0, 6, 0) && !factor(1.0, 3, 3) && !factor(1.0, usize::MAX, 2)
        );
    }
}
