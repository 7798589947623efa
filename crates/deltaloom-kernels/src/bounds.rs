//! The bounds between which a change of a reference must lie, element by element, so that it rounds
//! to the target.
//! For fitting only: the bounds may be off by one rounding where an octave begins.

use std::ops::Neg;

use crate::isa::per_isa;
use crate::matrix::Scalar;
use crate::number::Number;
use crate::product::ProductRule;

/// The bounds of a run of elements, as centres and half widths, in multiples of `1 / inverse_unit`.
/// The width is infinite if target or reference says nothing. F32 elements need f64.
pub fn bounds<T: Bounded>(
    number: Number,
    rule: ProductRule,
    (target, reference): (&[u8], &[u8]),
    inverse_unit: T,
    centres: &mut [T],
    halves: &mut [T],
) {
    T::bounds(number, rule, (target, reference), inverse_unit, centres, halves);
}

/// Targets minus references, and half the spacing of numbers around the target, infinite as in
/// [`bounds`].
pub fn differences<T: Bounded>(
    number: Number,
    (target, reference): (&[u8], &[u8]),
    differences: &mut [T],
    halves: &mut [T],
) {
    match (number.bits(), number.mantissa_bits()) {
        (16, 7) => run_differences::<T, 2, 8, 7>(target, reference, differences, halves),
        (16, _) => run_differences::<T, 2, 5, 10>(target, reference, differences, halves),
        _ => run_differences::<T, 4, 8, 23>(target, reference, differences, halves),
    }
}

/// What bounds need of the numbers that they are computed in.
pub trait Bounded: Scalar + Neg<Output = Self> {
    /// See [`bounds`].
    fn bounds(
        number: Number,
        rule: ProductRule,
        bytes: (&[u8], &[u8]),
        inverse_unit: Self,
        centres: &mut [Self],
        halves: &mut [Self],
    );

    /// Divides the differences of a row by the root of the mean square of its half widths. Adds the
    /// squares of those, over their mean, to `sums`. An infinite half width counts as 0.
    fn whiten(differences: &mut [Self], halves: &[Self], sums: &mut [f64]);

    /// The spacing of numbers of a mantissa of so many bits around this one, a power of two, and
    /// its inverse. All numbers below 2^`least` have the spacing of those above it.
    fn spacing(self, least: i32, mantissa_bits: u32) -> (Self, Self);

    /// The integer below the first, and the one above the second.
    fn floor_and_ceil(low: Self, high: Self) -> (Self, Self);
}

