//! Writes the elements of a picture, and the parts that several kinds of pictures share: legend,
//! frame with ticks, rows of labels.
//!
//! Each kind decides where things go.

use std::fmt::Write as _;

use super::axis::{Ends, Projection, Span, Tick};
use super::style::COLOURS;
use super::text::{escape, fit, human, width};
use crate::figure::{Axis, Drawn, Unit};

/// Width of every picture, in pixels; pages scale it.
pub(crate) const WIDTH: f64 = 760.0;
/// Distance between two lines of text.
pub(crate) const LINE_PX: f64 = 17.0;
/// Distance from the middle of a line of text down to its baseline.
pub(crate) const MIDDLE_PX: f64 = 4.2;

/// Which side of a text is at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that is being written.
#[derive(Debug, Default)]
pub(crate) struct Canvas {
    pub(crate) body: String,
    pub(crate) height: f64,
}

/// A coordinate to a tenth of a pixel.
fn px(x: f64) -> f64 {
    let x = (x * 10.0).round() / 10.0;
    if x.is_finite() && x != 0.0 { x } else { 0.0 }
}

/// Class of the dash for the `i`-th of several things: it distinguishes those with the same colour.
pub(crate) fn dash(i: usize) -> &'static str {
    ["", " d1", " d2"].get(i / COLOURS).copied().unwrap_or(" d2")
}

impl Canvas {
    pub(crate) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = writeln!(
            self.body,
            "<text x=\"{}\" y=\"{}\"{anchor}{class}>{}</text>",
            px(x),
            px(y),
            escape(text)
        );
    }

    /// Writes a text that is cut to fit, with the whole text as tooltip.
    pub(crate) fn text_within(&mut self, x: f64, y: f64, anchor: Anchor, text: &str, max: f64) {
        let short = fit(text, max);
        if short == text {
            return self.text(x, y, anchor, "", text);
        }
        let _ = write!(self.body, "<g><title>{}</title>", escape(text));
        self.text(x, y, anchor, "", &short);
        self.body.push_str("</g>\n");
    }

    pub(crate) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let (x1, y1, x2, y2) = (px(from.0), px(from.1), px(to.0), px(to.1));
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"M{x1} {y1}L{x2} {y2}\"/>");
    }

    pub(crate) fn path(&mut self, class: &str, d: &str) {
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{d}\"/>");
    }

    /// Draws a rectangle from its corner and extent, with an optional tooltip.
    pub(crate) fn rect(&mut self, class: &str, corner: (f64, f64), extent: (f64, f64), title: &str) {
        let (x, y, w, h) = (px(corner.0), px(corner.1), px(extent.0.max(0.0)), px(extent.1.max(0.0)));
        let _ = write!(self.body, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\"");
        self.end("rect", title);
    }

    pub(crate) fn dot(&mut self, class: &str, at: (f64, f64), radius: f64, title: &str) {
        let _ = write!(
            self.body,
            "<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{radius}\"",
            px(at.0),
            px(at.1)
        );
        self.end("circle", title);
    }

    fn end(&mut self, element: &str, title: &str) {
        let _ = if title.is_empty() {
            writeln!(self.body, "/>")
        } else {
            writeln!(self.body, "><title>{}</title></{element}>", escape(title))
        };
    }

    /// Draws the sign of the `i`-th thing in a legend, 14 pixels wide and centred on a height.
    pub(crate) fn swatch(&mut self, i: usize, drawn: Option<Drawn>, x: f64, y: f64) {
        let colour = i % COLOURS;
        match drawn {
            Some(Drawn::Line) => self.line(&format!("ln s{colour}{}", dash(i)), (x, y), (x + 14.0, y)),
            Some(Drawn::Points) => self.dot(&format!("f{colour}"), (x + 7.0, y), 3.4, ""),
            None => self.rect(&format!("f{colour}"), (x + 2.0, y - 5.0), (10.0, 10.0), ""),
        }
    }

    /// Draws a legend in rows from `(left, top)` on. Returns its height.
    pub(crate) fn legend(&mut self, entries: &[(Option<Drawn>, &str)], left: f64, top: f64) -> f64 {
        let room = WIDTH - left;
        let (mut x, mut y) = (left, top);
        for (i, (drawn, name)) in entries.iter().enumerate() {
            let name_px = width(name).min(room - 36.0);
            if x > left && x + 20.0 + name_px > WIDTH {
                (x, y) = (left, y + LINE_PX);
            }
            self.swatch(i, *drawn, x, y + LINE_PX / 2.0);
            self.text_within(x + 20.0, y + LINE_PX / 2.0 + MIDDLE_PX, Anchor::Start, name, room - 36.0);
            x += 20.0 + name_px + 18.0;
        }
        if entries.is_empty() { 0.0 } else { y + LINE_PX - top }
    }

    /// Draws tick labels below `y`, without overlaps and within the picture. Labels too close to
    /// their neighbour are omitted.
    pub(crate) fn x_labels(&mut self, ticks: &[(f64, String)], y: f64) {
        for (x, label) in spread(ticks) {
            self.text(x, y, Anchor::Middle, "w", &label);
        }
    }

    /// Draws axis, ticks and label of a horizontal axis at height `y`, with grid lines up to `top`.
    pub(crate) fn x_axis(
        &mut self,
        axis: &Axis,
        ticks: &[(f64, String)],
        ends: (f64, f64),
        y: f64,
        grid_top: Option<f64>,
    ) {
        for (x, _) in ticks {
            match grid_top {
                Some(top) => self.line("gr", (*x, top), (*x, y)),
                None => self.line("ax", (*x, y), (*x, y + 4.0)),
            }
        }
        self.line("ax", (ends.0, y), (ends.1, y));
        self.x_labels(ticks, y + 18.0);
        self.text_within((ends.0 + ends.1) / 2.0, y + 36.0, Anchor::Middle, &axis.label, ends.1 - ends.0);
        self.height = y + 42.0;
    }
}

