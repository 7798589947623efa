//! For tensors that no base is similar to, finds another tensor of the same file: one that is
//! nearly equal, or one that tells the magnitude of their elements, as Adam's second moment does
//! for the first.
//! Contents or names limit the candidates, and samples decide. There is nothing to prove or to fit,
//! since any companion gives the right bytes.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::content;
use crate::error::Result;
use crate::plan;
use crate::predict::Predictor;
use crate::tensor::TensorInfo;

/// Number of tensors that are tried for one.
const MAX_CANDIDATES: usize = 8;

/// Two names that differ in one part have one of these keys in common. A part that is a number is
/// never left out, since other layers say nothing about this one. Nor is the whole name.
pub(super) fn keys(name: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_end = |c: char| c == '.' || c == '/';
    let mut start = 0;
    name.split(is_end).filter_map(move |part| {
        let (from, to) = (start, start + part.len());
        start = to + 1;
        let says_much = part.len() < name.len() && !part.bytes().all(|byte| byte.is_ascii_digit());
        says_much.then_some((&name[..from], &name[to..]))
    })
}

/// Whether a tensor may have a companion, or be one.
fn applies(info: &TensorInfo) -> bool {
    info.len_bytes() > 0
}

/// What a sample costs with that of a companion.
fn score(info: &TensorInfo, sample: &[u8], other: &[u8]) -> Option<u64> {
    plan::cost_with_companion(info.number(), sample, other)
}

/// Tensors without a prediction that are nearly equal to an earlier one, and that one.
pub(super) fn near_copies(
    tensors: &[&TensorInfo],
    samples: &[Vec<u8>],
    predictors: &[&Predictor],
) -> Vec<(usize, usize)> {
    let is_one: HashSet<usize> = predictors.iter().flat_map(|predictor| predictor.internals()).collect();
    let alone = (0..tensors.len()).filter(|i| *predictors[*i] == Predictor::Zero);
    let alone: Vec<(usize, Vec<u64>)> = alone
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|i| (i, content::runs(tensors[i], &samples[i])))
        .collect();
    let mut first_with: HashMap<u64, usize> = HashMap::new();
    let mut found = Vec::new();
    for (i, runs) in alone {
        let near = |other: &&usize| {
            tensors[**other].is_like(tensors[i])
                && content::is_near(tensors[i], &samples[i], &samples[**other])
        };
        match runs.iter().filter_map(|run| first_with.get(run)).find(near) {
            // Tensors that others depend on stay as they are.
            Some(other) if !is_one.contains(&i) => found.push((i, *other)),
            _ => runs.into_iter().for_each(|run| _ = first_with.entry(run).or_insert(i)),
        }
    }
    found
}

/// Tensors and their companions, from the predictors chosen so far, the samples of all tensors, and
/// those of references. Tensors that are similar to their reference have no companion.
pub(super) fn find(
    tensors: &[&TensorInfo],
    samples: &[Vec<u8>],
    predictors: &[&Predictor],
    reference_sample: impl Fn(usize) -> Result<Option<Vec<u8>>> + Sync,
) -> Result<Vec<(usize, usize)>> {
    let is_root = |i: &usize| applies(tensors[*i]) && predictors[*i].is_root();
    let mut alike: HashMap<_, Vec<usize>> = HashMap::new();
    for i in (0..tensors.len()).filter(is_root) {
        for key in keys(&tensors[i].name) {
            alike.entry((key, &tensors[i].dtype, &tensors[i].shape)).or_default().push(i);
        }
    }
    let savings_of = |i: usize| -> Result<Vec<(u64, usize, usize)>> {
        // One more of each than are tried, since the tensor itself may be among them.
        let near = |key| {
            let near = alike.get(&(key, &tensors[i].dtype, &tensors[i].shape)).into_iter().flatten();
            near.take(MAX_CANDIDATES + 1)
        };
        let mut candidates: Vec<usize> =
            keys(&tensors[i].name).flat_map(near).copied().filter(|other| *other != i).collect();
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        candidates.sort_unstable();
        candidates.dedup();
        let reference = reference_sample(i)?;
        let number = tensors[i].number();
        let Some(without) = plan::cost_without_companion(number, &samples[i], reference.as_deref()) else {
            return Ok(Vec::new());
        };
        let saving = |other: usize| without.checked_sub(score(tensors[i], &samples[i], &samples[other])?);
        let tried = candidates.into_iter().take(MAX_CANDIDATES);
        Ok(tried.filter_map(|other| Some((saving(other)?, i, other))).collect())
    };
    let is_coded =
        |i: &usize| is_root(i) && matches!(predictors[*i], Predictor::Zero | Predictor::Reference(_));
    let coded: Vec<usize> = (0..tensors.len()).filter(|i| is_coded(i)).collect();
    let savings: Vec<_> = coded.into_par_iter().map(savings_of).collect::<Result<_>>()?;
    let mut savings = savings.concat();
    // The largest savings first. If two tensors could be each other's companion, only one is.
    savings.sort_unstable_by_key(|(saving, i, other)| (Reverse(*saving), *i, *other));
    let (mut has_one, mut is_one) = (vec![false; tensors.len()], vec![false; tensors.len()]);
    // Tensors that others depend on stay as they are.
    predictors.iter().flat_map(|predictor| predictor.internals()).for_each(|other| is_one[other] = true);
    savings.retain(|(_, i, other)| {
        let is_free = !has_one[*i] && !is_one[*i] && !has_one[*other];
        if is_free {
            (has_one[*i], is_one[*other]) = (true, true);
        }
        is_free
    });
    Ok(savings.into_iter().map(|(_, i, other)| (i, other)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_one_part_have_a_key_in_common() {
        let common = |a, b| keys(a).filter(|key| keys(b).any(|other| other == *key)).count();
        assert_eq!(common("optimizer.exp_avg.layers.0.w", "optimizer.exp_avg_sq.layers.0.w"), 1);
        assert_eq!(common("state/3/mu", "state/3/nu"), 1);
        assert_eq!(common("m.w", "v.w"), 1);
        assert_eq!(common("layers.0.w", "layers.1.w"), 0);
        assert_eq!(common("m.w", "v.u"), 0);
        assert_eq!(common("m", "v"), 0);
    }
}
