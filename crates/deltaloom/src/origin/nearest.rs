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
const DIGEST_COST: u128 = 256 * ONE_BIT as u128;

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

/// The prediction from `reference`, unless the tensor on its own costs no more.
pub(super) fn fit(info: &TensorInfo, sample: &[u8], reference: &TensorSource) -> Result<Origin> {
    let number = info.number();
    let of_tensor = |cost: u64| u128::from(cost) * u128::from(info.len_bytes()) / sample.len().max(1) as u128;
    let alone = || of_tensor(plan::stand_alone_cost(number, sample));
    let is_better_alone = !plan::is_clearly_near(number, sample, &sample::of(reference)?)
        && alone() <= of_tensor(score(info, sample, reference)?) + DIGEST_COST;
    if is_better_alone {
        return Ok(Origin::unknown());
    }
    let predictor = Predictor::Reference(reference_name(info, reference));
    Ok(Origin::coded(predictor, vec![reference.clone()]))
}
