//! Sections about the size of the steps: overview, ratios, bits, predictors, and where the bytes
//! are. Changes between steps are in [`super::changes`].

use std::collections::BTreeMap;

use super::changes::by_step;
use super::{SeriesSummary, section, steps_axis, totals};
use crate::figure::{Arrangement, Axis, Bar, Bars, Figure, Lines, Stacks, Unit};
use crate::health::Health;
use crate::page::{Cell, Section, Table};
use crate::svg::human;
use deltaloom::__internals::ratio;
use deltaloom::series::StepRecord;

pub(super) fn overview(summary: &SeriesSummary, health: &Health) -> Section {
    let mut table = Table::new(&["", "steps", "original", "stored", "ratio"]);
    for (name, kinds) in
        [("all steps", &[false, true][..]), ("steps with a reference", &[false]), ("keyframes", &[true])]
    {
        let (count, original, stored) = totals(&summary.steps, |step| kinds.contains(&step.is_keyframe));
        let ratio = (count > 0).then(|| ratio(original, stored));
        table.rows.push(vec![
            Cell::text(name),
            Cell::Value(count as f64, Unit::Number),
            Cell::Value(original as f64, Unit::Bytes),
            Cell::Value(stored as f64, Unit::Bytes),
            Cell::maybe(ratio, Unit::Ratio),
        ]);
    }
    let seconds: f64 = summary.steps.iter().map(|step| step.seconds).sum();
    let (_, original, _) = totals(&summary.steps, |_| true);
    let speed = if seconds > 0.0 {
        format!(
            " Adding took {}, {} per second.",
            human(seconds, Unit::Seconds),
            human(original as f64 / seconds, Unit::Bytes)
        )
    } else {
        String::new()
    };
    let range = match (summary.steps.first(), summary.steps.last()) {
        (Some(first), Some(last)) if first.step != last.step => {
            format!("Steps {} to {}.", first.step, last.step)
        }
        (Some(only), _) => format!("One step, {}.", only.step),
        _ => "The series has no steps yet.".to_owned(),
    };
    let frozen = health.layers.iter().filter(|layer| layer.is_frozen).count();
    let looks = format!(" Warnings: {}. Frozen layers: {frozen}.", health.warnings.len());
    Section {
        heading: "Overview".to_owned(),
        text: range + &speed + &looks,
        figure: None,
        table: Some(table),
    }
}

pub(super) fn ratios(summary: &SeriesSummary, health: &Health) -> Section {
    let mut table = Table::new(&[
        "step",
        "kind",
        "reference",
        "original",
        "stored",
        "ratio",
        "changed",
        "bits per weight",
        "time",
    ]);
    for (record, step) in summary.steps.iter().zip(&health.steps) {
        table.rows.push(vec![
            Cell::text(step.step.to_string()),
            Cell::text(if step.is_keyframe { "keyframe" } else { "delta" }),
            step.reference.map_or(Cell::Empty, |reference| Cell::text(reference.to_string())),
            Cell::Value(record.original_bytes as f64, Unit::Bytes),
            Cell::Value(record.stored_bytes as f64, Unit::Bytes),
            Cell::Value(step.ratio, Unit::Ratio),
            Cell::maybe(step.changed_fraction, Unit::Percent),
            Cell::Value(step.bits_per_weight, Unit::Number),
            Cell::Value(record.seconds, Unit::Seconds),
        ]);
    }
    let chart = Lines {
        x: steps_axis(),
        y: Axis::log("original bytes / stored bytes", Unit::Ratio),
        curves: by_step(health, |step| Some(step.ratio)),
        marks: Vec::new(),
    };
    section(
        "Ratio of each step",
        "Index and tables are counted. A step that was packed against a farther one takes more.".to_owned(),
        Figure::Lines(chart),
        table,
    )
}

pub(super) fn bits(health: &Health) -> Section {
    let mut table = Table::new(&["step", "bits per weight"]);
    let rows = health.steps.iter();
    table.rows.extend(
        rows.map(|s| vec![Cell::text(s.step.to_string()), Cell::Value(s.bits_per_weight, Unit::Number)]),
    );
    let chart = Lines {
        x: steps_axis(),
        y: Axis::log("stored bits per element", Unit::Number),
        curves: by_step(health, |step| Some(step.bits_per_weight)),
        marks: Vec::new(),
    };
    section(
        "Stored bits per weight",
        "What is stored of the weights, with the index. States of the training, such as the moments of an optimizer, and other files do not count.".to_owned(),
        Figure::Lines(chart),
        table,
    )
}

