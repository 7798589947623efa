//! The page of `deltaloom lab matmul`: bars of time for each number of tokens, sizes, time against tokens, goals.
//! All numbers are those of the report.

use deltaloom_lab::matmul::{MatmulReport, ProductReport};
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Cell, Curve, Drawn, Figure, Lines, Page, Section, Table, Unit,
};

/// The page.
pub(super) fn page(report: &MatmulReport) -> Page {
    let mut sections = vec![goals(report), sizes(report)];
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for row in &report.products {
        if !groups.contains(&(row.mode, row.tokens)) {
            groups.push((row.mode, row.tokens));
        }
    }
    sections.extend(groups.iter().map(|(mode, tokens)| times(report, mode, *tokens)));
    for mode in ["fast", "bit-exact"] {
        sections.extend(against_tokens(report, mode));
    }
    sections.push(Section {
        heading: "All products".into(),
        text: "Phases are those of the fastest of a few runs of their own, since noting the time costs some."
            .into(),
        figure: None,
        table: Some(products(report)),
    });
    Page {
        title: format!("Products with {} [{}, {}]", report.tensor, report.rows, report.cols),
        subtitle: format!(
            "{}. {} weights, {:.2} % of which differ from the base. {}, {} threads; medians of {} rounds in which all ways take turns. Copying the matrix runs at {:.1} GB/s. {}",
            report.source,
            report.dtype,
            100.0 * report.changed_fraction,
            report.isa,
            report.threads,
            report.rounds,
            report.memcpy_bytes_per_second / 1e9,
            if report.verified { "Every product was right." } else { "A product was WRONG." },
        ),
        sections,
    }
}

/// All products as a table.
pub(super) fn products(report: &MatmulReport) -> Table {
    let mut table = Table::new(&[
        "way",
        "mode",
        "tokens",
        "median_seconds",
        "times_raw",
        "resident_bytes",
        "resident_fraction",
        "weight_bytes_per_second",
        "flops_per_second",
        "load_seconds",
        "decode_seconds",
        "patch_seconds",
        "multiply_seconds",
        "finish_seconds",
        "error",
        "verified",
    ]);
    table.rows = report
        .products
        .iter()
        .map(|row| {
            let way = report.ways.iter().find(|way| way.way == row.way);
            let resident_bytes = way.and_then(|way| way.resident_bytes).map(whole);
            let phases = &row.phases;
            vec![
                Cell::text(row.way),
                Cell::text(row.mode),
                Cell::Value(whole(row.tokens as u64), Unit::Count),
                Cell::Value(row.median_seconds, Unit::Seconds),
                Cell::maybe(row.times_raw, Unit::Ratio),
                Cell::maybe(resident_bytes, Unit::Bytes),
                Cell::maybe(way.and_then(|way| way.resident_fraction), Unit::Percent),
                Cell::Value(row.weight_bytes_per_second, Unit::Bytes),
                Cell::Value(row.flops_per_second, Unit::Number),
                Cell::Value(phases.load, Unit::Seconds),
                Cell::Value(phases.decode, Unit::Seconds),
                Cell::Value(phases.patch, Unit::Seconds),
                Cell::Value(phases.multiply, Unit::Seconds),
                Cell::Value(phases.finish, Unit::Seconds),
                Cell::Value(row.error, Unit::Number),
                Cell::text(if row.verified { "yes" } else { "NO" }),
            ]
        })
        .collect();
    table
}

fn goals(report: &MatmulReport) -> Section {
    let mut table = Table::new(&["goal", "measured", "limit", "verdict", "set for"]);
    table.rows = report
        .goals
        .iter()
        .map(|goal| {
            let sign = if goal.is_minimum { "at least" } else { "at most" };
            vec![
                Cell::text(&*goal.measures),
                Cell::Value(goal.measured, Unit::Ratio),
                Cell::text(format!("{sign} {}", goal.limit)),
                Cell::text(if goal.reached { "reached" } else { "missed" }),
                Cell::text(if goal.is_about_this_matrix { "such a matrix" } else { "another matrix" }),
            ]
        })
        .collect();
    let text = "Computed from the numbers of this run.".to_owned();
    Section { heading: "Goals".into(), text, figure: None, table: Some(table) }
}

