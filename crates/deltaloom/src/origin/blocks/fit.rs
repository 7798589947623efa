//! The prediction of blocks, or of numbers from blocks, that costs least.

use std::sync::Arc;

use crate::bases::TensorSource;
use crate::checkpoint::gguf::BlockKind;
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::limits::to_usize;
use crate::origin::quantised::{Found, Probed};
use crate::origin::subject::Subject;
use crate::origin::{FoundPayload, Origin};
use crate::predict::{
    Arithmetic, Blocks, CodedBlocks, Form, OwnPayload, PART_BLOCKS, Predictor, Reference, has_quantiser,
    push_part,
};
use crate::tensor::DType;

/// Sizes of heads.
const HEADS: [u64; 14] = [8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 256];

/// What has the other side of blocks.
pub(super) struct Other {
    pub(super) kind: BlockKind,
    pub(super) reference: Reference,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    pub(super) sources: Vec<TensorSource>,
}

/// The prediction from the other side, if it pays.
pub(super) fn fit(subject: &Probed<'_>, other: Other) -> Result<Option<Found>> {
    let info = subject.subject().info();
    let is_to_blocks = info.dtype == DType::U8;
    let Other { kind, reference, dtype, shape, sources } = other;
    let form = if is_to_blocks { Form::Blocks } else { Form::Numbers };
    let plain = CodedBlocks { form, reference, dtype, shape, kind, arithmetic: Arithmetic::Each, head: 0 };
    if !plain.is_valid(info) {
        return Ok(None);
    }
    let mut found: Option<(u64, Origin)> = None;
    if !is_to_blocks || has_quantiser(kind) {
        found = Some(best_of(subject, &plain, &sources, None)?);
    }
    // Scales that were searched for, or weighted, are data. Codes follow from them all the same.
    if is_to_blocks && found.as_ref().is_none_or(|(cost, _)| *cost > subject.enough() / 8) {
        let stored = CodedBlocks { form: Form::Codes, ..plain };
        let (cost, origin) = best_of(subject, &stored, &sources, Some(scales(subject.subject(), &stored)?))?;
        if found.as_ref().is_none_or(|(least, _)| cost < *least) {
            found = Some((cost, origin));
        }
    }
    Ok(found.and_then(|(cost, origin)| subject.if_it_pays(origin, cost)))
}

/// The scales of a tensor of blocks.
fn scales(subject: &Subject<'_>, blocks: &CodedBlocks) -> Result<FoundPayload> {
    let info = subject.info();
    let part = PART_BLOCKS * blocks.kind.bytes() as u64;
    let mut bytes = Vec::new();
    for start in (0..info.len_bytes()).step_by(to_usize(part)) {
        let len = to_usize(part.min(info.len_bytes() - start));
        push_part(blocks.kind, &subject.read(start, len)?, &mut bytes);
    }
    let ready = OwnPayload::Scales(blocks.stored_scales(info, bytes.clone())?);
    Ok(FoundPayload { bytes: bytes.into(), ready: Arc::new(ready) })
}

/// The order of rows and the arithmetic that cost least.
fn best_of(
    subject: &Probed<'_>,
    plain: &CodedBlocks,
    sources: &[TensorSource],
    payload: Option<FoundPayload>,
) -> Result<(u64, Origin)> {
    let info = subject.subject().info();
    let origin = |blocks: &CodedBlocks| {
        let predictor = Predictor::Blocks(Box::new(Blocks::Coded(blocks.clone())));
        Origin { own_payload: payload.clone(), ..Origin::coded(predictor, sources.to_vec()) }
    };
    // The share of the payload that a sample has.
    let own_bytes = payload.as_ref().map_or(0, |payload| payload.bytes.len() as u64);
    let own_cost = subject.sample_bytes() * own_bytes / info.len_bytes().max(1) * 8 * ONE_BIT;
    let cost = |blocks: &CodedBlocks| -> Result<u64> { Ok(subject.cost_of(&origin(blocks))? + own_cost) };
    let mut best = (cost(plain)?, plain.clone());
    let keep_best = |all: Vec<CodedBlocks>, best: &mut (u64, CodedBlocks)| -> Result<()> {
        for changed in all.into_iter().filter(|changed| changed.is_valid(info)) {
            let cost = cost(&changed)?;
            if cost < best.0 {
                *best = (cost, changed);
            }
        }
        Ok(())
    };
    if best.0 > subject.enough() / 8 + own_cost {
        let heads = HEADS.into_iter().map(|head| CodedBlocks { head, ..best.1.clone() }).collect();
        keep_best(heads, &mut best)?;
    }
    if plain.form == Form::Blocks {
        let with = |arithmetic| CodedBlocks { arithmetic, ..best.1.clone() };
        let others = Arithmetic::ALL.into_iter().map(with).collect();
        keep_best(others, &mut best)?;
    }
    Ok((best.0, origin(&best.1)))
}
