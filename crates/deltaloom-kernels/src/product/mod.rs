//! A reference plus a product of two small factors, rounded to the reference's dtype;
//! docs/format.md section 3.1.
//!
//! The arithmetic matches the format to the last bit: products are added in the order of the rank,
//! and nothing is fused.

use crate::Number;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};

/// How the product and the reference become the prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProductRule {
    /// Add reference and product, then round the sum.
    Sum,
    /// Round the product before adding it, as adding two tensors of this dtype does.
    RoundedProduct,
}

/// Scales must be below this, so that no sum of products overflows: 2^56.
pub const MAX_SCALE: f32 = (1u64 << 56) as f32;
/// Largest rank.
pub const MAX_RANK: usize = 256;

/// Columns of a panel in single and in double precision. Either run is two cache lines.
const SINGLES: usize = 32;
const DOUBLES: usize = 16;

/// The right factor times the scale, in panels of columns that are computed together: a panel has
/// `rank` runs of its columns. The last panel is padded with zeros.
#[derive(Debug, Clone)]
enum Panels {
    /// For 16-bit floats.
    Single(Vec<[f32; SINGLES]>),
    /// For F32.
    Double(Vec<[f64; DOUBLES]>),
}

/// A right factor, ready to be multiplied with rows of the left one.
#[derive(Debug, Clone)]
pub struct RightFactor {
    number: Number,
    rank: usize,
    cols: usize,
    panels: Panels,
}

const BF16: Number = Number::float(8, 7);
const F16: Number = Number::float(5, 10);
const F32: Number = Number::float(8, 23);

/// Whether a product can predict tensors of this number type: BF16, F16 and F32.
#[must_use]
pub fn is_supported(number: Number) -> bool {
    matches!(number, BF16 | F16 | F32)
}

impl RightFactor {
    /// Prepares `factor`, which has `rank` rows of `cols`. `None` if a product cannot have this
    /// number type, scale or size.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the format rounds the factors of 16-bit floats to single precision"
    )]
    pub fn new(number: Number, scale: f32, factor: &[i32], rank: usize, cols: usize) -> Option<Self> {
        let is_scale = scale.is_normal() && scale > 0.0 && scale < MAX_SCALE;
        let is_size = (1..=MAX_RANK).contains(&rank) && rank.checked_mul(cols) == Some(factor.len());
        if !is_supported(number) || !is_scale || !is_size || cols == 0 {
            return None;
        }
        let scaled = |v: &i32| f64::from(scale) * f64::from(*v);
        let panels = if number == F32 {
            let mut panels = vec![[0.0; DOUBLES]; rank * cols.div_ceil(DOUBLES)];
            fill(&mut panels, factor, rank, cols, scaled);
            Panels::Double(panels)
        } else {
            let mut panels = vec![[0.0; SINGLES]; rank * cols.div_ceil(SINGLES)];
            fill(&mut panels, factor, rank, cols, |v| scaled(v) as f32);
            Panels::Single(panels)
        };
        Some(Self { number, rank, cols, panels })
    }

    /// Number of bytes of a row of the tensor.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.cols * self.number.bytes()
    }

    /// Turns `values`, whole rows of the reference, into their prediction. `left` has the `rank`
    /// factors of each of these rows.
    ///
    /// # Panics
    /// If the lengths do not describe the same number of rows.
    pub fn predict(&self, rule: ProductRule, left: &[i32], values: &mut [u8]) {
        let rows = left.len() / self.rank;
        assert!(left.len().is_multiple_of(self.rank) && values.len() == rows * self.row_bytes());
        let shape = Shape { number: self.number, rule, rank: self.rank, cols: self.cols };
        match &self.panels {
            Panels::Single(panels) => {
                let left: Vec<f32> = left.iter().map(|u| *u as f32).collect();
                predict_singles(shape, &left, panels, values);
            }
            Panels::Double(panels) => {
                let left: Vec<f64> = left.iter().map(|u| f64::from(*u)).collect();
                predict_doubles(shape, &left, panels, values);
            }
        }
    }
}

