//! The name that a person may have meant.

use deltaloom::{Error, Missing};

use super::{Hint, printable};

/// Limits of the search for a similar name: a file may have very long names, and very many.
const COMPARED_BYTES: usize = 512;
const COMPARED_NAMES: usize = 100_000;

/// If the error says that there is no tensor of this name: suggests the most similar of `names`, or
/// gives another hint.
pub(crate) fn suggest(
    error: Error,
    given: &str,
    names: impl FnOnce() -> Option<Vec<String>>,
    otherwise: Option<String>,
) -> anyhow::Error {
    let source = if let Error::InFile { source, .. } = &error { source } else { &error };
    let is_unknown = matches!(source, Error::NotFound { kind: Missing::Tensor, .. });
    let names = is_unknown.then(names).flatten().unwrap_or_default();
    let near = nearest(given, names.iter().map(String::as_str));
    let meant = near.map(|name| format!("did you mean {}?", printable(name)));
    match meant.or(otherwise.filter(|_| is_unknown)) {
        Some(hint) => anyhow::Error::from(error).context(Hint(hint)),
        None => error.into(),
    }
}

/// The name with the fewest edits, at most one per three letters; otherwise one that ends with
/// `given`.
fn nearest<'a>(given: &str, names: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let names = names.take(COMPARED_NAMES).filter(|name| name.len() <= COMPARED_BYTES);
    if given.is_empty() || given.len() > COMPARED_BYTES {
        return None;
    }
    let distance = |name: &'a str| (strsim::damerau_levenshtein(given, name), name);
    let near = names.clone().map(distance).filter(|(changes, _)| 3 * changes <= given.chars().count());
    near.min().map(|(_, name)| name).or_else(|| names.clone().find(|name| name.ends_with(given)))
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_name_is_offered_if_it_is_near() {
        let names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight", ""];
        let of = |given| nearest(given, names.into_iter());
        assert_eq!(of("model.norm.weigth"), Some("model.norm.weight"));
        assert_eq!(of("model.layer.0.mlp.up_proj"), Some("model.layers.0.mlp.up_proj.weight"));
        assert_eq!(of("model.layers.0.mlp.up_proj.bias"), Some("model.layers.0.mlp.up_proj.weight"));
        assert_eq!(of("norm.weight"), Some("model.norm.weight"));
        assert_eq!((of("nothing"), of("")), (None, None));
        assert_eq!(of(&"x".repeat(5000)), None);
    }
}
