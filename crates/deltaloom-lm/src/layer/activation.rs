//! The nonlinear functions of feed-forward networks: GELU (Hendrycks and Gimpel, 2016) and SwiGLU
//! (Shazeer, 2020).
//!
//! `exp`, `erf` and `tanh` come from the crate libm, which gives the same bits on every machine.
//! Those of the system need not.

use rayon::prelude::*;

use super::config::Gelu;

/// Number of elements that a thread processes at once; fewer are processed on the current thread.
const RUN_ELEMS: usize = 4096;

/// Applies GELU to every element in place.
pub(super) fn gelu(form: Gelu, x: &mut [f32]) {
    let each = |x: &mut f32| {
        *x = match form {
            Gelu::Erf => 0.5 * *x * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2)),
            Gelu::Tanh => {
                const SLOPE: f32 = 0.797_884_6; // sqrt(2 / pi)
                0.5 * *x * (1.0 + libm::tanhf(SLOPE * (*x + 0.044_715 * *x * *x * *x)))
            }
        };
    };
    x.par_chunks_mut(RUN_ELEMS).for_each(|run| run.iter_mut().for_each(each));
}

/// `x *= silu(gate)`.
pub(super) fn swiglu(gate: &[f32], x: &mut [f32]) {
    let each = |(x, gate): (&mut f32, &f32)| *x *= gate / (1.0 + libm::expf(-gate));
    let runs = x.par_chunks_mut(RUN_ELEMS).zip(gate.par_chunks(RUN_ELEMS));
    runs.for_each(|(x, gate)| x.iter_mut().zip(gate).for_each(each));
}
