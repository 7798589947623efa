//! `deltaloom diff`.

use std::path::Path;

use anyhow::Result;
use deltaloom::{DiffReport, DiffTotal, Limits, TensorDiff, UlpHistogram, Uncompared};

use crate::args::DiffArguments;
use crate::progress::Bar;
use crate::ui::table::{Cell, Table};
use crate::{Answer, inputs, ui};

/// Names and upper ends of the histogram's columns, in ULPs.
const COLUMNS: [(&str, u64); 5] = [("1", 1), ("2-4", 4), ("5-16", 16), ("17-256", 256), (">256", u64::MAX)];

pub(crate) fn run(arguments: &DiffArguments) -> Result<Answer> {
    let bases = inputs::open_bases(&arguments.bases)?;
    let open = |path: &Path| {
        let opened = || bases.open_against(path, &Limits::default());
        let opened = deltaloom::with_threads(arguments.threads.count, opened)?;
        inputs::warn(opened.warnings());
        anyhow::Ok(opened)
    };
    let (a, b) = (open(&arguments.a)?, open(&arguments.b)?);
    let bar = Bar::new("comparing");
    let report = deltaloom::diff(&a, &b, arguments.threads.count, &bar)?;
    bar.finish();
    if arguments.json {
        let warnings = [bases.warnings(), a.warnings(), b.warnings()].concat();
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(if report.identical { Answer::Yes } else { Answer::No })
}

fn describe(report: &DiffReport) -> String {
    let different: Vec<&TensorDiff> =
        report.tensors.iter().filter(|tensor| tensor.status != "identical").collect();
    let mut table = Table::of(&different)
        .shown("tensor", |tensor| Cell::text(&*tensor.name))
        .shown("status", |tensor| Cell::text(tensor.status))
        .shown("dtype", |tensor| Cell::text(&*tensor.dtype))
        .shown("changed", |tensor| Cell::maybe(tensor.changed_fraction, |share| Cell::percent(share, 2)))
        .shown("rel. L2", |tensor| Cell::maybe(tensor.relative_l2, |norm| Cell::power(norm, 2)));
    let mut from = 1;
    for (name, to) in COLUMNS {
        table = table.shown(&format!("{name} ULP"), |tensor| {
            Cell::maybe(tensor.ulp_histogram.as_ref(), |all| Cell::percent(share(all, from, to), 2))
        });
        from = to.saturating_add(1);
    }
    let summary = format!(
        "{} tensors: {} identical, {} different\n{}\n",
        report.tensors.len(),
        report.tensors.len() - different.len(),
        different.len(),
        total("total", "weights", &report.total)
    );
    let states = match report.states == DiffTotal::default() {
        true => String::new(),
        false => format!("{}\n", total("states of the training", "elements", &report.states)),
    };
    let summary = summary + &states;
    if report.identical { summary } else { format!("{}\n{summary}", table.text()) }
}

fn total(what: &str, counted: &str, total: &DiffTotal) -> String {
    let mut line = format!("{what}: {} of {} {counted} changed", total.changed_weights, total.weights);
    if let Some(fraction) = total.changed_fraction {
        line.push_str(&format!(" ({})", ui::percent(fraction, 2)));
        line.push_str(&total.relative_l2.map_or_else(
            || ", relative L2 is not a number".to_owned(),
            |relative| format!(", relative L2 {relative:.2e}"),
        ));
    }
    let parts = [
        ("only in the first", &total.only_a),
        ("only in the second", &total.only_b),
        ("with another dtype or shape", &total.retyped),
    ];
    for (which, part) in parts.into_iter().filter(|(_, part)| **part != Uncompared::default()) {
        line.push_str(&format!("; {which}: {} {counted}, {}", part.weights, ui::bytes(part.bytes)));
    }
    line
}

/// The fraction of the elements whose distance is in a range.
fn share(histogram: &UlpHistogram, from: u64, to: u64) -> f64 {
    let total = histogram.values().sum::<u64>().max(1);
    let count: u64 = histogram.range(from..=to).map(|(_, count)| count).sum();
    count as f64 / total as f64
}
