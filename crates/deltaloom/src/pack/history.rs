//! Histories of tensors whose reference has known ancestors: finds the ancestors, loads the history
//! of a group, and drops what was of no use.
//! [`crate::plan`] costs what a history saves.

use std::ops::Range;

use rayon::prelude::*;

use crate::bases::{Bases, Memo, TensorSource};
use crate::codec::{Coding, HistoryKind};
use crate::container::{GroupEntry, KnownDigest, PackedTensor};
use crate::error::Result;
use crate::limits::to_usize;
use crate::origin::Origin;
use crate::plan::GroupHistory;
use crate::predict::{MAX_HOPS, Predictor};
use crate::scratch::Scratch;
use crate::tensor::{ChunkGrid, TensorInfo};

/// Number of ancestors whose residuals count.
const RESIDUAL_HOPS: usize = 2;
/// Bits of an ancestor in the index.
const BITS_PER_HOP: u64 = 64;

/// Adds the ancestors of a reference from the history of the bases: the tensors with the same name,
/// dtype and shape, as long as every step has one.
pub(super) fn with_ancestors(choice: Origin, info: &TensorInfo, bases: &Bases) -> Result<Origin> {
    let (Predictor::Reference(name), [reference]) = (&choice.predictor, &choice.references[..]) else {
        return Ok(choice);
    };
    let wanted = name.as_ref().unwrap_or(&info.name);
    let steps = bases.ancestors_of(reference).map(|base| {
        let mut named = base.named(wanted);
        named.find(|source| source.is_like(info)).cloned()
    });
    let ancestors: Vec<TensorSource> = steps.map_while(|source| source).take(MAX_HOPS).collect();
    if ancestors.is_empty() {
        return Ok(choice);
    }
    let predictor = Predictor::History { reference: name.clone(), hops: ancestors.len() };
    let references = std::iter::once(reference.clone()).chain(ancestors).collect();
    Origin::coded(predictor, references).with_reference_digests()
}

/// Prediction and history of a group of chunks. Every ancestor of a chunk is decoded once.
pub(super) fn load(
    choice: &Origin,
    info: &TensorInfo,
    grid: &ChunkGrid,
    chunks: Range<u64>,
) -> Result<(Scratch, GroupHistory)> {
    let references = &choice.references[..];
    let number = info.number();
    let of_chunk = |chunk: u64| {
        let range = grid.chunk_bytes(chunk);
        let mut memo = Memo::new(true);
        let prediction = memo.part(&references[0], range.clone())?;
        let mut classes = |kind| memo.classes(kind, number, references, range.clone());
        let (changes, residuals) = (classes(HistoryKind::Changes)?, classes(HistoryKind::Residuals)?);
        Ok([(*prediction).clone(), (*changes).clone(), (*residuals).clone()])
    };
    let loaded: Vec<[Scratch; 3]> = chunks.clone().into_par_iter().map(of_chunk).collect::<Result<_>>()?;
    let mut prediction =
        Scratch::vec(to_usize(grid.chunk_bytes(chunks.end - 1).end - grid.chunk_bytes(chunks.start).start));
    let (mut changes, mut residuals) = (Vec::new(), Vec::new());
    for [part, of_changes, of_residuals] in loaded {
        prediction.extend_from_slice(&part);
        changes.push(of_changes);
        residuals.push(of_residuals);
    }
    let of_tensor = (references.len() as u64 - 1) * BITS_PER_HOP;
    let index_bits = of_tensor * (chunks.end - chunks.start) / grid.chunk_count().max(1);
    Ok((prediction.into(), GroupHistory { changes, residuals, index_bits }))
}

/// Drops the ancestors that no group of a tensor needs. Without any, it has an ordinary reference.
pub(super) fn settle(tensor: &mut PackedTensor) {
    let Predictor::History { reference, hops } = &tensor.predictor else { return };
    let needed = |group: &GroupEntry| match group.coding {
        Coding::History { kind: HistoryKind::Changes, .. } => *hops,
        Coding::History { kind: HistoryKind::Residuals, .. } => RESIDUAL_HOPS.min(*hops),
        _ => 0,
    };
    let hops = tensor.groups.iter().map(needed).max().unwrap_or(0);
    let reference = reference.clone();
    tensor.reference_digests.truncate(hops + 1);
    tensor.predictor = match hops {
        0 => Predictor::Reference(reference),
        _ => {
            for ancestor in &mut tensor.reference_digests[1..] {
                *ancestor = ancestor.whole().map_or(*ancestor, |digest| KnownDigest::start_of(&digest));
            }
            Predictor::History { reference, hops }
        }
    };
}
