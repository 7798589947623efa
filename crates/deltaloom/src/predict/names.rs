//! Finds tensors by name: those with exactly a name, and those whose name differs only by a leading
//! prefix. Dtype, shape and bytes are compared elsewhere.

use std::cmp::Ordering;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{LazyLock, OnceLock};

use crate::limits::narrow;

/// Tails of a name that are indexed. Names of tensors have fewer dots; a name with more would take
/// more memory here than in its file.
const MOST_TAILS: usize = 32;

/// Numbers of named things, found by name. Names may be long and stay where they are: every call
/// passes a function from a number to its name.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Hashes of the names, rising, and the numbers in the same order: equal names side by side,
    /// with rising numbers.
    hashes: Vec<u64>,
    by_hash: Vec<usize>,
    /// Hash and number of each tail of each name, rising; made when it is first needed. None if a
    /// name has too many tails.
    tails: OnceLock<Option<Vec<(u64, usize)>>>,
    /// In the order of the names, and of the reversed names; made when they are first needed.
    by_name: OnceLock<Vec<usize>>,
    by_end: OnceLock<Vec<usize>>,
}

impl Names {
    /// Indexes the numbers below `count`.
    pub(crate) fn new<'a>(count: usize, name: impl Fn(usize) -> &'a str) -> Self {
        let mut hashed: Vec<(u64, usize)> = (0..count).map(|i| (hash(name(i)), i)).collect();
        hashed.sort_by(|(a, i), (b, j)| a.cmp(b).then_with(|| name(*i).cmp(name(*j))));
        let (hashes, by_hash) = hashed.into_iter().unzip();
        let (tails, by_name, by_end) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { hashes, by_hash, tails, by_name, by_end }
    }

    /// Numbers of the things with that name, in rising order.
    pub(crate) fn named<'a>(&self, wanted: &str, name: impl Fn(usize) -> &'a str) -> &[usize] {
        self.named_by(hash(wanted), wanted, name)
    }

    fn named_by<'a>(&self, hash: u64, wanted: &str, name: impl Fn(usize) -> &'a str) -> &[usize] {
        let start = self.hashes.partition_point(|found| *found < hash);
        let count = self.hashes[start..].iter().take_while(|found| **found == hash).count();
        run(&self.by_hash[start..start + count], |i| name(i).cmp(wanted))
    }

    /// Numbers of the things whose names have that start, in any order.
    pub(crate) fn starting_with<'a>(&self, start: &str, name: impl Fn(usize) -> &'a str) -> &[usize] {
        let by_name = self.by_name.get_or_init(|| {
            let mut by_name = self.by_hash.clone();
            by_name.sort_by_key(|i| name(*i));
            by_name
        });
        run(by_name, |i| match name(i).starts_with(start) {
            true => Ordering::Equal,
            false => name(i).cmp(start),
        })
    }

    /// Numbers of the things whose names have that end, in any order.
    pub(crate) fn ending_with<'a>(&self, end: &str, name: impl Fn(usize) -> &'a str) -> &[usize] {
        let by_end = self.by_end.get_or_init(|| {
            let mut by_end = self.by_hash.clone();
            by_end.sort_by(|a, b| reversed(name(*a)).cmp(reversed(name(*b))));
            by_end
        });
        run(by_end, |i| match name(i).ends_with(end) {
            true => Ordering::Equal,
            false => reversed(name(i)).cmp(reversed(end)),
        })
    }

    /// Numbers of the things whose names are the wanted name with a leading prefix, such as
    /// `model.`, or the wanted name without one.
    pub(crate) fn renamed<'a>(&self, wanted: &str, name: impl Fn(usize) -> &'a str + Copy) -> Vec<usize> {
        let mut found = Vec::new();
        match self.tails(name) {
            _ if wanted.is_empty() => {}
            None => found.extend_from_slice(self.ending_with(&format!(".{wanted}"), name)),
            Some(tails) => {
                let hash = hash(wanted);
                let start = tails.partition_point(|(found, _)| *found < hash);
                let alike = tails[start..].iter().take_while(|(found, _)| *found == hash);
                let is_longer =
                    |name: &str| name.strip_suffix(wanted).is_some_and(|prefix| prefix.ends_with('.'));
                found.extend(alike.map(|(_, i)| *i).filter(|i| is_longer(name(*i))));
            }
        }
        for (hash, tail) in hashed_tails(wanted) {
            found.extend_from_slice(self.named_by(hash, tail, name));
        }
        found
    }

    fn tails<'a>(&self, name: impl Fn(usize) -> &'a str) -> Option<&[(u64, usize)]> {
        let index = || {
            let mut tails = Vec::new();
            for i in 0..self.by_hash.len() {
                let before = tails.len();
                tails.extend(hashed_tails(name(i)).map(|(hash, _)| (hash, i)).take(MOST_TAILS + 1));
                if tails.len() - before > MOST_TAILS {
                    return None;
                }
            }
            tails.sort_unstable();
            Some(tails)
        };
        self.tails.get_or_init(index).as_deref()
    }
}

