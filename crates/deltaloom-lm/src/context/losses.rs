//! Losses of every token of some sequences: with all that comes before it, or with what the trained
//! length leaves.

use deltaloom::{Error, Result};
use deltaloom_compute::Run;

use crate::layer::{MemoryOptions, SequenceId, TenantId};
use crate::model::{Chunk, Model};

/// Tokens of a step.
pub(super) const STEP: usize = 512;

/// How a model is measured.
#[derive(Clone, Copy)]
pub struct Measuring<'a> {
    /// Which fine-tune.
    pub tenant: TenantId,
    /// How keys and values are stored.
    pub memory: MemoryOptions,
    /// How products are computed.
    pub run: &'a Run<'a>,
}

/// A part of a sequence that is computed from an empty memory, and the first target that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// First token.
    start: usize,
    /// First target: token `scored` is predicted from `start..scored`.
    scored: usize,
    /// Behind the last target.
    end: usize,
}

/// All targets of a sequence of `tokens` targets at once.
pub(super) fn whole(tokens: usize) -> Vec<Window> {
    vec![Window { start: 0, scored: 1, end: tokens + 1 }]
}

/// Windows of `trained` tokens, moved by `stride`: each target is scored once, in the first window
/// that has it.
pub(super) fn truncated(tokens: usize, trained: usize, stride: usize) -> Vec<Window> {
    let (trained, stride) = (trained.max(1), stride.max(1));
    let mut end = trained.min(tokens);
    let mut windows = vec![Window { start: 0, scored: 1, end: end + 1 }];
    while end < tokens {
        let scored = end + 1;
        end = (end + stride).min(tokens);
        windows.push(Window { start: end.saturating_sub(trained), scored, end: end + 1 });
    }
    windows
}

/// The windows of a sequence of `tokens` targets that a model reads as it is: all at once, or those
/// of truncation where its table of positions ends before.
pub(super) fn readable(model: &Model, tokens: usize, trained: usize) -> Vec<Window> {
    if model.config().table_end() < tokens {
        return truncated(tokens, trained, trained / 2);
    }
    whole(tokens)
}

/// Number of tokens that are computed for these windows.
pub(super) fn work(windows: &[Window]) -> usize {
    windows.iter().map(|window| window.end - 1 - window.start).sum()
}

/// The losses of all targets of each sequence, in nats. A sequence has one id more than targets.
pub(super) fn losses(
    model: &mut Model,
    sequences: &[&[u32]],
    windows: &[Window],
    how: &Measuring<'_>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::with_capacity(sequences.len());
    for ids in sequences {
        let mut found = vec![0.0; ids.len().saturating_sub(1)];
        for some in batches(windows) {
            let mut memory = model.memory(how.memory);
            let numbers: Vec<SequenceId> = some.iter().map(|_| memory.begin(how.tenant)).collect();
            let longest = some.iter().map(|window| window.end - 1 - window.start).max().unwrap_or(0);
            for offset in (0..longest).step_by(STEP) {
                step(model, &mut memory, ids, some, &numbers, offset, how, &mut found, progress)?;
            }
        }
        all.push(found);
    }
    Ok(all)
}

/// Windows that are computed together.
fn batches(windows: &[Window]) -> impl Iterator<Item = &[Window]> {
    let longest = windows.iter().map(|window| window.end - window.start).max().unwrap_or(1);
    windows.chunks((STEP / longest.max(1)).max(1))
}

#[expect(clippy::too_many_arguments, reason = "one step of `losses`, apart only to be read")]
fn step(
    model: &mut Model,
    memory: &mut crate::layer::Memory,
    ids: &[u32],
    windows: &[Window],
    sequences: &[SequenceId],
    offset: usize,
    how: &Measuring<'_>,
    found: &mut [f64],
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let (mut chunks, mut next, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = 0;
    for (window, sequence) in windows.iter().zip(sequences) {
        let start = (window.start + offset).min(window.end - 1);
        let end = (start + STEP).min(window.end - 1);
        if start == end {
            continue;
        }
        chunks.push(Chunk { sequence: *sequence, tokens: &ids[start..end] });
        // Token i gives the probability of token i + 1.
        let scored = (start + 1).max(window.scored).min(end + 1)..end + 1;
        for (target, id) in scored.clone().zip(&ids[scored]) {
            next.push((before + target - 1 - start, *id));
            targets.push(target);
        }
        before += end - start;
    }
    if before == 0 {
        return Ok(());
    }
    let hidden = model.forward(memory, &chunks, how.run)?;
    for (target, log_prob) in targets.iter().zip(hidden.log_probs(&next, how.run)?) {
        if log_prob.is_nan() {
            let what = format!("the model computed NaN at position {}", target - 1);
            return Err(Error::InvalidArgument(what));
        }
        found[target - 1] = -log_prob;
    }
    progress(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_scored_once() {
        for (tokens, trained, stride) in
            [(1024, 256, 128), (1000, 256, 128), (200, 256, 128), (5, 2, 1), (7, 1, 1)]
        {
            let windows = truncated(tokens, trained, stride);
            let scored: Vec<usize> = windows.iter().flat_map(|window| window.scored..window.end).collect();
            assert_eq!(scored, (1..=tokens).collect::<Vec<_>>(), "{tokens} {trained} {stride}");
            assert!(windows.iter().all(|it| it.end - 1 - it.start <= trained && it.scored > it.start));
        }
        let windows = truncated(1024, 256, 128);
        assert_eq!((windows.len(), work(&windows)), (7, 7 * 256));
        // All but those of the first window have at least half of it before them.
        assert!(windows[1..].iter().all(|window| window.scored - window.start > 128));
        assert_eq!(truncated(1024, 256, 256).len(), 4);
        assert_eq!(whole(9), [Window { start: 0, scored: 1, end: 10 }]);
    }
}
