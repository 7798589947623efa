//! Small panels with a curve each, all over the same axes. Ticks are only at the left, and below
//! the last panel of each column.

use super::axis::{Ends, Projection, Span};
use super::canvas::{Anchor, Canvas, LINE_PX, MIDDLE_PX, WIDTH, x_ticks};
use super::line::draw_curve;
use super::text::width;
use crate::figure::Panels;

const COLUMNS: usize = 3;
const PANEL_PX: f64 = 84.0;
const GAP_PX: f64 = 18.0;

pub(crate) fn draw(canvas: &mut Canvas, chart: &Panels) {
    let curves = &chart.curves;
    let ys = curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.1));
    let xs = curves.iter().flat_map(|curve| curve.points.iter().map(|p| p.0));
    let y_span = Span::of(&chart.y, ys, Ends::Round, 2);
    let left = y_span.ticks.iter().map(|tick| width(&tick.label)).fold(30.0, f64::max) + 10.0;
    let columns = curves.len().clamp(1, COLUMNS);
    let gaps = GAP_PX * (columns - 1) as f64;
    let panel_px = (WIDTH - left - 16.0 - gaps) / columns as f64;
    canvas.text_within(0.0, 13.0, Anchor::Start, &chart.y.label, WIDTH);
    let mut bottom = 0.0;
    let mut labels = Vec::new();
    for (i, curve) in curves.iter().enumerate() {
        let from = left + (panel_px + GAP_PX) * (i % columns) as f64;
        let to = from + panel_px;
        let top = 26.0 + LINE_PX + (PANEL_PX + LINE_PX + 14.0) * (i / columns) as f64;
        bottom = top + PANEL_PX;
        let y = Projection::new(&y_span, bottom, top);
        canvas.text_within(from, top - 6.0, Anchor::Start, &curve.name, panel_px - 8.0);
        for tick in &y_span.ticks {
            let Some(at) = y.place(tick.value) else { continue };
            canvas.line("gr", (from, at), (to, at));
            if i % columns == 0 {
                canvas.text(left - 8.0, at + MIDDLE_PX, Anchor::End, "w", &tick.label);
            }
        }
        canvas.line("ax", (from, bottom), (to, bottom));
        let project = |span: &Span| Projection::new(span, from + 4.0, to - 4.0);
        let (x_span, ticks) = x_ticks(
            |count| Span::of(&chart.x, xs.clone(), Ends::Tight, count.min(4)),
            |span, value| project(span).place(value),
        );
        draw_curve(canvas, i, curve, &project(&x_span), &y);
        if i + columns >= curves.len() {
            labels.extend(ticks);
        }
        // Below the last panel of each column, which is in the last row or the one before.
        if i + 1 == curves.len() || (i + 1) % columns == 0 {
            canvas.x_labels(&std::mem::take(&mut labels), bottom + 18.0);
        }
    }
    canvas.text_within((left + WIDTH) / 2.0, bottom + 36.0, Anchor::Middle, &chart.x.label, WIDTH - left);
    canvas.height = bottom + 42.0;
}
