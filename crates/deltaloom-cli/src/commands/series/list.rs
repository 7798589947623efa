//! `deltaloom series ls`, `log` and `show`.

use anyhow::Result;
use deltaloom::series::{BranchInfo, SeriesInfo, StepEntry};
use serde::Serialize;

use super::common::{changed, count, describe, entry_of, open_on, time};
use crate::args::series::{ListArguments, ShowArguments};
use crate::ui::container;
use crate::{Answer, ui};

/// What `--json` prints of a list.
#[derive(Serialize)]
struct List<'a> {
    #[serde(flatten)]
    summary: &'a SeriesInfo,
    ratio: f64,
    delta_ratio: Option<f64>,
    mean_delta_ratio: Option<f64>,
    steps: Vec<Step<'a>>,
}

/// A step and its ratio.
#[derive(Serialize)]
struct Step<'a> {
    #[serde(flatten)]
    entry: &'a StepEntry,
    ratio: f64,
}

pub(super) fn ls(arguments: &ListArguments) -> Result<Answer> {
    list(arguments, |entries| {
        let header = ["step", "from", "hops", "original", "stored", "ratio", "changed", "seconds"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(entries.iter().map(|entry| {
            vec![
                entry.step.to_string(),
                entry.reference.map_or_else(|| "keyframe".to_owned(), |reference| reference.to_string()),
                entry.hops.to_string(),
                ui::bytes(entry.original_bytes),
                ui::bytes(entry.stored_bytes),
                format!("{:.2}", entry.ratio()),
                changed(entry),
                format!("{:.2}", entry.seconds),
            ]
        }));
        if entries.is_empty() { String::new() } else { ui::table(&rows) }
    })
}

pub(super) fn log(arguments: &ListArguments) -> Result<Answer> {
    list(arguments, |entries| entries.iter().rev().map(describe).collect::<Vec<_>>().join("\n"))
}

fn list(arguments: &ListArguments, text: impl Fn(&[StepEntry]) -> String) -> Result<Answer> {
    let series = open_on(&arguments.store.location, &arguments.branch)?;
    let summary = series.summary()?;
    if arguments.branches {
        return list_branches(&summary.branches, arguments.json);
    }
    let entries = series.last(if arguments.all { usize::MAX } else { arguments.last })?;
    if arguments.json {
        let totals = &summary.totals;
        ui::print_json(&List {
            summary: &summary,
            ratio: totals.ratio(),
            delta_ratio: totals.delta_ratio(),
            mean_delta_ratio: totals.mean_delta_ratio(),
            steps: entries.iter().map(|entry| Step { entry, ratio: entry.ratio() }).collect(),
        })?;
    } else if arguments.csv {
        ui::print(&csv(&entries))?;
    } else {
        ui::print(&text(&entries))?;
        let hidden = summary.totals.steps.saturating_sub(entries.len() as u64);
        if hidden > 0 {
            ui::note(&format!("and {} (--all)", count(hidden, "older step")));
        }
        ui::note(&totals(&summary));
        if !summary.branches.is_empty() && arguments.branch.name.is_none() {
            let branches = match summary.branches.len() {
                1 => "1 branch".to_owned(),
                more => format!("{more} branches"),
            };
            ui::note(&format!("{branches} (--branches)"));
        }
    }
    Ok(Answer::Yes)
}

fn list_branches(branches: &[BranchInfo], json: bool) -> Result<Answer> {
    if json {
        ui::print_json(&branches)?;
        return Ok(Answer::Yes);
    }
    if branches.is_empty() {
        ui::note("no branches");
        return Ok(Answer::Yes);
    }
    let header = ["branch", "parent", "after", "first", "last", "steps", "stored", "closed"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(branches.iter().map(|branch| {
        vec![
            branch.name.clone(),
            branch.parent.clone().unwrap_or_else(|| "main line".to_owned()),
            branch.fork.map_or_else(|| "-".to_owned(), |fork| fork.to_string()),
            branch.first.to_string(),
            branch.last.to_string(),
            branch.totals.steps.to_string(),
            ui::bytes(branch.totals.stored_bytes),
            time(branch.closed_unix),
        ]
    }));
    ui::print(&ui::table(&rows))?;
    Ok(Answer::Yes)
}

/// One line about the whole series: totals first, then the mean of the ratios.
fn totals(summary: &SeriesInfo) -> String {
    let totals = &summary.totals;
    if totals.steps == 0 {
        return "the series has no steps yet; add one with `deltaloom series add`".to_owned();
    }
    let deltas = match (totals.delta_ratio(), totals.mean_delta_ratio()) {
        (Some(ratio), Some(mean)) => format!("; deltas alone {ratio:.2} (mean of ratios {mean:.2})"),
        _ => String::new(),
    };
    format!(
        "{}, {}: {} -> {}, ratio {:.2}{deltas}",
        count(totals.steps, "step"),
        count(totals.keyframes, "keyframe"),
        ui::bytes(totals.original_bytes),
        ui::bytes(totals.stored_bytes),
        totals.ratio(),
    )
}

fn csv(entries: &[StepEntry]) -> String {
    let mut out =
        "step,reference,hops,original_bytes,stored_bytes,ratio,changed_fraction,seconds,added_unix\n"
            .to_owned();
    for entry in entries {
        let text = |value: Option<String>| value.unwrap_or_default();
        out.push_str(&format!(
            "{},{},{},{},{},{},{},{},{}\n",
            entry.step,
            text(entry.reference.map(|reference| reference.to_string())),
            entry.hops,
            entry.original_bytes,
            entry.stored_bytes,
            entry.ratio(),
            text(entry.changed_fraction.map(|changed| changed.to_string())),
            entry.seconds,
            entry.added_unix,
        ));
    }
    out
}

pub(super) fn show(arguments: &ShowArguments) -> Result<Answer> {
    let series = open_on(&arguments.store.location, &arguments.branch)?;
    let Some(step) = arguments.step else {
        let summary = series.summary()?;
        if arguments.json {
            ui::print_json(&summary)?;
        } else {
            let newest = summary.newest.map_or_else(|| "none".to_owned(), |step| step.to_string());
            ui::print(&format!(
                "{}\nnewest step {newest}, a keyframe at least every {}, at most {}\n{}\n",
                summary.location,
                count(summary.options.keyframe_every.into(), "step"),
                count(summary.options.max_chain.into(), "hop"),
                totals(&summary),
            ))?;
        }
        return Ok(Answer::Yes);
    };
    let entry = entry_of(&series, step)?;
    let container = series.inspect(&entry)?;
    if arguments.json {
        #[derive(Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            entry: &'a StepEntry,
            container: &'a deltaloom::PackReport,
        }
        ui::print_json(&Shown { entry: &entry, container: &container })?;
    } else if arguments.csv {
        ui::print(&tensors_csv(&container))?;
    } else {
        let container = container::describe(&container, arguments.tensors);
        ui::print(&format!("{}\n{container}", describe(&entry)))?;
    }
    Ok(Answer::Yes)
}

fn tensors_csv(container: &deltaloom::PackReport) -> String {
    let mut out =
        "tensor,dtype,shape,predictor,codec,original_bytes,packed_bytes,changed_fraction\n".to_owned();
    for tensor in &container.tensors {
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        out.push_str(&format!(
            "\"{}\",{},{},{},{},{},{},{}\n",
            tensor.name.replace('"', "\"\""),
            tensor.dtype,
            shape.join("x"),
            tensor.predictor,
            tensor.codec,
            tensor.original_bytes,
            tensor.packed_bytes,
            tensor.changed_fraction.map(|changed| changed.to_string()).unwrap_or_default(),
        ));
    }
    out
}
