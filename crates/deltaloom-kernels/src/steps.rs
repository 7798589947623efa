//! Distance of each element from its prediction as a plain number, for estimating scales only.
//! Nothing that is decoded depends on it.

use crate::isa::per_isa;
use crate::number::{by_number, by_size, load, load_32};
use crate::{Number, NumberKind};

per_isa! {
    /// Computes `|target - prediction|` of all elements; 0 if it is not finite.
    ///
    /// # Panics
    /// If the slices do not have `out.len()` elements.
    pub fn absolute_steps(
        number: Number,
        target: &[u8],
        prediction: &[u8],
        out: &mut [f32],
    ) = absolute_steps_body;
}

#[inline(always)]
fn absolute_steps_body(number: Number, target: &[u8], prediction: &[u8], out: &mut [f32]) {
    #[inline(always)]
    fn run<const B: usize>(number: Number, target: &[u8], prediction: &[u8], out: &mut [f32]) {
        let value = Decoder::new(number);
        let pairs = target.chunks_exact(B).zip(prediction.chunks_exact(B));
        let finite = |step: f32| if step < f32::MAX { step } else { 0.0 };
        if number.kind() == NumberKind::Float && B <= 4 {
            // A separate loop, in 32 bits and without branches, so that it is vectorised.
            for (out, (t, p)) in out.iter_mut().zip(pairs) {
                *out =
                    finite((value.narrow_float(load_32::<B>(t)) - value.narrow_float(load_32::<B>(p))).abs());
            }
        } else {
            for (out, (t, p)) in out.iter_mut().zip(pairs) {
                *out = finite((value.of(load::<B>(t, 0)) - value.of(load::<B>(p, 0))).abs());
            }
        }
    }
    assert_eq!(target.len(), out.len() * number.bytes());
    assert_eq!(target.len(), prediction.len());
    by_number!(number, run(target, prediction, out));
}

/// Statistics of the distance between two runs of elements.
#[derive(Debug, Clone)]
pub struct Distances {
    /// Number of elements by distance in ULPs: [0] none, [1] one, [b] up to 2^(b-1) and more than
    /// half of that.
    pub by_bits: [u64; 66],
    /// Sum of the squares of the first run.
    pub first_squares: f64,
    /// Sum of the squares of the differences.
    pub difference_squares: f64,
}

impl Default for Distances {
    fn default() -> Self {
        Self { by_bits: [0; 66], first_squares: 0.0, difference_squares: 0.0 }
    }
}

/// Adds the distances between `a` and `b`, element by element.
pub fn add_distances(number: Number, a: &[u8], b: &[u8], into: &mut Distances) {
    fn run<const B: usize>(number: Number, a: &[u8], b: &[u8], into: &mut Distances) {
        let decoder = Decoder::new(number);
        for i in 0..a.len().min(b.len()) / B {
            let (a, b) = (load::<B>(a, i), load::<B>(b, i));
            let ulps = number.ordered(a).abs_diff(number.ordered(b));
            // 1, 2, 3..4, 5..8, ...: the bits of the distance minus one, plus one bucket for no
            // distance.
            let bucket = if ulps == 0 { 0 } else { 65 - (ulps - 1).leading_zeros() as usize };
            into.by_bits[bucket] += 1;
            let (a, b) = (decoder.of_double(a), decoder.of_double(b));
            into.first_squares += a * a;
            into.difference_squares += (b - a) * (b - a);
        }
    }
    by_size!(number, run(number, a, b, into));
}

/// Converts the elements to numbers. Integers that f32 cannot hold become the nearest f32.
///
/// # Panics
/// If `bytes` does not have `out.len()` elements.
pub fn to_doubles(number: Number, bytes: &[u8], out: &mut [f64]) {
    fn run<const B: usize>(number: Number, bytes: &[u8], out: &mut [f64]) {
        let decoder = Decoder::new(number);
        out.iter_mut().enumerate().for_each(|(i, out)| *out = decoder.of_double(load::<B>(bytes, i)));
    }
    assert_eq!(bytes.len(), out.len() * number.bytes());
    by_size!(number, run(number, bytes, out));
}

