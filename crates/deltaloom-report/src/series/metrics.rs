//! Sections about the numbers that were stored with the steps, such as the loss, and about the
//! bytes that the series saves.

use std::collections::BTreeSet;

use super::{SeriesSummary, section, steps_axis};
use crate::figure::{Axis, Curve, Drawn, Figure, Lines, Unit};
use crate::page::{Cell, Section, Table};
use crate::svg::human;

/// Numbers besides loss and learning rate that get a chart.
const MOST_OTHERS: usize = 6;
/// Names of learning rates.
const RATES: [&str; 2] = ["learning_rate", "lr"];

/// Loss, learning rate, then other numbers, each with a curve over the steps.
pub(super) fn metrics(summary: &SeriesSummary) -> Vec<Section> {
    let names: BTreeSet<&str> =
        summary.steps.iter().flat_map(|step| step.metrics.keys()).map(String::as_str).collect();
    let is_loss = |name: &str| name.split(['_', '/', '.', ' ']).any(|part| part == "loss");
    let take = |is: &dyn Fn(&str) -> bool| names.iter().copied().filter(|name| is(name)).collect::<Vec<_>>();
    let mut losses = take(&is_loss);
    losses.sort_by_key(|name| *name != "loss");
    let rates = take(&|name| RATES.contains(&name));
    let others = take(&|name| !is_loss(name) && !RATES.contains(&name) && name != "epoch");
    let mut sections = vec![curves(summary, "Loss", &losses), curves(summary, "Learning rate", &rates)];
    sections.extend(others.iter().take(MOST_OTHERS).map(|name| curves(summary, name, &[name])));
    sections.into_iter().flatten().collect()
}

/// A chart of some numbers, if a step has one of them.
fn curves(summary: &SeriesSummary, heading: &str, names: &[&str]) -> Option<Section> {
    if names.is_empty() {
        return None;
    }
    let mut table = Table::new(&["step"]);
    table.columns.extend(names.iter().map(|&name| name.to_owned()));
    for step in summary.steps.iter().filter(|step| names.iter().any(|name| step.metrics.contains_key(*name)))
    {
        let cells = names.iter().map(|name| Cell::maybe(step.metrics.get(*name).copied(), Unit::Number));
        table.rows.push(std::iter::once(Cell::text(step.step.to_string())).chain(cells).collect());
    }
    let curve = |name: &&str| {
        let steps = summary.steps.iter();
        let points: Vec<(f64, f64)> =
            steps.filter_map(|step| Some((step.step as f64, *step.metrics.get(*name)?))).collect();
        let drawn = if points.len() > 1 { Drawn::Line } else { Drawn::Points };
        Curve { name: (*name).to_owned(), points, drawn }
    };
    let chart = Lines {
        x: steps_axis(),
        y: Axis::linear(heading.to_lowercase(), Unit::Number),
        curves: names.iter().map(curve).collect(),
        marks: Vec::new(),
    };
    let text = "As it was stored with the steps: from the log of the trainer, or with --meta.";
    Some(section(heading, text.to_owned(), Figure::Lines(chart), table))
}

/// Bytes of the series so far, against storing every step whole.
pub(super) fn saved(summary: &SeriesSummary) -> Section {
    let mut table = Table::new(&["step", "every step whole", "in this series", "saved"]);
    let (mut whole, mut stored) = (Vec::new(), Vec::new());
    let (mut original_bytes, mut stored_bytes) = (0u64, 0u64);
    for step in &summary.steps {
        original_bytes = original_bytes.saturating_add(step.original_bytes);
        stored_bytes = stored_bytes.saturating_add(step.stored_bytes);
        whole.push((step.step as f64, original_bytes as f64));
        stored.push((step.step as f64, stored_bytes as f64));
        table.rows.push(vec![
            Cell::text(step.step.to_string()),
            Cell::Value(original_bytes as f64, Unit::Bytes),
            Cell::Value(stored_bytes as f64, Unit::Bytes),
            Cell::Value(original_bytes as f64 - stored_bytes as f64, Unit::Bytes),
        ]);
    }
    let curve = |name: &str, points| Curve { name: name.to_owned(), points, drawn: Drawn::Line };
    let chart = Lines {
        x: steps_axis(),
        y: Axis::linear("bytes up to this step", Unit::Bytes),
        curves: vec![curve("every step whole", whole), curve("in this series", stored)],
        marks: Vec::new(),
    };
    let saved = original_bytes.saturating_sub(stored_bytes);
    let share = 100.0 * saved as f64 / original_bytes.max(1) as f64;
    let text = format!(
        "All steps up to each one, stored whole and in this series: {} saved, {share:.1}\u{a0}%.",
        human(saved as f64, Unit::Bytes)
    );
    section("Bytes saved", text, Figure::Lines(chart), table)
}
