//! The page and the event files of a series: what its steps take, what changes, how other methods compare.
//! It draws nothing itself and opens no store.

use std::collections::BTreeMap;

use super::figure::{
    Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, HeatMap, Histogram, Lines, Mark, Point, Scatter,
    Stacks, Unit,
};
use super::health::{Health, LayerHealth, StepHealth, StepRecord, WarningKind, WarningRule, health};
use super::page::{Cell, Page, Section, Table};
use super::svg::human;
use super::tensorboard::EventWriter;
use super::weights::WeightStatistics;
use crate::error::Result;

/// What a method of coding makes of the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodRatios {
    /// Name.
    pub name: String,
    /// Original bytes over stored bytes, all steps together.
    pub total_ratio: f64,
    /// The same of each step, in their order.
    pub ratios: Vec<(u64, f64)>,
}

/// What a method pays for its error.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontierPoint {
    /// Kind of method: points of a group have a colour.
    pub group: String,
    /// Name.
    pub name: String,
    /// Stored bytes.
    pub bytes: f64,
    /// Error; zero is exact.
    pub error: f64,
}

/// What a page shows of a series.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SeriesSummary {
    /// Name of the series.
    pub name: String,
    /// Command that made the page.
    pub command: String,
    /// Its steps, in order.
    pub steps: Vec<StepRecord>,
    /// By which rule steps and layers are judged.
    pub rule: WarningRule,
    /// Other methods on the same steps.
    pub methods: Vec<MethodRatios>,
    /// Bytes against error, and what the error is.
    pub frontier: Vec<FrontierPoint>,
    /// What the error of the frontier is.
    pub error_label: String,
    /// Weights of the newest step.
    pub weights: Option<WeightStatistics>,
}

/// The page of a series. Sections without data are left out.
#[must_use]
pub fn series_page(summary: &SeriesSummary) -> Page {
    let health = health(&summary.steps, &summary.rule);
    let mut sections = vec![overview(summary, &health)];
    if !health.steps.is_empty() {
        sections.extend([ratios(summary, &health), bits(&health)]);
        if health.steps.iter().any(|step| step.changed_fraction.is_some()) {
            sections.extend([changes(&health), warnings(&health), layer_map(&health), frozen(&health)]);
        }
        sections.extend([predictors(summary), parts(summary)]);
    }
    if !summary.methods.is_empty() {
        sections.extend([method_totals(summary), method_steps(summary, &health)]);
    }
    if !summary.frontier.is_empty() {
        sections.push(frontier(summary));
    }
    if let Some(weights) = &summary.weights {
        sections.extend([distribution(weights), fields(weights)]);
    }
    let command = match &*summary.command {
        "" => String::new(),
        command => format!("\n\n`{command}`"),
    };
    let subtitle = format!(
        "Every step of this series comes back bit for bit. All numbers are computed from the steps in the store.{command}"
    );
    Page { title: format!("Series {}", summary.name), subtitle, sections }
}

/// Ratio, changed fraction and stored bits of every step as curves for TensorBoard, and the changed fraction of every layer.
///
/// # Errors
/// Those of writing the file.
pub fn series_events(health: &Health, events: &mut EventWriter) -> Result<()> {
    for (i, step) in health.steps.iter().enumerate() {
        events.scalar("series/ratio", step.step, step.ratio)?;
        events.scalar("series/bits_per_weight", step.step, step.bits_per_weight)?;
        if let Some(fraction) = step.changed_fraction {
            events.scalar("series/changed_fraction", step.step, fraction)?;
        }
        for layer in &health.layers {
            if let Some(Some(fraction)) = layer.changed_fractions.get(i) {
                events.scalar(&format!("changed_fraction/{}", layer.layer.name), step.step, *fraction)?;
            }
        }
    }
    Ok(())
}

fn steps_axis() -> Axis {
    Axis::linear("step", Unit::Count)
}

