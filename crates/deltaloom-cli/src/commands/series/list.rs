//! `deltaloom series ls`, `log` and `show`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use deltaloom::series::{BranchInfo, SeriesInfo, StepEntry};
use serde::Serialize;

use super::common::{describe, entry_of, open_on, time};
use crate::args::series::{ListArguments, ShowArguments};
use crate::ui::container;
use crate::ui::table::{Cell, Table};
use crate::{Answer, ui};

/// Numbers of steps that are shown; CSV and JSON have all.
const SHOWN_METRICS: usize = 3;
/// The ones that are shown first.
const FIRST_METRICS: [&str; 5] = ["loss", "eval_loss", "learning_rate", "lr", "grad_norm"];

/// The JSON that is printed of a list.
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
    metrics: BTreeMap<String, f64>,
}

pub(super) fn ls(arguments: &ListArguments) -> Result<Answer> {
    list(arguments, |entries| if entries.is_empty() { String::new() } else { table(entries).text() })
}

/// The names of the numbers that steps have: those of training first.
fn metric_names(entries: &[StepEntry]) -> Vec<String> {
    let names: BTreeSet<String> = entries.iter().flat_map(|entry| entry.metrics().into_keys()).collect();
    let place = |name: &str| FIRST_METRICS.iter().position(|first| *first == name).unwrap_or(usize::MAX);
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort_by_key(|name| place(name));
    names
}

fn table(entries: &[StepEntry]) -> Table<'_, StepEntry> {
    let mut table = Table::of(entries)
        .both("step", "step", |entry| Cell::count(entry.step))
        .both("from", "reference", |entry| match entry.reference {
            Some(reference) => Cell::count(reference),
            None => Cell::Text { shown: "keyframe".to_owned(), exact: String::new() },
        })
        .both("hops", "hops", |entry| Cell::count(entry.hops))
        .both("original", "original_bytes", |entry| Cell::bytes(entry.original_bytes))
        .both("stored", "stored_bytes", |entry| Cell::bytes(entry.stored_bytes))
        .both("ratio", "ratio", |entry| Cell::ratio(entry.ratio()))
        .both("changed", "changed_fraction", |entry| {
            Cell::maybe(entry.changed_fraction, |share| Cell::percent(share, 2))
        })
        .both("seconds", "seconds", |entry| Cell::fixed(entry.seconds, 2))
        .exact("added_unix", |entry| Cell::count(entry.added_unix));
    for (number, name) in metric_names(entries).into_iter().enumerate() {
        let shown = |value: f64| Cell::number(value, ui::significant(value));
        let cell = |entry: &StepEntry| Cell::maybe(entry.metric(&name), shown);
        let key = format!("meta.{name}");
        table = match number < SHOWN_METRICS {
            true => table.both(&name, &key, cell),
            false => table.exact(&key, cell),
        };
    }
    table
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
            steps: entries
                .iter()
                .map(|entry| Step { entry, ratio: entry.ratio(), metrics: entry.metrics() })
                .collect(),
        })?;
    } else if arguments.csv {
        ui::print(&table(&entries).csv())?;
    } else {
        ui::print(&text(&entries))?;
        let hidden = summary.totals.steps.saturating_sub(entries.len() as u64);
        if hidden > 0 {
            ui::note(&format!("and {} (--all)", ui::count(hidden, "older step")));
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
    let table = Table::of(branches)
        .shown("branch", |branch| Cell::text(&*branch.name))
        .shown("parent", |branch| Cell::text(branch.parent.as_deref().unwrap_or("main line")))
        .shown("after", |branch| Cell::maybe(branch.fork, Cell::count))
        .shown("first", |branch| Cell::count(branch.first))
        .shown("last", |branch| Cell::count(branch.last))
        .shown("steps", |branch| Cell::count(branch.totals.steps))
        .shown("stored", |branch| Cell::bytes(branch.totals.stored_bytes))
        .shown("closed", |branch| Cell::text(time(branch.closed_unix)));
    ui::print(&table.text())?;
    Ok(Answer::Yes)
}

/// One line about the whole series.
fn totals(summary: &SeriesInfo) -> String {
    let totals = &summary.totals;
    if totals.steps == 0 {
        return "the series has no steps yet; add one with `deltaloom series add`".to_owned();
    }
    let deltas = totals
        .delta_ratio()
        .map_or_else(String::new, |ratio| format!("; without keyframes {}", ui::ratio(ratio)));
    format!(
        "{}, {}: {} -> {}, ratio {}{deltas}",
        ui::count(totals.steps, "step"),
        ui::count(totals.keyframes, "keyframe"),
        ui::bytes(totals.original_bytes),
        ui::bytes(totals.stored_bytes),
        ui::ratio(totals.ratio()),
    )
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
                ui::count(summary.options.keyframe_every.into(), "step"),
                ui::count(summary.options.max_chain.into(), "hop"),
                totals(&summary),
            ))?;
        }
        return Ok(Answer::Yes);
    };
    let entry = entry_of(&series, step)?;
    let report = series.inspect(&entry)?;
    if arguments.json {
        #[derive(Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            entry: &'a StepEntry,
            container: &'a deltaloom::PackReport,
        }
        ui::print_json(&Shown { entry: &entry, container: &report })?;
    } else if arguments.csv {
        ui::print(&container::tensors(&report).csv())?;
    } else {
        let container = container::describe(&report, arguments.tensors);
        ui::print(&format!("{}\n{container}", describe(&entry)))?;
    }
    Ok(Answer::Yes)
}