fn fill<T: Copy, const C: usize>(
    panels: &mut [[T; C]],
    factor: &[i32],
    rank: usize,
    cols: usize,
    scaled: impl Fn(&i32) -> T,
) {
    for (k, row) in factor.chunks_exact(cols).enumerate() {
        for (panel, run) in row.chunks(C).enumerate() {
            let out = &mut panels[panel * rank + k];
            out.iter_mut().zip(run).for_each(|(out, v)| *out = scaled(v));
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    number: Number,
    rule: ProductRule,
    rank: usize,
    cols: usize,
}

/// Predicts 16-bit floats on the instruction set in use.
fn predict_singles(shape: Shape, left: &[f32], panels: &[[f32; SINGLES]], values: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => wide::singles_avx512(shape, left, panels, values),
                _ => wide::singles_avx2(shape, left, panels, values),
            }
        };
    }
    predict_singles_body::<ROWS>(shape, left, panels, values);
}

/// Predicts F32 on the instruction set in use.
fn predict_doubles(shape: Shape, left: &[f64], panels: &[[f64; DOUBLES]], values: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => wide::doubles_avx512(shape, left, panels, values),
                _ => wide::doubles_avx2(shape, left, panels, values),
            }
        };
    }
    predict_doubles_body::<ROWS>(shape, left, panels, values);
}

/// Rows whose products are computed together. Their sums must stay in registers: 16 registers of 16
/// bytes, or 32 with NEON.
const ROWS: usize = if cfg!(target_arch = "aarch64") { 2 } else { 1 };

/// The same loops for longer vectors. Nothing is fused: the compiler fuses only if told to.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{DOUBLES, SINGLES, Shape, predict_doubles_body, predict_singles_body};

    macro_rules! widened {
        ($name:ident, $body:ident, $number:ty, $cols:ident, $rows:literal, $features:literal) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(
                shape: Shape,
                left: &[$number],
                panels: &[[$number; $cols]],
                values: &mut [u8],
            ) {
                $body::<$rows>(shape, left, panels, values);
            }
        };
    }

    widened!(singles_avx2, predict_singles_body, f32, SINGLES, 2, "avx2,bmi1,bmi2,lzcnt,popcnt");
    widened!(doubles_avx2, predict_doubles_body, f64, DOUBLES, 2, "avx2,bmi1,bmi2,lzcnt,popcnt");
    widened!(
        singles_avx512,
        predict_singles_body,
        f32,
        SINGLES,
        4,
        "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
    );
    widened!(
        doubles_avx512,
        predict_doubles_body,
        f64,
        DOUBLES,
        4,
        "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
    );
}

#[inline(always)]
fn predict_singles_body<const R: usize>(
    shape: Shape,
    left: &[f32],
    panels: &[[f32; SINGLES]],
    values: &mut [u8],
) {
    match (shape.number, shape.rule) {
        (F16, ProductRule::Sum) => panels_of::<_, SINGLES, 2, R>(shape, left, panels, values, f16_sum),
        (F16, ProductRule::RoundedProduct) => {
            panels_of::<_, SINGLES, 2, R>(shape, left, panels, values, f16_rounded_product);
        }
        (_, ProductRule::Sum) => panels_of::<_, SINGLES, 2, R>(shape, left, panels, values, bf16_sum),
        (_, ProductRule::RoundedProduct) => {
            panels_of::<_, SINGLES, 2, R>(shape, left, panels, values, bf16_rounded_product);
        }
    }
}

#[inline(always)]
fn predict_doubles_body<const R: usize>(
    shape: Shape,
    left: &[f64],
    panels: &[[f64; DOUBLES]],
    values: &mut [u8],
) {
    match shape.rule {
        ProductRule::Sum => panels_of::<_, DOUBLES, 4, R>(shape, left, panels, values, f32_sum),
        ProductRule::RoundedProduct => {
            panels_of::<_, DOUBLES, 4, R>(shape, left, panels, values, f32_rounded_product);
        }
    }
}

