//! `deltaloom lab matmul`: runs the benchmark and prints it as text, JSON or CSV.

mod page;
mod table;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Container, Limits};
use deltaloom_lab::matmul::{self, MatmulOptions, MatmulReport, Pair, Way};

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
        let rows: Vec<_> = report.products.iter().collect();
        ui::print(&table::products(&report, &rows).csv())?;
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
    let conditions =
        format!("{}\n{}", ui::printable(&report.source), ui::printable(&table::conditions(report)));
    let mut parts = vec![conditions + "\n", table::sizes(report).text()];
    for group in table::groups(report) {
        let (heading, rows) = table::group(report, group);
        parts.push(format!("{heading}\n{}", table::products(report, &rows).text()));
    }
    if !report.goals.is_empty() {
        parts.push(table::goals(report).text());
    }
    parts.join("\n")
}
