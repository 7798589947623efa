//! The page of `deltaloom lab tenants`.

use deltaloom_lab::tenants::{Arrivals, TenantsReport};
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Cell, Curve, Drawn, Figure, Lines, Page, Section, Table, Unit,
};

pub(super) fn yes(is: bool) -> String {
    if is { "yes" } else { "NO" }.to_owned()
}

/// Every way with its speed, for pages and as CSV.
pub(super) fn ways(report: &TenantsReport) -> Table {
    let mut table =
        Table::new(&["way", "tokens/s", "resident bytes", "same bits", "error", "right", "forms"]);
    table.rows = report
        .ways
        .iter()
        .map(|way| {
            vec![
                Cell::text(&*way.name),
                Cell::Value(way.tokens_per_second, Unit::Number),
                Cell::Value(exact(way.resident_bytes), Unit::Bytes),
                Cell::text(yes(way.is_bit_exact)),
                Cell::Value(way.error, Unit::Number),
                Cell::text(yes(way.is_right)),
                Cell::text(&*way.forms),
            ]
        })
        .collect();
    table
}

fn exact(count: u64) -> f64 {
    count as f64
}

pub(super) fn arrivals(arrivals: Arrivals) -> &'static str {
    match arrivals {
        Arrivals::Random => "random",
        Arrivals::InTurn => "in turn",
    }
}

pub(super) fn page(report: &TenantsReport) -> Page {
    let bars =
        report.ways.iter().map(|way| Bar { name: way.name.clone(), values: vec![way.tokens_per_second] });
    let speed = Bars {
        axis: Axis::linear("tokens per second", Unit::Number),
        parts: vec!["tokens per second".into()],
        bars: bars.collect(),
        arrangement: Arrangement::Stacked,
    };
    let base = exact(report.base_bytes);
    let counts = || (0..=4 * report.tenants).step_by(report.tenants.div_ceil(8).max(1));
    let memory = |name: String, base: f64, each: f64| Curve {
        name,
        points: counts().map(|n| (exact(n as u64), exact(n as u64).mul_add(each, base))).collect(),
        drawn: Drawn::Line,
    };
    let mut curves: Vec<Curve> = report
        .tenant_bytes
        .iter()
        .filter(|(form, _)| form != "dense")
        .map(|(form, bytes)| memory(form.clone(), base, exact(*bytes)))
        .collect();
    curves.push(memory("dense copies".into(), 0.0, base));
    let memory = Lines {
        x: Axis::linear("tenants", Unit::Count),
        y: Axis::linear("bytes", Unit::Bytes),
        curves,
        marks: Vec::new(),
    };
    let mut sections = vec![
        Section {
            heading: "One batch".into(),
            text: "A token or more of every tenant. Dense swaps turn one dense layer into each tenant's, by decoding its container or by copying.".into(),
            figure: Some(Figure::Bars(speed)),
            table: Some(ways(report)),
        },
        Section {
            heading: "Memory".into(),
            text: "The base once and every tenant in a resident form; dense copies need no base.".into(),
            figure: Some(Figure::Lines(memory)),
            table: None,
        },
    ];
    if !report.pressure.is_empty() {
        sections.push(pressure_section(report));
    }
    Page {
        title: "Many tenants of one base".into(),
        subtitle: format!(
            "{}; {} tenants, {} on {} threads.",
            report.about, report.tenants, report.isa, report.threads
        ),
        sections,
    }
}

fn pressure_section(report: &TenantsReport) -> Section {
    let mut curves: Vec<Curve> = Vec::new();
    let mut table = Table::new(&["requests", "forms", "tenants over budget", "tokens/s", "slowdown"]);
    for row in &report.pressure {
        let name = format!("{}, {}", arrivals(row.arrivals), row.forms);
        if curves.last().is_none_or(|curve| curve.name != name) {
            curves.push(Curve { name, points: Vec::new(), drawn: Drawn::Line });
        }
        let point = (row.tenants_over_budget, row.tokens_per_second);
        curves.last_mut().into_iter().for_each(|curve| curve.points.push(point));
        table.rows.push(vec![
            Cell::text(arrivals(row.arrivals)),
            Cell::text(row.forms),
            Cell::Value(row.tenants_over_budget, Unit::Number),
            Cell::Value(row.tokens_per_second, Unit::Number),
            Cell::Value(row.slowdown, Unit::Ratio),
        ]);
    }
    Section {
        heading: "More tenants than the budget holds".into(),
        text: "Requests of several tokens for random tenants, and every tenant a token in turn, which is the worst case.".into(),
        figure: Some(Figure::Lines(Lines {
            x: Axis::log("tenants over what the budget holds", Unit::Number),
            y: Axis::linear("tokens per second", Unit::Number),
            curves,
            marks: Vec::new(),
        })),
        table: Some(table),
    }
}
