//! `deltaloom diff`.

use std::path::Path;

use anyhow::Result;
use deltaloom::{DiffReport, DiffTotal, Limits, UlpHistogram, Uncompared};

use crate::args::DiffArguments;
use crate::progress::Bar;
use crate::{Answer, inputs, ui};

/// Ends of the histogram's columns, in ULPs.
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
    let mut rows = vec![["tensor", "status", "dtype", "changed", "rel. L2"].map(str::to_owned).to_vec()];
    rows[0].extend(COLUMNS.map(|(name, _)| format!("{name} ULP")));
    let identical = report.tensors.iter().filter(|tensor| tensor.status == "identical").count();
    for tensor in report.tensors.iter().filter(|tensor| tensor.status != "identical") {
        let mut row = vec![
            ui::printable(&tensor.name),
            tensor.status.to_owned(),
            ui::printable(&tensor.dtype),
            tensor.changed_fraction.map_or_else(|| "-".to_owned(), percent),
            tensor.relative_l2.map_or_else(|| "-".to_owned(), |r| format!("{r:.2e}")),
        ];
        if let Some(histogram) = &tensor.ulp_histogram {
            row.extend(columns(histogram).map(percent));
        }
        rows.push(row);
    }
    let summary = format!(
        "{} tensors: {identical} identical, {} different\n{}\n",
        report.tensors.len(),
        report.tensors.len() - identical,
        total(&report.total)
    );
    if report.identical { summary } else { format!("{}\n{summary}", ui::table(&rows)) }
}

fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

fn total(total: &DiffTotal) -> String {
    let mut line = format!("total: {} of {} weights changed", total.changed_weights, total.weights);
    if let Some(fraction) = total.changed_fraction {
        line.push_str(&format!(" ({})", percent(fraction)));
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
        line.push_str(&format!("; {which}: {} weights, {}", part.weights, ui::bytes(part.bytes)));
    }
    line
}

/// Shares of the elements in each column.
fn columns(histogram: &UlpHistogram) -> [f64; COLUMNS.len()] {
    let total = histogram.values().sum::<u64>().max(1) as f64;
    let mut from = 1;
    COLUMNS.map(|(_, to)| {
        let count: u64 = histogram.range(from..=to).map(|(_, count)| count).sum();
        from = to.saturating_add(1);
        count as f64 / total
    })
}