/// Converts elements to numbers.
struct Decoder {
    number: Number,
    /// Factor that brings the exponent bias of a narrow float to that of f32.
    rebias: f32,
}

impl Decoder {
    fn new(number: Number) -> Self {
        let bias = if number.exponent_bits() == 0 { 127 } else { (1u32 << (number.exponent_bits() - 1)) - 1 };
        // 2^(127 - bias), or 1 for the widths that do not need it.
        let rebias = if bias <= 127 { f32::from_bits((254 - bias) << 23) } else { 1.0 };
        Self { number, rebias }
    }

    #[inline]
    fn of_double(&self, x: u64) -> f64 {
        if self.number == Number::float(11, 52) { f64::from_bits(x) } else { f64::from(self.of(x)) }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "an estimate in single precision")]
    fn of(&self, x: u64) -> f32 {
        let unused = 64 - self.number.bits();
        match self.number.kind() {
            NumberKind::Unsigned => x as f32,
            NumberKind::Signed => ((x << unused).cast_signed() >> unused) as f32,
            NumberKind::Float if self.number.bits() == 64 => f64::from_bits(x) as f32,
            NumberKind::Float => self.narrow_float(x as u32),
        }
    }

    /// Converts a float of at most 32 bits: moves its fields to where f32 has them and corrects the
    /// bias by a product.
    #[inline]
    fn narrow_float(&self, x: u32) -> f32 {
        let bits = self.number.bits();
        let magnitude = (x & ((1 << (bits - 1)) - 1)) << (23 - self.number.mantissa_bits());
        let sign = x >> (bits - 1) << 31;
        f32::from_bits(sign | magnitude) * self.rebias
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_powers_of_two() {
        let words = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let mut distances = Distances::default();
        let number = Number::float(8, 7);
        let base = words(&[0x3f80; 7]);
        let moved = words(&[0x3f80, 0x3f81, 0x3f7f, 0x3f82, 0x3f83, 0x3f84, 0x3f85]);
        add_distances(number, &base, &moved, &mut distances);
        assert_eq!(distances.by_bits[..5], [1, 2, 1, 2, 1]);
        assert_eq!(distances.first_squares, 7.0);
        add_distances(Number::unsigned(64), &0u64.to_le_bytes(), &u64::MAX.to_le_bytes(), &mut distances);
        assert_eq!(distances.by_bits[65], 1);
    }

    #[test]
    fn numbers_of_every_kind() {
        let value = |number: Number, x: u64| {
            let mut out = [0.0];
            to_doubles(number, &x.to_le_bytes()[..number.bytes()], &mut out);
            out[0]
        };
        assert_eq!(value(Number::float(8, 7), 0xc040), -3.0);
        assert_eq!(value(Number::float(5, 10), 0x0001), 2.0f64.powi(-24));
        assert_eq!(value(Number::float(11, 52), 0.1f64.to_bits()), 0.1);
        assert_eq!(value(Number::signed(8), 0xfe), -2.0);
        assert_eq!(value(Number::unsigned(16), 0xfffe), 65534.0);
    }

    #[test]
    fn steps_of_every_kind() {
        let step = |number: Number, t: u64, p: u64| {
            let mut out = [0.0];
            let size = number.bytes();
            absolute_steps(number, &t.to_le_bytes()[..size], &p.to_le_bytes()[..size], &mut out);
            out[0]
        };
        assert_eq!(step(Number::float(8, 7), 0x3f80, 0xbf80), 2.0);
        assert_eq!(step(Number::float(5, 10), 0x3c00, 0x0001), 1.0 - 2.0f32.powi(-24));
        assert_eq!(step(Number::float(4, 3), 0x38, 0x30), 0.5);
        assert_eq!(step(Number::float(11, 52), 1.5f64.to_bits(), 0), 1.5);
        assert_eq!(step(Number::signed(16), 0xffff, 3), 4.0);
        assert_eq!(step(Number::unsigned(8), 200, 3), 197.0);
        assert_eq!(step(Number::float(8, 23), u64::from(f32::NAN.to_bits()), 0), 0.0);
    }
}
