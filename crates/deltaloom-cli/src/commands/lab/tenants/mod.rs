//! `deltaloom lab tenants`: tables, JSON or comma-separated values of what the library has measured of many tenants.

mod page;

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::Limits;
use deltaloom::checkpoint::Checkpoint;
use deltaloom_lab::tenants::{
    self, RequestOptions, TenantsCase, TenantsOptions, TenantsReport, WholeModel, whole_model,
};
use deltaloom_lm::layer::LayerHints;
use serde::Serialize;

use crate::args::lab::tenants::TenantsArguments;
use crate::inputs::{config_of, mapped};
use crate::pages;
use crate::progress::Bar;
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
    pages::check(&arguments.report.page, &inputs)?;
    let files = match (&arguments.base, &arguments.tuned) {
        (Some(base), Some(tuned)) => Some((open(base)?, open(tuned)?)),
        _ => None,
    };
    let config = [&arguments.tuned, &arguments.base].into_iter().flatten().find_map(|path| config_of(path));
    let hints = LayerHints::default()
        .with_layer(arguments.layer)
        .with_heads(arguments.heads)
        .with_config(config.as_deref());
    let bar = Bar::new("computing");
    let (report, whole) = deltaloom::with_threads(arguments.threads, || {
        let case = match &files {
            Some((base, tuned)) => TenantsCase::varied(base, tuned, &hints, arguments.tenants, &bar)?,
            None => TenantsCase::generated(arguments.tenants, arguments.density, arguments.seed, &bar)?,
        };
        let report = tenants::run(&case, &options(arguments, case.dense_bytes()), &bar)?;
        let whole = files.as_ref().map(|(base, tuned)| whole_model(mapped(base.clone())?, tuned, &bar));
        Ok((report, whole.transpose()?))
    })?;
    bar.finish();
    pages::write_asked(|| page::page(&report), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        ui::print_json(&Printed { report: &report, whole_model: whole.as_ref() })?;
    } else if arguments.report.csv {
        ui::print(&page::ways(&report).csv())?;
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
            page::yes(way.is_right),
            way.forms.clone(),
        ]);
    }
    out.push_str(&ui::table(&rows));
    let mut rows = vec![["a tenant in memory", "layer", "of the base"].map(str::to_owned).to_vec()];
    for (form, bytes) in &report.tenant_bytes {
        rows.push(vec![
            form.clone(),
            ui::bytes(*bytes),
            format!("{:.3}", *bytes as f64 / report.base_bytes as f64),
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
                format!("{:.3}", *bytes as f64 / whole.base_bytes as f64),
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
            page::yes(verdict.is_met),
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
            page::arrivals(row.arrivals).to_owned(),
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
