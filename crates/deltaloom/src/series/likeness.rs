//! Compares a checkpoint's tensors with those of the step before it, so that a wrong path does not
//! become a step. It compares names, dtypes and shapes, and reads no weights.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use crate::checkpoint::{Member, Roles};
use crate::tensor::TensorInfo;

/// If at least this share of the bytes has no counterpart, a checkpoint does not count as the next
/// step of the same model.
const UNLIKE_SHARE: f64 = 0.25;

/// Differences between the tensors of a checkpoint and those of the step before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    missing: usize,
    new: usize,
    retyped: usize,
    /// Share of the bytes without a counterpart, in the larger of the two.
    share: f64,
}

impl Difference {
    pub(super) fn is_unlike(&self) -> bool {
        self.share > UNLIKE_SHARE
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missing, new, retyped, share } = self;
        let share = 100.0 * share;
        write!(f, "tensors missing: {missing}, new: {new}, of another dtype or shape: {retyped}; ")?;
        write!(f, "{share:.1} % of the bytes")
    }
}

/// The part that a member belongs to, model or optimizer, from its path.
pub(super) fn part_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

/// Compares the tensors of the parts that both have, since only some steps may have an optimizer's
/// state.
pub(super) fn difference(before: &[Member], now: &[Member]) -> Difference {
    let parts = |members: &[Member]| -> BTreeSet<String> {
        members.iter().map(|member| part_of(&member.path).to_owned()).collect()
    };
    let common: BTreeSet<String> = parts(before).intersection(&parts(now)).cloned().collect();
    let (before, now) = (tensors(before, &common), tensors(now, &common));
    let same =
        |(key, info): &(&Key<'_>, &&TensorInfo)| now.get(*key).is_some_and(|other| other.same_type(info));
    let matched = bytes(before.iter().filter(same).map(|(_, info)| *info));
    let larger = bytes(before.values().copied()).max(bytes(now.values().copied()));
    let missing = before.keys().filter(|key| !now.contains_key(*key)).count();
    Difference {
        missing,
        new: now.keys().filter(|key| !before.contains_key(*key)).count(),
        retyped: before.len() - missing - before.iter().filter(same).count(),
        share: if larger > 0.0 { 1.0 - matched / larger } else { 0.0 },
    }
}

/// Part, name, and the number of tensors with the same part and name before. Shards may be cut
/// differently from step to step.
type Key<'a> = (&'a str, &'a str, usize);

fn tensors<'a>(members: &'a [Member], parts: &BTreeSet<String>) -> BTreeMap<Key<'a>, &'a TensorInfo> {
    let mut tensors = BTreeMap::new();
    let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
    let roles = Roles::of(members);
    for (number, member) in members.iter().enumerate() {
        let part = part_of(&member.path);
        let weights = member.tensors.iter().enumerate().filter(|(i, _)| roles.is_weights((number, *i)));
        for (_, info) in weights.filter(|_| parts.contains(part)) {
            let nth = seen.entry((part, &info.name)).or_default();
            tensors.insert((part, info.name.as_str(), *nth), info);
            *nth += 1;
        }
    }
    tensors
}

fn bytes<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> f64 {
    tensors.map(|info| info.len_bytes() as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Contents;
    use crate::tensor::DType;

    fn member(path: &str, tensors: &[(&str, u64)]) -> Member {
        let info = |(name, size): &(&str, u64)| TensorInfo::sized((*name).into(), DType::U8, vec![*size]);
        let contents = Contents::Safetensors(Vec::new());
        Member { path: path.into(), contents, tensors: tensors.iter().map(info).collect(), tail_bytes: 0 }
    }

    #[test]
    fn tensors_count_by_their_bytes_wherever_they_lie() {
        let all = [member("model/m", &[("a", 60), ("b", 30), ("c", 10)])];
        let shards = [member("model/1", &[("c", 10), ("a", 60)]), member("model/2", &[("b", 30)])];
        assert_eq!(difference(&all, &shards).share, 0.0);
        let small =
            [member("model/m", &[("a", 60), ("b", 31), ("d", 10)]), Member::opaque("model/x".into(), 900)];
        let found = difference(&all, &small);
        assert_eq!((found.missing, found.new, found.retyped), (1, 1, 1));
        assert!((found.share - 41.0 / 101.0).abs() < 1e-9 && found.is_unlike());
        let adapter = [member("model/adapter", &[("lora", 2)])];
        assert!(difference(&all, &adapter).is_unlike() && difference(&adapter, &all).is_unlike());
        let state = [all[0].clone(), member("optimizer/o", &[("a", 600)])];
        assert!(!difference(&all, &state).is_unlike() && !difference(&state, &all).is_unlike());
        assert!(difference(&all, &[Member::opaque("model/x".into(), 9)]).is_unlike());
        assert!(!difference(&[], &all).is_unlike());
    }
}