/// Computes all panels of all rows. `predict` returns the prediction of a reference and its product
/// in the low bits.
#[inline(always)]
fn panels_of<T, const C: usize, const B: usize, const R: usize>(
    shape: Shape,
    left: &[T],
    panels: &[[T; C]],
    values: &mut [u8],
    predict: impl Fn(u32, T) -> u32 + Copy,
) where
    T: Copy + Default + std::ops::Mul<Output = T> + std::ops::Add<Output = T>,
{
    let row_bytes = shape.cols * B;
    for (panel, panel_bytes) in panels.chunks_exact(shape.rank).zip((0..row_bytes).step_by(C * B)) {
        let place = panel_bytes..row_bytes.min(panel_bytes + C * B);
        let groups = left.chunks_exact(R * shape.rank);
        let (rest, whole) = (groups.remainder(), groups.len() * R * row_bytes);
        let (values, rest_values) = values.split_at_mut(whole);
        for (left, rows) in groups.zip(values.chunks_exact_mut(R * row_bytes)) {
            let sums: [[T; C]; R] = sums(panel, left);
            for (row, sums) in rows.chunks_exact_mut(row_bytes).zip(&sums) {
                finish::<_, C, B>(&mut row[place.clone()], sums, predict);
            }
        }
        for (left, row) in rest.chunks_exact(shape.rank).zip(rest_values.chunks_exact_mut(row_bytes)) {
            let [sums]: [[T; C]; 1] = sums(panel, left);
            finish::<_, C, B>(&mut row[place.clone()], &sums, predict);
        }
    }
}

/// The products of `R` rows with a panel.
#[inline(always)]
fn sums<T, const C: usize, const R: usize>(panel: &[[T; C]], left: &[T]) -> [[T; C]; R]
where
    T: Copy + Default + std::ops::Mul<Output = T> + std::ops::Add<Output = T>,
{
    let rows: [&[T]; R] = std::array::from_fn(|r| &left[r * panel.len()..][..panel.len()]);
    let mut sums = [[T::default(); C]; R];
    for (k, run) in panel.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let factor = row[k];
            for c in 0..C {
                sums[c] = sums[c] + factor * run[c];
            }
        }
    }
    sums
}

/// Predicts the elements of a row in a panel.
#[inline(always)]
fn finish<T: Copy, const C: usize, const B: usize>(
    values: &mut [u8],
    sums: &[T; C],
    predict: impl Fn(u32, T) -> u32,
) {
    let (values, _) = values.as_chunks_mut::<B>();
    let one = |value: &mut [u8; B], sum: T| {
        let mut word = [0; 4];
        word[..B].copy_from_slice(value);
        value.copy_from_slice(&predict(u32::from_le_bytes(word), sum).to_le_bytes()[..B]);
    };
    // A whole panel gets its own loop with a known length.
    if let Ok(values) = <&mut [[u8; B]; C]>::try_from(&mut *values) {
        for c in 0..C {
            one(&mut values[c], sums[c]);
        }
    } else {
        values.iter_mut().zip(sums).for_each(|(value, sum)| one(value, *sum));
    }
}

#[inline(always)]
fn bf16_sum(reference: u32, product: f32) -> u32 {
    let sum = bf16_bits(f32::from_bits(reference << 16) + product);
    select(reference & 0x7f80 == 0x7f80, reference, sum)
}

#[inline(always)]
fn bf16_rounded_product(reference: u32, product: f32) -> u32 {
    bf16_sum(reference, f32::from_bits(bf16_bits(product) << 16))
}

#[inline(always)]
fn f16_sum(reference: u32, product: f32) -> u32 {
    let sum = f16_bits(f16_value(reference) + product);
    select(reference & 0x7c00 == 0x7c00, reference, sum)
}

