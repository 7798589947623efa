//! LayerNorm (Ba, Kiros and Hinton, 2016) and RMSNorm (Zhang and Sennrich, 2019) of each token. The
//! caller provides their weights and biases.

use deltaloom_kernels::functions;

use super::config::Norm;

/// The factors of a normalised token, and the numbers added to it then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) weight: Option<&'a [f32]>,
    pub(crate) bias: Option<&'a [f32]>,
}

/// Normalises each token of `width` elements from `x` into `out`.
pub(crate) fn apply(norm: Norm, affine: Affine<'_>, width: usize, x: &[f32], out: &mut [f32]) {
    let count = width as f32;
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (mean, epsilon) = match norm {
            Norm::LayerNorm { epsilon } => (functions::sum(x) / count, epsilon),
            Norm::RmsNorm { epsilon } | Norm::ZeroCentredRmsNorm { epsilon } => (0.0, epsilon),
        };
        let variance = functions::squares(x, mean) / count;
        let factor = 1.0 / (variance + epsilon).sqrt();
        out.iter_mut().zip(x).for_each(|(out, x)| *out = (x - mean) * factor);
        if let Some(weight) = affine.weight {
            let offset = if let Norm::ZeroCentredRmsNorm { .. } = norm { 1.0 } else { 0.0 };
            out.iter_mut().zip(weight).for_each(|(out, weight)| *out *= offset + weight);
        }
        if let Some(bias) = affine.bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }
}
