//! The tables of `deltaloom lab layer`.

use deltaloom_lab::layer::{LayerReport, ParameterTimes, RestoredReport, RunReport};
use deltaloom_lab::statistics::{LayerStatistics, TenantBytes, TensorStatistics};
use deltaloom_lab::timing::Seconds;

use super::super::cells;
use crate::ui::table::{Cell, Table};

/// The tensors, and all of them together.
pub(super) fn sizes(rows: &[TensorStatistics]) -> Table<'_, TensorStatistics> {
    let fraction = |part: u64, of: u64| Cell::percent(part as f64 / of.max(1) as f64, 2);
    Table::of(rows)
        .shown("tensor", |row| Cell::text(&*row.name))
        .shown("dtype", |row| Cell::text(&*row.dtype))
        .shown("shape", |row| if row.shape.is_empty() { Cell::text("") } else { Cell::shape(&row.shape) })
        .shown("elements", |row| Cell::count(row.sparsity.elems))
        .shown("bytes", |row| Cell::bytes(row.original_bytes))
        .shown("packed", |row| Cell::bytes(row.bytes.packed))
        .shown("ratio", |row| Cell::ratio(row.ratio))
        .shown("codec", |row| Cell::text(row.codec))
        .shown("changed", |row| fraction(row.sparsity.changed_elems, row.sparsity.elems))
        .shown("XOR non-zero", |row| fraction(row.sparsity.nonzero_bytes, row.original_bytes))
        .shown("5 bytes each", |row| Cell::bytes(row.bytes.sparse_bytes))
        .shown("XOR zstd 10", |row| Cell::bytes(row.bytes.xor_zstd))
        .shown("COO 32", |row| Cell::bytes(row.bytes.coo_32))
        .shown("bitmap", |row| Cell::bytes(row.bytes.bitmap))
        .shown("CSR", |row| Cell::bytes(row.bytes.csr))
}

/// The rows of that table: the last one is the whole layer, with the container's index.
pub(super) fn tensors(all: &LayerStatistics) -> Vec<TensorStatistics> {
    let whole = TensorStatistics {
        name: "all, with the index".to_owned(),
        dtype: String::new(),
        shape: Vec::new(),
        original_bytes: all.original_bytes,
        sparsity: all.sparsity,
        bytes: deltaloom_lab::statistics::FormBytes {
            packed: all.container_bytes,
            xor_zstd: all.xor_zstd_joined_bytes,
            ..all.bytes
        },
        codec: "",
        ratio: all.ratio,
    };
    all.tensors.iter().cloned().chain([whole]).collect()
}

fn time(of: fn(&RunReport) -> Seconds) -> impl Fn(&&RunReport) -> Cell {
    move |run| cells::seconds(of(run).mean)
}

/// The layer computed in each form.
pub(super) fn runs<'a>(runs: &'a [&'a RunReport]) -> Table<'a, &'a RunReport> {
    named(runs)
        .shown("resident", |run| Cell::bytes(run.resident_bytes))
        .shown("median", |run| cells::seconds(run.forward_median_seconds))
        .shown("mean", |run| cells::seconds(run.forward.mean))
        .shown("deviation", |run| cells::seconds(run.forward.deviation))
        .shown("over dense", |run| Cell::fixed(run.over_dense, 2))
        .shown("same bits", |run| cells::yes(run.is_bit_exact))
        .shown("error", |run| Cell::power(run.relative_error, 1))
        .shown("error of a product", |run| Cell::power(run.product_error, 1))
        .shown("right", |run| cells::holds(run.is_right))
}

/// Their times by phase.
pub(super) fn phases<'a>(runs: &'a [&'a RunReport]) -> Table<'a, &'a RunReport> {
    named(runs)
        .shown("load", time(|run| run.load))
        .shown("arrange", time(|run| run.arrange))
        .shown("decode", time(|run| run.decode))
        .shown("patch", time(|run| run.patch))
        .shown("multiply", time(|run| run.multiply))
        .shown("finish", time(|run| run.finish))
        .shown("between", time(|run| run.between))
        .shown("total", time(|run| run.total))
        .shown("without patch", |run| cells::seconds(run.without_patch_seconds))
        .shown("without patch, decode", |run| cells::seconds(run.without_patch_and_decode_seconds))
}

