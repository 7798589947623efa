//! Checks lossy steps: the digests of their input and output and, if the original is available, the
//! promised bound.
//!
//! It restores nothing for others; a program that wants the weights keeps the reconstruction that
//! is made here.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::errors;
use super::file::{Coding, LossyFile};
use super::reconstruction::Reconstructed;
use super::tensors::Named;
use deltaloom::__internals::{Element, load_singles};
use deltaloom::checkpoint::{Checkpoint, FileSource};
use deltaloom::{
    Bases, Container, Error, Limits, Progress, ResolvedContainer, Result, UnpackOptions, unpack,
};

/// Result of checking a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepCheck {
    /// The file.
    pub path: PathBuf,
    /// Its number.
    pub step: u64,
    /// Whether it is an ordinary container, as the first step of a series is.
    pub lossless: bool,
    /// `digests`, or `digests and bound` if the original was available.
    pub checked: &'static str,
    /// Greatest absolute error that the index allows.
    pub bound: f64,
    /// Greatest absolute error found, if the original was available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_error: Option<f64>,
    /// The faults, one line each.
    pub faults: Vec<String>,
}

/// Checks a lossy step against the reconstruction of the step before and, if available, the
/// original.
///
/// # Errors
/// Only what prevents the check: [`Error::Cancelled`], [`Error::Io`]. Faults are in the report.
pub fn verify(
    file: &LossyFile,
    previous: &Checkpoint,
    original: Option<&Checkpoint>,
    progress: &dyn Progress,
) -> Result<StepCheck> {
    let scratch = tempfile::tempdir().map_err(Error::writing(std::env::temp_dir()))?;
    Ok(check(file, previous, original, scratch.path(), progress)?.0)
}

