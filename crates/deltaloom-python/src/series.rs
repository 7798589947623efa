//! A training run: the handle of a series, whose answers are JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deltaloom::series::{
    AddOptions, Directory, Input, KeepRules, NewStep, Part, RebuildOptions, SeriesOptions, StepEntry, Store,
    trainer_metrics,
};
use deltaloom::{Result, UnpackOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde::Serialize;

use crate::checkpoint::Tensors;
use crate::container::{Reader, Source};
use crate::operations::pack_options;
use crate::progress::run;
use crate::report::to_json;

/// The folder of a step's container that holds its model.
const MODEL: &str = "model/";
const OPTIMIZER: &str = "optimizer/";

/// A step as the program shows it in a list.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    entry: &'a StepEntry,
    ratio: f64,
    metrics: BTreeMap<String, f64>,
}

impl<'a> Listed<'a> {
    fn of(entry: &'a StepEntry) -> Self {
        Self { entry, ratio: entry.ratio(), metrics: entry.metrics() }
    }
}

fn store(location: &str) -> Result<Box<dyn Store>> {
    if deltaloom_object_store::is_url(location) {
        return deltaloom_object_store::open(location);
    }
    Ok(Box::new(Directory::new(Path::new(location))))
}

/// A series in a folder or an object store.
#[pyclass(frozen, module = "deltaloom._lib")]
pub(crate) struct Series {
    series: deltaloom::series::Series,
}

impl Series {
    pub(crate) fn opened(&self) -> &deltaloom::series::Series {
        &self.series
    }
}

#[pymethods]
impl Series {
    /// Creates an empty series.
    #[staticmethod]
    fn init(py: Python<'_>, location: &str, keyframe_every: u32, max_chain: u32) -> PyResult<Self> {
        let options = SeriesOptions::default().with_keyframe_every(keyframe_every).with_max_chain(max_chain);
        let series = run(py, None, 1, |_| deltaloom::series::Series::init(store(location)?, &options))?;
        Ok(Self { series })
    }

    /// Opens a series, or a branch of it.
    #[staticmethod]
    fn open(py: Python<'_>, location: &str, branch: Option<&str>) -> PyResult<Self> {
        let series = run(py, None, 1, |_| {
            let series = deltaloom::series::Series::open(store(location)?)?;
            match branch {
                Some(name) => series.on_branch(name),
                None => Ok(series),
            }
        })?;
        Ok(Self { series })
    }

    /// Folder or URL.
    #[getter]
    fn location(&self) -> String {
        self.series.location()
    }

    /// Adds a checkpoint: paths, or tensors in memory.
    #[expect(clippy::too_many_arguments, reason = "the options of the program")]
    fn add(
        &self,
        py: Python<'_>,
        model: Bound<'_, PyAny>,
        step: Option<u64>,
        optimizer: Option<Bound<'_, PyAny>>,
        previous: Option<Bound<'_, Tensors>>,
        meta: BTreeMap<String, String>,
        keyframe: bool,
        force: bool,
        rewind: bool,
        preset: &str,
        threads: usize,
        report: Option<Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let model = input(&model)?;
        let optimizer = optimizer.as_ref().map(input).transpose()?;
        // A log that cannot be read is no reason to lose a step.
        let metrics = match &model {
            Input::Path(path) => trainer_metrics(path, step).unwrap_or_default(),
            Input::Checkpoint(_) => BTreeMap::new(),
        };
        let new = NewStep::new(model)
            .with_step(step)
            .with_optimizer(optimizer)
            .with_previous(previous.map(|held| (**held.get().checkpoint()).clone()))
            .with_metrics(metrics)
            .with_meta(meta);
        let options = AddOptions::default()
            .with_pack(pack_options(preset)?.with_identity(None).with_threads(threads))
            .with_keyframe(keyframe)
            .with_force(force)
            .with_rewind(rewind);
        run(py, report.as_ref(), threads, |progress| to_json(&self.series.add(&new, &options, progress)?))
    }

