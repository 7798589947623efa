//! The page of `deltaloom lab simhash`. Every number is the report's.

use deltaloom_lab::simhash::measure::{Kind, MethodReport, SimHashReport};
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, Lines, Page, Point, Scatter, Section, Unit,
};

use super::table::methods;
use crate::pages::table;

pub(super) fn page(source: &str, it: &SimHashReport) -> Page {
    let verdicts = it.verdicts.join("\n\n");
    Page {
        title: format!("EXPERIMENT: hash-based products of {source}"),
        subtitle: format!(
            "A matrix of {} x {}, estimated on {}, with {} tokens of random normal activations, seed {}. Everything except the exact product and the packed weights is LOSSY. `deltaloom lab simhash` made this page.",
            it.rows, it.cols, it.on, it.tokens, it.seed
        ),
        sections: vec![
            Section { heading: "Verdicts of this run".into(), text: verdicts, ..Section::default() },
            Section {
                heading: "Error against size".into(),
                text: "Lower and further left is better. Bits per weight include signatures, norms, scales and, for exact columns, the weights themselves. The error of exact products is the rounding of single precision.".into(),
                figure: Some(frontier(it)),
                table: Some(table(&methods(it))),
            },
            Section {
                heading: "Measured and predicted error".into(),
                text: "The law is NMSE = 2.47 d / b for d dimensions and b bits, times the part of the activations that exact columns leave; samples have the variance of their draws. Short pieces are often far from a right angle, where signatures have a smaller error than the law predicts.".into(),
                figure: Some(law(it)),
                table: None,
            },
            Section {
                heading: "Time of a product".into(),
                text: format!("Median processor time on one thread for all tokens, {}. It includes hashing the activations.", it.isa),
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
