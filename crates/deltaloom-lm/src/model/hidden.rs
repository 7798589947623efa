//! The tokens of a step after the last layer, and logits of those that are asked for. All logits of
//! a step are never in memory at once, unless the caller collects them.

use crate::layer::{TenantId, apply_norm};
use crate::model::ModelConfig;
use crate::tenancy::RunningBatch;
use deltaloom::{Error, Result};
use deltaloom_compute::Run;
use deltaloom_kernels::functions;
use rayon::prelude::*;

/// Bytes of logits that are computed at a time, unless one token has more.
pub(crate) const LOGIT_BYTES: usize = 16 << 20;

/// Tokens of a step after the last layer. The step ends when this value is dropped.
pub struct Hidden<'a> {
    running: RunningBatch<'a>,
    config: &'a ModelConfig,
    x: Vec<f32>,
    /// The tenant of each token.
    tenants: Vec<TenantId>,
}

impl<'a> Hidden<'a> {
    pub(super) fn new(running: RunningBatch<'a>, config: &'a ModelConfig, x: Vec<f32>) -> Self {
        let tenant = |sequence: &crate::layer::Sequence| vec![sequence.tenant; sequence.tokens];
        let tenants = running.batch().sequences().iter().flat_map(tenant).collect();
        Self { running, config, x, tenants }
    }

    /// Number of tokens: those of the first chunk, then those of the next.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tenants.len()
    }

    /// Number of logits of a token.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// The tokens before the last norm, `[tokens, width]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.x
    }

    /// Logits of some tokens of the step: `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a token that the step does not have; errors of decoding.
    pub fn logits(&self, tokens: &[usize], run: &Run<'_>) -> Result<Vec<f32>> {
        let tenants = tokens.iter().map(|token| self.tenants.get(*token).copied());
        let tenants: Option<Vec<TenantId>> = tenants.collect();
        let tenants = tenants.ok_or_else(|| {
            Error::InvalidArgument(format!("a step of {} tokens has no such token", self.tokens()))
        })?;
        let width = self.config.width;
        let mut normed = vec![0.0; tokens.len() * width];
        for ((token, tenant), out) in tokens.iter().zip(&tenants).zip(normed.chunks_exact_mut(width)) {
            let affine = self.running.final_norm(*tenant)?;
            apply_norm(self.config.final_norm, affine, width, &self.x[token * width..][..width], out);
        }
        self.running.logits(&tenants, &normed, run)
    }

    /// Calls `each` with the logits of some tokens, in order, a few tokens at a time.
    ///
    /// # Errors
    /// As [`Self::logits`]; what `each` gives.
    pub fn for_logits(
        &self,
        tokens: &[usize],
        run: &Run<'_>,
        mut each: impl FnMut(&[usize], &[f32]) -> Result<()>,
    ) -> Result<()> {
        let at_a_time = (LOGIT_BYTES / size_of::<f32>() / self.config.vocabulary).max(1);
        tokens.chunks(at_a_time).try_for_each(|some| each(some, &self.logits(some, run)?))
    }

    /// Natural logarithms of the probabilities that these ids come next: after token `.0` of the
    /// step comes `.1`.
    ///
    /// # Errors
    /// As [`Self::logits`]; [`Error::InvalidArgument`] for an id that is not in the vocabulary.
    pub fn log_probs(&self, next: &[(usize, u32)], run: &Run<'_>) -> Result<Vec<f64>> {
        let vocabulary = self.config.vocabulary;
        if let Some((_, id)) = next.iter().find(|(_, id)| *id as usize >= vocabulary) {
            let what = format!("token {id} is not in a vocabulary of {vocabulary}");
            return Err(Error::InvalidArgument(what));
        }
        let tokens: Vec<usize> = next.iter().map(|(token, _)| *token).collect();
        let (mut found, mut rest) = (Vec::with_capacity(next.len()), next);
        self.for_logits(&tokens, run, |some, logits| {
            let (now, after) = rest.split_at(some.len());
            rest = after;
            let pairs = logits.par_chunks_exact(vocabulary).zip(now);
            found.par_extend(pairs.map(|(logits, (_, id))| log_prob(logits, *id)));
            Ok(())
        })?;
        Ok(found)
    }
}

/// The logarithm of the softmax of `logits` at `id`.
fn log_prob(logits: &[f32], id: u32) -> f64 {
    let largest = functions::largest(logits);
    let sum = functions::sum_exp(logits, largest);
    f64::from(logits[id as usize] - largest) - libm::log(f64::from(sum))
}
