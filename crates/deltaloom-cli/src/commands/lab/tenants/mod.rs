//! `deltaloom lab tenants`: runs the benchmark and prints it as text, JSON or CSV.

mod page;
mod table;

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

/// The JSON that is printed.
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
        ui::print(&table::ways(&report).csv())?;
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
    let time = if report.is_processor_time { "processor time" } else { "wall-clock time" };
    let mut out = format!(
        "{}: {}, {} each, {:.1} % of elements changed; layer {}, container {}; {} on {}, {time}, median of {}\n\n",
        ui::printable(&report.about),
        ui::count(report.tenants as u64, "tenant"),
        ui::count(report.tokens_per_tenant as u64, "token"),
        100.0 * report.changed_fraction,
        ui::bytes(report.base_bytes),
        ui::bytes(report.packed_bytes),
        report.isa,
        ui::count(report.threads as u64, "thread"),
        ui::count(report.rounds as u64, "round"),
    );
    out.push_str(&table::ways(report).text());
    let mut tables = vec![table::memory("layer", &report.tenant_bytes, report.base_bytes).text()];
    if let Some(whole) = whole {
        let mut forms = vec![("container".to_owned(), whole.packed_bytes)];
        forms.extend(whole.form_bytes.iter().cloned());
        tables.push(table::memory("model", &forms, whole.base_bytes).text());
    }
    if let Some(requests) = &report.requests {
        let heading = format!(
            "{} for random tenants, {} each, {} at a time; and one token for every tenant in turn",
            ui::count(requests.requests as u64, "request"),
            ui::count(requests.tokens as u64, "token"),
            requests.active,
        );
        tables.push(format!("{heading}\n{}", table::pressure(report).text()));
    }
    tables.push(table::verdicts(report).text());
    tables.iter().for_each(|table| out.push_str(&format!("\n{table}")));
    out
}
