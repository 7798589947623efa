//! A tensor that consists of pieces of tensors of bases: with more or fewer rows, fused, split,
//! stacked, transposed, in another order, or of another dtype or shape.
//! [`super::anchors`] says where the bases have the same runs of weights; here they become pieces.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use super::anchors::{Anchors, Sequence, WINDOW, last_two};
use super::subject::Subject;
use super::{Origin, codes, reference_name};
use crate::bases::{Base, Bases, TensorSource, predict_into};
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::{MAX_PIECES, MAX_VIEWED, MOST_HELD, Piece, Predictor, View, Viewed, cast};
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::tensor::{DType, TensorInfo};

/// Smaller tensors are not worth a search.
const LEAST_ELEMS: u64 = 256;
/// Elements that are compared to prove that two runs are related, and how many must agree.
const PROOF: usize = 32;
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
/// Elements of bases that are read for each that is looked for, at most: what is new in a fine-tune
/// is often small, and no base has it.
const MOST_PER_WANTED: u64 = 16;
/// Up to this many elements are always read, since that takes a fraction of a second.
const FREE_ELEMS: u64 = 1 << 24;
/// Elements of the largest matrix that is looked at column by column.
const MOST_TURNED: u64 = 1 << 25;
/// What the digest of a reference costs, and about what its name does, in the unit of estimates.
const REFERENCE_COST: u128 = 320 * ONE_BIT as u128;

/// Whether a whole tensor of another dtype or shape may be the reference.
pub(crate) fn applies(info: &TensorInfo, source: &TensorSource) -> bool {
    let other = source.info();
    let has_number = |info: &TensorInfo| info.dtype.number().is_some();
    has_number(info)
        && has_number(other)
        && cast::converts(&other.dtype, &info.dtype)
        && info.elems() == other.elems()
        && !source.is_like(info)
}

/// The tensor of a base with this one's place, if it has another dtype or shape.
pub(crate) fn counterpart<'a>(info: &TensorInfo, base: &'a Base) -> Option<&'a TensorSource> {
    base.counterpart(&info.name, |source| applies(info, source))
}

/// A view and its references.
pub(super) type Viewing = (View, Vec<TensorSource>);

/// The view of a whole tensor.
pub(super) fn of_whole(info: &TensorInfo, source: &TensorSource) -> Viewing {
    let name = reference_name(info, source);
    (View::of_whole(&info.dtype, name, source.info()), vec![source.clone()])
}

/// The cheapest of some views on a sample, with its cost for the whole tensor.
pub(super) fn score(info: &TensorInfo, sample: &[u8], views: Vec<Viewing>) -> Result<Option<(u128, Origin)>> {
    let mut best: Option<(u128, Origin)> = None;
    for (view, references) in views {
        let predictor = Predictor::View(Box::new(view));
        let read = |offset, len| {
            let mut out = vec![0; len];
            predict_into(&predictor, &references, None, info, offset, &mut out)?;
            Ok(out)
        };
        let prediction = sample::read(info, sample::ELEMS, read)?;
        let cost = u128::from(plan::residual_cost(info.number(), sample, &prediction));
        let cost = cost * u128::from(info.len_bytes()) / sample.len().max(1) as u128
            + REFERENCE_COST * references.len() as u128;
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, Origin::coded(predictor, references)));
        }
    }
    Ok(best)
}

