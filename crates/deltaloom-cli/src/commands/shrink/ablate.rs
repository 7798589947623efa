//! `deltaloom shrink ablate`: what each branch contributes.

use std::cell::Cell as Counter;
use std::time::{Duration, Instant};

use anyhow::Result;
use deltaloom_shrink::ablation::{Ablation, Subset, ablate};

use super::{Read, read};
use crate::args::shrink::AblateArguments;
use crate::progress::Bar;
use crate::ui::table::{Cell, Table};
use crate::{Answer, models, ui};

pub(super) fn run(arguments: &AblateArguments) -> Result<Answer> {
    let Read { loaded, .. } = read(arguments.recipe.asked(None))?;
    loaded.warnings.iter().for_each(|warning| ui::warn(warning));
    let bar = Bar::new("ablating");
    let state = arguments.state.as_deref();
    let found = models::on_threads(arguments.look.threads.count, || {
        let (start, done) = (Instant::now(), Counter::new(0));
        let each = |subset: &Subset, of: usize| {
            done.set(done.get() + 1);
            ui::note(&line(subset, done.get(), of, start.elapsed()));
        };
        Ok(ablate(&loaded, state, &bar, &each)?)
    })?;
    bar.finish();
    if arguments.look.json {
        ui::print_json(&found)?;
    } else {
        ui::print(&describe(&found))?;
    }
    Ok(Answer::Yes)
}

/// One student that is done, and how long the others may take.
fn line(subset: &Subset, done: usize, of: usize, elapsed: Duration) -> String {
    let names: Vec<&str> = subset.branches.iter().map(|branch| branch.name()).collect();
    let names = if names.is_empty() { "no branch".to_owned() } else { names.join(", ") };
    let left = elapsed.mul_f64(of.saturating_sub(done) as f64 / done.max(1) as f64);
    let left = Duration::from_secs(left.as_secs());
    let eta =
        if done < of { format!("; about {} left", humantime::format_duration(left)) } else { String::new() };
    format!("{done} of {of}: {names}: ratio {}, KL {:.5}{eta}", ui::ratio(subset.ratio), subset.kl)
}

fn describe(found: &Ablation) -> String {
    let mut table = Table::of(&found.subsets);
    for branch in &found.branches {
        let switch =
            |subset: &Subset| Cell::text(if subset.branches.contains(branch) { "on" } else { "off" });
        table = table.shown(branch.name(), switch);
    }
    let subsets = table
        .shown("bytes", |subset| Cell::bytes(subset.student_bytes))
        .shown("ratio", |subset| Cell::ratio(subset.ratio))
        .shown("KL", |subset| Cell::fixed(subset.kl, 5))
        .shown("±", |subset| Cell::fixed(subset.kl_error, 5));
    // Packing first, which is exact, then the branches, then all of it.
    let mut parts = vec![("packing alone", found.packing_ratio, 0.0)];
    parts.extend(found.contributions.iter().map(|it| (it.branch.name(), it.factor, it.kl)));
    parts.push(("all", found.ratio, found.kl));
    let parts = Table::of(&parts)
        .shown("contribution", |part| Cell::text(part.0))
        .shown("factor of the ratio", |part| Cell::fixed(part.1, 3))
        .shown("its logarithm", |part| Cell::fixed(part.1.ln(), 4))
        .shown("part of KL", |part| Cell::fixed(part.2, 5));
    format!("{}\n{}KL in nats per token\n", subsets.text(), parts.text())
}
