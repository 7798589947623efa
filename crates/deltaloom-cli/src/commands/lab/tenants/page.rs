//! The page of `deltaloom lab tenants`.

use deltaloom_lab::tenants::TenantsReport;
use deltaloom_report::{Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, Lines, Page, Section, Unit};

use super::table::{arrivals, memory as memory_table, pressure, ways};
use crate::pages::table;

pub(super) fn page(report: &TenantsReport) -> Page {
    let bars =
        report.ways.iter().map(|way| Bar { name: way.name.clone(), values: vec![way.tokens_per_second] });
    let speed = Bars {
        axis: Axis::linear("tokens per second", Unit::Number),
        parts: vec!["tokens per second".into()],
        bars: bars.collect(),
        arrangement: Arrangement::Stacked,
    };
    let base = report.base_bytes as f64;
    let counts = || (0..=4 * report.tenants).step_by(report.tenants.div_ceil(8).max(1));
    let memory = |name: String, base: f64, each: f64| Curve {
        name,
        points: counts().map(|n| (n as f64, (n as f64).mul_add(each, base))).collect(),
        drawn: Drawn::Line,
    };
    let mut curves: Vec<Curve> = report
        .tenant_bytes
        .iter()
        .filter(|(form, _)| form != "dense")
        .map(|(form, bytes)| memory(form.clone(), base, *bytes as f64))
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
            text: "Tokens of every tenant. A dense swap turns one dense layer into that of each tenant in turn, by decoding its container or by copying.".into(),
            figure: Some(Figure::Bars(speed)),
            table: Some(table(&ways(report))),
        },
        Section {
            heading: "Memory".into(),
            text: "The base once, and every tenant in one form; dense copies need no base.".into(),
            figure: Some(Figure::Lines(memory)),
            table: Some(table(&memory_table("layer", &report.tenant_bytes, report.base_bytes))),
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
    for row in &report.pressure {
        let name = format!("{}, {}", arrivals(row.arrivals), row.forms);
        if curves.last().is_none_or(|curve| curve.name != name) {
            curves.push(Curve { name, points: Vec::new(), drawn: Drawn::Line });
        }
        let point = (row.tenants_over_budget, row.tokens_per_second);
        curves.last_mut().into_iter().for_each(|curve| curve.points.push(point));
    }
    Section {
        heading: "More tenants than the budget holds".into(),
        text: "Requests of several tokens for random tenants, and one token for every tenant in turn, which is the worst case.".into(),
        figure: Some(Figure::Lines(Lines {
            x: Axis::log("tenants over those that the budget holds", Unit::Number),
            y: Axis::linear("tokens per second", Unit::Number),
            curves,
            marks: Vec::new(),
        })),
        table: Some(table(&pressure(report))),
    }
}
