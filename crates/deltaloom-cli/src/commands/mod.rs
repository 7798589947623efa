//! One module per subcommand.

pub(crate) mod bench;
pub(crate) mod cat;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod estimate;
pub(crate) mod inspect;
pub(crate) mod lab;
pub(crate) mod lineage;
pub(crate) mod pack;
pub(crate) mod series;
pub(crate) mod unpack;
pub(crate) mod verify;

use std::path::Path;

use anyhow::Result;
use deltaloom::checkpoint::FileSource;
use deltaloom::{Bases, Container, Limits, ResolvedContainer};

use crate::args::BaseArguments;
use crate::ui;

fn open_bases(arguments: &BaseArguments) -> Result<Bases> {
    let limits = Limits::default();
    // First, since a container among the bases may need them.
    let mut bases = Bases::default();
    arguments.adapters.iter().try_for_each(|adapter| bases.push_adapter(adapter, &limits))?;
    bases.push_paths(&arguments.paths, &limits)?;
    Ok(bases)
}

/// The `config.json` in a directory, or beside a file.
fn config_of(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    std::fs::read_to_string(folder.join("config.json")).ok()
}

/// Opens a container for a pass over all of it, in which mapped pages would count as memory of this process.
fn open_to_stream(path: &Path) -> Result<Container> {
    Ok(Container::from_source(path, Box::new(FileSource::open(path)?), &Limits::default())?)
}

/// The bases that are given, and, from the folder if there is one, those that a container or a tensor of it needs besides; says which these are.
fn open_or_find_bases(
    container: &Container,
    tensor: Option<&str>,
    given: &BaseArguments,
    folder: Option<&Path>,
    threads: usize,
) -> Result<Bases> {
    let given = open_bases(given)?;
    let Some(folder) = folder else { return Ok(given) };
    let bar = ui::Bar::new("searching");
    let limits = Limits::default();
    let found = deltaloom::find_needed_bases(container, tensor, given, folder, &limits, threads, &bar)?;
    bar.finish();
    for path in &found.paths {
        ui::note(&format!("base: {}", ui::printable(&path.display().to_string())));
    }
    Ok(found.bases)
}

/// Finds the references of a container, hashing on as many threads as asked for.
fn resolve(
    container: Container,
    bases: &BaseArguments,
    folder: Option<&Path>,
    threads: usize,
) -> Result<ResolvedContainer> {
    let bases = open_or_find_bases(&container, None, bases, folder, threads)?;
    Ok(deltaloom::with_threads(threads, || ResolvedContainer::new(container, &bases))?)
}
