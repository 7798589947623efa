//! A tensor of blocks that were quantised from a base's numbers, or of numbers that a base's blocks
//! stand for, as GGUF files have them.
//! Writers of GGUF rename tensors. So candidates are those of the right shape, and the numbers of a
//! few rows tell which one it is. The first and the last row stay where they are when rows of heads
//! are paired. GGUF also stacks the experts of a layer in one tensor: then each slice of a tensor
//! is compared on its own.

mod fit;
mod parts;

use std::collections::HashMap;

use rayon::prelude::*;

use super::quantised::{Found, Probed};
use super::reference_name;
use super::subject::Subject;
use crate::bases::{Bases, TensorSource};
use crate::error::Result;
use crate::predict::{Piece, Place, Reference, View, Viewed};
use crate::progress::{Progress, check_cancelled};
use crate::tensor::{DType, TensorInfo};
use fit::Other;
use parts::{Candidate, Rows, Size, Sketch};

/// Rows of a size that are compared.
const MOST_OF_SIZE: usize = 1 << 14;
/// The square of the largest distance of a row, relative to the row.
const FARTHEST: f32 = 0.25;

/// The origins of subjects that are `wanted`.
///
/// # Errors
/// What reading gives.
pub(super) fn find(
    subjects: &[Subject<'_>],
    wanted: impl Fn(usize) -> Result<bool> + Sync,
    bases: &Bases,
    progress: &dyn Progress,
) -> Result<Vec<Option<Found>>> {
    let sources: Vec<&TensorSource> = bases.direct().flat_map(|base| base.tensors()).collect();
    let mut by_size: HashMap<Size, Vec<(&TensorSource, Rows<'_>)>> = HashMap::new();
    for source in sources {
        for rows in parts_of(source.info()) {
            for size in rows.sizes() {
                let of_size = by_size.entry(size).or_default();
                if of_size.len() < MOST_OF_SIZE {
                    of_size.push((source, rows));
                }
            }
        }
    }
    let by_size = &by_size;
    let possible =
        |rows: Rows<'_>| rows.sizes().into_iter().filter(move |size| by_size.contains_key(&size.other()));
    let is_possible = |info: &TensorInfo| parts_of(info).iter().any(|rows| possible(*rows).next().is_some());
    let is_tried: Vec<bool> = (0..subjects.len())
        .into_par_iter()
        .map(|i| Ok(is_possible(subjects[i].info()) && wanted(i)?))
        .collect::<Result<_>>()?;
    let tried = || (0..subjects.len()).filter(|i| is_tried[*i]);
    let mut needed: Vec<Size> =
        tried().flat_map(|i| parts_of(subjects[i].info())).flat_map(possible).map(Size::other).collect();
    needed.sort_unstable();
    needed.dedup();
    let candidates_of = |size: &Size| {
        check_cancelled(progress)?;
        let candidate = |(source, rows): &(&'_ TensorSource, Rows<'_>)| rows.sketch_of(source, size.kind);
        let sketches = by_size[size].par_iter().map(candidate).collect::<Result<Vec<Sketch>>>()?;
        let all = by_size[size].iter().zip(sketches);
        let all = all.map(|((source, rows), sketch)| Candidate { source, rows: *rows, sketch });
        Ok((*size, all.collect()))
    };
    let candidates: HashMap<Size, Vec<Candidate<'_>>> =
        needed.iter().map(candidates_of).collect::<Result<_>>()?;
    let of_one = |i: usize| -> Result<Option<Found>> {
        if !is_tried[i] {
            return Ok(None);
        }
        check_cancelled(progress)?;
        let Some(other) = other_side(&subjects[i], &candidates)? else { return Ok(None) };
        fit::fit(&Probed::new(subjects, i)?, other)
    };
    (0..subjects.len()).into_par_iter().map(of_one).collect()
}

/// A tensor, and its matrices if it has several.
fn parts_of(info: &TensorInfo) -> Vec<Rows<'_>> {
    Rows::all(info).into_iter().chain(Rows::slices(info)).collect()
}

/// The nearest candidate for rows of a subject.
fn nearest<'a, 'b>(
    subject: &Subject<'_>,
    rows: Rows<'_>,
    candidates: &'b HashMap<Size, Vec<Candidate<'a>>>,
) -> Result<Option<(Size, &'b Candidate<'a>)>> {
    let mut best: Option<(f32, Size, &Candidate<'_>)> = None;
    for size in rows.sizes() {
        let Some(of_size) = candidates.get(&size.other()) else { continue };
        let own = rows.sketch(size.kind, |at, len| subject.read(at, len))?;
        for candidate in of_size {
            if let Some(far) = own.distance(&candidate.sketch)
                && far < best.as_ref().map_or(FARTHEST, |(least, ..)| *least)
            {
                best = Some((far, size, candidate));
            }
        }
    }
    Ok(best.map(|(_, size, candidate)| (size, candidate)))
}

/// What has the blocks or numbers of a subject: a tensor, a slice of one, or else a slice for each
/// of its own.
fn other_side(
    subject: &Subject<'_>,
    candidates: &HashMap<Size, Vec<Candidate<'_>>>,
) -> Result<Option<Other>> {
    let info = subject.info();
    let Some(all) = Rows::all(info) else { return Ok(None) };
    if let Some((size, found)) = nearest(subject, all, candidates)? {
        if !found.rows.is_all() {
            return Ok(Some(viewed(info, size, &[found])));
        }
        let other = found.source.info();
        return Ok(Some(Other {
            kind: size.kind,
            reference: Reference::Tensor(reference_name(info, found.source)),
            dtype: other.dtype.clone(),
            shape: other.shape.clone(),
            sources: vec![found.source.clone()],
        }));
    }
    let mut slices: Vec<(Size, &Candidate<'_>)> = Vec::new();
    for rows in Rows::slices(info) {
        let Some((size, found)) = nearest(subject, rows, candidates)? else { return Ok(None) };
        let is_like = |(first, other): &(Size, &Candidate<'_>)| {
            first.kind == size.kind && other.rows.info.dtype == found.rows.info.dtype
        };
        if !slices.first().is_none_or(is_like) {
            return Ok(None);
        }
        slices.push((size, found));
    }
    let found: Vec<&Candidate<'_>> = slices.iter().map(|(_, found)| *found).collect();
    Ok(slices.first().map(|(size, _)| viewed(info, *size, &found)))
}

/// Slices of tensors, one after another.
fn viewed(info: &TensorInfo, size: Size, slices: &[&Candidate<'_>]) -> Other {
    let mut sources: Vec<TensorSource> = Vec::new();
    let mut pieces = Vec::new();
    for slice in slices {
        let source = sources.iter().position(|source| source.id() == slice.source.id());
        let source = source.unwrap_or_else(|| {
            sources.push(slice.source.clone());
            sources.len() - 1
        });
        let (cols, Rows { first, count, .. }) = (slice.rows.cols(), slice.rows);
        pieces.push(Piece { source: Some(source), start: first * cols, count: count * cols });
    }
    let viewed = |source: &TensorSource| Viewed {
        place: Place::Base(reference_name(info, source)),
        shape: source.info().shape.clone(),
        is_transposed: false,
    };
    let dtype = slices.first().map_or(DType::U8, |slice| slice.rows.info.dtype.clone());
    let cols = slices.first().map_or(1, |slice| slice.rows.cols());
    // The tensor's own rows, of as many columns as the slices have.
    let own_rows = info.shape.split_last().map_or(&[][..], |(_, rows)| rows);
    let references = sources.iter().map(viewed).collect();
    let view = View::new(&dtype, false, dtype.clone(), references, &pieces);
    let shape = own_rows.iter().copied().chain([cols]).collect();
    Other { kind: size.kind, reference: Reference::View(Box::new(view)), dtype, shape, sources }
}
