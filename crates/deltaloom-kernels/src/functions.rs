//! Functions of vectors that language models need: exponentials, softmax, SiLU, GELU, attention,
//! sums and maxima. Each has one order of additions and no fused ones, so it has the same bits on
//! every instruction set.
//!
//! Sums go through 16 lanes: element `i` belongs to lane `i mod 16`; then lane `j` adds lane
//! `j + 8`, and so on with 4, 2 and 1.

use crate::isa::per_isa;

const LANES: usize = 16;

/// `e^x` within 2 units in the last place. It is 0 below about -104, and infinite above about 88.7.
///
/// The range is reduced by multiples of ln 2 in two parts; the polynomial has the coefficients of
/// expf in the Cephes library (S. Moshier).
#[inline(always)]
fn exp_of(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    /// Added to a number, it leaves the nearest integer in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let limited = x.clamp(-104.0, 89.0);
    let shifted = limited * std::f32::consts::LOG2_E + ROUNDER;
    let power = shifted - ROUNDER;
    let rest = limited - power * LN_2[0] - power * LN_2[1];
    let inner = COEFFICIENTS.iter().fold(0.0, |sum, c| sum * rest + c);
    let value = inner * (rest * rest) + rest + 1.0;
    // In two steps, since the power may be out of the range of exponents.
    let power = shifted.to_bits().cast_signed() - ROUNDER.to_bits().cast_signed();
    let half = power >> 1;
    let scale = |power: i32| f32::from_bits(((power + 127) << 23).cast_unsigned());
    let result = value * scale(half) * scale(power - half);
    if x.is_nan() { f32::NAN } else { result }
}

/// `x / (1 + e^-t)`.
#[inline(always)]
fn gated(x: f32, t: f32) -> f32 {
    x / (1.0 + exp_of(-t))
}

/// The total of lanes.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// The sum of `f` of all elements, which it may replace.
#[inline(always)]
fn sum_of(x: &mut [f32], f: impl Fn(&mut f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks_mut::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] += f(&mut block[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    total(lanes)
}

/// The sum of `f` of all elements.
#[inline(always)]
fn total_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] += f(block[lane]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    total(lanes)
}

per_isa! {
    /// Replaces each element by its exponential.
    pub fn exp(x: &mut [f32]) = exp_body;
}

#[inline(always)]
fn exp_body(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = exp_of(*x));
}

per_isa! {
    /// The largest element: negative infinity if there is none, NaN if there is one.
    pub fn largest(x: &[f32]) -> f32 = largest_body;
}

#[inline(always)]
fn largest_body(x: &[f32]) -> f32 {
    let (mut lanes, mut has_nan) = ([f32::NEG_INFINITY; LANES], false);
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            has_nan |= block[lane].is_nan();
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        has_nan |= x.is_nan();
        *lane = if *x > *lane { *x } else { *lane };
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, |most, x| if x > most { x } else { most });
    if has_nan { f32::NAN } else { largest }
}

/// The place of the largest element, of equal ones the first. `None` if there is no element, or a
/// NaN.
#[must_use]
pub fn place_of_largest(x: &[f32]) -> Option<usize> {
    let largest = largest(x);
    x.iter().position(|x| *x == largest)
}

per_isa! {
    /// Turns scores into fractions that add up to 1: e^x over the sum of all e^x. A NaN makes all
    /// of them NaN.
    pub fn softmax(x: &mut [f32]) = softmax_body;
}

#[inline(always)]
fn softmax_body(x: &mut [f32]) {
    let largest = largest_body(x);
    let sum = sum_of(x, |x| {
        *x = exp_of(*x - largest);
        *x
    });
    let factor = 1.0 / sum;
    x.iter_mut().for_each(|x| *x *= factor);
}

per_isa! {
    /// The sum of e^(x - `largest`): its logarithm plus `largest` is that of the sum of e^x.
    pub fn sum_exp(x: &[f32], largest: f32) -> f32 = sum_exp_body;
}

#[inline(always)]
fn sum_exp_body(x: &[f32], largest: f32) -> f32 {
    total_of(x, |x| exp_of(x - largest))
}

per_isa! {
    /// `x *= silu(gate)`: SwiGLU (Shazeer, 2020).
    pub fn silu_gate(gate: &[f32], x: &mut [f32]) = silu_gate_body;
}

#[inline(always)]
fn silu_gate_body(gate: &[f32], x: &mut [f32]) {
    x.iter_mut().zip(gate).for_each(|(x, gate)| *x *= gated(*gate, *gate));
}

