//! Finds tensors by name: those with exactly a name, and those whose name differs only by a leading
//! prefix. Dtype, shape and bytes are compared elsewhere.

use std::cmp::Ordering;
use std::sync::OnceLock;

/// Numbers of named things in the order of their names. Names may be long and stay where they are:
/// every call passes a function from a number to its name.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    by_name: Vec<usize>,
    /// In the order of the reversed names. Made when a name is first looked up by its end.
    by_end: OnceLock<Vec<usize>>,
}

impl Names {
    /// Sorts the numbers below `count`.
    pub(crate) fn new<'a>(count: usize, name: impl Fn(usize) -> &'a str) -> Self {
        let mut by_name: Vec<usize> = (0..count).collect();
        by_name.sort_by_key(|i| name(*i));
        Self { by_name, by_end: OnceLock::new() }
    }

    /// Numbers of the things with that name, in rising order.
    pub(crate) fn named<'a>(&self, wanted: &str, name: impl Fn(usize) -> &'a str) -> &[usize] {
        run(&self.by_name, |i| name(i).cmp(wanted))
    }

    /// Numbers of the things whose names have that start, in any order.
    pub(crate) fn starting_with<'a>(&self, start: &str, name: impl Fn(usize) -> &'a str) -> &[usize] {
        run(&self.by_name, |i| match name(i).starts_with(start) {
            true => Ordering::Equal,
            false => name(i).cmp(start),
        })
    }

    /// Numbers of the things whose names have that end, in any order.
    pub(crate) fn ending_with<'a>(&self, end: &str, name: impl Fn(usize) -> &'a str) -> &[usize] {
        let by_end = self.by_end.get_or_init(|| {
            let mut by_end = self.by_name.clone();
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
    pub(crate) fn renamed<'a>(
        &self,
        wanted: &str,
        name: impl Fn(usize) -> &'a str + Copy,
    ) -> impl Iterator<Item = usize> {
        let longer = if wanted.is_empty() { &[] } else { self.ending_with(&format!(".{wanted}"), name) };
        let shorter = tails(wanted).flat_map(move |tail| self.named(tail, name));
        longer.iter().chain(shorter).copied()
    }
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

/// The rest of a name behind each of its dots, unless it is empty.
pub(crate) fn tails(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[dot + 1..]).filter(|tail| !tail.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn renamed<'a>(wanted: &str, names: &[&'a str]) -> Vec<&'a str> {
        let index = Names::new(names.len(), |i| names[i]);
        let mut found: Vec<usize> = index.renamed(wanted, |i| names[i]).collect();
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
                sorted(&mut index.renamed(&wanted, name)),
                scan(&|name| adds_prefix(name, &wanted) || adds_prefix(&wanted, name))
            );
        }
    }
}