/// As [`verify`], with the reconstruction in an empty folder, if there is one.
fn check(
    file: &LossyFile,
    previous: &Checkpoint,
    original: Option<&Checkpoint>,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<(StepCheck, Option<Reconstructed>)> {
    let mut check = StepCheck {
        path: file.path.clone(),
        step: file.index.step,
        lossless: false,
        checked: "digests",
        bound: file.index.tensors.iter().map(|tensor| tensor.coding.bound()).fold(0.0, f64::max),
        max_error: None,
        faults: Vec::new(),
    };
    let reconstructed = match file.reconstruct(previous, folder, &Limits::default(), progress) {
        Ok(reconstructed) => reconstructed,
        Err(e @ (Error::Cancelled | Error::Io { .. })) => return Err(e),
        Err(e) => {
            check.faults.push(e.detail());
            return Ok((check, None));
        }
    };
    if let Some(original) = original {
        check.checked = "digests and bound";
        check_bounds(file, &reconstructed.checkpoint, original, &mut check)?;
    }
    Ok((check, Some(reconstructed)))
}

fn check_bounds(
    file: &LossyFile,
    reconstructed: &Checkpoint,
    original: &Checkpoint,
    check: &mut StepCheck,
) -> Result<()> {
    let originals = Named::new(original);
    let mut max = 0.0;
    for (entry, (member, info)) in file.index.tensors.iter().zip(reconstructed.tensors()) {
        let Some(expected) = originals.read(&info.name, |other| other.same_type(info))? else {
            check.faults.push(format!("the original has no tensor {:?}", entry.name));
            continue;
        };
        let found = reconstructed.read_tensor(member, info)?;
        let bound = match &entry.coding {
            Coding::Tied { to } => file.index.tensors.get(*to).map_or(0.0, |tied| tied.coding.bound()),
            coding => coding.bound(),
        };
        let error = match Element::of(&info.dtype) {
            _ if found == expected => 0.0,
            Some(element) if bound > 0.0 => {
                errors::greatest(&load_singles(element, &expected), &load_singles(element, &found))
            }
            _ => f64::INFINITY,
        };
        // Also false if the error is NaN.
        let is_kept = error <= bound;
        if !is_kept {
            check.faults.push(format!(
                "tensor {:?} is {error:e} away from its original, but the bound is {bound:e}",
                entry.name
            ));
        }
        max = f64::max(max, error);
    }
    check.max_error = Some(max).filter(|max| max.is_finite());
    Ok(())
}

/// Checks a folder of steps that [`super::Laboratory`] wrote: a container, then lossy steps that
/// each change the one before. `originals` are those of the steps in order, or empty.
///
/// # Errors
/// [`Error::InvalidArgument`] for a folder of another kind; [`Error::Io`]; [`Error::Cancelled`].
/// Faults are in the report.
pub fn verify_steps(
    folder: &Path,
    originals: &[Checkpoint],
    progress: &dyn Progress,
) -> Result<Vec<StepCheck>> {
    let limits = Limits::default();
    let files = step_files(folder)?;
    if !originals.is_empty() && originals.len() != files.len() {
        let (steps, given) = (files.len(), originals.len());
        return Err(Error::InvalidArgument(format!("{steps} steps, but {given} originals")));
    }
    let scratch = tempfile::tempdir().map_err(Error::writing(std::env::temp_dir()))?;
    let mut checks: Vec<StepCheck> = Vec::new();
    let mut held: Option<Reconstructed> = None;
    for (i, (number, path)) in files.iter().enumerate() {
        let folder = scratch.path().join(i.to_string());
        std::fs::create_dir(&folder).map_err(Error::writing(&folder))?;
        let original = originals.get(i);
        let (check, next) = if Container::is_container(path)? {
            first(*number, path, original, &folder, progress)?
        } else {
            let previous = held.as_ref().zip(checks.last());
            match (LossyFile::open(path, &limits), previous) {
                (Ok(file), Some((held, before))) if file.steps() == (*number, before.step) => {
                    check(&file, &held.checkpoint, original, &folder, progress)?
                }
                (Ok(_), _) => (failed(*number, path, "the step that it changes is missing".to_owned()), None),
                (Err(e @ Error::Io { .. }), _) => return Err(e),
                (Err(e), _) => (failed(*number, path, e.detail()), None),
            }
        };
        checks.push(check);
        held = next;
        if let Some(old) = i.checked_sub(1) {
            let old = scratch.path().join(old.to_string());
            std::fs::remove_dir_all(&old).map_err(Error::writing(&old))?;
        }
    }
    Ok(checks)
}

fn failed(step: u64, path: &Path, fault: String) -> StepCheck {
    let (path, faults) = (path.to_path_buf(), vec![fault]);
    StepCheck { path, step, lossless: false, checked: "index", bound: 0.0, max_error: None, faults }
}

/// Restores and checks the container at the start of a series.
fn first(
    number: u64,
    path: &Path,
    original: Option<&Checkpoint>,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<(StepCheck, Option<Reconstructed>)> {
    let mut check = StepCheck { lossless: true, checked: "digests", ..failed(number, path, String::new()) };
    check.faults.clear();
    let restore = || {
        let container = Container::from_source(path, Box::new(FileSource::open(path)?), &Limits::default())?;
        let resolved = ResolvedContainer::new(container, &Bases::default())?;
        let target = folder.join(resolved.container().single_file().unwrap_or("checkpoint"));
        unpack(&resolved, &target, &UnpackOptions::default(), progress)?;
        let checkpoint = Checkpoint::open(&target, &Limits::default())?;
        Ok(Reconstructed { path: target, checkpoint })
    };
    match restore() {
        Err(e @ (Error::Cancelled | Error::Io { .. })) => Err(e),
        Err(e) => {
            check.faults.push(e.detail());
            Ok((check, None))
        }
        Ok(restored) => {
            if let Some(original) = original {
                check.checked = "digests and bound";
                let mut pairs = original.tensors().zip(restored.checkpoint.tensors());
                let same = original.tensors().count() == restored.checkpoint.tensors().count()
                    && pairs.try_fold(true, |same, ((m, a), (n, b))| {
                        let equal =
                            a == b && original.read_tensor(m, a)? == restored.checkpoint.read_tensor(n, b)?;
                        Ok::<_, Error>(same && equal)
                    })?;
                check.max_error = same.then_some(0.0);
                if !same {
                    check.faults.push("it differs from its original".to_owned());
                }
            }
            Ok((check, Some(restored)))
        }
    }
}

/// Files named `step-N.loom` or `step-N.lossy.loom`, in order.
fn step_files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.strip_suffix(".loom").map(|name| name.strip_suffix(".lossy").unwrap_or(name));
        let number = number.and_then(|name| name.strip_prefix("step-")?.parse().ok());
        files.extend(number.map(|number: u64| (number, path)));
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::InvalidArgument(format!("{}: contains no steps", folder.display())));
    }
    Ok(files)
}

impl Coding {
    /// Greatest absolute error of an element; for a tied tensor, that of the other.
    fn bound(&self) -> f64 {
        match self {
            Self::Thresholded { bound, .. } => f64::from(*bound),
            Self::Same | Self::Tied { .. } | Self::Exact { .. } => 0.0,
        }
    }
}
