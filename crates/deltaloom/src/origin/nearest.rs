//! A tensor that differs from a reference in no way that another file knows: the residual says how.

use super::{Origin, reference_name};
use crate::bases::TensorSource;
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::plan;
use crate::predict::Predictor;
use crate::sample;
use crate::tensor::TensorInfo;

/// What the digest of a reference costs, in the unit of estimates. It decides for tiny tensors.
pub(super) const DIGEST_COST: u128 = 256 * ONE_BIT as u128;

/// Cost of the residual on a sample.
fn score(info: &TensorInfo, sample: &[u8], reference: &TensorSource) -> Result<u64> {
    Ok(plan::residual_cost(info.number(), sample, &sample::of(reference)?))
}

/// The references, those that cost least first.
pub(super) fn sorted<'a>(
    info: &TensorInfo,
    sample: &[u8],
    references: &[&'a TensorSource],
) -> Result<Vec<&'a TensorSource>> {
    if references.len() < 2 {
        return Ok(references.to_vec());
    }
    let costs = references.iter().map(|reference| score(info, sample, reference));
    let costs = costs.collect::<Result<Vec<u64>>>()?;
    let mut costed: Vec<(u64, &TensorSource)> = costs.into_iter().zip(references.iter().copied()).collect();
    costed.sort_by_key(|(cost, _)| *cost);
    Ok(costed.into_iter().map(|(_, reference)| reference).collect())
}

/// Cost of a tensor, from that of its sample.
pub(super) fn of_tensor(info: &TensorInfo, sample: &[u8], cost: u64) -> u128 {
    u128::from(cost) * u128::from(info.len_bytes()) / sample.len().max(1) as u128
}

/// What a tensor costs with a reference.
pub(super) fn cost(info: &TensorInfo, sample: &[u8], reference: &TensorSource) -> Result<u128> {
    Ok(of_tensor(info, sample, score(info, sample, reference)?) + DIGEST_COST)
}

/// What a tensor costs on its own.
pub(super) fn cost_alone(info: &TensorInfo, sample: &[u8]) -> u128 {
    of_tensor(info, sample, plan::stand_alone_cost(info.number(), sample))
}

/// The prediction from `reference`, unless the tensor on its own costs no more.
pub(super) fn fit(info: &TensorInfo, sample: &[u8], reference: &TensorSource) -> Result<Origin> {
    let is_better_alone = !plan::is_clearly_near(info.number(), sample, &sample::of(reference)?)
        && cost_alone(info, sample) <= cost(info, sample, reference)?;
    if is_better_alone {
        return Ok(Origin::unknown());
    }
    let predictor = Predictor::Reference(reference_name(info, reference));
    Ok(Origin::coded(predictor, vec![reference.clone()]))
}
