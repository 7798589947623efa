//! Covers a tensor by runs of elements that other tensors have, too, as [`super::anchors`] finds
//! them: from their first anchor to their last, and as far as elements agree.

use std::borrow::Cow;
use std::ops::Range;

use super::anchors::{Anchors, WINDOW};
use super::codes;
use super::subject::Subject;
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::cast;
use crate::tensor::DType;

/// Elements that are compared to prove that two runs are related, and how many must agree.
pub(super) const PROOF: usize = 32;
const AGREE_OF_FOUR: usize = 3;
/// Shorter pieces are chance, or not worth their place in the index.
const LEAST_PIECE: u64 = 32;
/// Elements that are read at once.
const BLOCK: u64 = 1 << 20;
const STEP: u64 = 256;
/// A piece is not extended any further when this many more elements differ than agree.
const GIVE_UP: i64 = 64;
/// Rows begin at most this far from where a piece seems to begin.
const SNAP: u64 = 8;

/// A run of a tensor that a sequence has, too.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) target: Range<u64>,
    pub(super) sequence: u32,
    /// Where the run starts in the sequence.
    pub(super) from: u64,
}

impl Placed {
    /// Where an element of the target is in the sequence.
    fn place_of(&self, target: u64) -> Option<u64> {
        (self.from + target).checked_sub(self.target.start)
    }

    /// Whether an element of the target is at that place of a sequence.
    fn continues(&self, sequence: u32, target: u64, place: u64) -> bool {
        self.sequence == sequence && self.place_of(target) == Some(place)
    }
}

/// Cuts runs at the end of those before them. Where rows begin close to each other, a run may have
/// been moved past the next one, or its start past its end.
fn keep_apart(runs: &mut Vec<Placed>) {
    let mut end = 0;
    runs.retain_mut(|run| {
        let start = run.target.start.max(end);
        let is_long = run.target.end >= start + LEAST_PIECE;
        if is_long {
            run.from += start - run.target.start;
            run.target.start = start;
            end = run.target.end;
        }
        is_long
    });
}

/// What is covered: a tensor row by row, or the codes of a matrix column by column.
pub(super) enum Target<'a> {
    Rows(Subject<'a>),
    Columns(Vec<u16>),
}

/// Covers a target by runs of indexed sequences.
pub(super) struct Cover<'a> {
    pub(super) target: Target<'a>,
    /// Elements of a row of the target.
    pub(super) row: u64,
    pub(super) dtype: &'a DType,
    pub(super) anchors: &'a Anchors<'a>,
}

