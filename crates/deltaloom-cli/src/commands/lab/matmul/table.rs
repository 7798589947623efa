//! The tables of `deltaloom lab matmul`.

use deltaloom_lab::matmul::{Goal, MatmulReport, ProductReport, WayReport};

use super::super::cells;
use crate::ui;
use crate::ui::table::{Cell, Table};

/// The products of all groups, or of one.
pub(super) fn products<'a>(
    report: &MatmulReport,
    rows: &'a [&'a ProductReport],
) -> Table<'a, &'a ProductReport> {
    let ms = |seconds: f64| Cell::number(seconds, format!("{:.3}", 1e3 * seconds));
    let phase = |of: fn(&ProductReport) -> f64| {
        move |row: &&ProductReport| match of(row) {
            0.0 => Cell::number(0.0, "-".to_owned()),
            seconds => Cell::number(seconds, format!("{:.3}", 1e3 * seconds)),
        }
    };
    let billions = |value: f64| Cell::number(value, format!("{:.1}", value / 1e9));
    let way = |row: &ProductReport| report.ways.iter().find(|way| way.way == row.way);
    Table::of(rows)
        .both("form", "way", |row| Cell::text(row.way))
        .exact("mode", |row| Cell::text(row.mode))
        .exact("tokens", |row| Cell::count(row.tokens))
        .both("ms", "median_seconds", |row| ms(row.median_seconds))
        .both("x raw", "times_raw", |row| Cell::maybe(row.times_raw, |times| Cell::fixed(times, 2)))
        .exact("resident_bytes", |row| Cell::maybe(way(row).and_then(|way| way.resident_bytes), Cell::bytes))
        .exact("resident_fraction", |row| {
            Cell::maybe(way(row).and_then(|way| way.resident_fraction), |share| Cell::percent(share, 1))
        })
        .both("GB/s", "weight_bytes_per_second", |row| billions(row.weight_bytes_per_second))
        .both("GFLOP/s", "flops_per_second", |row| billions(row.flops_per_second))
        .both("load", "load_seconds", phase(|row| row.phases.load))
        .both("decode", "decode_seconds", phase(|row| row.phases.decode))
        .both("patch", "patch_seconds", phase(|row| row.phases.patch))
        .both("multiply", "multiply_seconds", phase(|row| row.phases.multiply))
        .both("finish", "finish_seconds", phase(|row| row.phases.finish))
        .both("error", "error", |row| match Cell::power(row.error, 0) {
            Cell::Number { exact, .. } if !row.verified => Cell::Number { shown: "WRONG".to_owned(), exact },
            cell => cell,
        })
        .exact("verified", |row| cells::holds(row.verified))
}

/// The groups of products, by mode and number of tokens, in order.
pub(super) fn groups(report: &MatmulReport) -> Vec<(&str, usize)> {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for row in &report.products {
        if !groups.contains(&(row.mode, row.tokens)) {
            groups.push((row.mode, row.tokens));
        }
    }
    groups
}

/// The products of one group, and its heading.
pub(super) fn group<'a>(
    report: &'a MatmulReport,
    (mode, tokens): (&str, usize),
) -> (String, Vec<&'a ProductReport>) {
    let is_member = |row: &&ProductReport| (row.mode, row.tokens) == (mode, tokens);
    (
        format!("{}, {mode}", ui::count(tokens as u64, "token")),
        report.products.iter().filter(is_member).collect(),
    )
}

/// Memory of the matrix in each form.
pub(super) fn sizes(report: &MatmulReport) -> Table<'_, WayReport> {
    Table::of(&report.ways)
        .shown("form", |way| Cell::text(way.way))
        .shown("group", |way| Cell::text(way.group))
        .shown("resident", |way| Cell::maybe(way.resident_bytes, Cell::bytes))
        .shown("of the matrix", |way| Cell::maybe(way.resident_fraction, |share| Cell::percent(share, 1)))
        .shown("", |way| Cell::text(way.missing.as_deref().unwrap_or_default()))
}

pub(super) fn goals(report: &MatmulReport) -> Table<'_, Goal> {
    Table::of(&report.goals)
        .shown("goal", |goal| Cell::text(&*goal.measures))
        .shown("measured", |goal| Cell::fixed(goal.measured, 3))
        .shown("limit", |goal| {
            let sign = if goal.is_minimum { ">=" } else { "<=" };
            Cell::number(goal.limit, format!("{sign} {}", goal.limit))
        })
        .shown("verdict", |goal| Cell::text(if goal.reached { "reached" } else { "MISSED" }))
        .shown("set for", |goal| {
            Cell::text(if goal.is_about_this_matrix { "such a matrix" } else { "another matrix" })
        })
}

/// The matrix and the conditions of the measurement.
pub(super) fn conditions(report: &MatmulReport) -> String {
    format!(
        "{} [{}, {}] {}, {}, {:.2} % changed; {}, {}, {}; memcpy {:.1} GB/s",
        report.tensor,
        report.rows,
        report.cols,
        report.dtype,
        ui::bytes(report.weight_bytes),
        100.0 * report.changed_fraction,
        report.isa,
        ui::count(report.threads as u64, "thread"),
        ui::count(report.rounds as u64, "round"),
        report.memcpy_bytes_per_second / 1e9,
    )
}