per_isa! {
    /// GELU (Hendrycks and Gimpel, 2016) with the approximation by tanh.
    pub fn gelu_tanh(x: &mut [f32]) = gelu_tanh_body;
}

#[inline(always)]
fn gelu_tanh_body(x: &mut [f32]) {
    /// 2 sqrt(2 / pi): (1 + tanh t) / 2 is 1 / (1 + e^-2t).
    const SLOPE: f32 = 1.595_769;
    x.iter_mut().for_each(|x| *x = gated(*x, SLOPE * (*x + 0.044_715 * *x * *x * *x)));
}

per_isa! {
    /// The sum of all elements.
    pub fn sum(x: &[f32]) -> f32 = sum_body;
}

#[inline(always)]
fn sum_body(x: &[f32]) -> f32 {
    total_of(x, |x| x)
}

per_isa! {
    /// The sum of the squares of the distances to `mean`.
    pub fn squares(x: &[f32], mean: f32) -> f32 = squares_body;
}

#[inline(always)]
fn squares_body(x: &[f32], mean: f32) -> f32 {
    total_of(x, |x| (x - mean) * (x - mean))
}

per_isa! {
    /// Products of a query with keys, [keys, size], each times `scale`.
    ///
    /// # Panics
    /// If there are fewer keys than `out` has places.
    pub fn scores(query: &[f32], keys: &[f32], scale: f32, out: &mut [f32]) = scores_body;
}

#[inline(always)]
fn scores_body(query: &[f32], keys: &[f32], scale: f32, out: &mut [f32]) {
    let size = query.len();
    assert!(keys.len() >= out.len() * size);
    for (i, out) in out.iter_mut().enumerate() {
        *out = scale * dot(query, &keys[i * size..][..size]);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, rest_of_a), (b, rest_of_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest_of_a.iter().zip(rest_of_b)) {
        *lane += a * b;
    }
    total(lanes)
}

per_isa! {
    /// Adds values, [values, size], each times its weight, to `out`, one after another.
    ///
    /// # Panics
    /// If there are fewer values than weights.
    pub fn add_weighted(weights: &[f32], values: &[f32], out: &mut [f32]) = add_weighted_body;
}

#[inline(always)]
fn add_weighted_body(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let size = out.len();
    assert!(values.len() >= weights.len() * size);
    for (i, weight) in weights.iter().enumerate() {
        out.iter_mut().zip(&values[i * size..][..size]).for_each(|(out, value)| *out += weight * value);
    }
}

per_isa! {
    /// Turns vectors, [vectors, size]: element i of each and element i + size / 2 are a pair, by
    /// the cosines and then the sines in the row of `rows`, [rows, size], that `places` says.
    ///
    /// # Panics
    /// If there is no such row, or there are more places than vectors.
    pub fn turn(rows: &[f32], places: &[usize], vectors: &[f32], out: &mut [f32]) = turn_body;
}

