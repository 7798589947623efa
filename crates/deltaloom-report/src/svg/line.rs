//! Curves: thinned if they have many points, labelled at their ends if there are few curves. It
//! chooses no data.

use std::fmt::Write as _;

use super::axis::{Ends, Projection, Span};
use super::canvas::{Anchor, Canvas, Frame, LINE_PX, MIDDLE_PX, WIDTH, dash, intervals, x_ticks};
use super::style::COLOURS;
use super::text::{human, width};
use crate::figure::{Curve, Drawn, Lines};

/// Most points of a curve.
const POINTS: usize = 1000;
/// Up to this many curves are labelled at their ends; more get a legend.
const LABELLED: usize = 6;
/// Most width of such a label.
const LABEL_PX: f64 = 150.0;
/// Number of strips that show values under the pointer.
const STRIPS: usize = 120;

/// Smallest and largest of each interval, in order, so that no peak is lost.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let mut out = Vec::with_capacity(POINTS);
    for interval in intervals(points.len(), POINTS / 2) {
        let finite = interval.clone().filter(|i| points[*i].1.is_finite());
        let by_y = |a: &usize, b: &usize| points[*a].1.total_cmp(&points[*b].1);
        match (finite.clone().min_by(by_y), finite.max_by(by_y)) {
            (Some(low), Some(high)) => {
                out.push(points[low.min(high)]);
                if low != high {
                    out.push(points[low.max(high)]);
                }
            }
            _ => out.push(points[interval.start]),
        }
    }
    out
}

pub(crate) fn draw(canvas: &mut Canvas, chart: &Lines) {
    let curves = &chart.curves;
    let values = curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.1));
    let y_span = Span::of(&chart.y, values, Ends::Round, 5);
    let is_labelled = (2..=LABELLED).contains(&curves.len())
        && curves
            .iter()
            .all(|curve| width(&curve.name) <= LABEL_PX && curve.points.iter().any(|p| p.1.is_finite()));
    let right_px = if is_labelled {
        curves.iter().map(|curve| width(&curve.name)).fold(0.0, f64::max) + 30.0
    } else {
        16.0
    };
    let has_marks = !chart.marks.is_empty();
    let frame = Frame::new(canvas, &chart.y, &y_span, right_px, 260.0, |canvas, top| {
        let entries: Vec<_> = curves.iter().map(|curve| (Some(curve.drawn), curve.name.as_str())).collect();
        let legend = if is_labelled || entries.len() < 2 { 0.0 } else { canvas.legend(&entries, 0.0, top) };
        legend + if has_marks { LINE_PX } else { 0.0 }
    });
    let xs = curves.iter().flat_map(|c| c.points.iter().map(|p| p.0)).chain(chart.marks.iter().map(|m| m.x));
    let project = |span: &Span| Projection::new(span, frame.left + 8.0, frame.right - 8.0);
    let (x_span, ticks) = x_ticks(
        |count| Span::of(&chart.x, xs.clone(), Ends::Tight, count),
        |span, value| project(span).place(value),
    );
    let x = project(&x_span);
    canvas.x_axis(&chart.x, &ticks, (frame.left, frame.right), frame.bottom, None);
    marks(canvas, chart, &frame, &x);
    for (i, curve) in curves.iter().enumerate() {
        draw_curve(canvas, i, curve, &x, &frame.y);
    }
    if is_labelled {
        end_labels(canvas, curves, &frame);
    }
    strips(canvas, chart, &frame, &x);
}

fn marks(canvas: &mut Canvas, chart: &Lines, frame: &Frame, x: &Projection) {
    let mut free_from = f64::NEG_INFINITY;
    for mark in &chart.marks {
        let Some(at) = x.place(mark.x) else { continue };
        canvas.line("ax mk", (at, frame.top), (at, frame.bottom));
        let label_px = width(&mark.label);
        let middle = at.clamp(label_px / 2.0, (WIDTH - label_px / 2.0).max(label_px / 2.0));
        if middle - label_px / 2.0 >= free_from && label_px < WIDTH {
            canvas.text(middle, frame.top - 5.0, Anchor::Middle, "w", &mark.label);
            free_from = middle + label_px / 2.0 + 8.0;
        }
    }
}

