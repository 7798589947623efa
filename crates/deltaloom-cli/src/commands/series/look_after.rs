//! `deltaloom series set`, `rm`, `prune`, `repack`, `gc` and `verify`.

use anyhow::Result;
use deltaloom::series::{RebuildOptions, RebuildReport, SeriesOptions};

use super::common::{describe, entry_of, pack_options};
use crate::args::series::{
    GcArguments, PruneArguments, RemoveArguments, RepackArguments, SetArguments, VerifySeriesArguments,
};
use crate::progress::Bar;
use crate::store::open;
use crate::values::Preset;
use crate::{Answer, ui};

/// The most steps to list one by one; of more, consecutive ones are listed as ranges.
const LISTED: usize = 40;

pub(super) fn set(arguments: &SetArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let step = entry_of(&series, arguments.step)?.step;
    let value = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    let changes = arguments.meta.iter().map(|(name, text)| (name.clone(), value(text)));
    let entry = series.set_meta(step, &changes.collect())?;
    if arguments.json {
        ui::print_json(&entry)?;
    } else {
        ui::print(&describe(&entry))?;
    }
    Ok(Answer::Yes)
}

pub(super) fn remove(arguments: &RemoveArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let steps = arguments.step.iter().map(|step| Ok(entry_of(&series, *step)?.step));
    let steps = steps.collect::<Result<Vec<u64>>>()?;
    let options = RebuildOptions::default()
        .with_pack(pack_options(Preset::Default, &arguments.threads))
        .with_dry_run(arguments.dry_run);
    let bar = Bar::new("packing");
    let report = series.remove(&steps, &options, &bar)?;
    bar.finish();
    tell(&report, arguments.dry_run, arguments.json)
}

pub(super) fn prune(arguments: &PruneArguments) -> Result<Answer> {
    let options = RebuildOptions::default()
        .with_pack(pack_options(Preset::Default, &arguments.threads))
        .with_dry_run(arguments.dry_run);
    let bar = Bar::new("packing");
    let series = open(&arguments.store.location)?;
    let report = match (&arguments.keep, &arguments.branch) {
        (_, Some(branch)) => series.prune_branch(branch, &options, &bar)?,
        (Some(keep), None) => series.prune(keep, &options, &bar)?,
        (None, None) => anyhow::bail!("expected --keep or --branch"),
    };
    bar.finish();
    tell(&report, arguments.dry_run, arguments.json)
}

pub(super) fn repack(arguments: &RepackArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let now = series.summary()?.options;
    let options = RebuildOptions::default()
        .with_pack(pack_options(arguments.preset, &arguments.threads))
        .with_series(Some(
            SeriesOptions::default()
                .with_keyframe_every(arguments.keyframe_every.unwrap_or(now.keyframe_every))
                .with_max_chain(arguments.max_chain.unwrap_or(now.max_chain)),
        ));
    let bar = Bar::new("packing");
    let report = series.repack(&options, &bar)?;
    bar.finish();
    tell(&report, false, arguments.json)
}

fn tell(report: &RebuildReport, dry_run: bool, json: bool) -> Result<Answer> {
    if json {
        ui::print_json(report)?;
        return Ok(Answer::Yes);
    }
    if !report.dropped.is_empty() {
        let why = if report.kept_steps.is_empty() { "as requested" } else { "no rule keeps them" };
        let removed = if dry_run { "would be removed" } else { "removed" };
        ui::print(&format!("{removed}, {why}: {}\n", named(report)))?;
    }
    let (dropped, repacked) = (report.dropped.len(), report.repacked.len());
    let would = if dry_run { "would be " } else { "" };
    let sizes = match report.stored_bytes {
        Some(now) => format!("; {} -> {}", ui::bytes(report.stored_bytes_before), ui::bytes(now)),
        None => String::new(),
    };
    let space = if dropped > 0 && !dry_run { "; run `deltaloom series gc` to free the space" } else { "" };
    let on_branches: usize = report.repacked_on_branches.iter().map(|on| on.steps.len()).sum();
    let repacked = match on_branches {
        0 => repacked.to_string(),
        more => format!("{} ({more} on branches)", repacked + more),
    };
    let kept = ui::count(report.kept, "step");
    ui::note(&format!("{kept} {would}kept, {dropped} removed, {repacked} repacked{sizes}{space}"));
    Ok(Answer::Yes)
}

/// The removed steps. If there are many, consecutive ones are listed as ranges.
fn named(report: &RebuildReport) -> String {
    if report.dropped.len() <= LISTED {
        let word = if report.dropped.len() == 1 { "step" } else { "steps" };
        return format!("{word} {}", ui::list(&report.dropped));
    }
    let follows = |a: &u64, b: &u64| !report.kept_steps.iter().any(|kept| (*a..*b).contains(&kept.step));
    let runs = report.dropped.chunk_by(follows).map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first} to {last} ({} steps)", run.len()),
        few => ui::list(few),
    });
    format!("steps {}", runs.collect::<Vec<_>>().join(", "))
}

pub(super) fn gc(arguments: &GcArguments) -> Result<Answer> {
    let report = open(&arguments.store.location)?.gc(arguments.grace, arguments.dry_run)?;
    if arguments.json {
        ui::print_json(&report)?;
        return Ok(Answer::Yes);
    }
    let would = if arguments.dry_run { "would be " } else { "" };
    let young = match report.too_young {
        0 => String::new(),
        count => format!("; {count} kept, younger than {}", humantime::format_duration(arguments.grace)),
    };
    ui::note(&format!(
        "{} {would}deleted, {}{young}",
        ui::count(report.removed, "object"),
        ui::bytes(report.removed_bytes)
    ));
    Ok(Answer::Yes)
}

pub(super) fn verify(arguments: &VerifySeriesArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let bar = Bar::new("verifying");
    let report = series.verify(arguments.deep, arguments.threads.count, &bar)?;
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else if report.ok {
        let checked = if report.deep {
            "every tensor decoded"
        } else {
            "every container checked (--deep decodes them)"
        };
        let branches = match report.branch_steps {
            0 => String::new(),
            steps => format!(" and {} on branches", ui::count(steps, "step")),
        };
        ui::print(&format!("ok: {}{branches}, {checked}\n", ui::count(report.steps, "step")))?;
    } else {
        let faults = report.faults.iter().map(|fault| format!("fault: {}\n", ui::printable(fault)));
        ui::print(&faults.collect::<String>())?;
    }
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}
