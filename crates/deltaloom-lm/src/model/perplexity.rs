//! The loss of a model on token ids, in windows that may overlap: each token is scored once, in the
//! first window that has it, with what comes before it there.

use serde::Serialize;

use super::{Chunk, Model};
use crate::layer::{MemoryOptions, TenantId};
use deltaloom::{Error, Result};
use deltaloom_compute::Run;

/// How a loss is computed.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PerplexityOptions {
    /// Number of tokens of a window.
    pub window: usize,
    /// From the start of a window to that of the next.
    pub stride: usize,
    /// Number of tokens of a window that are computed together.
    pub chunk: usize,
    /// Number of windows that are computed together.
    pub windows: usize,
    /// How keys and values are stored.
    pub memory: MemoryOptions,
}

impl PerplexityOptions {
    /// Windows of this many tokens that do not overlap, about 512 tokens at a time.
    #[must_use]
    pub fn new(window: usize) -> Self {
        let (chunk, windows) = (window.min(512), (512 / window.max(1)).max(1));
        Self { window, stride: window, chunk, windows, memory: MemoryOptions::default() }
    }

    /// Sets the distance of windows.
    #[must_use]
    pub fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Sets how many tokens of how many windows are computed together. It changes no bit of an
    /// exact run.
    #[must_use]
    pub fn with_chunks(self, chunk: usize, windows: usize) -> Self {
        Self { chunk, windows, ..self }
    }

    /// Sets how keys and values are stored.
    #[must_use]
    pub fn with_memory(self, memory: MemoryOptions) -> Self {
        Self { memory, ..self }
    }

    /// Number of tokens that are computed for this many ids: more than they are if windows overlap.
    #[must_use]
    pub fn work(&self, ids: usize) -> usize {
        if self.check().is_err() {
            return 0;
        }
        windows(ids, self).iter().map(|window| window.end - window.start).sum()
    }

    fn check(&self) -> Result<()> {
        let Self { window, stride, chunk, windows, .. } = *self;
        if window < 2 || !(1..=window).contains(&stride) || chunk == 0 || windows == 0 {
            return Err(Error::InvalidArgument(format!(
                "windows of {window} tokens every {stride}: a window needs 2 tokens or more, and the next \
                 must begin within it or at its end"
            )));
        }
        Ok(())
    }
}

/// The loss of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Perplexity {
    /// Mean negative logarithm of the probabilities, in nats per token.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Of the loss, from the differences between windows; `None` for a single one.
    pub standard_error: Option<f64>,
    /// Number of tokens that were scored.
    pub tokens: usize,
    /// Number of windows.
    pub windows: usize,
}

/// Computes the loss of a tenant on `ids`. `progress` gets the number of tokens that a step has
/// computed, and may stop the work.
///
/// # Errors
/// [`Error::InvalidArgument`] for fewer than two ids, windows that do not fit together, ids that
/// are not in the vocabulary, and for a model that computes NaN; errors of [`Model::forward`].
pub fn perplexity(
    model: &mut Model,
    tenant: TenantId,
    ids: &[u32],
    options: &PerplexityOptions,
    run: &Run<'_>,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<Perplexity> {
    options.check()?;
    let windows = windows(ids.len(), options);
    if windows.is_empty() {
        return Err(Error::InvalidArgument(format!("{} token ids: a loss needs two or more", ids.len())));
    }
    let mut sums = Vec::with_capacity(windows.len());
    for some in windows.chunks(options.windows) {
        sums.extend(losses(model, tenant, ids, some, options, run, &mut progress)?);
    }
    Ok(summary(&sums))
}

/// A window, and the first of its tokens that is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    start: usize,
    scored: usize,
    end: usize,
}

fn windows(ids: usize, options: &PerplexityOptions) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut scored = 0;
    for start in (0..ids).step_by(options.stride) {
        let end = start.saturating_add(options.window).min(ids);
        // Nothing is known before the first token of a window.
        let window = Window { start, scored: scored.max(start + 1), end };
        if window.scored < end {
            windows.push(window);
        }
        scored = end;
        if end == ids {
            break;
        }
    }
    windows
}

