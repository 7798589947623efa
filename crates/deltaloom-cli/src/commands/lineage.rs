//! `deltaloom lineage`.

use anyhow::Result;
use deltaloom::{Bases, Evidence, Limits, LineageReport};

use crate::args::LineageArguments;
use crate::progress::Bar;
use crate::ui::table::{Cell, Table};
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
    let findings = Table::of(&report.findings)
        .shown("finding", |group| Cell::text(&*group.finding))
        .shown("tensors", |group| Cell::count(group.tensors))
        .shown("size", |group| Cell::bytes(group.bytes))
        .shown("evidence", |group| Cell::maybe(group.evidence.as_ref(), |shown| Cell::text(evidence(shown))));
    let mut out = findings.text();
    if report.left_out.count > 0 {
        out.push_str(&format!(
            "without {} of the training's state ({})\n",
            ui::count(report.left_out.count, "tensor"),
            ui::bytes(report.left_out.bytes)
        ));
    }
    if with_tensors {
        let tensors = Table::of(&report.tensors)
            .shown("tensor", |tensor| Cell::text(&*tensor.name))
            .shown("dtype", |tensor| Cell::text(&*tensor.dtype))
            .shown("shape", |tensor| Cell::shape(&tensor.shape))
            .shown("finding", |tensor| Cell::text(tensor.finding.words()));
        out.push('\n');
        out.push_str(&tensors.text());
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
        "changed_fraction" => format!("changed {}", range(&|share| ui::percent(share, 2))),
        "relative_l2" => format!("relative L2 {}", range(&|norm| format!("{norm:.1e}"))),
        "correlation" => format!("correlation {}", range(&|value| format!("{value:.2}"))),
        _ => format!("residual {}", range(&|value| format!("{value:.2}"))),
    }
}