/// Looks for pieces of the subjects that are `wanted` in tensors of the bases: row by row, and
/// where that finds little, column by column, of the subject, of the base, and of both. First in
/// those that `is_used` says nothing is near to, since few tensors have more anchors each, then in
/// all.
///
/// # Errors
/// What reading gives.
pub(super) fn find(
    subjects: &[Subject<'_>],
    wanted: &[bool],
    bases: &Bases,
    is_used: impl Fn(&TensorSource) -> bool,
    progress: &dyn Progress,
) -> Result<Vec<Option<Viewing>>> {
    let is_wanted = |i: &usize| {
        let info = subjects[*i].info();
        wanted[*i] && info.dtype.number().is_some() && info.elems() >= LEAST_ELEMS
    };
    let mut left: Vec<usize> = (0..subjects.len()).filter(is_wanted).collect();
    let mut found: Vec<Option<Viewing>> = vec![None; subjects.len()];
    let sources: Vec<&TensorSource> = bases.direct().flat_map(Base::tensors).collect();
    let unused: Vec<&TensorSource> = sources.iter().copied().filter(|source| !is_used(source)).collect();
    let are_all_unused = unused.len() == sources.len();
    let tries = [(&unused, false), (&unused, true), (&sources, false), (&sources, true)];
    for (sources, is_transposed) in tries.into_iter().take(if are_all_unused { 2 } else { 4 }) {
        let sequences = sequences(&left, subjects, sources, is_transposed);
        let elems: u64 = sequences.iter().map(Sequence::elems).sum();
        let wanted: u64 = left.iter().map(|i| subjects[*i].info().elems()).sum();
        if elems == 0 || elems > MOST_PER_WANTED.saturating_mul(wanted).max(FREE_ELEMS) {
            continue;
        }
        let anchors = Anchors::new(sequences)?;
        for is_turned in [false, true] {
            let cover = |i: usize| {
                check_cancelled(progress)?;
                Ok((i, covered(subjects[i], is_turned, &anchors)?))
            };
            // The codes of a turned matrix are in memory, so they are made one after another.
            let covered: Vec<(usize, Vec<Placed>)> = match is_turned {
                false => left.par_iter().copied().map(cover).collect::<Result<_>>()?,
                true => left.iter().copied().map(cover).collect::<Result<_>>()?,
            };
            left.clear();
            for (i, placed) in covered {
                let info = subjects[i].info();
                let known: u64 = placed.iter().map(|piece| piece.target.end - piece.target.start).sum();
                if known * 4 < info.elems() * 3 {
                    left.push(i);
                }
                if known > found[i].as_ref().map_or(0, |(view, _)| view.known_elems()) {
                    found[i] = viewing(info, is_turned, &placed, &anchors);
                }
            }
        }
    }
    Ok(found)
}

/// The runs of a tensor that an index has, too.
fn covered(subject: Subject<'_>, is_turned: bool, anchors: &Anchors<'_>) -> Result<Vec<Placed>> {
    let info = subject.info();
    if !is_turned {
        let row = info.shape.last().copied().unwrap_or(1).max(1);
        return Cover { target: Target::Rows(subject), row, dtype: &info.dtype, anchors }.pieces();
    }
    let (rows, cols) = last_two(info);
    let elems = rows * cols;
    if rows < 2 || cols < 2 || elems > MOST_TURNED {
        return Ok(Vec::new());
    }
    let mut pieces = Vec::new();
    for first in (0..info.elems()).step_by(to_usize(elems)) {
        let target = Target::Columns(turned(subject, first, rows, cols)?);
        let of_matrix = Cover { target, row: rows, dtype: &info.dtype, anchors }.pieces()?;
        let moved =
            |piece: Placed| Placed { target: piece.target.start + first..piece.target.end + first, ..piece };
        pieces.extend(of_matrix.into_iter().map(moved));
    }
    Ok(pieces)
}

/// Codes of a matrix, column by column. It starts at element `first` of the tensor.
fn turned(subject: Subject<'_>, first: u64, rows: u64, cols: u64) -> Result<Vec<u16>> {
    let info = subject.info();
    let size = info.number().bytes() as u64;
    let mut out = vec![0; to_usize(rows * cols)];
    for row in 0..rows {
        let bytes = subject.read((first + row * cols) * size, to_usize(cols * size))?;
        let places = out[to_usize(row)..].iter_mut().step_by(to_usize(rows));
        places.zip(codes::of(info, &bytes)).for_each(|(place, code)| *place = code);
    }
    Ok(out)
}

/// The tensors that subjects may have pieces of.
fn sequences<'a>(
    wanted: &[usize],
    subjects: &[Subject<'_>],
    sources: &[&'a TensorSource],
    is_transposed: bool,
) -> Vec<Sequence<'a>> {
    let mut dtypes: Vec<&DType> = wanted.iter().map(|i| &subjects[*i].info().dtype).collect();
    dtypes.sort_unstable_by_key(|dtype| dtype.name());
    dtypes.dedup();
    let fits = |source: &&TensorSource| {
        let info = source.info();
        info.dtype.number().is_some()
            && info.elems() >= PROOF as u64
            && (!is_transposed || matches!(info.shape[..], [.., rows, cols] if rows > 1 && cols > 1))
            && dtypes.iter().any(|dtype| cast::converts(&info.dtype, dtype))
    };
    let sources = sources.iter().copied().filter(fits);
    sources.map(|source| Sequence { source, is_transposed }).collect()
}

/// A run of a tensor that a sequence has, too.
#[derive(Debug, Clone)]
struct Placed {
    target: Range<u64>,
    sequence: u32,
    /// Where the run starts in the sequence.
    from: u64,
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

/// The view that consists of these places. `None` if it would have too many pieces or references,
/// or if reading it would be slow.
fn viewing(info: &TensorInfo, is_turned: bool, placed: &[Placed], anchors: &Anchors<'_>) -> Option<Viewing> {
    let elems = info.elems();
    let mut used: Vec<u32> = Vec::new();
    let mut pieces = Vec::new();
    let mut end = 0;
    let mut skip_to = |pieces: &mut Vec<Piece>, start: u64, next: u64| {
        if end < start {
            pieces.push(Piece { source: None, start: 0, count: start - end });
        }
        end = next;
    };
    let mut numbers = HashMap::new();
    // All references have one dtype: that of most elements.
    let mut by_dtype: Vec<(&DType, u64)> = Vec::new();
    for piece in placed {
        let dtype = &anchors.sequence(to_usize(piece.sequence.into())).source.info().dtype;
        let count = piece.target.end - piece.target.start;
        match by_dtype.iter_mut().find(|(known, _)| *known == dtype) {
            Some((_, sum)) => *sum += count,
            None => by_dtype.push((dtype, count)),
        }
    }
    let (dtype, _) = by_dtype.into_iter().max_by_key(|(_, count)| *count)?;
    for piece in placed {
        if anchors.sequence(to_usize(piece.sequence.into())).source.info().dtype != *dtype {
            continue;
        }
        let number = *numbers.entry(piece.sequence).or_insert_with(|| {
            used.push(piece.sequence);
            used.len() - 1
        });
        skip_to(&mut pieces, piece.target.start, piece.target.end);
        let count = piece.target.end - piece.target.start;
        pieces.push(Piece { source: Some(number), start: piece.from, count });
    }
    skip_to(&mut pieces, elems, elems);
    let covered: u64 = pieces.iter().map(|piece| piece.count).sum();
    assert!(covered == elems, "pieces that were found for a tensor do not overlap");
    if used.len() > MAX_VIEWED || pieces.len() > MAX_PIECES {
        return None;
    }
    let sequences: Vec<Sequence<'_>> =
        used.iter().map(|number| anchors.sequence(to_usize((*number).into()))).collect();
    let takes_columns = |sequence: &Sequence<'_>| is_turned || sequence.is_transposed;
    let is_slow = |sequence: &Sequence<'_>| {
        sequence.source.is_in_container() && sequence.source.info().len_bytes() > MOST_HELD
    };
    if sequences.iter().any(|sequence| takes_columns(sequence) && is_slow(sequence)) {
        return None;
    }
    let viewed = sequences.iter().map(|sequence| Viewed {
        name: reference_name(info, sequence.source),
        shape: sequence.source.info().shape.clone(),
        is_transposed: sequence.is_transposed,
    });
    let view = View::new(&info.dtype, is_turned, dtype.clone(), viewed.collect(), &pieces);
    Some((view, sequences.iter().map(|sequence| sequence.source.clone()).collect()))
}

/// What is covered: a tensor row by row, or the codes of a matrix column by column.
enum Target<'a> {
    Rows(Subject<'a>),
    Columns(Vec<u16>),
}

/// Covers a target by runs of indexed sequences.
struct Cover<'a> {
    target: Target<'a>,
    /// Elements of a row of the target.
    row: u64,
    dtype: &'a DType,
    anchors: &'a Anchors<'a>,
}

impl Cover<'_> {
    /// Runs in the order of the tensor. They do not overlap.
    fn pieces(&self) -> Result<Vec<Placed>> {
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
        runs.retain(|run| run.target.end - run.target.start >= LEAST_PIECE);
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
                    if !cast::converts(&sequence.source.info().dtype, self.dtype) {
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