/// Kinds of predictors in a series, by decreasing number of elements.
fn predictor_kinds(steps: &[StepRecord]) -> Vec<&str> {
    let mut elems: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in steps.iter().flat_map(|step| &step.tensors) {
        *elems.entry(&tensor.predictor).or_default() += tensor.elems;
    }
    let mut kinds: Vec<&str> = elems.keys().copied().collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(elems[kind]));
    kinds
}

pub(super) fn predictors(summary: &SeriesSummary) -> Section {
    let kinds = predictor_kinds(&summary.steps);
    let share = |step: &StepRecord, kind: &str| {
        let of_kind = step.tensors.iter().filter(|tensor| *tensor.predictor == *kind);
        ratio(of_kind.map(|t| t.elems).sum(), step.tensors.iter().map(|t| t.elems).sum())
    };
    let mut table = Table::new(&["step"]);
    table.columns.extend(kinds.iter().map(|&kind| kind.to_owned()));
    let mut parts: Vec<(String, Vec<f64>)> =
        kinds.iter().map(|&kind| (kind.to_owned(), Vec::new())).collect();
    for step in &summary.steps {
        let mut row = vec![Cell::text(step.step.to_string())];
        for (kind, (_, values)) in kinds.iter().zip(&mut parts) {
            let share = share(step, kind);
            values.push(share);
            row.push(Cell::Value(share, Unit::Percent));
        }
        table.rows.push(row);
    }
    let chart = Stacks {
        x: steps_axis(),
        y: Axis::linear("elements", Unit::Percent),
        columns: summary.steps.iter().map(|step| step.step as f64).collect(),
        parts,
    };
    section(
        "Predictors",
        "Which predictor the elements of each step come from.".to_owned(),
        Figure::Stacks(chart),
        table,
    )
}

pub(super) fn parts(summary: &SeriesSummary) -> Section {
    let stored = |kind: &str, is_keyframe: bool| -> f64 {
        let steps = summary.steps.iter().filter(|step| step.is_keyframe == is_keyframe);
        let tensors = steps.flat_map(|step| &step.tensors).filter(|tensor| *tensor.predictor == *kind);
        tensors.map(|tensor| tensor.stored_bytes).sum::<u64>() as f64
    };
    let kinds = predictor_kinds(&summary.steps);
    let mut bars: Vec<Bar> = kinds
        .into_iter()
        .map(|kind| Bar { name: kind.to_owned(), values: vec![stored(kind, false), stored(kind, true)] })
        .collect();
    let payloads: u64 = summary.steps.iter().flat_map(|s| &s.tensors).map(|t| t.stored_bytes).sum();
    let (_, _, all) = totals(&summary.steps, |_| true);
    let rest = |is_keyframe: bool| {
        let steps = summary.steps.iter().filter(|step| step.is_keyframe == is_keyframe);
        steps
            .map(|s| s.tensors.iter().map(|t| t.stored_bytes).fold(s.stored_bytes, u64::saturating_sub))
            .sum::<u64>() as f64
    };
    if all > payloads {
        bars.push(Bar {
            name: "index, tables, all but weights".to_owned(),
            values: vec![rest(false), rest(true)],
        });
    }
    let mut table = Table::new(&["predictor", "deltas", "keyframes"]);
    for bar in &bars {
        let values = bar.values.iter().map(|value| Cell::Value(*value, Unit::Bytes));
        table.rows.push(std::iter::once(Cell::text(bar.name.as_str())).chain(values).collect());
    }
    let chart = Bars {
        axis: Axis::linear("stored bytes", Unit::Bytes),
        parts: vec!["deltas".to_owned(), "keyframes".to_owned()],
        bars,
        arrangement: Arrangement::Stacked,
    };
    section(
        "Where the bytes are",
        "Stored bytes of all steps by predictor.".to_owned(),
        Figure::Bars(chart),
        table,
    )
}
