//! The bounds between which a change of the reference must lie, element by element, so that it
//! rounds to the target.
//! For fitting only: the bounds may be off by one rounding where an octave begins.

use deltaloom_kernels::Number;
use deltaloom_kernels::product::ProductRule;

/// The bounds of a run of elements, as centres and half widths. The width is infinite if target or
/// reference says nothing.
pub(super) fn intervals(
    number: Number,
    rule: ProductRule,
    target: &[u8],
    reference: &[u8],
    centres: &mut [f64],
    halves: &mut [f64],
) {
    match (number.bits(), number.mantissa_bits()) {
        (16, 7) => run::<2, 8, 7>(rule, target, reference, centres, halves),
        (16, _) => run::<2, 5, 10>(rule, target, reference, centres, halves),
        _ => run::<4, 8, 23>(rule, target, reference, centres, halves),
    }
}

/// Targets minus references, and half the spacing of numbers around the target. Infinite as in
/// [`intervals`].
pub(super) fn differences(
    number: Number,
    target: &[u8],
    reference: &[u8],
    differences: &mut [f64],
    halves: &mut [f64],
) {
    match (number.bits(), number.mantissa_bits()) {
        (16, 7) => run_differences::<2, 8, 7>(target, reference, differences, halves),
        (16, _) => run_differences::<2, 5, 10>(target, reference, differences, halves),
        _ => run_differences::<4, 8, 23>(target, reference, differences, halves),
    }
}

#[inline(always)]
fn run_differences<const B: usize, const E: u32, const M: u32>(
    target: &[u8],
    reference: &[u8],
    differences: &mut [f64],
    halves: &mut [f64],
) {
    let pairs = target.as_chunks::<B>().0.iter().zip(reference.as_chunks::<B>().0);
    for ((t, r), (difference, half)) in pairs.zip(differences.iter_mut().zip(halves)) {
        let (t, r) = (word(t), word(r));
        let infinite = ((1 << E) - 1) << M;
        let magnitude = |bits: u32| bits & ((1 << (E + M)) - 1);
        let signed = |bits: u32| {
            let value = value::<E, M>(magnitude(bits)).to_bits();
            f64::from_bits(value | u64::from(bits >> (E + M)) << 63)
        };
        let is_finite = magnitude(t) < infinite && magnitude(r) < infinite;
        *difference = if is_finite { signed(t) - signed(r) } else { 0.0 };
        *half = if is_finite { 0.5 * step::<E, M>(signed(t)).0 } else { f64::INFINITY };
    }
}

#[inline(always)]
fn run<const B: usize, const E: u32, const M: u32>(
    rule: ProductRule,
    target: &[u8],
    reference: &[u8],
    centres: &mut [f64],
    halves: &mut [f64],
) {
    let pairs = target.as_chunks::<B>().0.iter().zip(reference.as_chunks::<B>().0);
    for ((t, r), (centre, half)) in pairs.zip(centres.iter_mut().zip(halves)) {
        (*centre, *half) = interval::<E, M>(rule, word(t), word(r));
    }
}

#[inline(always)]
fn word<const B: usize>(bytes: &[u8; B]) -> u32 {
    let mut word = [0; 4];
    word[..B].copy_from_slice(bytes);
    u32::from_le_bytes(word)
}

#[inline(always)]
fn interval<const E: u32, const M: u32>(rule: ProductRule, target: u32, reference: u32) -> (f64, f64) {
    let magnitude_bits = (1 << (E + M)) - 1;
    let infinite = ((1 << E) - 1) << M;
    let sign = |bits: u32| if bits >> (E + M) == 0 { 1.0 } else { -1.0 };
    let magnitude = target & magnitude_bits;
    // The largest number is left out like infinity: it stands for everything beyond it.
    if magnitude + 1 >= infinite || reference & magnitude_bits >= infinite {
        return (0.0, f64::INFINITY);
    }
    let here = value::<E, M>(magnitude);
    let away = f64::midpoint(here, value::<E, M>(magnitude + 1));
    let toward = if magnitude == 0 { -away } else { f64::midpoint(here, value::<E, M>(magnitude - 1)) };
    let reference = sign(reference) * value::<E, M>(reference & magnitude_bits);
    let (from, to) = (sign(target) * toward - reference, sign(target) * away - reference);
    let (mut low, mut high) = (from.min(to), from.max(to));
    if rule == ProductRule::RoundedProduct {
        // The rounded product lies between the bounds, and the product itself up to half a step
        // beyond them.
        let (step, steps) = step::<E, M>(f64::midpoint(low, high));
        let (first, last) = ((low * steps).ceil() * step, (high * steps).floor() * step);
        if first <= last {
            (low, high) = (first - step / 2.0, last + step / 2.0);
        }
    }
    (f64::midpoint(low, high), (high - low) / 2.0)
}

/// A finite magnitude. Its fields are moved to their places in f32, and a product corrects the
/// bias.
#[inline(always)]
fn value<const E: u32, const M: u32>(magnitude: u32) -> f64 {
    let rebias = f32::from_bits((254 - ((1 << (E - 1)) - 1)) << 23);
    f64::from(f32::from_bits(magnitude << (23 - M)) * rebias)
}

/// The spacing of numbers around `x`, a power of two, and its inverse.
#[inline(always)]
fn step<const E: u32, const M: u32>(x: f64) -> (f64, f64) {
    let exponent = x.to_bits() >> 52 & 0x7ff;
    // All smaller numbers have the exponent of the smallest normal number.
    let exponent = exponent.max(1025u64 - (1 << (E - 1))) - u64::from(M);
    (f64::from_bits(exponent << 52), f64::from_bits((2046 - exponent) << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_a_rounded_sum_and_of_a_rounded_product() {
        let of = |rule, target: u16, reference: u16| {
            let (mut centre, mut half) = ([0.0], [0.0]);
            let number = Number::float(8, 7);
            intervals(number, rule, &target.to_le_bytes(), &reference.to_le_bytes(), &mut centre, &mut half);
            (centre[0] - half[0], centre[0] + half[0])
        };
        // 1 to its upper neighbour, 1 + 2^-7: half a step up, and half a step down.
        let ulp = 1.0 / 128.0;
        assert_eq!(of(ProductRule::Sum, 0x3f81, 0x3f80), (0.5 * ulp, 1.5 * ulp));
        assert_eq!(of(ProductRule::Sum, 0xbf81, 0xbf80), (-1.5 * ulp, -0.5 * ulp));
        // Numbers about 2^-7 have steps of 2^-14: a quarter of an ULP wide at most on each side.
        let step = ulp / 128.0;
        assert_eq!(
            of(ProductRule::RoundedProduct, 0x3f81, 0x3f80),
            (0.5 * ulp - step / 2.0, 1.5 * ulp + step / 2.0)
        );
        // The sum of 2^-7 and a number of 8 bits about 1 is exact where the reference is small.
        assert_eq!(of(ProductRule::Sum, 0x7f80, 0x3f80).1, f64::INFINITY);
        assert_eq!(of(ProductRule::Sum, 0x3f80, 0x7fc0).1, f64::INFINITY);
        assert_eq!(
            of(ProductRule::Sum, 0, 0),
            (-f64::from(f32::from_bits(1 << 16)) / 2.0, f64::from(f32::from_bits(1 << 16)) / 2.0)
        );
    }
}
