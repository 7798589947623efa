//! `deltaloom lab layer`: tables or JSON of what the library has measured of a layer on packed weights.

mod page;

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::Limits;
use deltaloom::checkpoint::Checkpoint;
use deltaloom_compute::Choice;
use deltaloom_lab::layer::{self, LayerCase, LayerOptions, LayerReport, RunReport};
use deltaloom_lab::reference::{self, ReferenceCase};
use deltaloom_lab::timing::Seconds;
use deltaloom_lm::layer::LayerHints;
use deltaloom_report::{Unit, human};
use serde::Serialize;

use crate::args::lab::layer::LayerArguments;
use crate::inputs::config_of;
use crate::pages;
use crate::progress::Bar;
use crate::{Answer, target, ui};

/// What is printed as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    layer: &'a str,
    #[serde(flatten)]
    report: &'a LayerReport,
}

pub(crate) fn run(arguments: &LayerArguments) -> Result<Answer> {
    let inputs = target::inputs(arguments.base.iter().chain(&arguments.tuned));
    pages::check(&arguments.page, &inputs)?;
    let options = LayerOptions {
        tokens: arguments.tokens.clone(),
        choices: choices(arguments),
        repeats: arguments.repeats,
        tenants: arguments.tenants.clone(),
        seed: arguments.seed,
    };
    let subject = Subject::of(arguments)?;
    let bar = Bar::new("computing");
    let (case, report) = deltaloom::with_threads(arguments.threads.count, || {
        let case = LayerCase::new(&subject.base, &subject.tuned, &subject.hints(arguments), &bar)?;
        let report = layer::run(&case, &options, &bar)?;
        Ok((case, report))
    })?;
    bar.finish();
    if arguments.page.html.is_some() {
        let page = page::page(&subject.name, &case, &report)?;
        pages::write_asked(|| page, &arguments.page, &inputs)?;
    }
    if arguments.json {
        ui::print_json(&Printed { layer: &subject.name, report: &report })?;
    } else {
        ui::print(&describe(&subject.name, &report))?;
    }
    Ok(if report.is_right { Answer::Yes } else { Answer::No })
}

fn choices(arguments: &LayerArguments) -> Vec<Choice> {
    let forms = arguments.form.iter().map(|name| Choice::Form(name.form()));
    forms.chain(arguments.budget.map(Choice::Budget)).collect()
}

/// The two versions and what is known of them.
struct Subject {
    name: String,
    base: Checkpoint,
    tuned: Checkpoint,
    heads: Option<usize>,
    config: Option<String>,
}

impl Subject {
    fn of(arguments: &LayerArguments) -> Result<Self> {
        let (Some(base), Some(tuned)) = (&arguments.base, &arguments.tuned) else {
            let case = ReferenceCase { seed: arguments.seed, ..ReferenceCase::default() };
            let base = case.base();
            let tuned = case.tuned(&base, 0)?;
            return Ok(Self {
                name: "reference layer".to_owned(),
                base: base.to_checkpoint()?,
                tuned: tuned.to_checkpoint()?,
                heads: usize::try_from(reference::HEADS).ok(),
                config: None,
            });
        };
        let open = |path: &Path| {
            Checkpoint::open(path, &Limits::default()).with_context(|| path.display().to_string())
        };
        Ok(Self {
            name: format!("layer {} of {}", arguments.layer, tuned.display()),
            base: open(base)?,
            tuned: open(tuned)?,
            heads: arguments.heads,
            config: [tuned, base].into_iter().find_map(|path| config_of(path)),
        })
    }

    fn hints(&self, arguments: &LayerArguments) -> LayerHints<'_> {
        LayerHints::default()
            .with_layer(arguments.layer)
            .with_heads(self.heads)
            .with_config(self.config.as_deref())
    }
}

fn seconds(time: Seconds) -> String {
    human(time.mean, Unit::Seconds)
}

fn with_deviation(time: Seconds) -> String {
    format!("{} ± {}", human(time.mean, Unit::Seconds), human(time.deviation, Unit::Seconds))
}

fn describe(name: &str, report: &LayerReport) -> String {
    let config = &report.config;
    [
        format!(
            "{}: width {}, {} heads of {}, hidden width {}; {}, threads: {}, repeats: {}\n",
            ui::printable(name),
            config.width,
            config.query_heads,
            config.head_size,
            config.hidden_width,
            report.isa,
            report.threads,
            report.repeats,
        ),
        format!("Sizes\n{}", sizes(report)),
        format!("Layer on packed weights\n{}", results(report)),
        format!("Its times\n{}", times(report)),
        hotspots(report),
        format!("Layer after restoring all weights\n{}", restored(report)),
        format!("Memory of tenants\n{}", memory(report)),
    ]
    .join("\n")
}

