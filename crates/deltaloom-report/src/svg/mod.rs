//! Draws figures as SVG: readable in light and dark, without overlapping text, with tooltips but no
//! script.
//!
//! [`super::figure`] says what is drawn; the pictures of a page share one style sheet.

mod axis;
mod bars;
mod canvas;
mod heat;
mod line;
mod panels;
mod scatter;
mod style;
mod text;

pub(crate) use style::sheet;
pub(crate) use text::escape;
pub use text::human;

use super::figure::Figure;
use canvas::{Anchor, Canvas, WIDTH};

fn body(figure: &Figure) -> Canvas {
    let mut canvas = Canvas::default();
    match figure {
        Figure::Lines(chart) => line::draw(&mut canvas, chart),
        Figure::Panels(chart) => panels::draw(&mut canvas, chart),
        Figure::Bars(chart) => bars::draw(&mut canvas, chart),
        Figure::Stacks(chart) => bars::stacks(&mut canvas, chart),
        Figure::HeatMap(chart) => heat::draw(&mut canvas, chart),
        Figure::Zoom(chart) => heat::draw(&mut canvas, &chart.whole),
        Figure::Histogram(chart) => bars::histogram(&mut canvas, chart),
        Figure::Scatter(chart) => scatter::draw(&mut canvas, chart),
    }
    canvas
}

/// Draws a picture for a page that has the style sheet.
pub(crate) fn within_page(figure: &Figure, title: &str) -> String {
    let Canvas { body, height } = body(figure);
    format!(
        "<svg class=\"dl\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">\n{body}</svg>\n",
        escape(title)
    )
}

/// Draws a picture as a separate file, with its title above it.
#[must_use]
pub fn standalone(figure: &Figure, title: &str) -> String {
    const MARGIN: f64 = 16.0;
    const TITLE: f64 = 30.0;
    let Canvas { body, height } = body(figure);
    let (width, height) = (WIDTH + 2.0 * MARGIN, height + TITLE + 2.0 * MARGIN);
    let mut heading = Canvas::default();
    heading.text(MARGIN, MARGIN + 13.0, Anchor::Start, "b", &text::fit(title, WIDTH * 0.9));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"dl\" width=\"{width}\" height=\"{height:.0}\" viewBox=\"0 0 {width} {height:.0}\" role=\"img\" aria-label=\"{}\">\n<style>\n{}</style>\n<rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n{}<g transform=\"translate({MARGIN} {})\">\n{body}</g>\n</svg>\n",
        escape(title),
        sheet(),
        heading.body,
        MARGIN + TITLE,
    )
}
