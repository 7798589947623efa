//! The tables of `deltaloom lab tpde`.

use deltaloom_lab::lossy::{RowReport, StepCheck, StepReport, Thresholds};

use super::super::cells;
use crate::ui::table::{Cell, Table};

fn power(value: Option<f64>) -> Cell {
    Cell::maybe(value, |value| Cell::power(value, 3))
}

fn fixed(value: Option<f64>, digits: usize) -> Cell {
    Cell::maybe(value, |value| Cell::fixed(value, digits))
}

/// The methods over all steps.
pub(super) fn totals(rows: &[RowReport], has_loss: bool) -> Table<'_, RowReport> {
    let max_error = |row: &RowReport| {
        let errors = row.steps.iter().map(|step| step.max_error);
        errors.into_iter().try_fold(0.0, |max, error| Some(f64::max(max, error?)))
    };
    let table = Table::of(rows)
        .shown("method", |row| Cell::text(&*row.method))
        .shown("form", |row| Cell::text(row.form))
        .shown("in", |row| Cell::bytes(row.in_bytes))
        .shown("out", |row| Cell::bytes(row.out_bytes))
        .shown("ratio", |row| Cell::ratio(row.ratio))
        .shown("after first", |row| Cell::maybe(row.ratio_after_first, Cell::ratio))
        .shown("mean", |row| Cell::ratio(row.mean_ratio))
        .shown("as published", |row| Cell::maybe(row.published_ratio, Cell::ratio))
        .shown("mean as published", |row| Cell::maybe(row.published_mean_ratio, Cell::ratio))
        .shown("max error", |row| power(max_error(row)))
        .shown("state error", |row| fixed(row.steps.last().and_then(|last| last.relative_state_error), 4));
    if has_loss {
        table.shown("last loss", |row| fixed(row.steps.last().and_then(|last| last.loss), 4))
    } else {
        table
    }
}

/// A method at a step.
pub(super) type Entry<'a> = (&'a RowReport, &'a StepReport);

/// The methods at each step.
pub(super) fn steps<'a>(entries: &'a [Entry<'a>], has_loss: bool) -> Table<'a, Entry<'a>> {
    let threshold =
        |of: fn(&Thresholds) -> f64| move |(_, step): &Entry<'_>| power(step.thresholds.as_ref().map(of));
    let table = Table::of(entries)
        .both("step", "step", |(_, step)| Cell::count(step.step))
        .both("method", "method", |(row, _)| Cell::text(&*row.method))
        .both("form", "form", |(row, _)| Cell::text(row.form))
        .exact("lossy", |(row, _)| cells::yes(row.lossy))
        .exact("in_bytes", |(_, step)| Cell::count(step.in_bytes))
        .both("out", "out_bytes", |(_, step)| Cell::bytes(step.out_bytes))
        .shown("ratio", |(_, step)| Cell::ratio(step.ratio()))
        .exact("fp32_bytes", |(_, step)| Cell::maybe(step.fp32_bytes, Cell::count))
        .exact("published_bytes", |(_, step)| Cell::maybe(step.published_bytes, Cell::count))
        .exact("left_out_bytes", |(_, step)| Cell::count(step.left_out_bytes))
        .exact("elems", |(_, step)| Cell::count(step.elems))
        .exact("kept_elems", |(_, step)| Cell::count(step.kept_elems))
        .shown("kept", |(_, step)| Cell::maybe(step.kept_fraction, |share| Cell::percent(share, 3)))
        .both("threshold avg", "threshold_avg", threshold(|thresholds| thresholds.avg))
        .both("min", "threshold_min", threshold(|thresholds| thresholds.min))
        .both("max", "threshold_max", threshold(|thresholds| thresholds.max))
        .both("zone", "zone_tensors", |(_, step)| {
            Cell::maybe(step.thresholds.as_ref(), |thresholds| Cell::count(thresholds.zone_tensors))
        })
        .both("max error", "max_error", |(_, step)| power(step.max_error))
        .both("update error", "relative_update_error", |(_, step)| fixed(step.relative_update_error, 4))
        .both("state error", "relative_state_error", |(_, step)| fixed(step.relative_state_error, 4));
    let loss = |(_, step): &Entry<'_>| fixed(step.loss, 4);
    if has_loss { table.both("loss", "loss", loss) } else { table.exact("loss", loss) }
}

/// The files that `--verify` has checked.
pub(super) fn checks(checks: &[StepCheck]) -> Table<'_, StepCheck> {
    Table::of(checks)
        .shown("file", |check| Cell::text(check.path.display().to_string()))
        .shown("", |check| Cell::text(if check.lossless { "lossless" } else { "LOSSY" }))
        .shown("checked", |check| Cell::text(check.checked))
        .shown("bound", |check| Cell::number(check.bound, format!("{:.3e}", check.bound)))
        .shown("max error", |check| power(check.max_error))
        .shown("result", |check| Cell::text(if check.faults.is_empty() { "ok" } else { "WRONG" }))
}