/// Draws line and points of the `i`-th curve.
pub(crate) fn draw_curve(canvas: &mut Canvas, i: usize, curve: &Curve, x: &Projection, y: &Projection) {
    let colour = i % COLOURS;
    let points = thin(&curve.points);
    let placed: Vec<Option<(f64, f64)>> =
        points.iter().map(|(px, py)| Some((x.place(*px)?, y.place(*py)?))).collect();
    if curve.drawn == Drawn::Line {
        let mut d = String::new();
        let mut is_open = false;
        for place in &placed {
            if let Some((px, py)) = place {
                let _ = write!(d, "{}{px:.1} {py:.1}", if is_open { 'L' } else { 'M' });
            }
            is_open = place.is_some();
        }
        canvas.path(&format!("ln s{colour}{}", dash(i)), &d);
    }
    // Draw few points as dots; otherwise a point between two gaps would be invisible.
    let is_few = placed.len() <= 40;
    for (k, place) in placed.iter().enumerate() {
        let alone = |k: Option<usize>| k.and_then(|k| placed.get(k)).is_none_or(Option::is_none);
        let is_single = alone(k.checked_sub(1)) && alone(k.checked_add(1));
        if let Some(at) = place
            && (curve.drawn == Drawn::Points || is_few || is_single)
        {
            // If points are dense, a ring around each would hide its neighbours.
            let (ring, radius) = if placed.len() > 100 { ("", 1.8) } else { (" ring", 3.2) };
            canvas.dot(&format!("f{colour}{ring}"), *at, radius, "");
        }
    }
}

/// Draws names next to the last points, moved apart so that none touch.
fn end_labels(canvas: &mut Canvas, curves: &[Curve], frame: &Frame) {
    let mut ends: Vec<(f64, usize)> = curves
        .iter()
        .enumerate()
        .filter_map(|(i, c)| Some((c.points.iter().rev().find_map(|p| frame.y.place(p.1))?, i)))
        .collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Down from the top first, then up from the bottom.
    let mut least = frame.top;
    for (y, _) in &mut ends {
        *y = y.max(least);
        least = *y + LINE_PX;
    }
    let mut most = frame.bottom;
    for (y, _) in ends.iter_mut().rev() {
        *y = y.min(most);
        most = *y - LINE_PX;
    }
    for (y, i) in ends {
        canvas.swatch(i, Some(curves[i].drawn), frame.right + 4.0, y);
        canvas.text(frame.right + 24.0, y + MIDDLE_PX, Anchor::Start, "", &curves[i].name);
    }
}

/// Draws invisible strips whose tooltips show the values there.
fn strips(canvas: &mut Canvas, chart: &Lines, frame: &Frame, x: &Projection) {
    let mut places: Vec<f64> = chart.curves.iter().flat_map(|c| c.points.iter().map(|p| p.0)).collect();
    places.retain(|p| p.is_finite());
    places.sort_by(f64::total_cmp);
    places.dedup();
    let shown: Vec<f64> =
        intervals(places.len(), STRIPS).into_iter().map(|i| places[(i.start + i.end - 1) / 2]).collect();
    let at: Vec<f64> = shown.iter().filter_map(|p| x.place(*p)).collect();
    if at.len() != shown.len() {
        return;
    }
    for (k, value) in shown.iter().enumerate() {
        let from = if k == 0 { frame.left } else { (at[k - 1] + at[k]) / 2.0 };
        let to = at.get(k + 1).map_or(frame.right, |next| (at[k] + next) / 2.0);
        let mut title = format!("{} {}", chart.x.label, human(*value, chart.x.unit));
        for curve in &chart.curves {
            let after = curve.points.partition_point(|p| p.0 < *value);
            if let Some((_, y)) = curve.points.get(after).filter(|p| p.0 == *value && p.1.is_finite()) {
                let _ = write!(title, "\n{}: {}", curve.name, human(*y, chart.y.unit));
            }
        }
        canvas.rect("hit", (from, frame.top), (to - from, frame.bottom - frame.top), &title);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_peaks_and_order() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        points[4321].1 = 1000.0;
        points[8765].1 = -5.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= POINTS);
        assert!(thinned.contains(&points[4321]) && thinned.contains(&points[8765]));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
    }
}
