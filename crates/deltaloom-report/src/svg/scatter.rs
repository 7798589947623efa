//! Named points over two axes. A name is written where it touches nothing, or else is only a
//! tooltip.

use super::axis::{Ends, Projection, Span};
use super::canvas::{Anchor, Canvas, Frame, MIDDLE_PX, WIDTH, x_ticks};
use super::style::COLOURS;
use super::text::{FONT_PX, human, width};
use crate::figure::Scatter;

const RADIUS_PX: f64 = 4.2;

/// Left, top, right and bottom.
type Area = [f64; 4];

fn touch(a: &Area, b: &Area) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

pub(crate) fn draw(canvas: &mut Canvas, chart: &Scatter) {
    let points = chart.groups.iter().flat_map(|(_, points)| points);
    let y_span = Span::of(&chart.y, points.clone().map(|p| p.y), Ends::Round, 5);
    let frame = Frame::new(canvas, &chart.y, &y_span, 20.0, 320.0, |canvas, top| {
        let entries: Vec<_> = chart
            .groups
            .iter()
            .map(|(name, _)| (Some(crate::figure::Drawn::Points), name.as_str()))
            .collect();
        if entries.len() > 1 { canvas.legend(&entries, 0.0, top) } else { 0.0 }
    });
    let project = |span: &Span| Projection::new(span, frame.left, frame.right);
    let (x_span, ticks) = x_ticks(
        |count| Span::of(&chart.x, points.clone().map(|p| p.x), Ends::Round, count),
        |span, value| project(span).place(value),
    );
    let x = project(&x_span);
    canvas.x_axis(&chart.x, &ticks, (frame.left, frame.right), frame.bottom, Some(frame.top));

    let placed: Vec<_> = chart
        .groups
        .iter()
        .enumerate()
        .flat_map(|(i, (name, points))| points.iter().map(move |point| (i, name, point)))
        .filter_map(|(i, name, point)| Some((i, name, point, (x.place(point.x)?, frame.y.place(point.y)?))))
        .collect();
    let around = |at: (f64, f64), r: f64| [at.0 - r, at.1 - r, at.0 + r, at.1 + r];
    let mut taken: Vec<Area> = placed.iter().map(|(_, _, _, at)| around(*at, RADIUS_PX)).collect();
    for (i, name, point, at) in &placed {
        let title = format!(
            "{} ({name})\n{}: {}\n{}: {}",
            point.label,
            chart.x.label,
            human(point.x, chart.x.unit),
            chart.y.label,
            human(point.y, chart.y.unit)
        );
        canvas.dot(&format!("f{} ring", i % COLOURS), *at, RADIUS_PX, &title);
    }
    // Next to and above the area there is room too, up to the legend.
    let limits = [frame.left, frame.top - 9.0, WIDTH, frame.bottom];
    for (_, _, point, at) in placed.iter().filter(|(_, _, point, _)| !point.label.is_empty()) {
        let label_px = width(&point.label);
        // To the side, above, below, and then diagonally.
        let offsets = [
            (8.0, 0.0),
            (-8.0, 0.0),
            (0.0, -12.0),
            (0.0, 13.0),
            (7.0, -11.0),
            (-7.0, -11.0),
            (7.0, 12.0),
            (-7.0, 12.0),
        ];
        let free = offsets.into_iter().find_map(|(dx, dy)| {
            let (anchor, left) = match dx {
                0.0 => (Anchor::Middle, at.0 - label_px / 2.0),
                right if right > 0.0 => (Anchor::Start, at.0 + dx),
                _ => (Anchor::End, at.0 + dx - label_px),
            };
            let middle = at.1 + dy;
            let area = [left, middle - FONT_PX * 0.7, left + label_px, middle + FONT_PX * 0.7];
            let is_inside =
                area[0] >= limits[0] && area[1] >= limits[1] && area[2] <= limits[2] && area[3] <= limits[3];
            (is_inside && !taken.iter().any(|other| touch(&area, other))).then_some((
                area,
                anchor,
                at.0 + dx,
                middle,
            ))
        });
        if let Some((area, anchor, left, middle)) = free {
            taken.push(area);
            canvas.text(left, middle + MIDDLE_PX, anchor, "", &point.label);
        }
    }
}
