//! `deltaloom series prune`, `repack`, `gc` and `verify`.

use anyhow::Result;
use deltaloom::series::{RebuildOptions, RebuildReport, SeriesOptions};

use super::{open, pack_options};
use crate::args::PresetArgument;
use crate::args::series::{GcArguments, PruneArguments, RepackArguments, VerifySeriesArguments};
use crate::{Answer, ui};

pub(super) fn prune(arguments: &PruneArguments) -> Result<Answer> {
    let options = RebuildOptions {
        pack: pack_options(PresetArgument::Default, &arguments.threads),
        series: None,
        dry_run: arguments.dry_run,
    };
    let bar = ui::Bar::new("packing");
    let report = open(&arguments.store.location)?.prune(&arguments.keep, &options, &bar)?;
    bar.finish();
    tell(&report, arguments.dry_run, arguments.json)
}

pub(super) fn repack(arguments: &RepackArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let now = series.summary()?.options;
    let options = RebuildOptions {
        pack: pack_options(arguments.preset, &arguments.threads),
        series: Some(SeriesOptions {
            keyframe_every: arguments.keyframe_every.unwrap_or(now.keyframe_every),
            max_chain: arguments.max_chain.unwrap_or(now.max_chain),
        }),
        dry_run: false,
    };
    let bar = ui::Bar::new("packing");
    let report = series.repack(&options, &bar)?;
    bar.finish();
    tell(&report, false, arguments.json)
}

fn tell(report: &RebuildReport, dry_run: bool, json: bool) -> Result<Answer> {
    if json {
        ui::print_json(report)?;
        return Ok(Answer::Yes);
    }
    let (kept, dropped, repacked) = (report.kept, report.dropped.len(), report.repacked.len());
    let would = if dry_run { "would be " } else { "" };
    let sizes = match report.stored_bytes {
        Some(now) => format!("; {} -> {}", ui::bytes(report.stored_bytes_before), ui::bytes(now)),
        None => String::new(),
    };
    let space = if dropped > 0 && !dry_run { "; `deltaloom series gc` frees the space" } else { "" };
    ui::note(&format!("{kept} steps {would}kept, {dropped} left out, {repacked} packed again{sizes}{space}"));
    Ok(Answer::Yes)
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
        count => format!("; {count} younger than {}", humantime::format_duration(arguments.grace)),
    };
    ui::note(&format!(
        "{} objects {would}removed, {}{young}",
        report.removed,
        ui::bytes(report.removed_bytes)
    ));
    Ok(Answer::Yes)
}

pub(super) fn verify(arguments: &VerifySeriesArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let bar = ui::Bar::new("verifying");
    let report = series.verify(arguments.deep, arguments.threads.count, &bar)?;
    bar.finish();
    if arguments.json {
        ui::print_json(&report)?;
    } else if report.ok {
        let checked =
            if report.deep { "every tensor decoded" } else { "every container (--deep decodes them)" };
        ui::print(&format!("ok: {} steps, {checked}\n", report.steps))?;
    } else {
        let faults = report.faults.iter().map(|fault| format!("fault: {}\n", ui::printable(fault)));
        ui::print(&faults.collect::<String>())?;
    }
    Ok(if report.ok { Answer::Yes } else { Answer::No })
}
