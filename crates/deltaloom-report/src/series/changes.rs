//! Sections about changes from step to step: changed fractions, warnings, the map of layers, frozen
//! layers. [`crate::health`] makes the judgements.

use std::collections::BTreeMap;

use super::{section, steps_axis};
use crate::figure::{Axis, Curve, Drawn, Figure, HeatMap, Lines, Mark, Unit};
use crate::health::{Health, LayerHealth, StepHealth};
use crate::page::{Cell, Section, Table};
use crate::svg::human;

/// How many steps back the reference is; 0 if unknown.
fn distance(step: &StepHealth) -> u64 {
    step.reference.map_or(0, |reference| step.step.abs_diff(reference))
}

/// The most common distance of steps from their reference.
fn commonest_distance(health: &Health) -> u64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for step in health.steps.iter().filter(|step| !step.is_keyframe) {
        *counts.entry(distance(step)).or_default() += 1;
    }
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map_or(0, |(distance, _)| distance)
}

/// One value of each step: a curve of those with the most common distance from their reference, and
/// points for other distances and for keyframes.
pub(super) fn by_step(health: &Health, value: impl Fn(&StepHealth) -> Option<f64>) -> Vec<Curve> {
    let commonest = commonest_distance(health);
    let mut curves: BTreeMap<(bool, bool, u64), Vec<(f64, f64)>> = BTreeMap::new();
    for step in &health.steps {
        if let Some(value) = value(step) {
            let distance = if step.is_keyframe { 0 } else { distance(step) };
            let kind = (step.is_keyframe, distance != commonest, distance);
            curves.entry(kind).or_default().push((step.step as f64, value));
        }
    }
    let curve = |((is_keyframe, is_rarer, distance), points)| Curve {
        name: match distance {
            _ if is_keyframe => "keyframes".to_owned(),
            0 => "deltas".to_owned(),
            1 => "over 1 step".to_owned(),
            more => format!("over {more} steps"),
        },
        points,
        drawn: if is_keyframe || is_rarer { Drawn::Points } else { Drawn::Line },
    };
    curves.into_iter().map(curve).collect()
}

fn marks(health: &Health) -> Vec<Mark> {
    health.warnings.iter().map(|w| Mark { x: w.step as f64, label: w.kind.label().to_owned() }).collect()
}

pub(super) fn changes(health: &Health) -> Section {
    let mut table = Table::new(&["step", "reference", "changed", "deviations"]);
    for step in health.steps.iter().filter(|step| step.changed_fraction.is_some()) {
        table.rows.push(vec![
            Cell::text(step.step.to_string()),
            step.reference.map_or(Cell::Empty, |reference| Cell::text(reference.to_string())),
            Cell::maybe(step.changed_fraction, Unit::Percent),
            Cell::maybe(step.deviations, Unit::Number),
        ]);
    }
    let chart = Lines {
        x: steps_axis(),
        y: Axis::linear("changed elements", Unit::Percent),
        curves: by_step(health, |step| step.changed_fraction),
        marks: marks(health),
    };
    let text = "Share of elements whose bits differ from the reference step. More changes over several steps than over one, so steps are grouped by their distance from the reference; keyframes have none.";
    section("Changed fraction", text.to_owned(), Figure::Lines(chart), table)
}

