//! Checkpoints that wait for a series in a folder of the local disk, so that packing them delays no
//! training. Taking one looks at no series, so it works while that cannot be reached.

use std::collections::BTreeMap;
use std::path::PathBuf;

use deltaloom::checkpoint::Exclude;
use deltaloom::series::{AddOptions, NewStep, Pending, Taking};
use deltaloom::{Limits, Result};
use pyo3::prelude::*;

use crate::operations::pack_options;
use crate::progress::run;
use crate::series::Series;

/// Makes a checkpoint wait: its files get another name in the folder `waiting`, or are copied where
/// the file system has no links.
#[pyfunction]
pub(crate) fn snapshot(
    py: Python<'_>,
    waiting: PathBuf,
    checkpoint: PathBuf,
    step: u64,
    meta: BTreeMap<String, String>,
    exclude: Vec<String>,
) -> PyResult<()> {
    let new = NewStep::new(checkpoint).with_step(Some(step)).with_meta(meta);
    // A resumed training may go back: then the steps that it left become a branch.
    let options = AddOptions::default().with_rewind(true);
    run(py, None, 1, |progress| {
        let exclude = exclude.iter().map(|pattern| pattern.parse()).collect::<Result<Vec<Exclude>>>()?;
        let new = new.with_exclude(exclude);
        Pending::new(&waiting).snapshot(&new, &options, Taking::Links, &Limits::default(), progress)
    })
}

/// Adds all checkpoints that wait, in order, and returns their steps.
#[pyfunction]
pub(crate) fn drain(
    py: Python<'_>,
    series: PyRef<'_, Series>,
    waiting: PathBuf,
    preset: &str,
    threads: usize,
) -> PyResult<Vec<u64>> {
    let pack = pack_options(preset)?.with_identity(None).with_threads(threads);
    let options = AddOptions::default().with_pack(pack);
    let series = series.opened();
    run(py, None, threads, |progress| {
        let mut steps = Vec::new();
        Pending::new(&waiting).drain(series, &options, progress, |added| {
            steps.push(added.entry.step);
            Ok(())
        })?;
        Ok(steps)
    })
}
