//! Bars: horizontal ones with names, divided columns, and histograms. It computes no frequencies.

use super::axis::{Ends, Projection, Span};
use super::canvas::{Anchor, Canvas, Columns, Frame, MIDDLE_PX, WIDTH, intervals, mean, x_ticks};
use super::style::COLOURS;
use super::text::{human, width};
use crate::figure::{Arrangement, Axis, Bars, Histogram, Scale, Stacks};

/// Most width for the names of bars.
const NAMES_PX: f64 = 230.0;
/// Most divided columns.
const COLUMNS: usize = 200;

/// Always linear, whatever the axis says: the length of a bar is meaningful only from zero.
fn linear(axis: &Axis) -> Axis {
    Axis { scale: Scale::Linear, ..axis.clone() }
}

pub(crate) fn draw(canvas: &mut Canvas, chart: &Bars) {
    let axis = linear(&chart.axis);
    let is_stacked = chart.arrangement == Arrangement::Stacked;
    let finite = |values: &[f64]| values.iter().filter(|v| v.is_finite()).sum::<f64>();
    let left = chart.bars.iter().map(|bar| width(&bar.name)).fold(30.0, f64::max).min(NAMES_PX) + 10.0;
    let extents = chart
        .bars
        .iter()
        .flat_map(|bar| if is_stacked { vec![finite(&bar.values)] } else { bar.values.clone() });
    let label_px = extents.clone().map(|v| width(&human(v, axis.unit))).fold(0.0, f64::max);
    let right = WIDTH - label_px - 14.0;
    let mut top = 4.0;
    if chart.parts.len() > 1 {
        let entries: Vec<_> = chart.parts.iter().map(|name| (None, name.as_str())).collect();
        top += canvas.legend(&entries, 0.0, 0.0) + 6.0;
    }
    let rows = if is_stacked { 1 } else { chart.parts.len().max(1) };
    let thick = if rows == 1 { 16.0 } else { 13.0 };
    let pitch = thick * rows as f64 + 8.0;
    let bottom = top + pitch * chart.bars.len() as f64 + 2.0;
    let project = |span: &Span| Projection::new(span, left, right);
    let (span, ticks) = x_ticks(
        |count| Span::of(&axis, extents.clone(), Ends::FromZero, count),
        |span, value| project(span).place(value),
    );
    let x = project(&span);
    canvas.x_axis(&axis, &ticks, (left, right), bottom, Some(top));
    let zero = x.place(0.0).unwrap_or(left);
    for (k, bar) in chart.bars.iter().enumerate() {
        let y = top + 5.0 + pitch * k as f64;
        let middle = y + thick * rows as f64 / 2.0;
        canvas.text_within(left - 8.0, middle + MIDDLE_PX, Anchor::End, &bar.name, NAMES_PX);
        let mut reached = 0.0;
        for (i, value) in bar.values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
            let from = if is_stacked { reached } else { 0.0 };
            reached = from + value;
            let row = if is_stacked { y } else { y + thick * i as f64 };
            let part = chart.parts.get(i).map_or("", String::as_str);
            let title = format!("{}\n{part} {}", bar.name, human(*value, axis.unit));
            if let (Some(a), Some(b)) = (x.place(from), x.place(reached)) {
                canvas.rect(
                    &format!("f{}", i % COLOURS),
                    (a.min(b), row),
                    ((b - a).abs(), thick - 1.0),
                    &title,
                );
            }
            if !is_stacked {
                value_label(canvas, &x, zero, *value, row + (thick - 1.0) / 2.0, &axis);
            }
        }
        if is_stacked {
            value_label(canvas, &x, zero, reached, middle, &axis);
        }
    }
    canvas.line("ax", (zero, top), (zero, bottom));
}

fn value_label(canvas: &mut Canvas, x: &Projection, zero: f64, value: f64, middle: f64, axis: &Axis) {
    let at = x.place(value).unwrap_or(zero).max(zero);
    canvas.text(at + 5.0, middle + MIDDLE_PX, Anchor::Start, "w", &human(value, axis.unit));
}

