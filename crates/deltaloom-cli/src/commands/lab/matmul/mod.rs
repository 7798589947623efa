//! `deltaloom lab matmul`: a table, JSON or comma-separated values of what the library has measured.

mod page;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Container, Limits};
use deltaloom_lab::matmul::{self, MatmulOptions, MatmulReport, Pair, ProductReport, Way};

use crate::args::lab::matmul::MatmulArguments;
use crate::inputs::mapped;
use crate::pages;
use crate::progress::Bar;
use crate::{Answer, target, ui};

pub(crate) fn run(arguments: &MatmulArguments) -> Result<Answer> {
    let inputs = target::inputs(arguments.base.iter().chain(&arguments.tuned));
    pages::check(&arguments.report.page, &inputs)?;
    let ways = arguments.forms.iter().map(|name| Way::named(name.trim())).collect::<Result<Vec<_>, _>>()?;
    let options = MatmulOptions {
        tokens: arguments.tokens.clone(),
        ways: ways.concat(),
        modes: arguments.mode.modes(),
        rounds: arguments.rounds,
        threads: arguments.threads,
        seed: arguments.seed,
    };
    let pair = deltaloom::with_threads(arguments.threads, || pair(arguments))?;
    let bar = Bar::new("multiplying");
    let report = matmul::run(&pair, &options, &bar)?;
    bar.finish();
    pages::write_asked(|| page::page(&report), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        ui::print_json(&report)?;
    } else if arguments.report.csv {
        ui::print(&page::products(&report).csv())?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(if report.verified { Answer::Yes } else { Answer::No })
}

fn pair(arguments: &MatmulArguments) -> deltaloom::Result<Pair> {
    if let (Some(base), Some(tuned)) = (&arguments.base, &arguments.tuned) {
        return of_files(base, tuned, arguments.tensor.as_deref());
    }
    let weight = arguments.dtype.weight_type();
    Pair::made(arguments.rows, arguments.cols, weight, arguments.changed, arguments.seed)
}

/// A tensor of two files; the fine-tune is a checkpoint or a container.
fn of_files(base: &Path, tuned: &Path, tensor: Option<&str>) -> deltaloom::Result<Pair> {
    let limits = Limits::default();
    let source = format!("{} -> {}", base.display(), tuned.display());
    let base = Arc::new(mapped(Checkpoint::open(base, &limits)?)?);
    if tuned.is_file() && Container::is_container(tuned)? {
        return Pair::of_container(source, &base, Container::open(tuned, &limits)?, tensor);
    }
    Pair::of_checkpoints(source, &base, &Arc::new(mapped(Checkpoint::open(tuned, &limits)?)?), tensor)
}

fn describe(report: &MatmulReport) -> String {
    let mut out = format!(
        "{}\n{} [{}, {}] {}, {}, {:.2} % changed; {}, {} threads, {} rounds; memcpy {:.1} GB/s\n",
        ui::printable(&report.source),
        ui::printable(&report.tensor),
        report.rows,
        report.cols,
        report.dtype,
        ui::bytes(report.weight_bytes),
        100.0 * report.changed_fraction,
        report.isa,
        report.threads,
        report.rounds,
        report.memcpy_bytes_per_second / 1e9,
    );
    out.push_str(&format!("\n{}", sizes(report)));
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for row in &report.products {
        if !groups.contains(&(row.mode, row.tokens)) {
            groups.push((row.mode, row.tokens));
        }
    }
    for (mode, tokens) in groups {
        let rows = report.products.iter().filter(|row| (row.mode, row.tokens) == (mode, tokens));
        let plural = if tokens == 1 { "" } else { "s" };
        out.push_str(&format!("\n{tokens} token{plural}, {mode}\n{}", times(rows)));
    }
    out.push_str(&format!("\n{}", goals(report)));
    out
}

fn sizes(report: &MatmulReport) -> String {
    let mut rows = vec![["form", "resident", "share"].map(str::to_owned).to_vec()];
    rows.extend(report.ways.iter().map(|way| {
        let share = way.resident_fraction.map_or_else(String::new, |share| format!("{:.1} %", 100.0 * share));
        let missing = way.missing.clone().unwrap_or_default();
        vec![way.way.to_owned(), way.resident_bytes.map_or(missing, ui::bytes), share]
    }));
    ui::table(&rows)
}

fn times<'a>(products: impl Iterator<Item = &'a ProductReport>) -> String {
    let header =
        ["form", "ms", "x raw", "GB/s", "GFLOP/s", "load", "decode", "patch", "multiply", "finish", "error"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(products.map(|row| {
        let ms = |seconds: f64| format!("{:.3}", 1e3 * seconds);
        let phases = &row.phases;
        let phases = [phases.load, phases.decode, phases.patch, phases.multiply, phases.finish];
        let mut cells = vec![
            row.way.to_owned(),
            ms(row.median_seconds),
            row.times_raw.map_or_else(String::new, |times| format!("{times:.2}")),
            format!("{:.1}", row.weight_bytes_per_second / 1e9),
            format!("{:.1}", row.flops_per_second / 1e9),
        ];
        cells.extend(phases.map(|seconds| if seconds == 0.0 { "-".to_owned() } else { ms(seconds) }));
        cells.push(match (row.verified, row.error) {
            (false, _) => "WRONG".to_owned(),
            (true, 0.0) => "0".to_owned(),
            (true, error) => format!("{error:.0e}"),
        });
        cells
    }));
    ui::table(&rows)
}

fn goals(report: &MatmulReport) -> String {
    if report.goals.is_empty() {
        return String::new();
    }
    let mut rows = vec![["goal", "measured", "limit", "", ""].map(str::to_owned).to_vec()];
    rows.extend(report.goals.iter().map(|goal| {
        let sign = if goal.is_minimum { ">=" } else { "<=" };
        let about = if goal.is_about_this_matrix { "" } else { "set for another matrix" };
        vec![
            goal.measures.clone(),
            format!("{:.3}", goal.measured),
            format!("{sign} {}", goal.limit),
            if goal.reached { "reached" } else { "MISSED" }.to_owned(),
            about.to_owned(),
        ]
    }));
    ui::table(&rows)
}
