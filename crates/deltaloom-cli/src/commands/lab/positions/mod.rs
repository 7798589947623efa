//! `deltaloom lab positions`: runs the comparison and prints it as text, JSON or CSV.

mod page;
mod table;

use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom_lab::positions::{self, Method, Pattern, PositionsReport, Source};

use crate::args::lab::positions::PositionsArguments;
use crate::pages;
use crate::progress::Bar;
use crate::{Answer, target, ui};

const PATTERNS: [Pattern; 4] = [Pattern::Structured, Pattern::Random, Pattern::Sparse, Pattern::Clustered];

pub(crate) fn run(arguments: &PositionsArguments) -> Result<Answer> {
    let inputs = target::inputs([Path::new(&arguments.pattern)]);
    pages::check(&arguments.report.page, &inputs)?;
    let source = source(arguments)?;
    let methods =
        arguments.methods.iter().map(|name| Method::named(name.trim())).collect::<Result<Vec<_>, _>>()?;
    let bar = Bar::new("coding");
    let report = deltaloom::with_threads(arguments.threads.count, || {
        positions::run(&source, &methods.concat(), &bar)
    })?;
    bar.finish();
    pages::write_asked(|| page::page(&report), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        ui::print_json(&report)?;
    } else if arguments.report.csv {
        let rows: Vec<_> = report.methods.iter().collect();
        ui::print(&table::methods(&report, &rows).csv())?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(if report.methods.iter().all(|row| row.verified) { Answer::Yes } else { Answer::No })
}

fn source(arguments: &PositionsArguments) -> Result<Source> {
    let name = &arguments.pattern;
    match PATTERNS.into_iter().find(|pattern| pattern.name() == name) {
        Some(pattern) => Ok(Source::Made { pattern, seed: arguments.seed, len_bytes: arguments.size }),
        None => Source::open(Path::new(name)).with_context(
            || "neither a pattern (structured, random, sparse, clustered) nor a file that can be read",
        ),
    }
}

fn describe(report: &PositionsReport) -> String {
    let seed = report.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
    let bound =
        report.entropy_ratio.map_or_else(String::new, |ratio| format!(", ratio {}", ui::ratio(ratio)));
    let of = match report.entropy_of {
        "pattern" => "entropy of the pattern",
        _ => "entropy of the bytes, assuming they are independent",
    };
    let rows: Vec<_> = report.methods.iter().collect();
    let mut out = format!(
        "{}{seed}: {}, {} set bits; {of}: {:.0} bytes{bound}\n\n{}\n",
        ui::printable(&report.source),
        ui::bytes(report.original_bytes),
        report.gaps,
        report.entropy_bytes,
        table::methods(report, &rows).text(),
    );
    for row in report.methods.iter().filter_map(|row| Some((&row.method, row.fault.as_ref()?))) {
        out.push_str(&format!("fault: {}: {}\n", row.0, ui::printable(row.1)));
    }
    out.push_str(&format!(
        "Coded bytes exclude the container's header. Bits are extracted once for all methods. Times of a method are processor time on one thread; MB/s are 10^6 original bytes per second of it.\n\
         raw: coding would have made the data larger, so the container holds it unchanged. Wall-clock time of all methods on {}: {:.1} s for encoding, {:.1} s including verification.\n",
        ui::count(report.threads as u64, "thread"),
        report.encode_seconds,
        report.total_seconds,
    ));
    out
}