impl Cover<'_> {
    /// Runs in the order of the tensor. They do not overlap.
    pub(super) fn pieces(&self) -> Result<Vec<Placed>> {
        let mut runs: Vec<Placed> = Vec::new();
        for run in self.runs()? {
            // A short run between two with the same places is chance.
            if let [.., before, between] = &runs[..]
                && between.target.end - between.target.start < LEAST_PIECE
                && before.continues(run.sequence, run.target.start, run.from)
            {
                runs.pop();
            }
            runs.push(run);
        }
        runs.dedup_by(|later, earlier| {
            let is_same = earlier.continues(later.sequence, later.target.start, later.from);
            if is_same {
                earlier.target.end = later.target.end;
            }
            is_same
        });
        self.meet(&mut runs)?;
        keep_apart(&mut runs);
        Ok(runs)
    }

    fn elems(&self) -> u64 {
        match &self.target {
            Target::Rows(subject) => subject.info().elems(),
            Target::Columns(codes) => codes.len() as u64,
        }
    }

    fn codes(&self, elems: Range<u64>) -> Result<Cow<'_, [u16]>> {
        match &self.target {
            Target::Rows(subject) => {
                let info = subject.info();
                let size = info.number().bytes() as u64;
                let bytes = subject.read(elems.start * size, to_usize((elems.end - elems.start) * size))?;
                Ok(codes::of(info, &bytes).into())
            }
            Target::Columns(codes) => Ok(codes[to_usize(elems.start)..to_usize(elems.end)].into()),
        }
    }

    /// Runs from their first anchor to their last.
    fn runs(&self) -> Result<Vec<Placed>> {
        let elems = self.elems();
        let mut runs: Vec<Placed> = Vec::new();
        let step = BLOCK - WINDOW as u64 + 1;
        for start in (0..elems).step_by(to_usize(step)) {
            let codes = self.codes(start..elems.min(start + BLOCK))?;
            self.anchors.for_each(&codes, |at, equal| {
                let target = start + at as u64;
                let goes_on =
                    |run: &Placed| equal.iter().any(|anchor| run.continues(anchor.source, target, anchor.at));
                if let Some(run) = runs.last_mut().filter(|run| goes_on(run)) {
                    run.target.end = target + WINDOW as u64;
                    return Ok(());
                }
                let proof = &codes[at..codes.len().min(at + PROOF)];
                for anchor in equal {
                    let sequence = self.anchors.sequence(to_usize(anchor.source.into()));
                    if !cast::converts(&sequence.info().dtype, self.dtype) {
                        continue;
                    }
                    let there = sequence.elems().min(anchor.at + proof.len() as u64);
                    let there = sequence.codes(anchor.at..there)?;
                    let agree = proof.iter().zip(&there).filter(|(a, b)| a == b).count();
                    if agree * 4 >= there.len() * AGREE_OF_FOUR {
                        let sequence = anchor.source;
                        let end = target + agree.max(WINDOW) as u64;
                        runs.push(Placed { target: target..end, sequence, from: anchor.at });
                        break;
                    }
                }
                Ok(())
            })?;
        }
        Ok(runs)
    }

    /// Extends all runs until they meet, as far as elements agree.
    fn meet(&self, runs: &mut [Placed]) -> Result<()> {
        for i in 0..=runs.len() {
            let (before, after) = runs.split_at_mut(i);
            let (mut before, mut after) = (before.last_mut(), after.first_mut());
            // The proof of a run may reach beyond the start of the next.
            let last = before.as_ref().map_or(0, |run| run.target.end);
            let first = after.as_ref().map_or(self.elems(), |run| run.target.start);
            let gap = last.min(first)..first;
            let forward = match &before {
                Some(run) => self.extended(run, gap.clone(), true)?,
                None => gap.start,
            };
            let backward = match &after {
                Some(run) => self.extended(run, gap.clone(), false)?,
                None => gap.end,
            };
            let (end, start) = if forward > backward {
                let split = match (&before, &after) {
                    (Some(a), Some(b)) => self.split(a, b, backward..forward)?,
                    _ => forward,
                };
                let split = self.snapped(split, before.as_deref(), after.as_deref());
                (split, split)
            } else {
                let end = self.snapped(forward, before.as_deref(), None);
                let start = self.snapped(backward, None, after.as_deref());
                // In a short gap, the two may have moved past each other.
                if end <= start { (end, start) } else { (forward, backward) }
            };
            if let Some(run) = &mut before {
                run.target.end = end;
            }
            if let Some(run) = &mut after {
                run.from = run.place_of(start).unwrap_or(run.from);
                run.target.start = start;
            }
        }
        Ok(())
    }

    /// How far a run reaches into a gap after it, or before it.
    fn extended(&self, run: &Placed, gap: Range<u64>, is_forward: bool) -> Result<u64> {
        let sequence = self.anchors.sequence(to_usize(run.sequence.into()));
        // The part of the gap that the sequence has.
        let first = (run.target.start.saturating_sub(run.from)).max(gap.start);
        let last = (run.target.start + sequence.elems()).saturating_sub(run.from).min(gap.end);
        let (mut best, mut score, mut most) = (if is_forward { gap.start } else { gap.end }, 0i64, 0i64);
        let mut at = best;
        while (is_forward && at < last) || (!is_forward && at > first) {
            let block =
                if is_forward { at..last.min(at + STEP) } else { first.max(at.saturating_sub(STEP))..at };
            let mut agree = self.agree(run, block.clone())?;
            if !is_forward {
                agree.reverse();
            }
            for (agrees, done) in agree.into_iter().zip(1..) {
                score += if agrees { 1 } else { -1 };
                if score > most {
                    most = score;
                    best = if is_forward { block.start + done } else { block.end - done };
                }
                if score < most - GIVE_UP {
                    return Ok(best);
                }
            }
            at = if is_forward { block.end } else { block.start };
        }
        Ok(best)
    }

    /// Which elements of a range agree with a run that is extended to it.
    fn agree(&self, run: &Placed, target: Range<u64>) -> Result<Vec<bool>> {
        let sequence = self.anchors.sequence(to_usize(run.sequence.into()));
        let place = run.place_of(target.start).unwrap_or(0);
        let there = sequence.codes(place..place + (target.end - target.start))?;
        Ok(self.codes(target)?.iter().zip(&there).map(|(a, b)| a == b).collect())
    }

    /// Where the first of two runs ends and the second begins, if both could have a range.
    fn split(&self, a: &Placed, b: &Placed, range: Range<u64>) -> Result<u64> {
        // Both agree with nearly all of a long range, so any split will do.
        let range = range.start..range.end.min(range.start + BLOCK);
        let of_a = self.agree(a, range.clone())?;
        let of_b = self.agree(b, range.clone())?;
        let mut score = of_b.iter().filter(|agrees| **agrees).count();
        let (mut best, mut most) = (range.start, score);
        for ((in_a, in_b), split) in of_a.into_iter().zip(of_b).zip(range.start + 1..) {
            score = score + usize::from(in_a) - usize::from(in_b);
            if score > most {
                (best, most) = (split, score);
            }
        }
        Ok(best)
    }

    /// A place near this one where a row of the tensor begins, or a tensor of a base ends or
    /// begins.
    fn snapped(&self, at: u64, before: Option<&Placed>, after: Option<&Placed>) -> u64 {
        let end_of = |run: &Placed| {
            let elems = self.anchors.sequence(to_usize(run.sequence.into())).elems();
            (run.target.start + elems).checked_sub(run.from)
        };
        let start_of = |run: &Placed| run.target.start.checked_sub(run.from);
        let row = (at + self.row / 2) / self.row * self.row;
        let candidates = [before.and_then(end_of), after.and_then(start_of), Some(row)];
        let fits = |place: &u64| {
            place.abs_diff(at) <= SNAP
                && *place <= self.elems()
                && before.is_none_or(|run| {
                    *place > run.target.start && end_of(run).is_some_and(|end| *place <= end)
                })
                && after.is_none_or(|run| *place < run.target.end && run.place_of(*place).is_some())
        };
        candidates.into_iter().flatten().find(fits).unwrap_or(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_do_not_overlap_and_none_has_a_negative_length() {
        #[expect(clippy::reversed_empty_ranges, reason = "what two rows that begin close together leave")]
        let ranges = [0..100, 80..200, 150..210, 230..205, 190..260, 300..400];
        let mut runs: Vec<Placed> =
            ranges.map(|target| Placed { target, sequence: 0, from: 1000 }).into_iter().collect();
        keep_apart(&mut runs);
        let left: Vec<(Range<u64>, u64)> = runs.into_iter().map(|run| (run.target, run.from)).collect();
        let expected = [(0..100, 1000), (100..200, 1020), (200..260, 1010), (300..400, 1000)];
        assert_eq!(left, expected);
    }
}