#[inline(always)]
fn turn_body(rows: &[f32], places: &[usize], vectors: &[f32], out: &mut [f32]) {
    let Some(size) = vectors.len().checked_div(places.len()).filter(|size| *size > 0) else { return };
    let both = vectors.chunks_exact(size).zip(out.chunks_exact_mut(size));
    for (place, (vector, out)) in places.iter().zip(both) {
        let (cos, sin) = rows[place * size..][..size].split_at(size / 2);
        let ((a, b), (x, y)) = (vector.split_at(size / 2), out.split_at_mut(size / 2));
        for i in 0..size / 2 {
            x[i] = a[i] * cos[i] - b[i] * sin[i];
            y[i] = b[i] * cos[i] + a[i] * sin[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    #[test]
    fn exponentials_are_within_two_units() {
        let mut worst = 0;
        for i in 0..=2_000_000i32 {
            let x = -104.5 + i as f32 * 1e-4;
            let mut found = [x];
            exp(&mut found);
            #[expect(clippy::cast_possible_truncation, reason = "the nearest number is meant")]
            let exact = f64::from(x).exp() as f32;
            let units = (found[0].to_bits().cast_signed() - exact.to_bits().cast_signed()).abs();
            worst = worst.max(units);
        }
        assert!(worst <= 2, "{worst}");
        let mut special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, 1e-30];
        exp(&mut special);
        assert_eq!(special[..4], [1.0, 1.0, f32::INFINITY, 0.0]);
        assert!(special[4].is_nan() && special[5..] == [f32::INFINITY, 0.0, 1.0]);
    }

    proptest! {
        #[test]
        fn every_isa_gives_the_same_bits(
            x in proptest::collection::vec(prop_oneof![8 => -30f32..30.0, 1 => any::<f32>()], 0..100),
        ) {
            let all = || {
                let map = |f: &dyn Fn(&mut [f32])| {
                    let mut x = x.clone();
                    f(&mut x);
                    x
                };
                let numbers = [largest(&x), sum_exp(&x, 1.5), sum(&x), squares(&x, 0.5)];
                let size = x.len() / 5;
                let mut products = vec![0.0; if size > 0 { 4 } else { 0 }];
                scores(&x[..size], &x[size..], 0.25, &mut products);
                let mut sums = vec![1.0; size];
                add_weighted(&products, &x, &mut sums);
                let half = x.len() / 4 * 2;
                let mut turned = vec![0.0; half];
                turn(&x, &[1], &x[..half], &mut turned);
                let vectors = [
                    map(&exp), map(&softmax), map(&gelu_tanh), map(&|y| silu_gate(&x, y)), numbers.to_vec(),
                    products, sums, turned,
                ];
                let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
                vectors.iter().flatten().map(bits).collect::<Vec<_>>()
            };
            let mut expected = None;
            for_each_isa(|isa| {
                let found = all();
                let expected = expected.get_or_insert_with(|| found.clone());
                prop_assert_eq!(&found, &*expected, "{:?}", isa);
                Ok(())
            })?;
        }
    }

    #[test]
    fn functions_are_those_of_their_definitions() {
        let x: Vec<f32> = (0..50).map(|i| (i * 37 % 50) as f32 * 0.3 - 7.0).collect();
        let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let sum: f64 = wide.iter().map(|x| x.exp()).sum();
        let near = |found: f32, expected: f64| {
            assert!(
                (f64::from(found) - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
                "{found} {expected}"
            );
        };
        near(sum_exp(&x, 2.0), sum / 2f64.exp());
        let mut fractions = x.clone();
        softmax(&mut fractions);
        let mut gate = vec![2.0; 50];
        silu_gate(&x, &mut gate);
        let mut gelu = x.clone();
        gelu_tanh(&mut gelu);
        for (i, x) in wide.iter().enumerate() {
            near(fractions[i], x.exp() / sum);
            near(gate[i], 2.0 * x / (1.0 + (-x).exp()));
            let tanh = ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh();
            assert!((f64::from(gelu[i]) - 0.5 * x * (1.0 + tanh)).abs() < 1e-6);
        }
        let mut products = [0.0; 4];
        scores(&x[..10], &x[10..], 0.5, &mut products);
        let mut sums = [1.0; 10];
        add_weighted(&products, &x[10..], &mut sums);
        // Large terms of both signs cancel.
        let about = |found: f32, expected: f64| assert!((f64::from(found) - expected).abs() < 1e-4);
        for (i, product) in products.iter().enumerate() {
            about(*product, (0..10).map(|k| 0.5 * wide[k] * wide[10 + 10 * i + k]).sum());
        }
        for (k, sum) in sums.iter().enumerate() {
            about(*sum, 1.0 + (0..4).map(|i| f64::from(products[i]) * wide[10 + 10 * i + k]).sum::<f64>());
        }
        let largest = wide.iter().copied().fold(f64::MIN, f64::max);
        near(super::largest(&x), largest);
        near(super::sum(&x), wide.iter().sum());
        near(squares(&x, 1.0), wide.iter().map(|x| (x - 1.0).powi(2)).sum());
    }

    #[test]
    fn the_first_of_equal_elements_is_the_largest() {
        assert_eq!(place_of_largest(&[1.0, 3.0, -2.0, 3.0]), Some(1));
        assert_eq!(place_of_largest(&[f32::NEG_INFINITY; 20]), Some(0));
        assert_eq!(place_of_largest(&[]), None);
        assert_eq!(place_of_largest(&[1.0, f32::NAN, 2.0]), None);
        assert!(largest(&[f32::NAN, 1.0]).is_nan() && largest(&[]) == f32::NEG_INFINITY);
        let mut masked = [0.0, f32::NEG_INFINITY, 0.0];
        softmax(&mut masked);
        assert_eq!(masked, [0.5, 0.0, 0.5]);
    }
}