#[inline(always)]
fn f16_rounded_product(reference: u32, product: f32) -> u32 {
    // A product beyond the largest number is infinite, and f16_value never returns infinity.
    let bits = f16_bits(product);
    let rounded = f16_value(bits);
    let infinite = f32::from_bits(f32::INFINITY.to_bits() | product.to_bits() & 0x8000_0000);
    f16_sum(reference, f32::from_bits(select(bits & 0x7c00 == 0x7c00, infinite.to_bits(), rounded.to_bits())))
}

#[inline(always)]
fn f32_sum(reference: u32, product: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the rounding of the format")]
    let sum = (f64::from(f32::from_bits(reference)) + product) as f32;
    select(reference & 0x7f80_0000 == 0x7f80_0000, reference, sum.to_bits())
}

#[inline(always)]
fn f32_rounded_product(reference: u32, product: f64) -> u32 {
    // Adding single-precision numbers in double precision and rounding gives the rounded sum,
    // because 53 bits exceed twice 24.
    #[expect(clippy::cast_possible_truncation, reason = "the rounding of the format")]
    f32_sum(reference, f64::from(product as f32))
}

/// Selects by arithmetic: the choice is effectively random, so a branch would be mispredicted.
#[inline(always)]
pub(crate) fn select(is_first: bool, first: u32, second: u32) -> u32 {
    second ^ (first ^ second) & u32::from(is_first).wrapping_neg()
}

/// Rounds a number that is not NaN to BF16.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

