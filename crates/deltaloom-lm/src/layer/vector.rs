//! Sums over short vectors of FP32 in a fixed order: eight partial sums, then the rest, so that
//! vector registers change no bit. Products with weights are not computed here.

const LANES: usize = 8;

/// `a . b`, over the shorter length.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.0.iter().zip(b.0) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    fold(lanes) + a.1.iter().zip(b.1).map(|(a, b)| a * b).sum::<f32>()
}

/// Sum of `f(x)`.
pub(super) fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for x in whole {
        lanes.iter_mut().zip(x).for_each(|(sum, x)| *sum += f(*x));
    }
    fold(lanes) + rest.iter().map(|x| f(*x)).sum::<f32>()
}

fn fold([a, b, c, d, e, f, g, h]: [f32; LANES]) -> f32 {
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// `y += x`.
pub(super) fn add(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// `y += factor x`.
pub(super) fn add_scaled(factor: f32, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

/// `a + b`.
pub(super) fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