fn named<'a>(runs: &'a [&'a RunReport]) -> Table<'a, &'a RunReport> {
    Table::of(runs)
        .shown("form", |run| Cell::text(&*run.form))
        .shown("mode", |run| Cell::text(run.mode))
        .shown("tokens", |run| Cell::count(run.tokens))
}

/// Times of some parameters, each in a run.
pub(super) fn parameters<'a>(
    rows: &'a [(&'a RunReport, &'a ParameterTimes)],
) -> Table<'a, (&'a RunReport, &'a ParameterTimes)> {
    type Row<'a> = (&'a RunReport, &'a ParameterTimes);
    let time = |of: fn(&ParameterTimes) -> Seconds| move |row: &Row<'_>| cells::seconds(of(row.1).mean);
    Table::of(rows)
        .shown("form", |(run, _)| Cell::text(&*run.form))
        .shown("mode", |(run, _)| Cell::text(run.mode))
        .shown("tokens", |(run, _)| Cell::count(run.tokens))
        .shown("parameter", |(_, parameter)| Cell::text(&*parameter.name))
        .shown("total", time(|parameter| parameter.total))
        .shown("deviation", |(_, parameter)| cells::seconds(parameter.total.deviation))
        .shown("decode", time(|parameter| parameter.decode))
        .shown("patch", time(|parameter| parameter.patch))
        .shown("multiply", time(|parameter| parameter.multiply))
}

/// The first run in a packed form, whose parameters are shown first.
pub(super) fn first_packed(report: &LayerReport) -> Option<&RunReport> {
    report.runs.iter().find(|run| run.form != "file")
}

/// The layer computed after all weights have been restored.
pub(super) fn restored(report: &LayerReport) -> Table<'_, RestoredReport> {
    let time = |of: fn(&RestoredReport) -> f64| move |run: &RestoredReport| cells::seconds(of(run));
    Table::of(&report.restored)
        .shown("stored", |run| Cell::text(run.stored))
        .shown("tokens", |run| Cell::count(run.tokens))
        .shown("load", time(|run| run.timing.load.mean))
        .shown("decompress", time(|run| run.timing.decompress.mean))
        .shown("apply", time(|run| run.timing.apply.mean))
        .shown("state load", time(|run| run.timing.state_load.mean))
        .shown("forward", time(|run| run.timing.forward.mean))
        .shown("total", time(|run| run.timing.end_to_end.mean))
        .shown("deviation", time(|run| run.timing.end_to_end.deviation))
        .shown("without apply", time(|run| run.timing.what_if.without_apply))
        .shown("without apply, decompress", time(|run| run.timing.what_if.without_apply_and_decompress))
        .shown("same bits", |run| cells::holds(run.is_bit_exact))
}

/// Memory of a base and its tenants: for each number of tenants, the bytes of each form.
pub(super) fn memory(report: &LayerReport) -> Table<'_, TenantBytes> {
    let mut table = Table::of(&report.counted_memory).shown("tenants", |row| Cell::count(row.tenants));
    for form in forms(report) {
        let bytes = |tenants: u64| {
            let mut rows = report.memory.iter().filter(|row| row.tenants == tenants);
            rows.find(|row| row.form == form).map(|row| row.bytes)
        };
        table = table.shown(form, |row| Cell::maybe(bytes(row.tenants), Cell::bytes));
    }
    for (form, bytes) in COUNTED {
        table = table.shown(form, move |row| Cell::bytes(bytes(row)));
    }
    table
}

/// The forms that were run.
pub(super) fn forms(report: &LayerReport) -> Vec<&str> {
    let mut forms: Vec<&str> = Vec::new();
    for row in &report.memory {
        if !forms.contains(&row.form.as_str()) {
            forms.push(&row.form);
        }
    }
    forms
}

/// A form whose bytes are only counted.
type Counted = (&'static str, fn(&TenantBytes) -> u64);

pub(super) const COUNTED: [Counted; 6] = [
    ("copies", |row| row.dense),
    ("container", |row| row.with_base.packed),
    ("XOR", |row| row.with_base.xor),
    ("XOR zstd 10", |row| row.with_base.xor_zstd),
    ("COO 32", |row| row.with_base.coo_32),
    ("COO 64", |row| row.with_base.coo_64),
];