/// The value of a finite F16: its fields move to where f32 has them, and a product, which is exact,
/// corrects the bias.
#[inline(always)]
pub(crate) fn f16_value(bits: u32) -> f32 {
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Rounds a number that is not NaN to F16.
#[inline(always)]
pub(crate) fn f16_bits(value: f32) -> u32 {
    const HALF: u32 = 126 << 23;
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Adding 1/2 leaves a subnormal F16 in the lowest bits, rounded.
    let small = (f32::from_bits(magnitude) + f32::from_bits(HALF)).to_bits().wrapping_sub(HALF);
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    let rounded = select(magnitude < 113 << 23, small, normal);
    let rounded = select(magnitude >= 143 << 23, 0x7c00, rounded);
    rounded | bits >> 16 & 0x8000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    /// Computes one element as in docs/format.md, with exact standard-library arithmetic and a
    /// search for the nearest value.
    #[expect(clippy::cast_possible_truncation, reason = "the roundings of the format")]
    fn expected(number: Number, rule: ProductRule, scale: f32, pairs: &[(i32, i32)], reference: u32) -> u32 {
        let value = |bits: u32| match number {
            BF16 => f64::from(f32::from_bits(bits << 16)),
            F16 => {
                let (e, m) = (bits >> 10 & 31, f64::from(bits & 1023));
                let magnitude =
                    if e == 0 { m / 16_777_216.0 } else { (1024.0 + m) * 2f64.powi(e.cast_signed() - 25) };
                if bits & 0x8000 == 0 { magnitude } else { -magnitude }
            }
            _ => f64::from(f32::from_bits(bits)),
        };
        let mantissa = number.mantissa_bits();
        let top = u32::try_from(number.top_bit()).unwrap();
        let infinite = u32::try_from(number.mask() >> 1).unwrap() >> mantissa << mantissa;
        if reference & infinite == infinite {
            return reference;
        }
        let round = |x: f64| {
            let sign = if x.is_sign_negative() { top } else { 0 };
            // The magnitudes are in order, so bisection finds the nearest. The largest one
            // represents everything beyond it.
            let (mut low, mut high) = (0, infinite);
            while high - low > 1 {
                let middle = u32::midpoint(low, high);
                if value(middle) <= x.abs() { low = middle } else { high = middle }
            }
            let above =
                if high == infinite { 2.0 * value(infinite - 1) - value(infinite - 2) } else { value(high) };
            let (to_low, to_high) = (x.abs() - value(low), above - x.abs());
            let is_high = x.abs().is_infinite() || to_high < to_low || (to_high == to_low && low & 1 == 1);
            sign | if is_high { high } else { low }
        };
        let back = |bits: u32| {
            let sign = if bits & top == 0 { 1.0 } else { -1.0 };
            if bits & infinite == infinite { sign * f64::INFINITY } else { value(bits) }
        };
        let product = if number == F32 {
            let scaled = |v: i32| f64::from(scale) * f64::from(v);
            pairs.iter().fold(0.0, |sum, (u, v)| sum + f64::from(*u) * scaled(*v))
        } else {
            let scaled = |v: i32| (f64::from(scale) * f64::from(v)) as f32;
            f64::from(pairs.iter().fold(0.0f32, |sum, (u, v)| sum + *u as f32 * scaled(*v)))
        };
        let product = match rule {
            ProductRule::Sum => product,
            ProductRule::RoundedProduct => back(round(product)),
        };
        let sum = back(reference) + product;
        round(if number == F32 { sum } else { f64::from(sum as f32) })
    }

    proptest! {
        #[test]
        fn every_isa_gives_the_prediction_of_the_format(
            words in prop::collection::vec(any::<u32>(), 1..200), rows in 1usize..6, rank in 1usize..9,
            u in prop::collection::vec(-40_000..40_000i32, 48), v in prop::collection::vec(any::<i32>(), 64), shift in 0u32..32, exponent in -60..2i32,
        ) {
            let cols = words.len().div_ceil(rows);
            let left: Vec<i32> = (0..rows * rank).map(|i| u[i % u.len()]).collect();
            let right: Vec<i32> = (0..rank * cols).map(|i| v[i * 7 % v.len()] >> shift).collect();
            let scale = 1.37 * 2f32.powi(exponent);
            for number in [BF16, F16, F32] {
                let reference: Vec<u32> = (0..rows * cols).map(|i| words[i % words.len()] >> (32 - number.bits())).collect();
                let bytes: Vec<u8> = reference.iter().flat_map(|x| x.to_le_bytes()[..number.bytes()].to_vec()).collect();
                let factor = RightFactor::new(number, scale, &right, rank, cols).unwrap();
                for rule in [ProductRule::Sum, ProductRule::RoundedProduct] {
                    let predictions = (0..rows * cols).flat_map(|i| {
                        let pairs: Vec<(i32, i32)> = (0..rank).map(|k| (left[i / cols * rank + k], right[k * cols + i % cols])).collect();
                        expected(number, rule, scale, &pairs, reference[i]).to_le_bytes()[..number.bytes()].to_vec()
                    });
                    let predictions: Vec<u8> = predictions.collect();
                    for_each_isa(|isa| {
                        let mut values = bytes.clone();
                        factor.predict(rule, &left, &mut values);
                        prop_assert_eq!(&values, &predictions, "{:?} {:?} {:?}", number, rule, isa);
                        Ok(())
                    })?;
                }
            }
        }
    }

    #[test]
    fn what_no_product_can_have_is_refused() {
        let factor = |scale, rank, cols| RightFactor::new(BF16, scale, &[1; 6], rank, cols).is_some();
        assert!(factor(1.0, 2, 3) && factor(0.9 * MAX_SCALE, 3, 2));
        for scale in [0.0, -1.0, MAX_SCALE, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE / 2.0] {
            assert!(!factor(scale, 2, 3), "{scale}");
        }
        assert!(
            !factor(1.0, 0, 3) && !factor(1.0, 6, 0) && !factor(1.0, 3, 3) && !factor(1.0, usize::MAX, 2)
        );
        assert!(RightFactor::new(Number::float(11, 52), 1.0, &[1; 6], 2, 3).is_none());
    }
}
