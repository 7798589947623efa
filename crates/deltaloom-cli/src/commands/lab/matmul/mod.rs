//! `deltaloom lab matmul`: runs the benchmark and prints it as text, JSON or CSV.

mod page;
mod table;

use anyhow::Result;
use deltaloom_lab::matmul::{self, MatmulOptions, MatmulReport, Pair, Way};

use crate::args::lab::matmul::MatmulArguments;
use crate::progress::Bar;
use crate::{Answer, target, ui};

pub(crate) fn run(arguments: &MatmulArguments) -> Result<Answer> {
    let inputs = target::inputs(arguments.base.iter().chain(&arguments.tuned));
    crate::page::check(&arguments.report.page, &inputs)?;
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
    crate::page::write_asked(|| page::page(&report), &arguments.report.page, &inputs)?;
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
        return Pair::open(base, tuned, arguments.tensor.as_deref());
    }
    let weight = arguments.dtype.weight_type();
    Pair::made(arguments.rows, arguments.cols, weight, arguments.changed, arguments.seed)
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