/// The negative logarithms of the scored tokens, added up for each window, with their number.
fn losses(
    model: &mut Model,
    tenant: TenantId,
    ids: &[u32],
    windows: &[Window],
    options: &PerplexityOptions,
    run: &Run<'_>,
    progress: &mut impl FnMut(usize) -> Result<()>,
) -> Result<Vec<(f64, usize)>> {
    let mut memory = model.memory(options.memory);
    let sequences: Vec<_> = windows.iter().map(|_| memory.begin(tenant)).collect();
    let mut sums = vec![(0.0, 0); windows.len()];
    for offset in (0..options.window).step_by(options.chunk) {
        let (mut chunks, mut next, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        let mut before = 0;
        for (number, window) in windows.iter().enumerate() {
            let start = (window.start + offset).min(window.end);
            let end = (start + options.chunk).min(window.end);
            chunks.push(Chunk { sequence: sequences[number], tokens: &ids[start..end] });
            // Token i gives the probability of token i + 1.
            let targets = (start + 1).max(window.scored)..(end + 1).min(window.end);
            owners.resize(owners.len() + targets.len(), number);
            next.extend(targets.map(|target| (before + target - 1 - start, ids[target])));
            before += end - start;
        }
        if before == 0 {
            break;
        }
        let hidden = model.forward(&mut memory, &chunks, run)?;
        for (number, log_prob) in owners.iter().zip(hidden.log_probs(&next, run)?) {
            if log_prob.is_nan() {
                return Err(Error::InvalidArgument("the model computed NaN".to_owned()));
            }
            sums[*number].0 -= log_prob;
            sums[*number].1 += 1;
        }
        progress(before)?;
    }
    Ok(sums)
}

fn summary(sums: &[(f64, usize)]) -> Perplexity {
    let tokens: usize = sums.iter().map(|(_, count)| count).sum();
    let loss = sums.iter().map(|(sum, _)| sum).sum::<f64>() / tokens as f64;
    // Of a ratio, because windows may differ in length.
    let spread: f64 = sums.iter().map(|(sum, count)| (sum - loss * *count as f64).powi(2)).sum();
    let n = sums.len() as f64;
    let standard_error = (sums.len() > 1).then(|| (spread * n / (n - 1.0)).sqrt() / tokens as f64);
    Perplexity { loss, perplexity: loss.exp(), standard_error, tokens, windows: sums.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_scored_once() {
        for (ids, window, stride) in
            [(1000, 256, 256), (1000, 256, 100), (5, 8, 3), (257, 256, 256), (9, 4, 1)]
        {
            let options = PerplexityOptions::new(window).with_stride(stride);
            let windows = windows(ids, &options);
            let scored: Vec<usize> = windows.iter().flat_map(|window| window.scored..window.end).collect();
            // Without overlap, nothing comes before the first token of a window.
            let expected: Vec<usize> =
                (1..ids).filter(|id| stride < window || !id.is_multiple_of(stride)).collect();
            assert_eq!(scored, expected, "{ids} {window} {stride}");
            assert!(windows.iter().all(|it| it.end - it.start <= window && it.scored > it.start));
        }
        assert!(windows(1, &PerplexityOptions::new(4)).is_empty());
    }

    #[test]
    fn the_error_is_that_of_the_means_of_equal_windows() {
        let found = summary(&[(10.0, 10), (30.0, 10), (20.0, 10)]);
        assert_eq!((found.loss, found.tokens, found.windows), (2.0, 30, 3));
        let error = found.standard_error.unwrap();
        assert!((error - (1.0 / 3.0_f64).sqrt()).abs() < 1e-12, "{error}");
        assert_eq!(summary(&[(10.0, 10)]).standard_error, None);
    }
}
