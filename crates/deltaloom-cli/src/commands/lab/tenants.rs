//! `deltaloom lab tenants`: tables, JSON or comma-separated values of what the library has measured of many tenants.

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::Limits;
use deltaloom::checkpoint::Checkpoint;
use deltaloom_lab::tenants::{
    self, Arrivals, RequestOptions, TenantsCase, TenantsOptions, TenantsReport, WholeModel, whole_model,
};
use deltaloom_lm::layer::LayerHints;
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Cell, Curve, Drawn, Figure, Lines, Page, Section, Table, Unit,
};
use serde::Serialize;

use super::page;
use crate::args::lab::tenants::TenantsArguments;
use crate::commands::config_of;
use crate::{Answer, target, ui};

/// What is printed as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    report: &'a TenantsReport,
    whole_model: Option<&'a WholeModel>,
}

pub(crate) fn run(arguments: &TenantsArguments) -> Result<Answer> {
    let inputs = target::inputs(arguments.base.iter().chain(&arguments.tuned));
    page::check(&arguments.report.page, &inputs)?;
    let files = match (&arguments.base, &arguments.tuned) {
        (Some(base), Some(tuned)) => Some((open(base)?, open(tuned)?)),
        _ => None,
    };
    let config = [&arguments.tuned, &arguments.base].into_iter().flatten().find_map(|path| config_of(path));
    let hints = LayerHints { layer: arguments.layer, heads: arguments.heads, config: config.as_deref() };
    let bar = ui::Bar::new("computing");
    let (report, whole) = deltaloom::with_threads(arguments.threads, || {
        let case = match &files {
            Some((base, tuned)) => TenantsCase::varied(base, tuned, &hints, arguments.tenants, &bar)?,
            None => TenantsCase::generated(arguments.tenants, arguments.density, arguments.seed, &bar)?,
        };
        let report = tenants::run(&case, &options(arguments, case.dense_bytes()), &bar)?;
        let whole = files.as_ref().map(|(base, tuned)| whole_model(base.clone(), tuned, &bar));
        Ok((report, whole.transpose()?))
    })?;
    bar.finish();
    page::write_asked(|| picture(&report), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        ui::print_json(&Printed { report: &report, whole_model: whole.as_ref() })?;
    } else if arguments.report.csv {
        ui::print(&ways(&report).csv())?;
    } else {
        ui::print(&describe(&report, whole.as_ref()))?;
    }
    Ok(if report.is_right { Answer::Yes } else { Answer::No })
}

fn options(arguments: &TenantsArguments, dense_bytes: u64) -> TenantsOptions {
    let requests = RequestOptions {
        requests: arguments.requests,
        tokens: arguments.request_tokens,
        active: arguments.active,
    };
    TenantsOptions {
        tokens: arguments.tokens_per_tenant,
        budget_bytes: arguments.budget.of(dense_bytes),
        rounds: arguments.rounds,
        requests: (arguments.requests > 0).then_some(requests),
        seed: arguments.seed,
    }
}

fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(path, &Limits::default()).with_context(|| path.display().to_string())
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "NO" }.to_owned()
}

/// Every way with its speed, for pages and as CSV.
fn ways(report: &TenantsReport) -> Table {
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

fn arrivals(arrivals: Arrivals) -> &'static str {
    match arrivals {
        Arrivals::Random => "random",
        Arrivals::InTurn => "in turn",
    }
}

fn describe(report: &TenantsReport, whole: Option<&WholeModel>) -> String {
    let time = if report.is_processor_time { "processor time" } else { "time on the wall" };
    let mut out = format!(
        "{}: {} tenants, {} tokens each, {:.1} % of elements changed; layer {}, container {}; {} on {} threads, {time}, median of {} rounds\n\n",
        ui::printable(&report.about),
        report.tenants,
        report.tokens_per_tenant,
        100.0 * report.changed_fraction,
        ui::bytes(report.base_bytes),
        ui::bytes(report.packed_bytes),
        report.isa,
        report.threads,
        report.rounds,
    );
    let mut rows = vec![
        ["one batch", "tokens/s", "resident", "same bits", "error", "right", "matrices"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for way in &report.ways {
        rows.push(vec![
            way.name.clone(),
            format!("{:.0}", way.tokens_per_second),
            ui::bytes(way.resident_bytes),
            if way.is_bit_exact { "yes" } else { "no" }.to_owned(),
            if way.error == 0.0 { "0".to_owned() } else { format!("{:.1e}", way.error) },
            yes(way.is_right),
            way.forms.clone(),
        ]);
    }
    out.push_str(&ui::table(&rows));
    let mut rows = vec![["a tenant in memory", "layer", "of the base"].map(str::to_owned).to_vec()];
    for (form, bytes) in &report.tenant_bytes {
        rows.push(vec![
            form.clone(),
            ui::bytes(*bytes),
            format!("{:.3}", exact(*bytes) / exact(report.base_bytes)),
        ]);
    }
    out.push_str(&format!("\n{}", ui::table(&rows)));
    if let Some(whole) = whole {
        let mut rows = vec![["a tenant in memory", "model", "of the base"].map(str::to_owned).to_vec()];
        let packed = [("container".to_owned(), whole.packed_bytes)];
        for (form, bytes) in packed.iter().chain(&whole.form_bytes) {
            rows.push(vec![
                form.clone(),
                ui::bytes(*bytes),
                format!("{:.3}", exact(*bytes) / exact(whole.base_bytes)),
            ]);
        }
        out.push_str(&format!("\n{}", ui::table(&rows)));
    }
    out.push_str(&format!("\n{}", pressure(report)));
    let mut rows = vec![["goal", "measured", "limit", "met"].map(str::to_owned).to_vec()];
    for verdict in &report.verdicts {
        rows.push(vec![
            verdict.goal.clone(),
            format!("{:.3}", verdict.value),
            format!("{}", verdict.limit),
            yes(verdict.is_met),
        ]);
    }
    out.push_str(&format!("\n{}", ui::table(&rows)));
    out
}

fn pressure(report: &TenantsReport) -> String {
    let Some(requests) = &report.requests else { return String::new() };
    let header = [
        "requests",
        "forms",
        "tenants/budget",
        "tokens/s",
        "slowdown",
        "hits",
        "misses",
        "direct",
        "evicted",
        "resident",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for row in &report.pressure {
        let residency = &row.residency;
        rows.push(vec![
            arrivals(row.arrivals).to_owned(),
            row.forms.to_owned(),
            format!("{}", row.tenants_over_budget),
            format!("{:.0}", row.tokens_per_second),
            format!("{:.2}", row.slowdown),
            residency.hits.to_string(),
            residency.misses.to_string(),
            residency.direct.to_string(),
            residency.evictions.to_string(),
            ui::bytes(residency.matrix_bytes + residency.vector_bytes),
        ]);
    }
    format!(
        "{} requests for random tenants, {} tokens each, {} at a time; and every tenant a token in turn\n{}",
        requests.requests,
        requests.tokens,
        requests.active,
        ui::table(&rows)
    )
}

fn picture(report: &TenantsReport) -> Page {
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
