//! Heat maps: values as colours in rows and columns, with a scale of colours above. Neighbours of
//! one colour in a row are drawn as one.

use super::axis::{Ends, Projection, Span};
use super::bars::averaged_places;
use super::canvas::{Anchor, Canvas, Columns, LINE_PX, MIDDLE_PX, WIDTH, intervals, mean};
use super::style::HEAT;
use super::text::{human, width};
use crate::figure::HeatMap;

const COLUMNS: usize = 200;
const ROWS: usize = 256;
/// Most width for the names of rows.
const NAMES_PX: f64 = 230.0;
/// Up to this many cells have their own tooltips; with more, runs of a colour share one.
const TITLED_CELLS: usize = 3000;

/// CSS class of a value.
fn class(value: Option<f64>, colours: &Projection) -> String {
    let Some(value) = value else { return "hn".to_owned() };
    match colours.place(value) {
        Some(_) if value == 0.0 && colours.zero.is_some() => "hz".to_owned(),
        Some(place) => format!("h{}", colour(place)),
        None => "hn".to_owned(),
    }
}

/// Step of the colour scale at a position between 0 and [`HEAT`].
fn colour(place: f64) -> usize {
    (1..HEAT).take_while(|step| *step as f64 <= place).count()
}

pub(crate) fn draw(canvas: &mut Canvas, map: &HeatMap) {
    let bins = intervals(map.columns.len(), COLUMNS);
    let places = averaged_places(&map.columns, &bins);
    let rows: Vec<(String, Vec<Option<f64>>)> = intervals(map.rows.len(), ROWS)
        .into_iter()
        .map(|range| {
            let cell = |bin: &std::ops::Range<usize>| {
                let cells =
                    map.rows[range.clone()].iter().flat_map(|(_, row)| row.get(bin.clone()).unwrap_or(&[]));
                mean(cells.filter_map(|v| *v))
            };
            let name = match range.len() {
                1 => map.rows[range.start].0.clone(),
                more => format!("{} and {} more", map.rows[range.start].0, more - 1),
            };
            (name, bins.iter().map(cell).collect())
        })
        .collect();
    let values = rows.iter().flat_map(|(_, row)| row.iter().copied().flatten());
    let span = Span::of(&map.value, values, Ends::Tight, 4);
    // On this axis a position is a step of the scale; the lane for zeros is outside.
    let colours = Projection::of_colours(&span, HEAT as f64);
    let has_missing = rows.iter().any(|(_, row)| row.iter().any(Option::is_none));
    scale(canvas, map, &span, has_missing);

    let left = rows.iter().map(|(name, _)| width(name)).fold(30.0, f64::max).min(NAMES_PX) + 10.0;
    let (right, top) = (WIDTH - 16.0, 2.0 * LINE_PX + 14.0);
    // Whole pixels, because fractions would leave lines between some rows.
    let row_px = (320.0 / rows.len().max(1) as f64).round().clamp(6.0, 22.0);
    let columns = Columns::new(&map.x, &places, left, right);
    let every = (1..)
        .find(|n| row_px * f64::from(*n) >= 14.0)
        .and_then(|n: u32| usize::try_from(n).ok())
        .unwrap_or(1);
    let gap = if row_px >= 10.0 { 1.0 } else { 0.0 };
    let is_titled = rows.len().saturating_mul(places.len()) <= TITLED_CELLS;
    for (k, (name, cells)) in rows.iter().enumerate() {
        let y = top + row_px * k as f64;
        if k.is_multiple_of(every) {
            canvas.text_within(left - 8.0, y + row_px / 2.0 + MIDDLE_PX, Anchor::End, name, NAMES_PX);
        }
        let mut from = 0;
        while from < cells.len() {
            let kind = class(cells[from], &colours);
            let same = |cell: &Option<f64>| class(*cell, &colours) == kind;
            let run =
                if is_titled { 1 } else { cells[from..].iter().take_while(|cell| same(cell)).count().max(1) };
            let x = columns.left + columns.column_px * from as f64;
            let average = mean(cells[from..from + run].iter().filter_map(|v| *v));
            let value = average.map_or("no value".to_owned(), |v| human(v, map.value.unit));
            let first = human(places[from], map.x.unit);
            let title = match run {
                1 => format!("{name}\n{} {first}: {value}", map.x.label),
                _ => format!(
                    "{name}\n{} {first} to {}: {value}",
                    map.x.label,
                    human(places[from + run - 1], map.x.unit)
                ),
            };
            // Slightly wider than its column, so that no background shows between neighbours.
            canvas.rect(&kind, (x, y), (columns.column_px * run as f64 + 0.3, row_px - gap), &title);
            from += run;
        }
    }
    canvas.x_axis(&map.x, &columns.ticks, (left, right), top + row_px * rows.len() as f64 + 2.0, None);
}

/// Draws the legend of the colours.
fn scale(canvas: &mut Canvas, map: &HeatMap, span: &Span, has_missing: bool) {
    let unit = map.value.unit;
    canvas.text_within(0.0, 13.0, Anchor::Start, &map.value.label, WIDTH);
    let (top, middle) = (LINE_PX + 4.0, LINE_PX * 1.5 + 4.0);
    let mut x = 0.0;
    let write = |canvas: &mut Canvas, x: &mut f64, text: &str| {
        canvas.text(*x, middle + MIDDLE_PX, Anchor::Start, "w", text);
        *x += width(text);
    };
    if span.has_zero_lane {
        canvas.rect("hz", (x, top + 2.0), (13.0, 13.0), "");
        x += 18.0;
        write(canvas, &mut x, &human(0.0, unit));
        x += 22.0;
    }
    write(canvas, &mut x, &human(span.low, unit));
    x += 8.0;
    for i in 0..HEAT {
        canvas.rect(&format!("h{i}"), (x, top + 2.0), (13.3, 13.0), "");
        x += 13.0;
    }
    x += 8.0;
    write(canvas, &mut x, &human(span.high, unit));
    if has_missing {
        x += 22.0;
        canvas.rect("hn", (x + 0.5, top + 2.5), (12.0, 12.0), "");
        x += 18.0;
        write(canvas, &mut x, "no value");
    }
}
