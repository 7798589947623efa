//! Golden cases whose contexts are the elements at earlier steps.
//!
//! Like all cases, they never change once their container is in the repository.

use super::cases::Case;
use super::numbers::{Random, bf16s, f16s};
use super::quantised;
use crate::files::Tensor;

const STEPS: usize = 5;

/// Cases of format version 3, in the order in which they were added.
pub(super) fn since_3() -> Vec<Case> {
    vec![histories(), quantised::codes()]
}

/// Weights of which a third drifts so steadily that each changes every third step, and weights that
/// move by steps of very different sizes.
fn histories() -> Case {
    let mut random = Random::new(31);
    let drifting = random.normals(8000, 0.02);
    let moving = random.normals(6000, 0.02);
    let sizes: Vec<f64> = random.normals(moving.len(), 2.5).iter().map(|size| 1e-4 * size.exp2()).collect();
    let mut at = moving;
    let mut file = |step: usize| {
        // At each step, a third of the smallest step of an octave, which is 2^-8 of the value.
        let drifted = |(i, value): (usize, &f64)| {
            let steps = if i % 3 == 0 { (step + i % 7) / 3 } else { 0 };
            value * (1.0 + steps as f64 / 128.0)
        };
        let drifted: Vec<f64> = drifting.iter().enumerate().map(drifted).collect();
        at.iter_mut().zip(&sizes).for_each(|(value, size)| *value += size * random.normal());
        [
            Tensor::new("drifting.weight", "BF16", &[80, 100], bf16s(&drifted)),
            Tensor::new("moving.weight", "F16", &[60, 100], f16s(&at)),
        ]
    };
    let mut files: Vec<[Tensor; 2]> = (0..STEPS).map(&mut file).collect();
    files.reverse();
    let bases: Vec<&[Tensor]> = files[1..].iter().map(|tensors| &tensors[..]).collect();
    let case =
        Case::new("histories", "changes and residuals of earlier steps as contexts", &files[0], &bases);
    Case { has_history: true, ..case }
}
