//! `deltaloom context layers`: which layers moved.

use anyhow::Result;
use deltaloom::Limits;
use deltaloom_lm::context::{Moved, moved};

use crate::args::context::LayersArguments;
use crate::progress::Bar;
use crate::ui::table::{Cell, Table};
use crate::{Answer, inputs, ui};

pub(crate) fn run(arguments: &LayersArguments) -> Result<Answer> {
    let limits = Limits::default();
    let mut bases = inputs::open_bases(&arguments.bases)?;
    let threads = arguments.threads.count;
    let open = |bases: &deltaloom::Bases, path: &std::path::Path| {
        let opened = deltaloom::with_threads(threads, || bases.open_against(path, &limits))?;
        inputs::warn(opened.warnings());
        anyhow::Ok(opened)
    };
    let first = open(&bases, &arguments.first)?;
    // The fine-tune may be a container of the base.
    bases.push_paths(std::slice::from_ref(&arguments.first), &limits)?;
    let tuned = open(&bases, &arguments.tuned)?;
    let bar = Bar::new("comparing");
    let report = moved(&deltaloom::diff(&first, &tuned, threads, &bar)?)?;
    bar.finish();
    if arguments.json {
        let warnings = [first.warnings(), tuned.warnings()].concat();
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(Answer::Yes)
}

fn describe(report: &Moved) -> String {
    let table = Table::of(&report.layers)
        .shown("layer", |layer| Cell::count(layer.layer))
        .shown("rel. L2", |layer| Cell::fixed(layer.relative_l2, 4))
        .shown("of q and k", |layer| Cell::maybe(layer.relative_l2_qk, |norm| Cell::fixed(norm, 4)))
        .shown("changed", |layer| Cell::percent(layer.changed_fraction, 2));
    let mut text = format!("{}\nleast moved first: {}\n", table.text(), ui::list(&report.by_all));
    if let Some(by_qk) = &report.by_qk {
        text.push_str(&format!("by queries and keys: {}", ui::list(by_qk)));
        if let Some(correlation) = report.rank_correlation {
            text.push_str(&format!(" (rank correlation {correlation:.2})"));
        }
        text.push('\n');
    }
    let frozen = report.layers.iter().filter(|layer| layer.changed_fraction == 0.0).count();
    if frozen == 0 {
        let least = report.layers.iter().map(|layer| layer.changed_fraction).fold(1.0, f64::min);
        text.push_str(&format!(
            "no layer is frozen: at least {} of every one changed\n",
            ui::percent(least, 1)
        ));
    }
    text
}
