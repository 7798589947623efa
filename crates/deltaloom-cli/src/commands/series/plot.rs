//! `deltaloom series plot` and `health`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use deltaloom::series::StepRecord;
use deltaloom::series::{Series, StepEntry};
use deltaloom::weights;
use deltaloom_report::{
    Cell, EventWriter, Health, SeriesSummary, Table, Unit, Warning, health as judge, series_events,
    series_page,
};

use super::common::count;
use crate::args::series::plot::{HealthArguments, PlotArguments};
use crate::pages;
use crate::progress::Bar;
use crate::store::open;
use crate::target::Target;
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
        series_events(&judge(&summary.steps, &summary.rule), &mut events)?;
        events.finish()?;
    }
    let steps = count(summary.steps.len() as u64, "step");
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

fn csv(health: &Health) -> String {
    let mut table = Table::new(&["step", "reference", "ratio", "bits_per_weight", "changed_fraction"]);
    table.columns.extend(health.layers.iter().map(|layer| layer.layer.name.clone()));
    let whole = |number: u64| number as f64;
    for (i, step) in health.steps.iter().enumerate() {
        let of_step = [
            Some(whole(step.step)),
            step.reference.map(whole),
            Some(step.ratio),
            Some(step.bits_per_weight),
            step.changed_fraction,
        ];
        let of_layers = health.layers.iter().map(|layer| layer.changed_fractions.get(i).copied().flatten());
        table.rows.push(of_step.into_iter().chain(of_layers).map(|v| Cell::maybe(v, Unit::Number)).collect());
    }
    table.csv()
}

/// Layers, then warnings.
fn describe(health: &Health) -> String {
    if health.steps.is_empty() {
        return "the series has no steps yet\n".to_owned();
    }
    let percent =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{:.2} %", 100.0 * share));
    let header = ["layer", "elements", "changed, last step", "identical, window", "below", "frozen"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(health.layers.iter().map(|layer| {
        vec![
            ui::printable(&layer.layer.name),
            layer.elems.to_string(),
            percent(layer.changed_fractions.last().copied().flatten()),
            percent(layer.identical_share),
            percent(layer.below_share),
            match (layer.is_frozen, layer.unchanged_since) {
                (true, Some(step)) => format!("since step {step}"),
                (true, None) => "yes".to_owned(),
                (false, _) => "no".to_owned(),
            },
        ]
    }));
    let mut out = ui::table(&rows);
    if let Some(last) = health.steps.last() {
        out.push_str(&format!(
            "\nlast step {}: {} changed, {:.3} bits stored per weight\n",
            last.step,
            percent(last.changed_fraction),
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
            count(deltas as u64, "step"),
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
