//! The table of `deltaloom lab positions`.

use deltaloom_lab::positions::{MethodReport, PositionsReport};

use super::super::cells;
use crate::ui::table::{Cell, Table};

/// A row for each method, in any order.
pub(super) fn methods<'a>(
    report: &PositionsReport,
    rows: &'a [&'a MethodReport],
) -> Table<'a, &'a MethodReport> {
    let seconds = |of: fn(&MethodReport) -> f64| move |row: &&MethodReport| Cell::fixed(of(row), 2);
    let rate = |of: fn(&MethodReport) -> f64| move |row: &&MethodReport| Cell::fixed(of(row), 0);
    Table::of(rows)
        .exact("source", |_| Cell::text(&*report.source))
        .exact("original_bytes", |_| Cell::count(report.original_bytes))
        .both("method", "method", |row| Cell::text(&*row.method))
        .both("group", "group", |row| Cell::text(row.group))
        .both("coded bytes", "coded_bytes", |row| Cell::count(row.coded_bytes))
        .exact("container_bytes", |row| Cell::count(row.container_bytes))
        .exact("is_raw", |row| cells::yes(row.is_raw))
        .both("ratio", "ratio", |row| Cell::ratio(row.ratio))
        .both("extract s", "extract_seconds", seconds(|row| row.extract_seconds))
        .both("compress s", "compress_seconds", seconds(|row| row.compress_seconds))
        .both("decompress s", "decompress_seconds", seconds(|row| row.decompress_seconds))
        .both("reconstruct s", "reconstruct_seconds", seconds(|row| row.reconstruct_seconds))
        .both("verify s", "verify_seconds", seconds(|row| row.verify_seconds))
        .both("encode MB/s", "encode_mb_per_second", rate(|row| row.encode_mb_per_second))
        .both("decode MB/s", "decode_mb_per_second", rate(|row| row.decode_mb_per_second))
        .both("verified", "verified", |row| cells::holds(row.verified))
        .shown("", |row| Cell::text(marks(report, row)))
}

fn marks(report: &PositionsReport, row: &MethodReport) -> String {
    let is_named = |name: &Option<String>| name.as_ref() == Some(&row.method);
    let marks =
        [(row.is_raw, "raw"), (is_named(&report.best), "best"), (is_named(&report.fastest), "fastest")];
    marks.iter().filter(|(is_it, _)| *is_it).map(|(_, mark)| *mark).collect::<Vec<_>>().join(", ")
}
