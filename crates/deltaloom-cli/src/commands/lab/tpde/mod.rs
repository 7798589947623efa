//! `deltaloom lab tpde`: threshold methods over checkpoints, labelled lossy wherever they are named.

mod page;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::series::{Part, Series, StepEntry};
use deltaloom::{Limits, Progress as _, UnpackOptions};
use deltaloom_lab::lossy::{Laboratory, Method, Row, RowReport, StepCheck, StepReport, verify_steps};
use serde::Serialize;

use crate::args::lab::tpde::TpdeArguments;
use crate::progress::Bar;
use crate::values::lab::MethodForm;
use crate::{Answer, store, target, ui};

pub(crate) fn run(arguments: &TpdeArguments) -> Result<Answer> {
    if let Some(folder) = &arguments.verify {
        return verify(arguments, folder);
    }
    let inputs = target::inputs(&arguments.checkpoints);
    ui::page::check(&arguments.report.page, &inputs)?;
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
    ui::page::write_asked(|| page::page(&rows), &arguments.report.page, &inputs)?;
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

    /// Calls `use_path` while the model of one of them is a file or directory.
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
    let path = path.to_str().context("the path of a reconstruction is not UTF-8")?;
    ensure!(command.contains("{}"), "--evaluate has no {{}} for the path of the reconstruction");
    let mut words = command.split_whitespace().map(|word| word.replace("{}", path));
    let program = words.next().context("--evaluate is empty")?;
    let output = Command::new(&program).args(words).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| program.clone())?;
    ensure!(output.status.success(), "{program} ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().last().map(str::parse) {
        Some(Ok(loss)) => Ok(loss),
        _ => bail!("{program} did not print a number last, but {:?}", ui::printable(&text)),
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
    let mut rows = vec![["file", "", "checked", "bound", "max error", "result"].map(str::to_owned).to_vec()];
    let mut faults = String::new();
    for check in checks {
        rows.push(vec![
            ui::printable(&check.path.display().to_string()),
            if check.lossless { "lossless" } else { "LOSSY" }.to_owned(),
            check.checked.to_owned(),
            format!("{:.3e}", check.bound),
            number(check.max_error),
            if check.faults.is_empty() { "ok" } else { "WRONG" }.to_owned(),
        ]);
        for fault in &check.faults {
            faults.push_str(&format!("fault: step {}: {}\n", check.step, ui::printable(fault)));
        }
    }
    format!("{}{faults}", ui::table(&rows))
}

fn number(value: Option<f64>) -> String {
    match value {
        Some(0.0) => "0".to_owned(),
        Some(value) => format!("{value:.3e}"),
        None => "-".to_owned(),
    }
}

fn fixed(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.3} %", 100.0 * value))
}

fn describe(rows: &[RowReport]) -> String {
    let has_loss = rows.iter().flat_map(|row| &row.steps).any(|step| step.loss.is_some());
    format!(
        "All steps; every row but the exact one is LOSSY\n{}\nEach step\n{}",
        totals(rows, has_loss),
        steps(rows, has_loss)
    )
}

fn totals(rows: &[RowReport], has_loss: bool) -> String {
    let header = [
        "method",
        "form",
        "in",
        "out",
        "ratio",
        "after first",
        "mean",
        "as published",
        "their mean",
        "max error",
        "state error",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    if has_loss {
        table[0].push("last loss".to_owned());
    }
    for row in rows {
        let last = row.steps.last();
        let max_error = row
            .steps
            .iter()
            .map(|step| step.max_error)
            .try_fold(0.0, |max, error| Some(f64::max(max, error?)));
        let mut cells = vec![
            row.method.clone(),
            row.form.to_owned(),
            ui::bytes(row.in_bytes),
            ui::bytes(row.out_bytes),
            format!("{:.2}", row.ratio),
            fixed(row.ratio_after_first, 2),
            format!("{:.2}", row.mean_ratio),
            fixed(row.published_ratio, 2),
            fixed(row.published_mean_ratio, 2),
            number(max_error),
            fixed(last.and_then(|step| step.relative_state_error), 4),
        ];
        if has_loss {
            cells.push(fixed(last.and_then(|step| step.loss), 4));
        }
        table.push(cells);
    }
    ui::table(&table)
}

fn steps(rows: &[RowReport], has_loss: bool) -> String {
    let header = [
        "step, method",
        "form",
        "out",
        "ratio",
        "kept",
        "threshold avg",
        "min",
        "max",
        "zone",
        "max error",
        "update error",
        "state error",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    if has_loss {
        table[0].push("loss".to_owned());
    }
    let count = rows.iter().map(|row| row.steps.len()).max().unwrap_or(0);
    for i in 0..count {
        for (row, step) in rows.iter().filter_map(|row| Some((row, row.steps.get(i)?))) {
            let threshold =
                |of: fn(&deltaloom_lab::lossy::Thresholds) -> f64| number(step.thresholds.as_ref().map(of));
            let mut cells = vec![
                format!("{}, {}", step.step, row.method),
                row.form.to_owned(),
                ui::bytes(step.out_bytes),
                format!("{:.2}", step.ratio()),
                percent(step.kept_fraction),
                threshold(|t| t.avg),
                threshold(|t| t.min),
                threshold(|t| t.max),
                step.thresholds.as_ref().map_or_else(|| "-".to_owned(), |t| t.zone_tensors.to_string()),
                number(step.max_error),
                fixed(step.relative_update_error, 4),
                fixed(step.relative_state_error, 4),
            ];
            if has_loss {
                cells.push(fixed(step.loss, 4));
            }
            table.push(cells);
        }
    }
    ui::table(&table)
}

fn csv(rows: &[RowReport]) -> String {
    let mut out = "step,method,form,lossy,in_bytes,out_bytes,fp32_bytes,published_bytes,left_out_bytes,elems,kept_elems,threshold_avg,threshold_min,threshold_max,zone_tensors,max_error,relative_update_error,relative_state_error,loss\n".to_owned();
    let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:e}"));
    let count = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
    let line = |row: &RowReport, step: &StepReport| {
        let thresholds = step.thresholds.as_ref();
        [
            step.step.to_string(),
            format!("\"{}\"", row.method),
            row.form.to_owned(),
            row.lossy.to_string(),
            step.in_bytes.to_string(),
            step.out_bytes.to_string(),
            count(step.fp32_bytes),
            count(step.published_bytes),
            step.left_out_bytes.to_string(),
            step.elems.to_string(),
            step.kept_elems.to_string(),
            text(thresholds.map(|t| t.avg)),
            text(thresholds.map(|t| t.min)),
            text(thresholds.map(|t| t.max)),
            count(thresholds.map(|t| t.zone_tensors)),
            text(step.max_error),
            text(step.relative_update_error),
            text(step.relative_state_error),
            text(step.loss),
        ]
        .join(",")
    };
    for row in rows {
        for step in &row.steps {
            out.push_str(&line(row, step));
            out.push('\n');
        }
    }
    out
}
