//! The operations of the program on paths. Each returns the program's JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use deltaloom::checkpoint::{Checkpoint, Exclude, Unread, Warning};
use deltaloom::{
    Check, Container, Error, InPlaceOptions, Limits, PackOptions, Preset, ResolvedContainer, Result, Texts,
    UnpackOptions, Verifiable, needs_base,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::Serialize;

use crate::checkpoint::Tensors;
use crate::container::Given;
use crate::progress::run;
use crate::report::to_json;

/// Options of packing that name their bases.
///
/// # Errors
/// `ValueError` for an unknown preset.
pub(crate) fn pack_options(preset: &str) -> PyResult<PackOptions> {
    let preset = match preset {
        "default" => Preset::Default,
        "max" => Preset::Max,
        other => {
            let message = format!("preset {other:?} does not exist: \"default\" and \"max\" do");
            return Err(PyValueError::new_err(message));
        }
    };
    Ok(PackOptions::default().with_preset(preset).with_identity(Some(Texts::new())))
}

/// A report, and problems with the inputs.
#[derive(Serialize)]
struct Warned<T> {
    #[serde(flatten)]
    report: T,
    warnings: Vec<Warning>,
}

/// A report on packing, and what else the program says then.
#[derive(Serialize)]
struct Packed {
    #[serde(flatten)]
    report: deltaloom::PackReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_search: Option<deltaloom::SearchReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<Unread>,
}

/// Packs a file or folder against bases, or against the best base in a folder.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the program")]
pub(crate) fn pack(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    bases: Bound<'_, PyAny>,
    adapters: Vec<PathBuf>,
    folder: Option<PathBuf>,
    exclude: Vec<String>,
    texts: Option<BTreeMap<String, String>>,
    preset: &str,
    threads: usize,
    overwrite: bool,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let given = Given::of(&bases)?.with_adapters(adapters);
    let options = pack_options(preset)?.with_overwrite(overwrite).with_threads(threads).with_identity(texts);
    run(py, report.as_ref(), threads, |progress| {
        let limits = Limits::default();
        let mut exclude = exclude.iter().map(|pattern| pattern.parse()).collect::<Result<Vec<Exclude>>>()?;
        exclude.extend(Exclude::of_output(&target, &source)?);
        let checkpoint = Checkpoint::open_without(&source, &exclude, &limits)?;
        let mut warnings = checkpoint.warnings(&limits)?;
        let (bases, base_search) = match &folder {
            None => (given.open()?, None),
            Some(folder) if given.is_empty() => {
                let found =
                    deltaloom::find_base(&checkpoint, folder, &[&target], &limits, threads, progress)?;
                let report = found.report.clone();
                (found.into_bases(folder)?, Some(report))
            }
            Some(_) => {
                let message = "give bases, or a folder to look for one in, not both".to_owned();
                return Err(Error::InvalidArgument(message));
            }
        };
        warnings.extend_from_slice(bases.warnings());
        let report = deltaloom::pack(&checkpoint, &bases, &target, &options, progress)?;
        let report = Packed { report, base_search, unread: checkpoint.unread() };
        to_json(&Warned { report, warnings })
    })
}

/// Packs tensors in memory into the file `target`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the Python function")]
pub(crate) fn pack_tensors(
    py: Python<'_>,
    tensors: &Tensors,
    target: PathBuf,
    bases: Bound<'_, PyAny>,
    preset: &str,
    threads: usize,
    overwrite: bool,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let bases = Given::of(&bases)?;
    let options = pack_options(preset)?.with_overwrite(overwrite);
    run(py, report.as_ref(), threads, |progress| {
        to_json(&deltaloom::pack(tensors.checkpoint(), &bases.open()?, &target, &options, progress)?)
    })
}

/// Packs tensors in memory into bytes.
#[pyfunction]
pub(crate) fn pack_tensors_to_bytes<'py>(
    py: Python<'py>,
    tensors: &Tensors,
    bases: Bound<'_, PyAny>,
    preset: &str,
    threads: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let bases = Given::of(&bases)?;
    let options = pack_options(preset)?;
    let packed = run(py, None, threads, |progress| {
        let mut packed = Vec::new();
        deltaloom::pack_to(tensors.checkpoint(), &bases.open()?, &mut packed, &options, progress)?;
        Ok(packed)
    })?;
    Ok(PyBytes::new(py, &packed))
}

/// A container with its references, and problems with the bases.
fn resolve(
    container: Container,
    bases: &Given,
    folder: Option<&Path>,
    threads: usize,
    progress: &dyn deltaloom::Progress,
) -> Result<(ResolvedContainer, Vec<Warning>)> {
    let bases = bases.open_for(&container, folder, threads, progress)?;
    let warnings = bases.warnings().to_vec();
    Ok((ResolvedContainer::new(container, &bases)?, warnings))
}