pub(crate) fn stacks(canvas: &mut Canvas, chart: &Stacks) {
    let axis = linear(&chart.y);
    let bins = intervals(chart.columns.len(), COLUMNS);
    let averaged = |values: &[f64]| -> Vec<f64> {
        bins.iter()
            .map(|bin| mean(bin.clone().filter_map(|i| values.get(i).copied())).unwrap_or(0.0).max(0.0))
            .collect()
    };
    let places = averaged_places(&chart.columns, &bins);
    let parts: Vec<(&str, Vec<f64>)> =
        chart.parts.iter().map(|(name, values)| (name.as_str(), averaged(values))).collect();
    let totals = (0..bins.len()).map(|i| parts.iter().map(|(_, values)| values[i]).sum::<f64>());
    let span = Span::of(&axis, totals, Ends::FromZero, 5);
    let frame = Frame::new(canvas, &axis, &span, 16.0, 220.0, |canvas, top| {
        let entries: Vec<_> = parts.iter().map(|(name, _)| (None, *name)).collect();
        canvas.legend(&entries, 0.0, top)
    });
    let columns = Columns::new(&chart.x, &places, frame.left, frame.right);
    let gap = if columns.column_px >= 4.0 { 1.0 } else { 0.0 };
    for (k, place) in places.iter().enumerate() {
        let x = columns.left + columns.column_px * k as f64;
        let mut reached = 0.0;
        for (i, (name, values)) in parts.iter().enumerate().filter(|(_, (_, values))| values[k] > 0.0) {
            let from = reached;
            reached += values[k];
            let (Some(a), Some(b)) = (frame.y.place(from), frame.y.place(reached)) else { continue };
            let title = format!(
                "{} {}\n{name}: {}",
                chart.x.label,
                human(*place, chart.x.unit),
                human(values[k], axis.unit)
            );
            canvas.rect(&format!("f{}", i % COLOURS), (x, b), (columns.column_px - gap, a - b), &title);
        }
    }
    canvas.x_axis(&chart.x, &columns.ticks, (frame.left, frame.right), frame.bottom, None);
}

/// Positions of columns that represent several: the middle one.
pub(crate) fn averaged_places(columns: &[f64], bins: &[std::ops::Range<usize>]) -> Vec<f64> {
    bins.iter().map(|bin| columns[(bin.start + bin.end - 1) / 2]).collect()
}

pub(crate) fn histogram(canvas: &mut Canvas, chart: &Histogram) {
    let axis = linear(&chart.y);
    let span = Span::of(&axis, chart.heights.iter().copied(), Ends::FromZero, 5);
    let frame = Frame::new(canvas, &axis, &span, 16.0, 220.0, |_, _| 0.0);
    let project = |span: &Span| Projection::new(span, frame.left, frame.right);
    let (x_span, ticks) = x_ticks(
        |count| Span::of(&chart.x, chart.edges.iter().copied(), Ends::Tight, count),
        |span, value| project(span).place(value),
    );
    let x = project(&x_span);
    for (edges, height) in chart.edges.windows(2).zip(&chart.heights) {
        let (Some(a), Some(b)) = (x.place(edges[0]), x.place(edges[1])) else { continue };
        let (Some(y), Some(base)) = (frame.y.place(*height), frame.y.place(0.0)) else { continue };
        let unit = chart.x.unit;
        let title =
            format!("{} to {}\n{}", human(edges[0], unit), human(edges[1], unit), human(*height, axis.unit));
        let gap = if b - a >= 4.0 { 0.8 } else { 0.0 };
        canvas.rect("f0", (a, y), (b - a - gap, base - y), &title);
    }
    canvas.x_axis(&chart.x, &ticks, (frame.left, frame.right), frame.bottom, None);
}