/// Moves the centres of labels into the picture, without those that would touch the one before.
fn spread(ticks: &[(f64, String)]) -> Vec<(f64, String)> {
    let mut out = Vec::new();
    let mut end = f64::NEG_INFINITY;
    for (x, label) in ticks {
        let half = width(label) / 2.0;
        let x = x.clamp(half, (WIDTH - half).max(half));
        if x - half >= end + 8.0 {
            end = x + half;
            out.push((x, label.clone()));
        }
    }
    out
}

/// As many ticks of a horizontal span as fit, with their positions.
pub(crate) fn x_ticks(
    span: impl Fn(usize) -> Span,
    place: impl Fn(&Span, f64) -> Option<f64>,
) -> (Span, Vec<(f64, String)>) {
    let placed = |span: &Span| -> Vec<(f64, String)> {
        let zero = span.has_zero_lane.then(|| Tick { value: 0.0, label: "0".to_owned() });
        let ticks = zero.iter().chain(&span.ticks);
        ticks.filter_map(|tick| Some((place(span, tick.value)?, tick.label.clone()))).collect()
    };
    for count in (3..=9).rev() {
        let span = span(count);
        let ticks = placed(&span);
        if spread(&ticks).len() == ticks.len() {
            return (span, ticks);
        }
    }
    let span = span(2);
    let ticks = placed(&span);
    let kept = spread(&ticks);
    let ticks = ticks.into_iter().filter(|(_, label)| kept.iter().any(|(_, l)| l == label)).collect();
    (span, ticks)
}

/// The area of a chart with two axes.
pub(crate) struct Frame {
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
    pub(crate) y: Projection,
}

impl Frame {
    /// Draws the vertical axis with grid lines and its label above. `above` draws between label and
    /// area, and returns its height.
    pub(crate) fn new(
        canvas: &mut Canvas,
        axis: &Axis,
        span: &Span,
        right_px: f64,
        plot_px: f64,
        above: impl FnOnce(&mut Canvas, f64) -> f64,
    ) -> Self {
        let zero = span.has_zero_lane.then(|| Tick { value: 0.0, label: human(0.0, Unit::Number) });
        let ticks: Vec<&Tick> = zero.iter().chain(&span.ticks).collect();
        let left = ticks.iter().map(|tick| width(&tick.label)).fold(30.0, f64::max) + 10.0;
        canvas.text_within(0.0, 13.0, Anchor::Start, &axis.label, WIDTH);
        let top = 30.0 + above(canvas, 20.0);
        let (right, bottom) = (WIDTH - right_px, top + plot_px);
        let y = Projection::new(span, bottom, top);
        for tick in ticks {
            let Some(at) = y.place(tick.value) else { continue };
            canvas.line("gr", (left, at), (right, at));
            canvas.text(left - 8.0, at + MIDDLE_PX, Anchor::End, "w", &tick.label);
        }
        Self { left, right, top, bottom, y }
    }
}

/// Columns side by side between two positions, with ticks at round values.
pub(crate) struct Columns {
    pub(crate) left: f64,
    pub(crate) column_px: f64,
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Columns {
    /// `places`, in increasing order, are the values of the columns.
    pub(crate) fn new(axis: &Axis, places: &[f64], left: f64, right: f64) -> Self {
        // A few columns should not fill the whole width.
        let column_px = ((right - left) / places.len().max(1) as f64).min(80.0);
        let middle = |i: usize| left + (i as f64 + 0.5) * column_px;
        let place = |value: f64| -> Option<f64> {
            let after = places.partition_point(|p| *p < value);
            let here = *places.get(after)?;
            let Some(before) = after.checked_sub(1).filter(|_| here > value) else {
                return (here == value).then(|| middle(after));
            };
            let share = (value - places[before]) / (here - places[before]);
            Some(middle(before) + share * column_px)
        };
        let (_, ticks) = match places {
            [only] => (None, vec![(middle(0), human(*only, axis.unit))]),
            _ => {
                let of = |count| Span::of(axis, places.iter().copied(), Ends::Tight, count);
                let (span, ticks) = x_ticks(of, |_, value| place(value));
                (Some(span), ticks)
            }
        };
        Self { left, column_px, ticks }
    }
}

/// How more than `most` values are averaged: the intervals of their indices.
pub(crate) fn intervals(count: usize, most: usize) -> Vec<std::ops::Range<usize>> {
    let kept = count.min(most);
    (0..kept).map(|i| i * count / kept..(i + 1) * count / kept).collect()
}

/// Mean of the finite values.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.filter(|v| v.is_finite()).fold((0.0, 0u32), |(s, n), v| (s + v, n + 1));
    (count > 0).then(|| sum / f64::from(count))
}
