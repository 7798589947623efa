//! The folder `report` of a student: what it is and what it costs, for people and programs.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::checkpoint::output::{Inputs, NewDirectory};
use deltaloom_report::EventWriter;
use deltaloom_shrink::recipe::Loaded;
use deltaloom_shrink::run::{Made, OnText, compliance};
use deltaloom_shrink::student;
use serde_json::{Value, json};

use super::page::page;
use super::samples::{Samples, samples};
use crate::target;

/// The folder in that of the student.
const FOLDER: &str = "report";

/// Writes the files beside a student that was written. They replace only files of their own names.
pub(super) fn write(loaded: &Loaded, made: &Made, output: &Path, overwrite: bool) -> Result<()> {
    let folder = output.join(FOLDER);
    let described = student::describe(output)?;
    let samples = sampled(made, output)?;
    let compliance = compliance(&loaded.recipe.targets, &made.report);
    let summary = json!({
        "lossy": true,
        "experiment": loaded.recipe.logging.experiment,
        "tool": described.tool,
        "teacher": described.teacher,
        "recipe": described.recipe,
        "weights": described.weights,
        "used_texts": described.texts,
        "report": made.report,
        "compliance": compliance,
        "samples": samples,
    });
    let page = page(&loaded.recipe.logging.experiment, made, &compliance, samples.as_ref());
    let mut files = vec![
        ("summary.json".to_owned(), format!("{}\n", serde_json::to_string_pretty(&summary)?).into_bytes()),
        ("summary.md".to_owned(), page.markdown().into_bytes()),
        ("summary.html".to_owned(), page.html().into_bytes()),
    ];
    let history = history(made, &described);
    if loaded.recipe.logging.jsonl {
        let lines: String = history.iter().map(|line| format!("{line}\n")).collect();
        files.push(("history.jsonl".to_owned(), lines.into_bytes()));
    }
    if loaded.recipe.logging.tensorboard {
        files.push(events(&scalars(made, &compliance))?);
    }
    let folder_there = NewDirectory::create(&folder, overwrite, &Inputs::default())?;
    for (name, bytes) in files {
        let path = folder.join(&name);
        let mut file = folder_there.create_file(&name)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|e| target::writing(&path, e))?;
    }
    Ok(folder_there.commit()?)
}

/// Samples after words of the first text.
fn sampled(made: &Made, output: &Path) -> Result<Option<Samples>> {
    let Some(OnText { name, .. }) = made.report.texts.first() else { return Ok(None) };
    let is_it =
        |path: &&std::path::PathBuf| path.file_name().is_some_and(|own| own.to_string_lossy() == *name);
    match made.files.iter().find(is_it) {
        Some(text) => samples(&made.teacher, output, made.base.as_deref(), text)
            .with_context(|| text.display().to_string()),
        None => Ok(None),
    }
}

/// One value for each matrix, each text, and the whole.
fn history(made: &Made, described: &student::Description) -> Vec<Value> {
    let report = &made.report;
    let matrix = |(name, form): (&String, &deltaloom_shrink::forms::Form)| {
        let shape = described.matrices.get(name).map(|matrix| matrix.shape);
        let bytes = report.sizes.matrices.get(name).copied().unwrap_or(0);
        json!({"event": "matrix", "name": name, "shape": shape, "form": form.name(), "bytes": bytes})
    };
    let text = |on: &OnText| {
        let it = &on.divergence;
        json!({
            "event": "measurement", "name": on.name, "kl": on.kl, "kl_error": on.kl_error,
            "reverse_kl": it.reverse_kl, "top1": it.same_top.value, "top5_overlap": it.top5_overlap,
            "ppl": it.student_perplexity, "teacher_ppl": it.base_perplexity, "tokens": it.tokens,
        })
    };
    let whole = json!({
        "event": "student", "verdict": report.verdict, "ratio": report.ratio, "bytes": report.student_bytes,
        "bits_per_weight": report.bits_per_weight,
    });
    let mut lines: Vec<Value> =
        made.forms.iter().map(matrix).chain(report.texts.iter().map(text)).chain([whole]).collect();
    for (step, line) in lines.iter_mut().enumerate() {
        line["step"] = step.into();
    }
    lines
}

/// Curves of one point each, so that students can be compared with each other.
fn scalars(made: &Made, compliance: &std::collections::BTreeMap<&str, bool>) -> Vec<(String, f64)> {
    let report = &made.report;
    let mut scalars = vec![("compression/ratio/disk".to_owned(), report.ratio)];
    for (place, bytes) in &report.sizes.by_place {
        scalars.push((format!("compression/branch/{}/bytes", place.name()), *bytes as f64));
    }
    for (target, is_met) in compliance {
        scalars.push((format!("compression/compliance/{target}"), f64::from(u8::from(*is_met))));
    }
    if let Some(on) = report.texts.first() {
        scalars.push(("eval/kl".to_owned(), on.kl));
        scalars.push(("eval/ppl".to_owned(), on.divergence.student_perplexity));
        scalars.push(("eval/top1".to_owned(), on.divergence.same_top.value));
    }
    scalars
}

/// Name and bytes of an event file. It bears no time, so that the same student gives the same file.
fn events(scalars: &[(String, f64)]) -> Result<(String, Vec<u8>)> {
    let scratch = tempfile::tempdir()?;
    let mut writer = EventWriter::create(scratch.path(), 0.0)?;
    let path = writer.path().to_owned();
    for (tag, value) in scalars {
        writer.scalar(tag, 0, *value)?;
    }
    writer.finish()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, std::fs::read(&path)?))
}