/// Restores the files of a container.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the program")]
pub(crate) fn unpack(
    py: Python<'_>,
    container: PathBuf,
    target: PathBuf,
    bases: Bound<'_, PyAny>,
    adapters: Vec<PathBuf>,
    folder: Option<PathBuf>,
    threads: usize,
    overwrite: bool,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let bases = Given::of(&bases)?.with_adapters(adapters);
    let options = UnpackOptions::default().with_threads(threads).with_overwrite(overwrite);
    run(py, report.as_ref(), threads, |progress| {
        let container = Container::open(&container, &Limits::default())?;
        let (resolved, warnings) = resolve(container, &bases, folder.as_deref(), threads, progress)?;
        let report = deltaloom::unpack(&resolved, &target, &options, progress)?;
        to_json(&Warned { report, warnings })
    })
}

/// Turns the file `base` into the checkpoint of a container.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the program")]
pub(crate) fn unpack_in_place(
    py: Python<'_>,
    container: PathBuf,
    base: PathBuf,
    bases: Bound<'_, PyAny>,
    adapters: Vec<PathBuf>,
    check: &str,
    threads: usize,
    overwrite: bool,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let check = match check {
        "changed" => Check::Changed,
        "all" => Check::All,
        "one" => Check::One,
        other => {
            let message = format!("check {other:?} does not exist: \"changed\", \"all\" and \"one\" do");
            return Err(PyValueError::new_err(message));
        }
    };
    let bases = Given::of(&bases)?.with_adapters(adapters);
    let options = InPlaceOptions::default().with_threads(threads).with_check(check).with_overwrite(overwrite);
    run(py, report.as_ref(), threads, |progress| {
        let container = Container::open(&container, &Limits::default())?;
        let others = bases.open()?;
        let report = deltaloom::unpack_in_place(container, &base, &others, &options, progress)?;
        to_json(&Warned { report, warnings: others.warnings().to_vec() })
    })
}

/// Checks every checksum of a container and, where the bases are given or none is needed, every
/// digest.
#[pyfunction]
pub(crate) fn verify(
    py: Python<'_>,
    container: PathBuf,
    bases: Bound<'_, PyAny>,
    adapters: Vec<PathBuf>,
    folder: Option<PathBuf>,
    threads: usize,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let bases = Given::of(&bases)?.with_adapters(adapters);
    run(py, report.as_ref(), threads, |progress| {
        let container = Container::open(&container, &Limits::default())?;
        if bases.is_empty() && folder.is_none() && needs_base(&container) {
            let report = deltaloom::verify(&Verifiable::Alone(&container), threads, progress)?;
            return to_json(&Warned { report, warnings: Vec::new() });
        }
        let (resolved, warnings) = resolve(container, &bases, folder.as_deref(), threads, progress)?;
        let report = deltaloom::verify(&Verifiable::Resolved(&resolved), threads, progress)?;
        to_json(&Warned { report, warnings })
    })
}

/// Compares two files or folders tensor by tensor.
#[pyfunction]
pub(crate) fn diff(
    py: Python<'_>,
    a: PathBuf,
    b: PathBuf,
    bases: Bound<'_, PyAny>,
    adapters: Vec<PathBuf>,
    threads: usize,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let bases = Given::of(&bases)?.with_adapters(adapters);
    run(py, report.as_ref(), threads, |progress| {
        let (bases, limits) = (bases.open()?, Limits::default());
        let (a, b) = (bases.open_against(&a, &limits)?, bases.open_against(&b, &limits)?);
        let report = deltaloom::diff(&a, &b, threads, progress)?;
        to_json(&Warned { report, warnings: [bases.warnings(), a.warnings(), b.warnings()].concat() })
    })
}

/// Describes a container from its index.
#[pyfunction]
pub(crate) fn inspect(py: Python<'_>, container: PathBuf) -> PyResult<String> {
    run(py, None, 1, |_| to_json(&deltaloom::inspect(&Container::open(&container, &Limits::default())?)))
}

/// Finds how a checkpoint was made from others.
#[pyfunction]
pub(crate) fn lineage(
    py: Python<'_>,
    checkpoint: PathBuf,
    ancestors: Bound<'_, PyAny>,
    threads: usize,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let ancestors = Given::of(&ancestors)?;
    run(py, report.as_ref(), threads, |progress| {
        let ancestors = ancestors.open()?;
        let tuned = ancestors.open_against(&checkpoint, &Limits::default())?;
        let report = deltaloom::lineage(&tuned, &ancestors, threads, progress)?;
        to_json(&Warned { report, warnings: [tuned.warnings(), ancestors.warnings()].concat() })
    })
}

/// Finds the best base of a checkpoint among the files of a folder.
#[pyfunction]
pub(crate) fn find_base(
    py: Python<'_>,
    checkpoint: PathBuf,
    folder: PathBuf,
    threads: usize,
    report: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    run(py, report.as_ref(), threads, |progress| {
        let limits = Limits::default();
        let checkpoint = Checkpoint::open(&checkpoint, &limits)?;
        to_json(&deltaloom::find_base(&checkpoint, &folder, &[], &limits, threads, progress)?.report)
    })
}
