//! The nonlinear functions of feed-forward networks: GELU (Hendrycks and Gimpel, 2016), ReLU and
//! SwiGLU (Shazeer, 2020).
//!
//! `erf` comes from the crate libm, which gives the same bits on every machine. That of the system
//! need not.

use deltaloom_kernels::functions;
use rayon::prelude::*;

use super::config::Gelu;

/// Number of elements that a thread processes at once; fewer are processed on the current thread.
const RUN_ELEMS: usize = 4096;

/// Applies GELU to every element in place.
pub(super) fn gelu(form: Gelu, x: &mut [f32]) {
    let erf = |x: &mut f32| *x = 0.5 * *x * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2));
    x.par_chunks_mut(RUN_ELEMS).for_each(|run| match form {
        Gelu::Erf => run.iter_mut().for_each(erf),
        Gelu::Tanh => functions::gelu_tanh(run),
    });
}

/// Takes 0 for what is negative. NaN stays.
pub(super) fn relu(x: &mut [f32]) {
    x.iter_mut().filter(|x| **x < 0.0).for_each(|x| *x = 0.0);
}

/// `x *= silu(gate)`.
pub(super) fn swiglu(gate: &[f32], x: &mut [f32]) {
    let runs = x.par_chunks_mut(RUN_ELEMS).zip(gate.par_chunks(RUN_ELEMS));
    runs.for_each(|(x, gate)| functions::silu_gate(gate, x));
}
