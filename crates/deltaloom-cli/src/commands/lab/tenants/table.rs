//! The tables of `deltaloom lab tenants`.

use deltaloom_lab::tenants::{Arrivals, PressureReport, TenantsReport, Verdict, WayReport};

use super::super::cells;
use crate::ui::table::{Cell, Table};

/// The methods of serving one batch.
pub(super) fn ways(report: &TenantsReport) -> Table<'_, WayReport> {
    Table::of(&report.ways)
        .both("one batch", "way", |way| Cell::text(&*way.name))
        .both("tokens/s", "tokens_per_second", |way| Cell::fixed(way.tokens_per_second, 0))
        .both("resident", "resident_bytes", |way| Cell::bytes(way.resident_bytes))
        .both("same bits", "is_bit_exact", |way| cells::yes(way.is_bit_exact))
        .both("error", "error", |way| Cell::power(way.error, 1))
        .both("right", "is_right", |way| cells::holds(way.is_right))
        .both("matrices", "forms", |way| Cell::text(&*way.forms))
}

/// Memory of one tenant of a layer or a model, by form.
pub(super) fn memory<'a>(
    of_what: &str,
    forms: &'a [(String, u64)],
    base_bytes: u64,
) -> Table<'a, (String, u64)> {
    Table::of(forms)
        .shown("one tenant in memory", |(form, _)| Cell::text(&**form))
        .shown(of_what, |(_, bytes)| Cell::bytes(*bytes))
        .shown("of the base", |(_, bytes)| Cell::fixed(*bytes as f64 / base_bytes as f64, 3))
}

/// Service with budgets that are too small.
pub(super) fn pressure(report: &TenantsReport) -> Table<'_, PressureReport> {
    Table::of(&report.pressure)
        .shown("requests", |row| Cell::text(arrivals(row.arrivals)))
        .shown("forms", |row| Cell::text(row.forms))
        .shown("tenants/budget", |row| Cell::count(row.tenants_over_budget))
        .shown("tokens/s", |row| Cell::fixed(row.tokens_per_second, 0))
        .shown("slowdown", |row| Cell::fixed(row.slowdown, 2))
        .shown("hits", |row| Cell::count(row.residency.hits))
        .shown("misses", |row| Cell::count(row.residency.misses))
        .shown("direct", |row| Cell::count(row.residency.direct))
        .shown("evicted", |row| Cell::count(row.residency.evictions))
        .shown("resident", |row| Cell::bytes(row.residency.matrix_bytes + row.residency.vector_bytes))
}

pub(super) fn arrivals(arrivals: Arrivals) -> &'static str {
    match arrivals {
        Arrivals::Random => "random",
        Arrivals::InTurn => "in turn",
    }
}

pub(super) fn verdicts(report: &TenantsReport) -> Table<'_, Verdict> {
    Table::of(&report.verdicts)
        .shown("goal", |verdict| Cell::text(&*verdict.goal))
        .shown("measured", |verdict| Cell::fixed(verdict.value, 3))
        .shown("limit", |verdict| Cell::count(verdict.limit))
        .shown("met", |verdict| cells::holds(verdict.is_met))
}
