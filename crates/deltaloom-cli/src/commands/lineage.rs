//! `deltaloom lineage`.

use anyhow::Result;
use deltaloom::{Bases, Evidence, Limits, LineageReport};

use crate::args::LineageArguments;
use crate::progress::Bar;
use crate::{Answer, inputs, ui};

pub(crate) fn run(arguments: &LineageArguments) -> Result<Answer> {
    let limits = Limits::default();
    let ancestors = Bases::open(&arguments.ancestors, &limits)?;
    let tuned = ancestors.open_against(&arguments.checkpoint, &limits)?;
    let warnings = [tuned.warnings(), ancestors.warnings()].concat();
    inputs::warn(&warnings);
    let bar = Bar::new("comparing");
    let report = deltaloom::lineage(&tuned, &ancestors, arguments.threads.count, &bar)?;
    bar.finish();
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report, arguments.tensors))?;
    }
    Ok(Answer::Yes)
}

fn describe(report: &LineageReport, with_tensors: bool) -> String {
    let mut rows = vec![["finding", "tensors", "size", "evidence"].map(str::to_owned).to_vec()];
    rows.extend(report.findings.iter().map(|group| {
        vec![
            ui::printable(&group.finding),
            group.tensors.to_string(),
            ui::bytes(group.bytes),
            group.evidence.as_ref().map_or_else(|| "-".to_owned(), evidence),
        ]
    }));
    let mut out = ui::table(&rows);
    if with_tensors {
        let mut rows = vec![["tensor", "dtype", "shape", "finding"].map(str::to_owned).to_vec()];
        rows.extend(report.tensors.iter().map(|tensor| {
            let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
            vec![
                ui::printable(&tensor.name),
                ui::printable(&tensor.dtype),
                format!("[{}]", shape.join(",")),
                ui::printable(&tensor.finding.words()),
            ]
        }));
        out.push('\n');
        out.push_str(&ui::table(&rows));
    }
    out
}

/// The range of a number over the tensors of a group.
fn evidence(evidence: &Evidence) -> String {
    let range = |show: &dyn Fn(f64) -> String| {
        let (least, most) = (show(evidence.least), show(evidence.most));
        if least == most { least } else { format!("{least} to {most}") }
    };
    match evidence.key {
        "changed_fraction" => format!("changed {}", range(&|share| format!("{:.2} %", 100.0 * share))),
        "relative_l2" => format!("relative L2 {}", range(&|norm| format!("{norm:.1e}"))),
        "correlation" => format!("correlation {}", range(&|value| format!("{value:.2}"))),
        _ => format!("residual {}", range(&|value| format!("{value:.2}"))),
    }
}