/// A prime, so that with a random base no names can be made to collide.
const MODULUS: u64 = (1 << 61) - 1;

/// The polynomial hash of a text behind its first byte, continued by that byte: hashes of all ends
/// of a name cost one pass. Only the order of work depends on it, never a result.
fn continue_hash(hash: u64, byte: u8) -> u64 {
    static BASE: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish() % MODULUS);
    let product = u128::from(hash) * u128::from(*BASE) + u128::from(byte) + 1;
    let low: u64 = narrow(product & u128::from(MODULUS), "below 2^61");
    let high: u64 = narrow(product >> 61, "a product of two numbers below 2^61, over 2^61");
    let sum = low + high;
    if sum < MODULUS { sum } else { sum - MODULUS }
}

fn hash(name: &str) -> u64 {
    name.bytes().rev().fold(0, continue_hash)
}

/// The rest of a name behind each of its dots, unless it is empty, with its hash; the shortest
/// first.
fn hashed_tails(name: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut hash = 0;
    let bytes = name.bytes().enumerate().rev();
    bytes.filter_map(move |(at, byte)| {
        let behind = hash;
        hash = continue_hash(hash, byte);
        let tail = name.get(at + 1..)?;
        (byte == b'.' && !tail.is_empty()).then_some((behind, tail))
    })
}

/// The elements that compare as equal. All others lie before or behind them.
fn run(sorted: &[usize], compare: impl Fn(usize) -> Ordering) -> &[usize] {
    let start = sorted.partition_point(|i| compare(*i).is_lt());
    let rest = &sorted[start..];
    &rest[..rest.partition_point(|i| compare(*i).is_eq())]
}

fn reversed(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().rev()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn renamed<'a>(wanted: &str, names: &[&'a str]) -> Vec<&'a str> {
        let index = Names::new(names.len(), |i| names[i]);
        let mut found = index.renamed(wanted, |i| names[i]);
        found.sort_unstable();
        found.into_iter().map(|i| names[i]).collect()
    }

    #[test]
    fn a_prefix_ends_in_a_dot() {
        assert_eq!(renamed("a.w", &["model.a.w", "b.w"]), ["model.a.w"]);
        assert_eq!(renamed("model.a.w", &["a.w", "b.w", "model.a.w"]), ["a.w"]);
        assert_eq!(renamed("a.w", &["model.a.w", "other.a.w"]), ["model.a.w", "other.a.w"]);
        assert!(renamed("a.w", &["modela.w", "a"]).is_empty());
        assert!(renamed("", &["a.", ".", ""]).is_empty());
    }

    #[test]
    fn names_with_very_many_dots_are_found_too() {
        let long = format!("{}w", "a.".repeat(2 * MOST_TAILS));
        let prefixed = format!("model.{long}");
        assert_eq!(renamed(&long, &[&prefixed, "a.w"]), [&prefixed[..], "a.w"]);
        assert_eq!(renamed("a.w", &[&long, "w"]), [&long[..], "w"]);
    }

    proptest! {
        /// Gives the same results as a scan of all names.
        #[test]
        fn every_look_up_finds_what_a_scan_finds(
            names in prop::collection::vec("[ab.é]{0,5}", 0..40), wanted in "[ab.é]{0,4}",
        ) {
            let name = |i: usize| names[i].as_str();
            let index = Names::new(names.len(), name);
            let scan = |is_it: &dyn Fn(&str) -> bool| -> Vec<usize> {
                (0..names.len()).filter(|i| is_it(name(*i))).collect()
            };
            let sorted = |found: &mut dyn Iterator<Item = usize>| {
                let mut found: Vec<usize> = found.collect();
                found.sort_unstable();
                found
            };
            prop_assert_eq!(index.named(&wanted, name), scan(&|name| name == wanted));
            let starting = index.starting_with(&wanted, name);
            prop_assert_eq!(sorted(&mut starting.iter().copied()), scan(&|name| name.starts_with(&wanted)));
            let ending = index.ending_with(&wanted, name);
            prop_assert_eq!(sorted(&mut ending.iter().copied()), scan(&|name| name.ends_with(&wanted)));
            let adds_prefix = |long: &str, short: &str| {
                !short.is_empty() && long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.'))
            };
            prop_assert_eq!(
                sorted(&mut index.renamed(&wanted, name).into_iter()),
                scan(&|name| adds_prefix(name, &wanted) || adds_prefix(&wanted, name))
            );
        }
    }
}
