//! `deltaloom lab tpde`: runs threshold methods on checkpoints, or checks their files. They are
//! labelled lossy wherever they are named.

mod page;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::series::{Part, Series, StepEntry};
use deltaloom::{Limits, Progress as _, UnpackOptions};
use deltaloom_lab::lossy::{Laboratory, Method, Row, RowReport, StepCheck, verify_steps};
use serde::Serialize;

use crate::args::lab::tpde::TpdeArguments;
use crate::pages;
use crate::progress::Bar;
use crate::values::lab::MethodForm;
use crate::{Answer, store, target, ui};

pub(crate) fn run(arguments: &TpdeArguments) -> Result<Answer> {
    if let Some(folder) = &arguments.verify {
        return verify(arguments, folder);
    }
    let inputs = target::inputs(&arguments.checkpoints);
    pages::check(&arguments.report.page, &inputs)?;
    let rows = rows(arguments);
    let steps = Steps::open(&arguments.checkpoints)?;
    let mut laboratory = Laboratory::new(rows, arguments.output.as_deref(), arguments.threads.count)?;
    let bar = Bar::new("measuring");
    for i in 0..steps.len() {
        let (number, checkpoint) = steps.checkpoint(i, &bar)?;
        bar.start(laboratory.work_bytes(&checkpoint));
        laboratory.push(number, &checkpoint, &bar).with_context(|| format!("step {number}"))?;
        if let Some(command) = &arguments.evaluate {
            steps.with_path(i, &bar, |path| evaluate_all(&mut laboratory, command, path))?;
        }
    }
    let rows = laboratory.finish()?;
    bar.finish();
    pages::write_asked(|| page::page(&rows), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        #[derive(Serialize)]
        struct Report<'a> {
            checkpoints: &'a [PathBuf],
            rows: &'a [RowReport],
        }
        ui::print_json(&Report { checkpoints: &arguments.checkpoints, rows: &rows })?;
    } else if arguments.report.csv {
        ui::print(&csv(&rows))?;
    } else {
        ui::print(&describe(&rows))?;
    }
    Ok(Answer::Yes)
}

/// Checkpoints of a run: on disk, or steps of a series, which are decoded one by one.
enum Steps {
    Files(Vec<(PathBuf, Checkpoint)>),
    Series(Box<Series>, Vec<StepEntry>),
}

impl Steps {
    fn open(paths: &[PathBuf]) -> Result<Self> {
        if let [path] = paths
            && let Some(location) = path.to_str()
            && store::is_store(location)?
        {
            let series = store::open(location)?;
            let entries = series.last(usize::MAX)?;
            return Ok(Self::Series(Box::new(series), entries));
        }
        Ok(Self::Files(paths.iter().cloned().zip(open_all(paths)?).collect()))
    }

    fn len(&self) -> usize {
        match self {
            Self::Files(files) => files.len(),
            Self::Series(_, entries) => entries.len(),
        }
    }

    /// Number and checkpoint of one of them.
    fn checkpoint(&self, i: usize, bar: &Bar) -> Result<(u64, Checkpoint)> {
        match self {
            Self::Files(files) => Ok((i as u64, files[i].1.clone())),
            Self::Series(series, entries) => Ok((entries[i].step, series.checkpoint(&entries[i], bar)?)),
        }
    }

    /// Calls `use_path` while the model of one of them is a file or folder.
    fn with_path(&self, i: usize, bar: &Bar, use_path: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        match self {
            Self::Files(files) => use_path(&files[i].0),
            Self::Series(series, entries) => {
                let folder = tempfile::tempdir()?;
                let path = folder.path().join("model.safetensors");
                let options = UnpackOptions::default();
                series.extract(entries[i].step, Part::Model, &path, &options, bar)?;
                use_path(&path)
            }
        }
    }
}

fn open_all(paths: &[PathBuf]) -> Result<Vec<Checkpoint>> {
    paths.iter().map(|path| Ok(Checkpoint::open(path, &Limits::default())?)).collect()
}

