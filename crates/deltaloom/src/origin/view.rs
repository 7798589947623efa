//! A tensor that consists of pieces of tensors of bases: with more or fewer rows, fused, split,
//! stacked, transposed, in another order, or of another dtype or shape.
//! [`super::anchors`] says where the bases have the same runs of weights; here they become pieces.

use std::collections::HashMap;

use rayon::prelude::*;

use super::anchors::{Anchors, Sequence, last_two};
use super::cover::{Cover, PROOF, Placed, Target};
use super::subject::{Subject, predict_from};
use super::{Origin, codes, reference_name};
use crate::bases::{Base, Bases, TensorSource};
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::{MAX_PIECES, MAX_VIEWED, MOST_HELD, Piece, Predictor, View, cast};
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::tensor::{DType, TensorInfo};

/// Smaller tensors are not worth a search.
const LEAST_ELEMS: u64 = 256;
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
pub(super) fn score(
    subjects: &[Subject<'_>],
    info: &TensorInfo,
    sample: &[u8],
    views: Vec<Viewing>,
) -> Result<Option<(u128, Origin)>> {
    let mut best: Option<(u128, Origin)> = None;
    for (view, references) in views {
        let origin = Origin::coded(Predictor::View(Box::new(view)), references);
        let read = |offset, len| {
            let mut out = vec![0; len];
            predict_from(subjects, &origin, info, offset, &mut out)?;
            Ok(out)
        };
        let prediction = sample::read(info, sample::ELEMS, read)?;
        let cost = u128::from(plan::residual_cost(info.number(), sample, &prediction));
        let cost = cost * u128::from(info.len_bytes()) / sample.len().max(1) as u128
            + REFERENCE_COST * origin.references.len() as u128;
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, origin));
        }
    }
    Ok(best)
}

/// Whether pieces of a tensor are looked for.
pub(super) fn is_wanted(info: &TensorInfo) -> bool {
    info.dtype.number().is_some() && info.elems() >= LEAST_ELEMS
}

/// Whether so many elements are looked at for so many that are wanted.
pub(super) fn is_affordable(elems: u64, wanted: u64) -> bool {
    elems <= MOST_PER_WANTED.saturating_mul(wanted).max(FREE_ELEMS)
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
    let is_wanted = |i: &usize| wanted[*i] && is_wanted(subjects[*i].info());
    let mut search = Search::new((0..subjects.len()).filter(is_wanted).collect(), subjects);
    let sources: Vec<&TensorSource> = bases.direct().flat_map(Base::tensors).collect();
    let unused: Vec<&TensorSource> = sources.iter().copied().filter(|source| !is_used(source)).collect();
    let are_all_unused = unused.len() == sources.len();
    let tries = [(&unused, false), (&unused, true), (&sources, false), (&sources, true)];
    for (sources, is_transposed) in tries.into_iter().take(if are_all_unused { 2 } else { 4 }) {
        let sequences = sources.iter().map(|source| Sequence {
            subject: Subject::Source(source),
            own: None,
            is_transposed,
        });
        search.look_in(sequences.collect(), progress)?;
    }
    Ok(search.found)
}

/// Looks for pieces of the subjects that are `wanted` in other subjects.
///
/// # Errors
/// What reading gives.
pub(super) fn find_own(
    subjects: &[Subject<'_>],
    wanted: &[usize],
    sources: &[usize],
    progress: &dyn Progress,
) -> Result<Vec<Option<Viewing>>> {
    let mut search = Search::new(wanted.to_vec(), subjects);
    for is_transposed in [false, true] {
        let sequences = sources.iter().map(|number| Sequence {
            subject: subjects[*number],
            own: Some(*number),
            is_transposed,
        });
        search.look_in(sequences.collect(), progress)?;
    }
    Ok(search.found)
}

/// A search for pieces of subjects.
struct Search<'a> {
    subjects: &'a [Subject<'a>],
    /// Those that are not yet explained.
    left: Vec<usize>,
    /// The best view of each subject.
    found: Vec<Option<Viewing>>,
}

