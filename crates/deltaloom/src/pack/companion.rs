//! Finds for tensors that no base is near to another one of the same file that says how large their elements are, as Adam's second moment does for its first.
//! Names limit what is tried, and samples decide; nothing is proven, since any companion gives the right bytes.

use std::cmp::Reverse;
use std::collections::HashMap;

use rayon::prelude::*;

use crate::error::Result;
use crate::plan;
use crate::predict::Predictor;
use crate::tensor::TensorInfo;

/// Tensors that are tried for one.
const MAX_CANDIDATES: usize = 8;

/// The names that differ from `name` in one part have one of these in common with it. Neither a number is left out, as other layers have nothing to
/// say, nor the whole name.
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

/// Tensors and the ones they go with, given the predictors chosen so far, samples of all tensors, and those of references. Tensors that are near their
/// reference have none.
pub(super) fn find(
    tensors: &[&TensorInfo],
    samples: &[Vec<u8>],
    predictors: &[&Predictor],
    reference_sample: impl Fn(usize) -> Result<Option<Vec<u8>>> + Sync,
) -> Result<Vec<(usize, usize)>> {
    let is_root = |i: &usize| tensors[*i].len_bytes() > 0 && predictors[*i].is_root();
    let mut alike: HashMap<_, Vec<usize>> = HashMap::new();
    for i in (0..tensors.len()).filter(is_root) {
        for key in keys(&tensors[i].name) {
            alike.entry((key, &tensors[i].dtype, &tensors[i].shape)).or_default().push(i);
        }
    }
    let savings_of = |i: usize| -> Result<Vec<(u64, usize, usize)>> {
        // One more than are tried of each: the tensor itself may be among them.
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
        let (number, sample) = (tensors[i].number(), &samples[i]);
        let reference = reference_sample(i)?;
        let Some(without) = plan::cost_without_companion(number, sample, reference.as_deref()) else {
            return Ok(Vec::new());
        };
        let saving =
            |other: &usize| without.checked_sub(plan::cost_with_companion(number, sample, &samples[*other])?);
        let tried = candidates.into_iter().take(MAX_CANDIDATES);
        Ok(tried.filter_map(|other| Some((saving(&other)?, i, other))).collect())
    };
    let is_coded =
        |i: &usize| is_root(i) && matches!(predictors[*i], Predictor::Zero | Predictor::Reference(_));
    let coded: Vec<usize> = (0..tensors.len()).filter(|i| is_coded(i)).collect();
    let savings: Vec<_> = coded.into_par_iter().map(savings_of).collect::<Result<_>>()?;
    let mut savings = savings.concat();
    // The largest first; of a pair that could both take the other, one does.
    savings.sort_unstable_by_key(|(saving, i, other)| (Reverse(*saving), *i, *other));
    let (mut has_one, mut is_one) = (vec![false; tensors.len()], vec![false; tensors.len()]);
    // What others come from already stays as it is.
    predictors.iter().flat_map(|predictor| predictor.internals()).for_each(|other| is_one[*other] = true);
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
