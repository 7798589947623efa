//! Opens what commands read, and warns of problems with it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use deltaloom::checkpoint::{Checkpoint, Exclude, Warning};
use deltaloom::{Bases, Container, Error, Limits, ResolvedContainer};
use serde::Serialize;

use crate::args::BaseArguments;
use crate::progress::Bar;
use crate::target::{self, Target};
use crate::ui;

/// The JSON that is printed: a report, and problems with the inputs.
#[derive(Serialize)]
struct WithWarnings<'a, T> {
    #[serde(flatten)]
    report: &'a T,
    warnings: &'a [Warning],
}

pub(crate) fn print_json(report: &impl Serialize, warnings: &[Warning]) -> Result<()> {
    ui::print_json(&WithWarnings { report, warnings })
}

/// Prints the report on a result that was written to `target`.
pub(crate) fn print_report(report: &impl Serialize, warnings: &[Warning], target: &Target) -> Result<()> {
    target::print_report(&WithWarnings { report, warnings }, target)
}

pub(crate) fn warn(warnings: &[Warning]) {
    warnings.iter().for_each(|warning| ui::warn(&ui::printable(&warning.to_string())));
}

/// Opens a checkpoint without the files that `exclude` fits, and warns of problems with it.
pub(crate) fn open_checkpoint(path: &Path, exclude: &[Exclude]) -> Result<(Checkpoint, Vec<Warning>)> {
    let limits = Limits::default();
    if let (Some(first), true) = (exclude.first(), path.is_file()) {
        bail!("{}: this is a file, and --exclude {} is for folders", path.display(), first.as_str());
    }
    let checkpoint = Checkpoint::open_without(path, exclude, &limits)?;
    let warnings = checkpoint.warnings(&limits)?;
    warn(&warnings);
    Ok((checkpoint, warnings))
}

pub(crate) fn open_bases(arguments: &BaseArguments) -> Result<Bases> {
    let limits = Limits::default();
    // First, because a container among the bases may need them.
    let mut bases = Bases::default();
    arguments.adapters.iter().try_for_each(|adapter| bases.push_adapter(adapter, &limits))?;
    bases.push_paths(&arguments.paths, &limits)?;
    warn(bases.warnings());
    Ok(bases)
}

/// Maps the files of a checkpoint, to compute with its weights where they are.
#[cfg(feature = "compute")]
#[expect(unsafe_code, reason = "the one place of the program that maps files")]
pub(crate) fn mapped(checkpoint: Checkpoint) -> deltaloom::Result<Checkpoint> {
    // SAFETY: docs/cli.md requires of whoever runs `estimate`, `eval`, `generate` and `lab` that
    // the files of the models stay as they are until the command ends. Nothing in this program
    // writes to them.
    unsafe { checkpoint.into_mapped() }
}

/// The `config.json` in a folder, or next to a file.
#[cfg(feature = "compute")]
pub(crate) fn config_of(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    std::fs::read_to_string(folder.join("config.json")).ok()
}

/// Opens the named bases and, if there is a folder, finds the others that a container or one of its
/// tensors needs. Prints the paths of those.
pub(crate) fn open_or_find_bases(
    container: &Container,
    tensor: Option<&str>,
    given: &BaseArguments,
    folder: Option<&Path>,
    threads: usize,
) -> Result<Bases> {
    let opened = open_bases(given);
    let Some(folder) = folder else { return opened };
    let bar = Bar::new("searching");
    let limits = Limits::default();
    let find = |container: &Container, tensor: Option<&str>, bases: Bases| -> Result<Bases> {
        let found = deltaloom::find_needed_bases(container, tensor, bases, folder, &limits, threads, &bar)?;
        for path in &found.paths {
            ui::note(&format!("base: {}", ui::printable(&path.display().to_string())));
        }
        Ok(found.bases)
    };
    let bases = match opened {
        Ok(bases) => bases,
        // A named container may need a base in the folder.
        Err(e) if lacks_base(&e) => {
            let (containers, others): (Vec<PathBuf>, Vec<PathBuf>) =
                given.paths.iter().cloned().partition(|path| Container::is_container(path).unwrap_or(false));
            let mut bases = open_bases(&BaseArguments { paths: others, adapters: given.adapters.clone() })?;
            for path in containers {
                bases = find(&Container::open(&path, &Limits::default())?, None, bases)?;
                bases.push_paths(&[path], &limits)?;
            }
            bases
        }
        Err(e) => return Err(e),
    };
    let bases = find(container, tensor, bases)?;
    bar.finish();
    Ok(bases)
}

/// Whether a container could not be opened because a base is missing.
fn lacks_base(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(Error::InFile { source, .. }) => matches!(**source, Error::BaseMismatch { .. }),
        _ => false,
    }
}

/// Finds the references of a container, hashing on `threads` threads.
pub(crate) fn resolve(
    container: Container,
    bases: &BaseArguments,
    folder: Option<&Path>,
    threads: usize,
) -> Result<(ResolvedContainer, Vec<Warning>)> {
    let bases = open_or_find_bases(&container, None, bases, folder, threads)?;
    let resolved = deltaloom::with_threads(threads, || ResolvedContainer::new(container, &bases))?;
    Ok((resolved, bases.warnings().to_vec()))
}