fn sizes(report: &LayerReport) -> String {
    let header =
        ["tensor", "dtype", "elements", "bytes", "packed", "ratio", "changed", "XOR non-zero", "XOR zstd 10"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let share = |part: u64, of: u64| human(quotient(part, of), Unit::Percent);
    let all = &report.statistics;
    for tensor in &all.tensors {
        rows.push(vec![
            ui::printable(&tensor.name),
            ui::printable(&tensor.dtype),
            tensor.sparsity.elems.to_string(),
            ui::bytes(tensor.original_bytes),
            ui::bytes(tensor.bytes.packed),
            format!("{:.1}", tensor.ratio),
            share(tensor.sparsity.changed_elems, tensor.sparsity.elems),
            share(tensor.sparsity.nonzero_bytes, tensor.original_bytes),
            ui::bytes(tensor.bytes.xor_zstd),
        ]);
    }
    rows.push(vec![
        "all, with the index".to_owned(),
        String::new(),
        all.sparsity.elems.to_string(),
        ui::bytes(all.original_bytes),
        ui::bytes(all.container_bytes),
        format!("{:.1}", all.ratio),
        share(all.sparsity.changed_elems, all.sparsity.elems),
        share(all.sparsity.nonzero_bytes, all.original_bytes),
        ui::bytes(all.xor_zstd_joined_bytes),
    ]);
    ui::table(&rows)
}

fn quotient(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

fn restored(report: &LayerReport) -> String {
    let header = [
        "stored, tokens",
        "load",
        "decompress",
        "apply",
        "state load",
        "forward",
        "total",
        "no apply",
        "no apply, no decompress",
        "same bits",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for run in &report.restored {
        let timing = &run.timing;
        let phases = [
            timing.load,
            timing.decompress,
            timing.apply,
            timing.state_load,
            timing.forward,
            timing.end_to_end,
        ];
        let bounds = [timing.what_if.without_apply, timing.what_if.without_apply_and_decompress];
        let mut row = vec![format!("{}, {}", run.stored, run.tokens)];
        row.extend(phases.map(seconds));
        row.extend(bounds.map(|time| human(time, Unit::Seconds)));
        row.push(if run.is_bit_exact { "yes" } else { "NO" }.to_owned());
        rows.push(row);
    }
    ui::table(&rows)
}

fn label(run: &RunReport) -> String {
    format!("{} {}, {}", run.form, run.mode, run.tokens)
}

fn results(report: &LayerReport) -> String {
    let header = ["form, tokens", "resident", "median", "mean", "over dense", "same bits", "error", "right"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for run in &report.runs {
        rows.push(vec![
            label(run),
            ui::bytes(run.resident_bytes),
            human(run.forward_median_seconds, Unit::Seconds),
            with_deviation(run.forward),
            format!("{:.2}", run.over_dense),
            if run.is_bit_exact { "yes" } else { "no" }.to_owned(),
            if run.relative_error == 0.0 { "0".to_owned() } else { format!("{:.1e}", run.relative_error) },
            if run.is_right { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    ui::table(&rows)
}

fn times(report: &LayerReport) -> String {
    let header = [
        "form, tokens",
        "load",
        "arrange",
        "decode",
        "patch",
        "multiply",
        "finish",
        "between",
        "total",
        "no patch",
        "no patch, no decode",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for run in &report.runs {
        let phases =
            [run.load, run.arrange, run.decode, run.patch, run.multiply, run.finish, run.between, run.total];
        let bounds = [run.without_patch_seconds, run.without_patch_and_decode_seconds];
        let cells = phases.map(seconds).into_iter().chain(bounds.map(|time| human(time, Unit::Seconds)));
        rows.push(std::iter::once(label(run)).chain(cells).collect());
    }
    ui::table(&rows)
}

/// The slowest parameters of the first form that is packed.
fn hotspots(report: &LayerReport) -> String {
    let Some(run) = report.runs.iter().find(|run| run.form != "file") else { return String::new() };
    let header = ["hottest", "total", "decode", "patch", "multiply"].map(str::to_owned).to_vec();
    let mut rows = vec![header];
    for parameter in run.parameters.iter().take(5) {
        let times = [parameter.total, parameter.decode, parameter.patch, parameter.multiply];
        rows.push(std::iter::once(ui::printable(&parameter.name)).chain(times.map(seconds)).collect());
    }
    format!("{}\n{}", label(run), ui::table(&rows))
}

fn memory(report: &LayerReport) -> String {
    let forms: Vec<&str> = {
        let mut forms: Vec<&str> = report.memory.iter().map(|row| row.form.as_str()).collect();
        forms.dedup();
        let first = forms.iter().skip(1).position(|form| *form == forms[0]);
        forms.truncate(first.map_or(forms.len(), |place| place + 1));
        forms
    };
    let counted = ["copies", "container", "XOR", "XOR zstd 10", "COO 32", "COO 64"];
    let header = ["tenants"].into_iter().chain(forms.iter().copied()).chain(counted);
    let mut rows = vec![header.map(str::to_owned).collect::<Vec<_>>()];
    for counted in &report.counted_memory {
        let resident = report.memory.iter().filter(|row| row.tenants == counted.tenants).take(forms.len());
        let with_base = &counted.with_base;
        let bytes = [
            counted.dense,
            with_base.packed,
            with_base.xor,
            with_base.xor_zstd,
            with_base.coo_32,
            with_base.coo_64,
        ];
        let cells = resident.map(|row| row.bytes).chain(bytes).map(ui::bytes);
        rows.push(std::iter::once(counted.tenants.to_string()).chain(cells).collect());
    }
    ui::table(&rows)
}
