//! Finding and describing the steps of a series, for its commands.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use deltaloom::series::{Added, Series, StepEntry, trainer_metrics};
use deltaloom::{Error, Missing, PackOptions};

use crate::args::ThreadsArgument;
use crate::args::series::BranchArgument;
use crate::store::open;
use crate::ui::{self, count};
use crate::values::Preset;
use crate::values::series::ExistingStep;

/// A series, or a branch of it.
pub(super) fn open_on(location: &str, branch: &BranchArgument) -> Result<Series> {
    let series = open(location)?;
    Ok(match &branch.name {
        Some(name) => series.on_branch(name)?,
        None => series,
    })
}

pub(super) fn entry_of(series: &Series, step: ExistingStep) -> Result<StepEntry> {
    let number = match step {
        ExistingStep::Number(number) => number,
        ExistingStep::Newest => series.summary()?.newest.context("the series has no steps")?,
    };
    let missing =
        || Error::NotFound { kind: Missing::Step, what: format!("step {number} of {}", series.location()) };
    Ok(series.find(number)?.ok_or_else(missing)?)
}

pub(super) fn pack_options(preset: Preset, threads: &ThreadsArgument) -> PackOptions {
    PackOptions::default().with_preset(preset.into()).with_threads(threads.count)
}

/// The numbers that a trainer logged for a checkpoint, or why its log cannot be read.
pub(super) fn metrics(checkpoint: &Path, step: Option<u64>) -> Result<BTreeMap<String, String>, String> {
    let unread = |error: Error| {
        ui::printable(&format!("{}; its numbers are not stored with the step", error.with_path()))
    };
    trainer_metrics(checkpoint, step).map_err(unread)
}

/// Reports what was added, and what may be wrong with it.
pub(super) fn tell(added: &Added, location: &str) {
    ui::note(&describe_added(added));
    let entry = &added.entry;
    if let Some(closed) = &added.closed {
        let (name, steps) = (&closed.name, count(closed.totals.steps, "step"));
        ui::note(&ui::printable(&format!(
            "the run went back: {steps}, {} to {}, moved to branch {name}; `deltaloom series ls {location} --branch {name}` lists them",
            closed.first, closed.last
        )));
    }
    if added.is_new {
        let step = entry.step;
        match entry.nonfinite_weights {
            0 => {}
            1 => ui::warn(&format!("step {step}: 1 weight is NaN or infinite")),
            count => ui::warn(&format!("step {step}: {count} weights are NaN or infinite")),
        }
        match entry.constant_matrices {
            0 => {}
            1 => ui::warn(&format!("step {step}: 1 matrix has become constant")),
            count => ui::warn(&format!("step {step}: {count} matrices have become constant")),
        }
    }
    if !added.meta_not_stored.is_empty() {
        let step = added.entry.step;
        let text = |(name, value): (&String, &String)| format!(" --meta {name}={value}");
        let meta: String = added.meta_not_stored.iter().map(text).collect();
        ui::warn(&ui::printable(&format!(
            "the texts of step {step} were not changed; `deltaloom series set {location} --step {step}{meta}` changes them"
        )));
    }
}

fn describe_added(added: &Added) -> String {
    let entry = &added.entry;
    if !added.is_new {
        return format!("step {} already exists with the same content; nothing was changed", entry.step);
    }
    let against = match (entry.reference, entry.changed_fraction) {
        (Some(reference), changed) => {
            let hops = count(entry.hops.into(), "hop");
            let changed =
                changed.map_or_else(String::new, |share| format!("{} changed, ", ui::percent(share, 2)));
            format!("against step {reference}, {changed}{hops}")
        }
        _ => "a keyframe".to_owned(),
    };
    format!(
        "step {}: {} -> {}, ratio {}, {against}, {:.2} s",
        entry.step,
        ui::bytes(entry.original_bytes),
        ui::bytes(entry.stored_bytes),
        ui::ratio(entry.ratio()),
        entry.seconds,
    )
}

pub(super) fn time(unix: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix)).to_string()
}

fn changed(entry: &StepEntry) -> String {
    entry.changed_fraction.map_or_else(|| "-".to_owned(), |changed| ui::percent(changed, 2))
}

pub(super) fn describe(entry: &StepEntry) -> String {
    let added = time(entry.added_unix);
    let rests = match entry.reference {
        Some(reference) => {
            let hops = count(entry.hops.into(), "hop");
            format!("from step {reference}, {hops}, {} changed", changed(entry))
        }
        None => "keyframe".to_owned(),
    };
    let parts = if entry.parts.optimizer.is_some() { "model, optimizer" } else { "model" };
    let mut out = format!(
        "step {}\n  added   {added} in {:.2} s\n  stored  {} of {}, ratio {}, {rests}\n  object  {}\n  parts   {parts}\n",
        entry.step,
        entry.seconds,
        ui::bytes(entry.stored_bytes),
        ui::bytes(entry.original_bytes),
        ui::ratio(entry.ratio()),
        entry.object,
    );
    if !entry.is_sound() {
        let (nan, constant) = (entry.nonfinite_weights, entry.constant_matrices);
        out.push_str(&format!(
            "  issues  {nan} weights are NaN or infinite, {constant} matrices have become constant\n"
        ));
    }
    for (name, value) in &entry.meta {
        out.push_str(&format!("  {}  {}\n", ui::printable(name), ui::printable(value)));
    }
    out
}