fn rows(arguments: &TpdeArguments) -> Vec<Row> {
    let mut methods: Vec<Method> = arguments.methods.iter().map(|name| name.method()).collect();
    let mut seen = Vec::new();
    methods.retain(|method| {
        !seen.contains(method) && {
            seen.push(*method);
            true
        }
    });
    let mut rows = vec![Row::Exact];
    if arguments.form != MethodForm::Corrected {
        rows.extend(methods.iter().map(|method| Row::Published(*method)));
    }
    if arguments.form != MethodForm::Published {
        rows.extend(Row::corrected(&methods));
    }
    rows.extend(arguments.adaptive.iter().map(|it| Row::Corrected(it.text.clone(), it.rule)));
    rows
}

/// Evaluates the original, and every reconstruction that is not the original.
fn evaluate_all(laboratory: &mut Laboratory, command: &str, original: &Path) -> Result<()> {
    let exact = evaluate(command, original)?;
    for row in 0..laboratory.rows() {
        let loss = match laboratory.reconstruction(row) {
            Some(path) => evaluate(command, path)?,
            None => exact,
        };
        laboratory.set_loss(row, loss);
    }
    Ok(())
}

fn evaluate(command: &str, path: &Path) -> Result<f64> {
    let path = path.to_str().context("the path of a reconstruction is not valid UTF-8")?;
    ensure!(command.contains("{}"), "--evaluate needs {{}} for the path of the reconstruction");
    let mut words = command.split_whitespace().map(|word| word.replace("{}", path));
    let program = words.next().context("--evaluate is empty")?;
    let output = Command::new(&program).args(words).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| program.clone())?;
    ensure!(output.status.success(), "{program} failed: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().last().map(str::parse) {
        Some(Ok(loss)) => Ok(loss),
        _ => bail!("the output of {program} does not end with a number: {:?}", ui::printable(&text)),
    }
}

fn verify(arguments: &TpdeArguments, folder: &Path) -> Result<Answer> {
    let originals = open_all(&arguments.checkpoints)?;
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    if folders.is_empty() {
        folders.push(folder.to_path_buf());
    }
    let bar = Bar::new("verifying");
    let mut checks: Vec<StepCheck> = Vec::new();
    for folder in &folders {
        checks.extend(verify_steps(folder, &originals, &bar)?);
    }
    bar.finish();
    let ok = checks.iter().all(|check| check.faults.is_empty());
    if arguments.report.json {
        ui::print_json(&checks)?;
    } else {
        ui::print(&describe_checks(&checks))?;
    }
    Ok(if ok { Answer::Yes } else { Answer::No })
}

fn describe_checks(checks: &[StepCheck]) -> String {
    let faults = checks.iter().flat_map(|check| check.faults.iter().map(|fault| (check.step, fault)));
    let faults = faults.map(|(step, fault)| format!("fault: step {step}: {}\n", ui::printable(fault)));
    table::checks(checks).text() + &faults.collect::<String>()
}

fn describe(rows: &[RowReport]) -> String {
    let has_loss = rows.iter().flat_map(|row| &row.steps).any(|step| step.loss.is_some());
    let count = rows.iter().map(|row| row.steps.len()).max().unwrap_or(0);
    let of_step = |i| rows.iter().filter_map(move |row| Some((row, row.steps.get(i)?)));
    let entries: Vec<_> = (0..count).flat_map(of_step).collect();
    format!(
        "All steps; every row except the exact one is LOSSY\n{}\nEach step\n{}",
        table::totals(rows, has_loss).text(),
        table::steps(&entries, has_loss).text()
    )
}

fn csv(rows: &[RowReport]) -> String {
    let entries: Vec<_> = rows.iter().flat_map(|row| row.steps.iter().map(move |step| (row, step))).collect();
    table::steps(&entries, true).csv()
}