fn section(heading: &str, text: String, figure: Figure, table: Table) -> Section {
    Section { heading: heading.to_owned(), text, figure: Some(figure), table: Some(table) }
}

fn totals(steps: &[StepRecord], is_counted: impl Fn(&StepRecord) -> bool) -> (usize, u64, u64) {
    steps.iter().filter(|step| is_counted(step)).fold((0, 0, 0), |(n, original, stored), step| {
        (n + 1, original + step.original_bytes, stored + step.stored_bytes)
    })
}

fn overview(summary: &SeriesSummary, health: &Health) -> Section {
    let mut table = Table::new(&["", "steps", "original", "stored", "ratio"]);
    let rows: [(&str, fn(&StepRecord) -> bool); 3] = [
        ("all steps", |_| true),
        ("steps with a reference", |s| !s.is_keyframe),
        ("keyframes", |s| s.is_keyframe),
    ];
    for (name, is_counted) in rows {
        let (count, original, stored) = totals(&summary.steps, is_counted);
        let ratio = (count > 0).then(|| super::ratio(original, stored));
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

/// How many steps the reference is back; 0 where that is not known.
fn distance(step: &StepHealth) -> u64 {
    step.reference.map_or(0, |reference| step.step.abs_diff(reference))
}

/// The distance that most steps with a reference have.
fn commonest_distance(health: &Health) -> u64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for step in health.steps.iter().filter(|step| !step.is_keyframe) {
        *counts.entry(distance(step)).or_default() += 1;
    }
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map_or(0, |(distance, _)| distance)
}

/// One value of each step: a curve of those with the commonest distance from their reference, points for other distances and for keyframes.
fn by_step(health: &Health, value: impl Fn(&StepHealth) -> Option<f64>) -> Vec<Curve> {
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
    let mark = |kind| match kind {
        WarningKind::More => "more changed",
        WarningKind::Less => "less changed",
        WarningKind::Nothing => "nothing changed",
        WarningKind::Everything => "everything changed",
    };
    health.warnings.iter().map(|w| Mark { x: w.step as f64, label: mark(w.kind).to_owned() }).collect()
}

fn ratios(summary: &SeriesSummary, health: &Health) -> Section {
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

fn changes(health: &Health) -> Section {
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

fn bits(health: &Health) -> Section {
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
        "All tensors of a step count as weights.".to_owned(),
        Figure::Lines(chart),
        table,
    )
}

fn warnings(health: &Health) -> Section {
    let rule = &health.rule;
    let mut table = Table::new(&["steps", "what", "changed", "expected", "deviations"]);
    for warning in &health.warnings {
        let steps = if warning.step == warning.last_step {
            warning.step.to_string()
        } else {
            format!("{} to {}", warning.step, warning.last_step)
        };
        let what = match warning.kind {
            WarningKind::More => "more changed than before",
            WarningKind::Less => "less changed than before",
            WarningKind::Nothing => "nothing changed",
            WarningKind::Everything => "everything changed",
        };
        table.rows.push(vec![
            Cell::text(steps),
            Cell::text(what),
            Cell::Value(warning.changed_fraction, Unit::Percent),
            Cell::maybe(warning.expected_fraction, Unit::Percent),
            Cell::maybe(warning.deviations, Unit::Number),
        ]);
    }
    let found = if health.warnings.is_empty() { "No step departs from those before it.\n\n" } else { "" };
    let text = format!(
        "{found}The logarithm of a step's changed fraction is compared with the last {} steps that are as far from their references (at least {}). A warning is given from {} deviations on, in either direction; a deviation is 1.4826 times the median absolute deviation, and at least {}. No change at all is always named; a change of at least {} of all elements where the median was below 90\u{a0}%. Keyframes are left out.",
        rule.window,
        rule.min_window,
        rule.threshold,
        human(rule.min_deviation, Unit::Percent),
        human(rule.everything, Unit::Percent)
    );
    let table = Some(table).filter(|table| !table.rows.is_empty());
    Section { heading: "Warnings".to_owned(), text, figure: None, table }
}

fn layer_map(health: &Health) -> Section {
    // Steps that are farther from their references than most would be stripes across all layers.
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

fn frozen(health: &Health) -> Section {
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

/// Kinds of predictors of a series, those of most elements first.
fn predictor_kinds(steps: &[StepRecord]) -> Vec<&str> {
    let mut elems: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in steps.iter().flat_map(|step| &step.tensors) {
        *elems.entry(&tensor.predictor).or_default() += tensor.elems;
    }
    let mut kinds: Vec<&str> = elems.keys().copied().collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse(elems[kind]));
    kinds
}

fn predictors(summary: &SeriesSummary) -> Section {
    let kinds = predictor_kinds(&summary.steps);
    let share = |step: &StepRecord, kind: &str| {
        let of_kind = step.tensors.iter().filter(|tensor| *tensor.predictor == *kind);
        super::ratio(of_kind.map(|t| t.elems).sum(), step.tensors.iter().map(|t| t.elems).sum())
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

fn parts(summary: &SeriesSummary) -> Section {
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
            .map(|s| s.stored_bytes.saturating_sub(s.tensors.iter().map(|t| t.stored_bytes).sum()))
            .sum::<u64>() as f64
    };
    if all > payloads {
        bars.push(Bar { name: "index and tables".to_owned(), values: vec![rest(false), rest(true)] });
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

fn exact_ratio(steps: &[StepRecord]) -> f64 {
    let (_, original, stored) = totals(steps, |_| true);
    super::ratio(original, stored)
}

const EXACT: &str = "this series (exact)";

fn method_totals(summary: &SeriesSummary) -> Section {
    let mut totals: Vec<(&str, f64)> =
        summary.methods.iter().map(|m| (m.name.as_str(), m.total_ratio)).collect();
    if !summary.steps.is_empty() {
        totals.push((EXACT, exact_ratio(&summary.steps)));
    }
    totals.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut table = Table::new(&["method", "ratio"]);
    table.rows = totals
        .iter()
        .map(|(name, ratio)| vec![Cell::text(*name), Cell::Value(*ratio, Unit::Ratio)])
        .collect();
    let chart = Bars {
        axis: Axis::linear("original bytes / stored bytes", Unit::Ratio),
        parts: vec!["ratio".to_owned()],
        bars: totals
            .into_iter()
            .map(|(name, ratio)| Bar { name: name.to_owned(), values: vec![ratio] })
            .collect(),
        arrangement: Arrangement::Stacked,
    };
    let text =
        "All steps together, keyframes counted. Threshold methods lose updates: compare them at their error.";
    section("Methods in total", text.to_owned(), Figure::Bars(chart), table)
}

fn method_steps(summary: &SeriesSummary, health: &Health) -> Section {
    let exact = health.steps.iter().map(|step| (step.step, step.ratio)).collect();
    let mut methods: Vec<(&str, Vec<(u64, f64)>)> = vec![(EXACT, exact)];
    methods.extend(summary.methods.iter().map(|method| (method.name.as_str(), method.ratios.clone())));
    let mut table = Table::new(&["method", "step", "ratio"]);
    for (name, ratios) in &methods {
        let rows = ratios.iter().map(|(step, ratio)| {
            vec![Cell::text(*name), Cell::text(step.to_string()), Cell::Value(*ratio, Unit::Ratio)]
        });
        table.rows.extend(rows);
    }
    let curves = methods.into_iter().filter(|(_, ratios)| !ratios.is_empty()).map(|(name, ratios)| Curve {
        name: name.to_owned(),
        points: ratios.into_iter().map(|(step, ratio)| (step as f64, ratio)).collect(),
        drawn: Drawn::Line,
    });
    let chart = Lines {
        x: steps_axis(),
        y: Axis::log("original bytes / stored bytes", Unit::Ratio),
        curves: curves.collect(),
        marks: Vec::new(),
    };
    section("Methods step by step", String::new(), Figure::Lines(chart), table)
}

fn frontier(summary: &SeriesSummary) -> Section {
    let mut groups: Vec<(String, Vec<Point>)> = Vec::new();
    let mut table = Table::new(&["kind", "method", "stored", &summary.error_label]);
    for point in &summary.frontier {
        table.rows.push(vec![
            Cell::text(point.group.as_str()),
            Cell::text(point.name.as_str()),
            Cell::Value(point.bytes, Unit::Bytes),
            Cell::Value(point.error, Unit::Number),
        ]);
        let placed = Point { label: point.name.clone(), x: point.bytes, y: point.error };
        match groups.iter_mut().find(|(group, _)| *group == point.group) {
            Some((_, points)) => points.push(placed),
            None => groups.push((point.group.clone(), vec![placed])),
        }
    }
    let chart = Scatter {
        x: Axis::log("stored bytes", Unit::Bytes),
        y: Axis::log(summary.error_label.as_str(), Unit::Number),
        groups,
    };
    let text = "Left and down is better; exact methods stand at zero.";
    section("Bytes against error", text.to_owned(), Figure::Scatter(chart), table)
}

fn distribution(weights: &WeightStatistics) -> Section {
    let sampled = weights.sampled_elems.max(1) as f64;
    let heights: Vec<f64> = weights.counts.iter().map(|count| *count as f64 / sampled).collect();
    let mut table = Table::new(&["from", "to", "weights"]);
    for (edges, height) in weights.edges.windows(2).zip(&heights) {
        let edge = |value| Cell::Value(value, Unit::Number);
        table.rows.push(vec![edge(edges[0]), edge(edges[1]), Cell::Value(*height, Unit::Percent)]);
    }
    let number = |value: f64| human(value, Unit::Number);
    let percent = |value: f64| human(value, Unit::Percent);
    let text = format!(
        "{} of {} {} elements of the newest step, taken from every tensor. Mean {}, standard deviation {}; {} are zero, {} lie outside the picture, {} are not finite.",
        number(weights.sampled_elems as f64),
        number(weights.elems as f64),
        weights.dtype,
        number(weights.mean),
        number(weights.deviation),
        percent(weights.zero_fraction),
        percent(weights.outside as f64 / sampled),
        percent(weights.non_finite_fraction),
    );
    let chart = Histogram {
        x: Axis::linear("weight", Unit::Number),
        y: Axis::linear("share of weights", Unit::Percent),
        edges: weights.edges.clone(),
        heights,
    };
    section("Weights", text, Figure::Histogram(chart), table)
}

fn fields(weights: &WeightStatistics) -> Section {
    let mut table = Table::new(&["field", "stored bits", "entropy in bits"]);
    let mut bars = Vec::new();
    let (mut stored, mut entropy) = (0, 0.0);
    for field in &weights.fields {
        table.rows.push(vec![
            Cell::text(field.name.as_str()),
            Cell::Value(f64::from(field.stored_bits), Unit::Number),
            Cell::Value(field.entropy_bits, Unit::Number),
        ]);
        bars.push(Bar {
            name: field.name.clone(),
            values: vec![field.entropy_bits / f64::from(field.stored_bits.max(1))],
        });
        stored += field.stored_bits;
        entropy += field.entropy_bits;
    }
    let text = format!(
        "Entropy of each field of {} by the frequencies of its values alone: {} of {stored} bits in all. Mantissa bits are counted from the most significant one.",
        weights.dtype,
        human(entropy, Unit::Number),
    );
    let chart = Bars {
        axis: Axis::linear("entropy / stored bits", Unit::Percent),
        parts: vec!["entropy".to_owned()],
        bars,
        arrangement: Arrangement::Stacked,
    };
    section("Bits that carry information", text, Figure::Bars(chart), table)
}