impl<'a> Search<'a> {
    fn new(left: Vec<usize>, subjects: &'a [Subject<'a>]) -> Self {
        Self { subjects, left, found: vec![None; subjects.len()] }
    }

    /// Looks in all sequences of a kind that subjects may have pieces of.
    fn look_in(&mut self, mut sequences: Vec<Sequence<'_>>, progress: &dyn Progress) -> Result<()> {
        self.keep_useful(&mut sequences);
        let elems: u64 = sequences.iter().map(Sequence::elems).sum();
        let wanted: u64 = self.left.iter().map(|i| self.subjects[*i].info().elems()).sum();
        if elems == 0 || !is_affordable(elems, wanted) {
            return Ok(());
        }
        let anchors = Anchors::new(sequences)?;
        for is_turned in [false, true] {
            let cover = |i: usize| {
                check_cancelled(progress)?;
                Ok((i, covered(self.subjects[i], is_turned, &anchors)?))
            };
            // The codes of a turned matrix are in memory, so they are made one after another.
            let covered: Vec<(usize, Vec<Placed>)> = match is_turned {
                false => self.left.par_iter().copied().map(cover).collect::<Result<_>>()?,
                true => self.left.iter().copied().map(cover).collect::<Result<_>>()?,
            };
            self.left.clear();
            for (i, placed) in covered {
                let info = self.subjects[i].info();
                let known: u64 = placed.iter().map(|piece| piece.target.end - piece.target.start).sum();
                if known * 4 < info.elems() * 3 {
                    self.left.push(i);
                }
                if known > self.found[i].as_ref().map_or(0, |(view, _)| view.known_elems()) {
                    self.found[i] = viewing(info, is_turned, &placed, &anchors);
                }
            }
        }
        Ok(())
    }

    /// Keeps sequences that may have pieces of what is left.
    fn keep_useful(&self, sequences: &mut Vec<Sequence<'_>>) {
        let mut dtypes: Vec<&DType> = self.left.iter().map(|i| &self.subjects[*i].info().dtype).collect();
        dtypes.sort_unstable_by_key(|dtype| dtype.name());
        dtypes.dedup();
        sequences.retain(|sequence| {
            let info = sequence.info();
            info.dtype.number().is_some()
                && info.elems() >= PROOF as u64
                && (!sequence.is_transposed || has_matrices(info))
                && dtypes.iter().any(|dtype| cast::converts(&info.dtype, dtype))
        });
    }
}

fn has_matrices(info: &TensorInfo) -> bool {
    matches!(info.shape[..], [.., rows, cols] if rows > 1 && cols > 1)
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
        let dtype = &anchors.sequence(to_usize(piece.sequence.into())).info().dtype;
        let count = piece.target.end - piece.target.start;
        match by_dtype.iter_mut().find(|(known, _)| *known == dtype) {
            Some((_, sum)) => *sum += count,
            None => by_dtype.push((dtype, count)),
        }
    }
    let (dtype, _) = by_dtype.into_iter().max_by_key(|(_, count)| *count)?;
    for piece in placed {
        if anchors.sequence(to_usize(piece.sequence.into())).info().dtype != *dtype {
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
    let is_slow = |sequence: &Sequence<'_>| sequence.is_decoded() && sequence.info().len_bytes() > MOST_HELD;
    if sequences.iter().any(|sequence| takes_columns(sequence) && is_slow(sequence)) {
        return None;
    }
    let viewed = sequences.iter().map(|sequence| sequence.viewed(info)).collect();
    let view = View::new(&info.dtype, is_turned, dtype.clone(), viewed, &pieces);
    let in_base = |sequence: &Sequence<'_>| match (sequence.own, sequence.subject) {
        (None, Subject::Source(source)) => Some(source.clone()),
        _ => None,
    };
    Some((view, sequences.iter().filter_map(in_base).collect()))
}