fn sizes(report: &MatmulReport) -> Section {
    let sizes: Vec<_> =
        report.ways.iter().filter_map(|way| Some((way, whole(way.resident_bytes?)))).collect();
    let bars =
        sizes.iter().map(|(way, bytes)| Bar { name: way.way.to_owned(), values: vec![*bytes] }).collect();
    let mut table = Table::new(&["form", "group", "resident bytes", "share of the matrix"]);
    table.rows = sizes
        .iter()
        .map(|(way, bytes)| {
            vec![
                Cell::text(way.way),
                Cell::text(way.group),
                Cell::Value(*bytes, Unit::Bytes),
                Cell::maybe(way.resident_fraction, Unit::Percent),
            ]
        })
        .collect();
    let missing =
        report.ways.iter().filter_map(|way| Some(format!(" {}: {}.", way.way, way.missing.as_ref()?)));
    Section {
        heading: "Resident bytes".into(),
        text: format!("What a form takes of memory, the base not counted.{}", missing.collect::<String>()),
        figure: Some(Figure::Bars(Bars {
            axis: Axis::linear("resident bytes", Unit::Bytes),
            parts: vec!["resident bytes".into()],
            bars,
            arrangement: Arrangement::Stacked,
        })),
        table: Some(table),
    }
}

/// Phases of each way, scaled to its median.
fn times(report: &MatmulReport, mode: &str, tokens: usize) -> Section {
    let rows: Vec<&ProductReport> =
        report.products.iter().filter(|row| (row.mode, row.tokens) == (mode, tokens)).collect();
    let parts = ["load", "decode", "patch", "multiply", "finish", "other"];
    let bars = rows.iter().map(|row| {
        let phases = &row.phases;
        let phases = [phases.load, phases.decode, phases.patch, phases.multiply, phases.finish];
        // Runs in which phases are noted are a little slower.
        let scale = (row.median_seconds / phases.iter().sum::<f64>()).min(1.0);
        let mut values: Vec<f64> = phases.iter().map(|seconds| seconds * scale).collect();
        values.push((row.median_seconds - values.iter().sum::<f64>()).max(0.0));
        Bar { name: row.way.to_owned(), values }
    });
    let mut table = Table::new(&["way", "median", "times raw", "weights per second", "error"]);
    table.rows = rows
        .iter()
        .map(|row| {
            vec![
                Cell::text(row.way),
                Cell::Value(row.median_seconds, Unit::Seconds),
                Cell::maybe(row.times_raw, Unit::Ratio),
                Cell::Value(row.weight_bytes_per_second, Unit::Bytes),
                Cell::Value(row.error, Unit::Number),
            ]
        })
        .collect();
    let heading = format!("{tokens} token{}, {mode}", if tokens == 1 { "" } else { "s" });
    Section {
        heading,
        text: "Median time of a product, divided as its phases are.".into(),
        figure: Some(Figure::Bars(Bars {
            axis: Axis::linear("time of a product", Unit::Seconds),
            parts: parts.map(str::to_owned).to_vec(),
            bars: bars.collect(),
            arrangement: Arrangement::Stacked,
        })),
        table: Some(table),
    }
}

/// Time against tokens, where there are several numbers of them.
fn against_tokens(report: &MatmulReport, mode: &str) -> Option<Section> {
    let curve = |way: &str| {
        let rows = report.products.iter().filter(|row| row.way == way && row.mode == mode);
        let mut points: Vec<_> = rows
            .map(|row| (whole(row.tokens as u64), row.median_seconds / whole(row.tokens as u64)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name: way.to_owned(), points, drawn: Drawn::Line }
    };
    let curves: Vec<_> = report.ways.iter().map(|way| curve(way.way)).collect();
    let curves: Vec<_> = curves.into_iter().filter(|curve| curve.points.len() > 1).collect();
    if curves.is_empty() {
        return None;
    }
    Some(Section {
        heading: format!("Time for a token against tokens, {mode}"),
        text: "What is made once for all tokens, such as decoded rows, costs each of them less the more there are.".into(),
        figure: Some(Figure::Lines(Lines {
            x: Axis::log("tokens", Unit::Count),
            y: Axis::log("time for a token", Unit::Seconds),
            curves,
            marks: Vec::new(),
        })),
        table: None,
    })
}

fn whole(count: u64) -> f64 {
    count as f64
}
