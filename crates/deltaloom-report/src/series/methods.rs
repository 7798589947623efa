//! Sections that compare methods: in total, step by step, and bytes against error. It runs no
//! method.

use super::{SeriesSummary, section, steps_axis, totals};
use crate::figure::{
    Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, Lines, Panels, Point, Scale, Scatter, Unit,
};
use crate::health::Health;
use crate::page::{Cell, Section, Table};
use deltaloom::__internals::ratio;
use deltaloom::series::StepRecord;

const EXACT: &str = "this series (exact)";

fn exact_ratio(steps: &[StepRecord]) -> f64 {
    let (_, original, stored) = totals(steps, |_| true);
    ratio(original, stored)
}

pub(super) fn method_totals(summary: &SeriesSummary) -> Section {
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
        axis: Axis { scale: Scale::Linear, ..ratio_axis() },
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

/// The ratio of each step for every method, with the exact series first.
fn curves(summary: &SeriesSummary, health: &Health) -> Vec<Curve> {
    let exact = health.steps.iter().map(|step| (step.step as f64, step.ratio)).collect();
    let exact = Curve { name: EXACT.to_owned(), points: exact, drawn: Drawn::Line };
    let methods = summary.methods.iter().map(|method| {
        let points = method.ratios.iter().map(|(step, ratio)| (*step as f64, *ratio)).collect();
        Curve { name: method.name.clone(), points, drawn: Drawn::Line }
    });
    std::iter::once(exact).chain(methods).filter(|curve| !curve.points.is_empty()).collect()
}

fn ratio_axis() -> Axis {
    Axis::log("original bytes / stored bytes", Unit::Ratio)
}

pub(super) fn method_steps(summary: &SeriesSummary, health: &Health) -> Section {
    let curves = curves(summary, health);
    let mut table = Table::new(&["method", "step", "ratio"]);
    for curve in &curves {
        let rows = curve.points.iter().map(|(step, ratio)| {
            vec![
                Cell::text(curve.name.as_str()),
                Cell::Value(*step, Unit::Count),
                Cell::Value(*ratio, Unit::Ratio),
            ]
        });
        table.rows.extend(rows);
    }
    let chart = Lines { x: steps_axis(), y: ratio_axis(), curves, marks: Vec::new() };
    section("Methods step by step", String::new(), Figure::Lines(chart), table)
}

pub(super) fn method_panels(summary: &SeriesSummary, health: &Health) -> Section {
    let curves = curves(summary, health);
    let mut table = Table::new(&["method", "smallest ratio", "largest ratio"]);
    for curve in &curves {
        let ratios = || curve.points.iter().map(|(_, ratio)| *ratio);
        let range = [ratios().reduce(f64::min), ratios().reduce(f64::max)];
        let cells = range.map(|ratio| Cell::maybe(ratio, Unit::Ratio));
        table.rows.push(std::iter::once(Cell::text(curve.name.as_str())).chain(cells).collect());
    }
    let chart = Panels { x: steps_axis(), y: ratio_axis(), curves };
    let text = "The same ratios, a panel for each method.";
    section("Methods one by one", text.to_owned(), Figure::Panels(chart), table)
}

pub(super) fn frontier(summary: &SeriesSummary) -> Section {
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
