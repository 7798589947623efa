//! The page of `deltaloom lab matmul`: goals, sizes, bars of time for each number of tokens, and
//! time against tokens.

use deltaloom_lab::matmul::{MatmulReport, ProductReport};
use deltaloom_report::{Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, Lines, Page, Section, Unit};

use super::table;
use crate::pages::table as on_page;

pub(super) fn page(report: &MatmulReport) -> Page {
    let goals = Section {
        heading: "Goals".into(),
        text: "Computed from the numbers of this run.".into(),
        figure: None,
        table: Some(on_page(&table::goals(report))),
    };
    let mut sections = vec![goals, sizes(report)];
    sections.extend(table::groups(report).into_iter().map(|group| times(report, group)));
    for mode in ["fast", "exact"] {
        sections.extend(against_tokens(report, mode));
    }
    let verdict = if report.verified { "Every product was right." } else { "A product was WRONG." };
    Page {
        title: format!("Products with {} [{}, {}]", report.tensor, report.rows, report.cols),
        subtitle: format!("{}. {}. {verdict}", report.source, table::conditions(report)),
        sections,
    }
}

fn sizes(report: &MatmulReport) -> Section {
    let bar = |(name, bytes): (&str, u64)| Bar { name: name.to_owned(), values: vec![bytes as f64] };
    let sizes = report.ways.iter().filter_map(|way| Some((way.way, way.resident_bytes?)));
    Section {
        heading: "Resident bytes".into(),
        text: "Memory of the matrix in each form, on top of the base.".into(),
        figure: Some(Figure::Bars(Bars {
            axis: Axis::linear("resident bytes", Unit::Bytes),
            parts: vec!["resident bytes".into()],
            bars: sizes.map(bar).collect(),
            arrangement: Arrangement::Stacked,
        })),
        table: Some(on_page(&table::sizes(report))),
    }
}

/// Phases of each form, scaled to its median.
fn times(report: &MatmulReport, group: (&str, usize)) -> Section {
    let (heading, rows) = table::group(report, group);
    let parts = ["load", "decode", "patch", "multiply", "finish", "other"];
    let bar = |row: &&ProductReport| {
        let phases = &row.phases;
        let phases = [phases.load, phases.decode, phases.patch, phases.multiply, phases.finish];
        // Runs that time their phases are a little slower.
        let scale = (row.median_seconds / phases.iter().sum::<f64>()).min(1.0);
        let mut values: Vec<f64> = phases.iter().map(|seconds| seconds * scale).collect();
        values.push((row.median_seconds - values.iter().sum::<f64>()).max(0.0));
        Bar { name: row.way.to_owned(), values }
    };
    Section {
        heading,
        text: "Median time of a product, divided into phases. Phases were timed in the fastest of a few \
               separate runs, because timing them slows a run down."
            .into(),
        figure: Some(Figure::Bars(Bars {
            axis: Axis::linear("time of a product", Unit::Seconds),
            parts: parts.map(str::to_owned).to_vec(),
            bars: rows.iter().map(bar).collect(),
            arrangement: Arrangement::Stacked,
        })),
        table: Some(on_page(&table::products(report, &rows))),
    }
}

/// Time against tokens, if several numbers of them were measured.
fn against_tokens(report: &MatmulReport, mode: &str) -> Option<Section> {
    let curve = |way: &str| {
        let rows = report.products.iter().filter(|row| row.way == way && row.mode == mode);
        let point = |row: &ProductReport| (row.tokens as f64, row.median_seconds / row.tokens as f64);
        let mut points: Vec<_> = rows.map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name: way.to_owned(), points, drawn: Drawn::Line }
    };
    let curves = report.ways.iter().map(|way| curve(way.way));
    let curves: Vec<_> = curves.filter(|curve| curve.points.len() > 1).collect();
    if curves.is_empty() {
        return None;
    }
    Some(Section {
        heading: format!("Time for a token against tokens, {mode}"),
        text: "Work done once for all tokens, such as decoding rows, costs less per token the more tokens \
               there are."
            .into(),
        figure: Some(Figure::Lines(Lines {
            x: Axis::log("tokens", Unit::Count),
            y: Axis::log("time for a token", Unit::Seconds),
            curves,
            marks: Vec::new(),
        })),
        table: None,
    })
}
