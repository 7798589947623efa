//! Which tensor of a base has the place of a tensor of the fine-tune, by name.
//! Dtype, shape and bytes are compared elsewhere.

/// The only name among `candidates` that differs from `name` by a leading prefix which ends in a dot, such as `model.`.
pub(crate) fn renamed<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut renamed = candidates
        .filter(|candidate| has_prefixed_tail(candidate, name) || has_prefixed_tail(name, candidate));
    let first = renamed.next()?;
    renamed.next().is_none().then_some(first)
}

/// Whether `long` is `prefix.` followed by `short`.
fn has_prefixed_tail(long: &str, short: &str) -> bool {
    long.strip_suffix(short).is_some_and(|prefix| prefix.ends_with('.') && !short.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_unique_prefix_counts() {
        let find = |name, base: &[&'static str]| renamed(name, base.iter().copied());
        assert_eq!(find("a.w", &["model.a.w", "b.w"]), Some("model.a.w"));
        assert_eq!(find("model.a.w", &["a.w", "b.w"]), Some("a.w"));
        assert_eq!(find("a.w", &["model.a.w", "other.a.w"]), None);
        assert_eq!(find("a.w", &["modela.w", "a"]), None);
    }
}