macro_rules! bounded {
    ($type:ident, $bits:ident, $signed:ident, $mantissa:literal, $bias:literal, $top:literal) => {
        mod $type {
            use super::*;
            type Bytes<'a> = (&'a [u8], &'a [u8]);
            per_isa! {
                pub(super) fn bf16(is_rounded: bool, bytes: Bytes<'_>, unit: $type, centres: &mut [$type], halves: &mut [$type]) =
                    run::<$type, 2, 8, 7>;
            }
            per_isa! {
                pub(super) fn f16(is_rounded: bool, bytes: Bytes<'_>, unit: $type, centres: &mut [$type], halves: &mut [$type]) =
                    run::<$type, 2, 5, 10>;
            }
            per_isa! {
                pub(super) fn f32(is_rounded: bool, bytes: Bytes<'_>, unit: $type, centres: &mut [$type], halves: &mut [$type]) =
                    run::<$type, 4, 8, 23>;
            }
            per_isa! {
                pub(super) fn whiten(differences: &mut [$type], halves: &[$type], sums: &mut [f64]) =
                    whiten_body::<$type>;
            }
        }

        impl Bounded for $type {
            fn bounds(
                number: Number,
                rule: ProductRule,
                bytes: (&[u8], &[u8]),
                inverse_unit: Self,
                centres: &mut [Self],
                halves: &mut [Self],
            ) {
                let is_rounded = rule == ProductRule::RoundedProduct;
                match (number.bits(), number.mantissa_bits()) {
                    (16, 7) => $type::bf16(is_rounded, bytes, inverse_unit, centres, halves),
                    (16, _) => $type::f16(is_rounded, bytes, inverse_unit, centres, halves),
                    _ => $type::f32(is_rounded, bytes, inverse_unit, centres, halves),
                }
            }

            fn whiten(differences: &mut [Self], halves: &[Self], sums: &mut [f64]) {
                $type::whiten(differences, halves, sums);
            }

            #[inline(always)]
            fn spacing(self, least: i32, mantissa_bits: u32) -> (Self, Self) {
                let exponent = (self.to_bits() >> $mantissa & $top) as $signed;
                let exponent = exponent.max(least as $signed + $bias) - mantissa_bits as $signed;
                // No number of these is as small as that.
                let exponent = exponent.max(1);
                let power = |exponent: $signed| Self::from_bits((exponent as $bits) << $mantissa);
                (power(exponent), power(2 * $bias - exponent))
            }

            #[inline(always)]
            fn floor_and_ceil(low: Self, high: Self) -> (Self, Self) {
                (low.floor(), high.ceil())
            }
        }
    };
}

bounded!(f32, u32, i32, 23, 127, 0xff);
bounded!(f64, u64, i64, 52, 1023, 0x7ff);

#[inline(always)]
fn run_differences<T: Bounded, const B: usize, const E: u32, const M: u32>(
    target: &[u8],
    reference: &[u8],
    differences: &mut [T],
    halves: &mut [T],
) {
    let pairs = target.as_chunks::<B>().0.iter().zip(reference.as_chunks::<B>().0);
    for ((t, r), (difference, half)) in pairs.zip(differences.iter_mut().zip(halves)) {
        let (t, r) = (word(t), word(r));
        let infinite = ((1 << E) - 1) << M;
        let magnitude = |bits: u32| bits & ((1 << (E + M)) - 1);
        let signed = |bits: u32| signed(value::<T, E, M>(magnitude(bits)), bits >> (E + M) != 0);
        let is_finite = magnitude(t) < infinite && magnitude(r) < infinite;
        let spacing = signed(t).spacing(least::<E>(), M).0;
        *difference = if is_finite { signed(t) - signed(r) } else { T::default() };
        *half = if is_finite { T::from(0.5) * spacing } else { T::from(f32::INFINITY) };
    }
}

#[inline(always)]
fn whiten_body<T: Bounded>(differences: &mut [T], halves: &[T], sums: &mut [f64]) {
    const LANES: usize = 8;
    let square = |half: T| -> f64 {
        let half: f64 = half.into();
        if half < f64::INFINITY { half * half } else { 0.0 }
    };
    let (blocks, rest) = halves.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += square(block[i]);
        }
    }
    let total = lanes.iter().sum::<f64>() + rest.iter().map(|half| square(*half)).sum::<f64>();
    let inverse = 1.0 / (total / halves.len().max(1) as f64).max(f64::MIN_POSITIVE);
    sums.iter_mut().zip(halves).for_each(|(sum, half)| *sum += square(*half) * inverse);
    let root = inverse.sqrt();
    for difference in differences {
        let wide: f64 = (*difference).into();
        *difference = T::rounded(wide * root);
    }
}

#[inline(always)]
fn run<T: Bounded, const B: usize, const E: u32, const M: u32>(
    is_rounded: bool,
    (target, reference): (&[u8], &[u8]),
    inverse_unit: T,
    centres: &mut [T],
    halves: &mut [T],
) {
    let pairs = target.as_chunks::<B>().0.iter().zip(reference.as_chunks::<B>().0);
    let outs = centres.iter_mut().zip(halves);
    if is_rounded {
        for ((t, r), (centre, half)) in pairs.zip(outs) {
            let (c, h) = interval::<T, E, M, true>(word(t), word(r));
            (*centre, *half) = (c * inverse_unit, h * inverse_unit);
        }
    } else {
        for ((t, r), (centre, half)) in pairs.zip(outs) {
            let (c, h) = interval::<T, E, M, false>(word(t), word(r));
            (*centre, *half) = (c * inverse_unit, h * inverse_unit);
        }
    }
}

#[inline(always)]
fn word<const B: usize>(bytes: &[u8; B]) -> u32 {
    let mut word = [0; 4];
    word[..B].copy_from_slice(bytes);
    u32::from_le_bytes(word)
}

/// The exponent of the smallest normal number.
#[inline(always)]
const fn least<const E: u32>() -> i32 {
    2 - (1 << (E - 1))
}

#[inline(always)]
fn interval<T: Bounded, const E: u32, const M: u32, const ROUNDED: bool>(
    target: u32,
    reference: u32,
) -> (T, T) {
    let magnitude_bits = (1 << (E + M)) - 1;
    let infinite = ((1 << E) - 1) << M;
    let half = T::from(0.5);
    let (target_size, reference_size) = (target & magnitude_bits, reference & magnitude_bits);
    let here = value::<T, E, M>(target_size);
    let away = (here + value::<T, E, M>(target_size + 1)) * half;
    // Around 0, the bounds are those of both signs.
    let below = value::<T, E, M>(target_size.max(1) - 1);
    let toward = if target_size == 0 { T::default() - away } else { (here + below) * half };
    let (is_negative, other) = (target >> (E + M) != 0, reference >> (E + M) != 0);
    let reference = signed(value::<T, E, M>(reference_size), other);
    let from = signed(toward, is_negative) - reference;
    let to = signed(away, is_negative) - reference;
    let (mut low, mut high) = if is_negative { (to, from) } else { (from, to) };
    if ROUNDED {
        // The rounded product lies between the bounds, and the product itself up to half a step
        // beyond them.
        let (step, steps) = ((low + high) * half).spacing(least::<E>(), M);
        let (last, first) = T::floor_and_ceil(high * steps, low * steps);
        let is_some = first <= last;
        low = if is_some { (first - half) * step } else { low };
        high = if is_some { (last + half) * step } else { high };
    }
    // The largest number is left out like infinity: it stands for everything beyond it.
    let says_something = target_size + 1 < infinite && reference_size < infinite;
    let centre = if says_something { (low + high) * half } else { T::default() };
    let width = if says_something { (high - low) * half } else { T::from(f32::INFINITY) };
    (centre, width)
}

#[inline(always)]
fn signed<T: Bounded>(magnitude: T, is_negative: bool) -> T {
    if is_negative { -magnitude } else { magnitude }
}

/// A finite magnitude. Its fields are moved to their places in f32, and a product corrects the
/// bias.
#[inline(always)]
fn value<T: Bounded, const E: u32, const M: u32>(magnitude: u32) -> T {
    let rebias = f32::from_bits((254 - ((1 << (E - 1)) - 1)) << 23);
    T::from(f32::from_bits(magnitude << (23 - M)) * rebias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_a_rounded_sum_and_of_a_rounded_product() {
        fn of<T: Bounded>(rule: ProductRule, target: u16, reference: u16) -> (f64, f64) {
            let (mut centre, mut half) = ([T::default()], [T::default()]);
            let bytes = (&target.to_le_bytes()[..], &reference.to_le_bytes()[..]);
            bounds(Number::float(8, 7), rule, bytes, T::from(1.0), &mut centre, &mut half);
            ((centre[0] - half[0]).into(), (centre[0] + half[0]).into())
        }
        for of in [of::<f32>, of::<f64>] {
            // 1 to its upper neighbour, 1 + 2^-7: half a step up, and half a step down.
            let ulp = 1.0 / 128.0;
            assert_eq!(of(ProductRule::Sum, 0x3f81, 0x3f80), (0.5 * ulp, 1.5 * ulp));
            assert_eq!(of(ProductRule::Sum, 0xbf81, 0xbf80), (-1.5 * ulp, -0.5 * ulp));
            // Numbers about 2^-7 have steps of 2^-14: a quarter of an ULP wide at most on a side.
            let step = ulp / 128.0;
            assert_eq!(
                of(ProductRule::RoundedProduct, 0x3f81, 0x3f80),
                (0.5 * ulp - step / 2.0, 1.5 * ulp + step / 2.0)
            );
            // The sum of 2^-7 and a number of 8 bits about 1 is exact where the reference is small.
            assert_eq!(of(ProductRule::Sum, 0x7f80, 0x3f80).1, f64::INFINITY);
            assert_eq!(of(ProductRule::Sum, 0x3f80, 0x7fc0).1, f64::INFINITY);
            let least = f64::from(f32::from_bits(1 << 16)) / 2.0;
            assert_eq!(of(ProductRule::Sum, 0, 0), (-least, least));
        }
    }
}