    /// Restores a part of a step: `model`, `optimizer` or `all`.
    #[expect(clippy::too_many_arguments, reason = "the options of the program")]
    fn get(
        &self,
        py: Python<'_>,
        step: u64,
        target: PathBuf,
        part: &str,
        threads: usize,
        overwrite: bool,
        report: Option<Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let part = match part {
            "all" => Part::All,
            "model" => Part::Model,
            "optimizer" => Part::Optimizer,
            other => return Err(unknown_part(other)),
        };
        let options = UnpackOptions::default().with_threads(threads).with_overwrite(overwrite);
        run(py, report.as_ref(), threads, |progress| {
            to_json(&self.series.extract(step, part, &target, &options, progress)?)
        })
    }

    /// Opens the tensors of a part of a step: `model` or `optimizer`.
    fn reader(&self, py: Python<'_>, step: u64, part: &str, threads: usize) -> PyResult<Reader> {
        let folder = match part {
            "model" => MODEL,
            "optimizer" => OPTIMIZER,
            other => return Err(unknown_part(other)),
        };
        let resolved = run(py, None, threads, |_| self.series.open_step(step))?;
        Ok(Reader::new(Source::Packed(resolved), folder))
    }

    /// The newest `last` steps, oldest first, or all.
    fn steps(&self, py: Python<'_>, last: Option<usize>) -> PyResult<String> {
        run(py, None, 1, |_| {
            let steps = self.series.last(last.unwrap_or(usize::MAX))?;
            to_json(&steps.iter().map(Listed::of).collect::<Vec<_>>())
        })
    }

    /// A step, or `None`.
    fn find(&self, py: Python<'_>, step: u64) -> PyResult<Option<String>> {
        run(py, None, 1, |_| self.series.find(step)?.map(|entry| to_json(&Listed::of(&entry))).transpose())
    }

    /// The summary without the steps.
    fn summary(&self, py: Python<'_>) -> PyResult<String> {
        run(py, None, 1, |_| to_json(&self.series.summary()?))
    }

    /// Checks that all objects are there and, if `deep`, that every step is restored as it was.
    fn verify(
        &self,
        py: Python<'_>,
        deep: bool,
        threads: usize,
        report: Option<Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        run(py, report.as_ref(), threads, |progress| to_json(&self.series.verify(deep, threads, progress)?))
    }

    /// Drops all steps that no rule keeps.
    fn prune(
        &self,
        py: Python<'_>,
        keep: &str,
        dry_run: bool,
        threads: usize,
        report: Option<Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let keep: KeepRules = keep.parse().map_err(|e| PyValueError::new_err(format!("{e}")))?;
        let pack = pack_options("default")?.with_identity(None).with_threads(threads);
        let options = RebuildOptions::default().with_pack(pack).with_dry_run(dry_run);
        run(py, report.as_ref(), threads, |progress| to_json(&self.series.prune(&keep, &options, progress)?))
    }

    /// Packs all steps again.
    fn repack(
        &self,
        py: Python<'_>,
        options: Option<(u32, u32)>,
        preset: &str,
        threads: usize,
        report: Option<Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let of = |(every, chain)| SeriesOptions::default().with_keyframe_every(every).with_max_chain(chain);
        let pack = pack_options(preset)?.with_identity(None).with_threads(threads);
        let options = RebuildOptions::default().with_pack(pack).with_series(options.map(of));
        run(py, report.as_ref(), threads, |progress| to_json(&self.series.repack(&options, progress)?))
    }

    /// Removes objects that nothing uses and that are older than `grace_seconds`.
    fn gc(&self, py: Python<'_>, grace_seconds: u64, dry_run: bool) -> PyResult<String> {
        let grace = Duration::from_secs(grace_seconds);
        run(py, None, 1, |_| to_json(&self.series.gc(grace, dry_run)?))
    }
}

/// A part of a step: a path, or tensors in memory.
fn input(part: &Bound<'_, PyAny>) -> PyResult<Input> {
    match part.cast::<Tensors>() {
        Ok(tensors) => Ok(Input::Checkpoint((**tensors.get().checkpoint()).clone())),
        Err(_) => Ok(Input::Path(part.extract()?)),
    }
}

fn unknown_part(part: &str) -> PyErr {
    PyValueError::new_err(format!("part {part:?} does not exist: \"model\", \"optimizer\" and \"all\" do"))
}
