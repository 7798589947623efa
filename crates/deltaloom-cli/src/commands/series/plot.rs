//! `deltaloom series plot` and `health`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use deltaloom::series::StepRecord;
use deltaloom::series::{Series, StepEntry};
use deltaloom::weights;
use deltaloom_report::{
    EventWriter, Health, SeriesSummary, StepHealth, Warning, health as judge, series_events, series_page,
};

use crate::args::series::plot::{HealthArguments, PlotArguments};
use crate::pages;
use crate::progress::Bar;
use crate::store::open;
use crate::target::Target;
use crate::ui::table::{Cell, Table};
use crate::{Answer, ui};

pub(super) fn plot(arguments: &PlotArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    Target::new(&arguments.output).check(arguments.overwrite, &series.inputs())?;
    let bar = Bar::new("reading");
    let entries = series.last(arguments.last.unwrap_or(usize::MAX))?;
    let steps = series.records(&entries, &bar)?;
    let weights = match entries.last() {
        Some(newest) if arguments.sample > 0 => {
            weights(&series.checkpoint(newest, &bar)?, arguments.sample, &bar)?
        }
        _ => None,
    };
    bar.finish();
    let summary = SeriesSummary {
        name: series.location(),
        command: format!("deltaloom series plot {}", arguments.store.location),
        rule: arguments.rule.rule(),
        steps,
        weights,
        ..SeriesSummary::default()
    };
    let page = series_page(&summary);
    let svg = arguments.svg.as_deref();
    pages::write(&page, &arguments.output, svg, arguments.overwrite, &series.inputs())?;
    if let Some(folder) = &arguments.tensorboard {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut events = EventWriter::create(folder, now.as_secs_f64())?;
        series_events(&summary.steps, &judge(&summary.steps, &summary.rule), &mut events)?;
        events.finish()?;
    }
    let steps = ui::count(summary.steps.len() as u64, "step");
    ui::note(&format!("{}: page with {steps}", arguments.output.display()));
    Ok(Answer::Yes)
}

pub(super) fn health(arguments: &HealthArguments) -> Result<Answer> {
    let series = open(&arguments.store.location)?;
    let bar = Bar::new("reading");
    let entries = series.last(arguments.last.unwrap_or(usize::MAX))?;
    let mut steps = series.records(&entries, &bar)?;
    let rule = arguments.rule.rule();
    if let Some(threshold) = arguments.below {
        add_below(&series, &entries, &mut steps, rule.frozen_window, threshold, &bar)?;
    }
    bar.finish();
    let health = judge(&steps, &rule);
    if arguments.json {
        ui::print_json(&health)?;
    } else if arguments.csv {
        ui::print(&csv(&health))?;
    } else {
        ui::print(&describe(&health))?;
    }
    Ok(if health.warnings.is_empty() { Answer::Yes } else { Answer::No })
}

/// Decodes the steps of the frozen window.
fn add_below(
    series: &Series,
    entries: &[StepEntry],
    steps: &mut [StepRecord],
    window: usize,
    threshold: f64,
    bar: &Bar,
) -> Result<()> {
    let newest = entries.iter().zip(steps).rev().take(window);
    for (entry, record) in newest.filter(|(entry, _)| !entry.is_keyframe()) {
        let shares = series.below(entry, threshold, bar)?;
        for tensor in &mut record.tensors {
            tensor.below_fraction = shares.get(&*tensor.name).copied();
        }
    }
    Ok(())
}

/// A line for each step.
fn csv(health: &Health) -> String {
    let steps: Vec<(usize, &StepHealth)> = health.steps.iter().enumerate().collect();
    let number = |value: f64| Cell::number(value, String::new());
    let mut table = Table::of(&steps)
        .exact("step", |(_, step)| Cell::count(step.step))
        .exact("reference", |(_, step)| Cell::maybe(step.reference, Cell::count))
        .exact("ratio", |(_, step)| number(step.ratio))
        .exact("bits_per_weight", |(_, step)| number(step.bits_per_weight))
        .exact("changed_fraction", |(_, step)| Cell::maybe(step.changed_fraction, number));
    for layer in &health.layers {
        table = table.exact(&layer.layer.name, |(i, _)| {
            Cell::maybe(layer.changed_fractions.get(*i).copied().flatten(), number)
        });
    }
    table.csv()
}

/// Layers, then warnings.
fn describe(health: &Health) -> String {
    if health.steps.is_empty() {
        return "the series has no steps yet\n".to_owned();
    }
    let percent = |share: Option<f64>| Cell::maybe(share, |share| Cell::percent(share, 2));
    let mut table = Table::of(&health.layers)
        .shown("layer", |layer| Cell::text(&*layer.layer.name))
        .shown("elements", |layer| Cell::count(layer.elems))
        .shown("changed in newest step", |layer| percent(layer.changed_fractions.last().copied().flatten()))
        .shown(&format!("identical over {}", health.rule.frozen_window), |layer| {
            percent(layer.identical_share)
        });
    if health.layers.iter().any(|layer| layer.below_share.is_some()) {
        table = table.shown("moved less than --below", |layer| percent(layer.below_share));
    }
    let table = table.shown("frozen", |layer| match (layer.is_frozen, layer.unchanged_since) {
        (true, Some(step)) => Cell::text(format!("since step {step}")),
        (true, None) => Cell::text("yes"),
        (false, _) => Cell::text("no"),
    });
    let mut out = table.text();
    if let Some(last) = health.steps.last() {
        out.push_str(&format!(
            "\nlast step {}: {} changed, {:.3} bits stored per weight\n",
            last.step,
            last.changed_fraction.map_or_else(|| "-".to_owned(), |share| ui::percent(share, 2)),
            last.bits_per_weight,
        ));
    }
    let rule = &health.rule;
    out.push_str(&format!(
        "rule: a warning beyond {} deviations from the median of {} steps; frozen layers over {} steps\n",
        rule.threshold, rule.window, rule.frozen_window,
    ));
    let deltas = health.steps.iter().filter(|step| step.changed_fraction.is_some()).count();
    if deltas <= rule.min_window {
        out.push_str(&format!(
            "{} with a reference so far; changes are judged once there are {}\n",
            ui::count(deltas as u64, "step"),
            rule.min_window + 1
        ));
    }
    health.warnings.iter().for_each(|warning| out.push_str(&say(warning)));
    out
}

fn say(warning: &Warning) -> String {
    let steps = match (warning.step, warning.last_step) {
        (first, last) if first == last => format!("step {first}"),
        (first, last) => format!("steps {first} to {last}"),
    };
    let what = warning.kind.counted(warning.count);
    if warning.count.is_some() {
        return format!("warning: {steps}: {what}\n");
    }
    let expected = warning
        .expected_fraction
        .map_or_else(String::new, |expected| format!(", usually {:.3} %", 100.0 * expected));
    let changed = warning.changed_fraction.map_or(0.0, |changed| 100.0 * changed);
    format!("warning: {steps}: {what}: {changed:.3} %{expected}\n")
}
