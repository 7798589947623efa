//! `deltaloom cat`.

use std::ops::Bound;

use anyhow::Result;
use deltaloom::{Container, Error, Limits, ResolvedContainer};

use crate::args::CatArguments;
use crate::target::{self, Target};
use crate::{Answer, inputs, ui};

/// Limits of the search for a similar name: a file may have very long names, and very many.
const COMPARED_BYTES: usize = 512;
const COMPARED_NAMES: usize = 100_000;

pub(crate) fn run(arguments: &CatArguments) -> Result<Answer> {
    let container = Container::open(&arguments.container, &Limits::default())?;
    let (tensor, folder) = (Some(arguments.tensor.as_str()), arguments.base_dir.as_deref());
    let bases = inputs::open_or_find_bases(&container, tensor, &arguments.bases, folder, 0)?;
    let resolved = ResolvedContainer::for_tensor(container, &bases, &arguments.tensor)
        .map_err(|e| with_nearest(e, arguments))?;
    let rows = arguments.rows.unwrap_or((Bound::Unbounded, Bound::Unbounded));
    let target = Target::new(&arguments.output);
    target::write_bytes(&target, arguments.overwrite, resolved.inputs(), |out| {
        deltaloom::read_tensor(&resolved, &arguments.tensor, rows, out)
    })?;
    Ok(Answer::Yes)
}

/// If there is no tensor of this name, suggests the most similar one.
fn with_nearest(error: Error, arguments: &CatArguments) -> anyhow::Error {
    let is_not_found =
        matches!(&error, Error::InFile { source, .. } if matches!(**source, Error::NotFound { .. }));
    let nearest = is_not_found.then(|| {
        let container = Container::open(&arguments.container, &Limits::default()).ok()?;
        let report = deltaloom::inspect(&container);
        let names = report.tensors.iter().map(|tensor| tensor.name.as_str());
        nearest(&arguments.tensor, names).map(ui::printable)
    });
    match nearest.flatten() {
        Some(name) => anyhow::Error::from(error).context(ui::Hint(format!("did you mean {name}?"))),
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
