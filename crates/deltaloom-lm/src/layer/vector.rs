//! Sums and products of vectors of FP32. Products with weights are not computed here.

/// `y += x`.
pub(super) fn add(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// `y *= x`.
pub(super) fn multiply(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y *= x);
}

/// `a + b`.
pub(super) fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
