//! How far a reconstruction is from the original, summed over tensors. It compares numbers; which
//! tensors are compared is decided elsewhere.

/// Sums of squares and the greatest distance. Equal bits have no distance, even if they are NaN.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Errors {
    /// Greatest absolute distance of an element from its original; NaN if one of the two is NaN.
    pub(super) max: f64,
    /// Distance of the reconstruction from the original.
    state: f64,
    /// Distance of the reconstructed update from the true one.
    update: f64,
    /// Length of the true update.
    true_update: f64,
}

/// A tensor now and one step before, as the original and as the reader has it.
pub(super) struct Tensor<'a> {
    pub(super) original: &'a [f32],
    pub(super) reconstructed: &'a [f32],
    /// Zeros if there was none.
    pub(super) original_before: &'a [f32],
    pub(super) reconstructed_before: &'a [f32],
}

/// The greatest absolute distance between elements of two tensors; NaN if one of two differing
/// elements is NaN.
pub(super) fn greatest(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).fold(0.0, |max, (a, b)| greater(max, distance(*a, *b)))
}

/// The greater of a maximum and a distance; NaN stays.
fn greater(max: f64, distance: f64) -> f64 {
    if distance.is_nan() || distance.abs() > max { distance.abs() } else { max }
}

impl Errors {
    pub(super) fn add(&mut self, tensor: &Tensor<'_>) {
        let before = tensor.original_before.iter().zip(tensor.reconstructed_before);
        for ((&x, &r), (&x0, &r0)) in tensor.original.iter().zip(tensor.reconstructed).zip(before) {
            let error = distance(x, r);
            self.max = greater(self.max, error);
            self.state += error * error;
            let (true_update, update) = (distance(x, x0), distance(r, r0));
            self.true_update += true_update * true_update;
            self.update += (true_update - update) * (true_update - update);
        }
    }

    /// Distance of the reconstruction from the original, relative to the length of the true update.
    pub(super) fn relative_state(&self) -> Option<f64> {
        relative(self.state, self.true_update)
    }

    /// Distance of the reconstructed update from the true one, relative to the length of the
    /// latter.
    pub(super) fn relative_update(&self) -> Option<f64> {
        relative(self.update, self.true_update)
    }
}

fn distance(a: f32, b: f32) -> f64 {
    if a.to_bits() == b.to_bits() { 0.0 } else { f64::from(a) - f64::from(b) }
}

/// `None` if it is not finite.
fn relative(error: f64, whole: f64) -> Option<f64> {
    if error == 0.0 { Some(0.0) } else { Some((error / whole).sqrt()).filter(|r| r.is_finite()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconstruction_that_stays_behind_has_lost_its_update() {
        let mut errors = Errors::default();
        errors.add(&Tensor {
            original: &[3.0, f32::NAN],
            reconstructed: &[1.0, f32::NAN],
            original_before: &[2.0, f32::NAN],
            reconstructed_before: &[1.0, f32::NAN],
        });
        assert_eq!(errors.max, 2.0);
        assert_eq!(errors.relative_update(), Some(1.0));
        assert_eq!(errors.relative_state(), Some(2.0));
    }
}