pub(super) fn warnings(health: &Health) -> Section {
    let rule = &health.rule;
    let mut table = Table::new(&["steps", "what", "changed", "expected", "deviations"]);
    for warning in &health.warnings {
        let steps = if warning.step == warning.last_step {
            warning.step.to_string()
        } else {
            format!("{} to {}", warning.step, warning.last_step)
        };
        let what = warning.kind.counted(warning.count);
        table.rows.push(vec![
            Cell::text(steps),
            Cell::text(what),
            Cell::maybe(warning.changed_fraction, Unit::Percent),
            Cell::maybe(warning.expected_fraction, Unit::Percent),
            Cell::maybe(warning.deviations, Unit::Number),
        ]);
    }
    let found = if health.warnings.is_empty() { "No step departs from those before it.\n\n" } else { "" };
    let text = format!(
        "{found}The logarithm of a step's changed fraction is compared with the last {} steps that are as far from their references (at least {}). A warning is given from {} deviations on, in either direction; a deviation is 1.4826 times the median absolute deviation, and at least {}. No change at all is always named; a change of at least {} of all elements where the median was below 90\u{a0}%. Keyframes are left out. Weights that are no finite numbers, and matrices that have become constant, are always named.",
        rule.window,
        rule.min_window,
        rule.threshold,
        human(rule.min_deviation, Unit::Percent),
        human(rule.everything, Unit::Percent)
    );
    let table = Some(table).filter(|table| !table.rows.is_empty());
    Section { heading: "Warnings".to_owned(), text, figure: None, table }
}

pub(super) fn layer_map(health: &Health) -> Section {
    // Steps that are farther from their references than most would appear as stripes across all
    // layers.
    let commonest = commonest_distance(health);
    let is_known = |i: &usize| health.steps[*i].changed_fraction.is_some();
    let known: Vec<usize> = (0..health.steps.len()).filter(is_known).collect();
    let kept: Vec<usize> =
        known.iter().copied().filter(|i| distance(&health.steps[*i]) == commonest).collect();
    let row = |layer: &LayerHealth| -> Vec<Option<f64>> {
        kept.iter().map(|i| layer.changed_fractions.get(*i).copied().flatten()).collect()
    };
    let mut table = Table::new(&["step"]);
    table.columns.extend(health.layers.iter().map(|layer| layer.layer.name.clone()));
    for i in &known {
        let cells = health.layers.iter().map(|layer| Cell::maybe(layer.changed_fractions[*i], Unit::Percent));
        table
            .rows
            .push(std::iter::once(Cell::text(health.steps[*i].step.to_string())).chain(cells).collect());
    }
    let map = HeatMap {
        x: steps_axis(),
        value: Axis::log("changed elements", Unit::Percent),
        columns: kept.iter().map(|i| health.steps[*i].step as f64).collect(),
        rows: health.layers.iter().map(|layer| (layer.layer.name.clone(), row(layer))).collect(),
    };
    let which = match known.len() - kept.len() {
        0 => String::new(),
        left_out => format!(
            " Only steps whose reference is {commonest} back are shown; the table has the {} others too.",
            human(left_out as f64, Unit::Count)
        ),
    };
    let text = format!(
        "Share of the elements of each layer that differ from the reference step. Zero has a colour of its own.{which}"
    );
    section("Changes by layer", text, Figure::HeatMap(map), table)
}

pub(super) fn frozen(health: &Health) -> Section {
    let has_below = health.layers.iter().any(|layer| layer.below_share.is_some());
    let mut table = Table::new(&["layer", "elements", "bit-identical", "frozen", "no change since step"]);
    if has_below {
        table.columns.push("moved less than threshold".to_owned());
    }
    for layer in &health.layers {
        let mut row = vec![
            Cell::text(layer.layer.name.as_str()),
            Cell::Value(layer.elems as f64, Unit::Number),
            Cell::maybe(layer.identical_share, Unit::Percent),
            Cell::text(if layer.is_frozen { "yes" } else { "" }),
            layer.unchanged_since.map_or(Cell::text(""), |step| Cell::text(step.to_string())),
        ];
        if has_below {
            row.push(Cell::maybe(layer.below_share, Unit::Percent));
        }
        table.rows.push(row);
    }
    let count = health.layers.iter().filter(|layer| layer.is_frozen).count();
    let text = format!(
        "{count} of {} layers are frozen: in each of the last {} steps with a reference, at least {} of their elements are bit-identical to those of the reference step.",
        health.layers.len(),
        health.rule.frozen_window,
        human(health.rule.frozen_share, Unit::Percent)
    );
    Section { heading: "Frozen layers".to_owned(), text, figure: None, table: Some(table) }
}
