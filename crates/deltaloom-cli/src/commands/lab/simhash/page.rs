//! The page of `deltaloom lab simhash`, and its numbers as tables.
//! Everything shown is from the report.

use std::path::PathBuf;

use deltaloom_lab::simhash::IndexReport;
use deltaloom_lab::simhash::measure::{Kind, MethodReport, SimHashReport};
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Cell, Curve, Drawn, Figure, Lines, Page, Point, Scatter, Section, Table,
    Unit,
};

/// Every row with all its numbers.
pub(super) fn table(report: &SimHashReport) -> Table {
    let mut table = Table::new(&[
        "method",
        "kind",
        "bits_per_weight",
        "read_bits_per_weight",
        "nmse",
        "predicted_nmse",
        "output_nmse",
        "seconds",
        "hash_seconds",
        "time_ratio",
        "on_frontier",
        "rival",
        "error_over_rival",
    ]);
    let number = |value| Cell::Value(value, Unit::Number);
    table.rows.extend(report.methods.iter().map(|row| {
        vec![
            Cell::text(&*row.method),
            Cell::text(row.kind.words()),
            number(row.bits_per_weight),
            number(row.read_bits_per_weight),
            Cell::maybe(row.nmse, Unit::Number),
            Cell::maybe(row.predicted_nmse, Unit::Number),
            Cell::maybe(row.output_nmse, Unit::Number),
            Cell::maybe(row.seconds, Unit::Seconds),
            Cell::maybe(row.hash_seconds, Unit::Seconds),
            Cell::maybe(row.time_ratio, Unit::Ratio),
            Cell::text(if row.on_frontier { "yes" } else { "no" }),
            row.rival.as_ref().map_or(Cell::Empty, Cell::text),
            Cell::maybe(row.error_over_rival, Unit::Ratio),
        ]
    }));
    table
}

/// Every pair of an index.
pub(super) fn pairs(report: &IndexReport, names: &[PathBuf]) -> Table {
    let mut table = Table::new(&[
        "first_checkpoint",
        "first_tensor",
        "second_checkpoint",
        "second_tensor",
        "distance",
        "similarity",
        "sample_cosine",
        "exact",
    ]);
    let name = |i: usize| names.get(i).map_or(Cell::Empty, |path| Cell::text(path.display().to_string()));
    table.rows.extend(report.pairs.iter().map(|pair| {
        vec![
            name(pair.first_checkpoint),
            Cell::text(&*pair.first_tensor),
            name(pair.second_checkpoint),
            Cell::text(&*pair.second_tensor),
            Cell::Value(pair.distance.into(), Unit::Count),
            Cell::Value(pair.similarity, Unit::Number),
            Cell::maybe(pair.sample_cosine, Unit::Number),
            Cell::text(if pair.exact { "yes" } else { "no" }),
        ]
    }));
    table
}

pub(super) fn page(source: &str, it: &SimHashReport) -> Page {
    let verdicts = it.verdicts.join("\n\n");
    Page {
        title: format!("EXPERIMENT: hash-based products of {source}"),
        subtitle: format!(
            "Matrix of {} x {}, estimated on {}, {} tokens of random normal activations, seed {}. Everything but the exact product and the packed weights is LOSSY. Made by `deltaloom lab simhash`.",
            it.rows, it.cols, it.on, it.tokens, it.seed
        ),
        sections: vec![
            Section { heading: "Verdicts of this run".into(), text: verdicts, ..Section::default() },
            Section {
                heading: "Error against size".into(),
                text: "Lower and further left is better. Bits of a weight include signatures, norms, scales and, for exact columns, the weights themselves. Exact products show the rounding of single precision.".into(),
                figure: Some(frontier(it)),
                table: Some(table(it)),
            },
            Section {
                heading: "Measured and predicted error".into(),
                text: "The law is NMSE = 2.47 d / b for d dimensions and b bits, times what exact columns leave of the activations; samples have the variance of their draws. Short pieces are often far from a right angle, where signatures err less than it says.".into(),
                figure: Some(law(it)),
                table: None,
            },
            Section {
                heading: "Time of a product".into(),
                text: format!("Median processor time of one thread for all tokens, {}; hashing the activations is a part of it.", it.isa),
                figure: Some(times(it)),
                table: None,
            },
        ],
    }
}

fn frontier(report: &SimHashReport) -> Figure {
    let mut groups: Vec<(String, Vec<Point>)> = Vec::new();
    for row in &report.methods {
        let Some(y) = row.nmse else { continue };
        let point = Point { label: row.method.clone(), x: row.bits_per_weight, y };
        match groups.iter_mut().find(|(name, _)| name == row.kind.words()) {
            Some((_, points)) => points.push(point),
            None => groups.push((row.kind.words().to_owned(), vec![point])),
        }
    }
    let (x, y) = (Axis::linear("bits per weight", Unit::Number), Axis::log("NMSE", Unit::Number));
    Figure::Scatter(Scatter { x, y, groups })
}

fn law(report: &SimHashReport) -> Figure {
    let pairs = |kinds: &[Kind]| -> Vec<(f64, f64)> {
        let rows = report.methods.iter().filter(|row| kinds.contains(&row.kind));
        let mut pairs: Vec<_> = rows.filter_map(|row| Some((row.predicted_nmse?, row.nmse?))).collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        pairs
    };
    let points = |name: &str, kinds: &[Kind]| Curve {
        name: name.to_owned(),
        points: pairs(kinds),
        drawn: Drawn::Points,
    };
    let all = pairs(&[Kind::Simhash, Kind::SimhashTop, Kind::Sample]);
    let line = all.first().into_iter().chain(all.last()).map(|(x, _)| (*x, *x)).collect();
    let curves = vec![
        Curve { name: "as predicted".to_owned(), points: line, drawn: Drawn::Line },
        points(Kind::Simhash.words(), &[Kind::Simhash]),
        points(Kind::SimhashTop.words(), &[Kind::SimhashTop]),
        points(Kind::Sample.words(), &[Kind::Sample]),
    ];
    let (x, y) = (Axis::log("predicted NMSE", Unit::Number), Axis::log("measured NMSE", Unit::Number));
    let curves = curves.into_iter().filter(|curve| !curve.points.is_empty()).collect();
    Figure::Lines(Lines { x, y, curves, marks: Vec::new() })
}

fn times(report: &SimHashReport) -> Figure {
    let bar = |row: &MethodReport| {
        let hash = row.hash_seconds.unwrap_or(0.0);
        let rest = (row.seconds? - hash).max(0.0);
        Some(Bar { name: row.method.clone(), values: vec![rest, hash] })
    };
    Figure::Bars(Bars {
        axis: Axis::linear("time of a product", Unit::Seconds),
        parts: vec!["product".to_owned(), "hashing activations".to_owned()],
        bars: report.methods.iter().filter_map(bar).collect(),
        arrangement: Arrangement::Stacked,
    })
}
