//! A container in words, from the report of packing or inspecting it.

use std::collections::BTreeMap;

use deltaloom::{PackReport, Portion, Share, TensorReport};

use crate::ui;
use crate::ui::table::{Cell, Table};

/// One line with sizes, ratio and, if known, time.
pub(crate) fn summary(report: &PackReport) -> String {
    let sizes = format!(
        "{} -> {}, ratio {}",
        ui::bytes(report.original_bytes),
        ui::bytes(report.packed_bytes),
        ui::ratio(report.ratio),
    );
    let rate = |seconds: f64| report.original_bytes as f64 / 1e6 / seconds.max(1e-9);
    match report.seconds {
        Some(seconds) => format!("{sizes}, {seconds:.2} s, {:.0} MB/s", rate(seconds)),
        None => sizes,
    }
}

/// What of a container is weights, if it holds states of a training too.
pub(crate) fn portions(report: &PackReport) -> Option<String> {
    let (weights, states) = (&report.weights, &report.states);
    if states.tensors == 0 {
        return None;
    }
    let sizes = |portion: &Portion| {
        format!("{} -> {}", ui::bytes(portion.original_bytes), ui::bytes(portion.packed_bytes))
    };
    let changed = |share: f64| format!(", {} changed", ui::percent(share, 2));
    let changed = weights.changed_fraction.map_or_else(String::new, changed);
    let bits = weights.bits_per_elem.map_or_else(String::new, |bits| format!(", {bits:.3} bits each"));
    Some(format!("weights: {}{changed}{bits}; states of the training: {}", sizes(weights), sizes(states)))
}

/// Version, bases and texts, a line each.
pub(crate) fn identity(report: &PackReport) -> String {
    let needs = match (report.needs_base, report.bases.is_empty()) {
        (true, false) => "yes",
        (true, true) => "yes (not recorded)",
        (false, _) => "no",
    };
    let mut out = format!("format version: {}\nneeds a base: {needs}\n", report.format_version);
    for base in &report.bases {
        out.push_str(&format!("base: {base}\n"));
    }
    for (key, text) in &report.texts {
        out.push_str(&format!("{}: {}\n", ui::printable(key), ui::printable(text)));
    }
    out.push('\n');
    out
}

/// A container of a series, whose manifest records its bases.
pub(crate) fn describe(report: &PackReport, with_tensors: bool) -> String {
    head(report) + &body(report, with_tensors)
}

pub(crate) fn head(report: &PackReport) -> String {
    let mut out = format!("{}, index {}\n", summary(report), ui::bytes(report.index_bytes));
    out.push_str(&portions(report).map_or_else(String::new, |portions| format!("{portions}\n")));
    out.push('\n');
    if report.files.len() > 1 {
        out.push_str(&format!("{} files\n\n", report.files.len()));
    }
    out
}

pub(crate) fn body(report: &PackReport, with_tensors: bool) -> String {
    let mut out = shares("predictor", "tensors", &report.predictors);
    out.push('\n');
    out.push_str(&shares("codec", "chunks", &report.codecs));
    if with_tensors {
        out.push('\n');
        out.push_str(&tensors(report).text());
    }
    out
}

fn shares(kind: &str, counted: &str, shares: &BTreeMap<&'static str, Share>) -> String {
    let shares: Vec<_> = shares.iter().collect();
    let table = Table::of(&shares)
        .shown(kind, |(name, _)| Cell::text(**name))
        .shown(counted, |(_, share)| Cell::count(share.count))
        .shown("packed", |(_, share)| Cell::bytes(share.bytes));
    table.text()
}

/// Every tensor of a container.
pub(crate) fn tensors(report: &PackReport) -> Table<'_, TensorReport> {
    Table::of(&report.tensors)
        .both("tensor", "tensor", |tensor| Cell::text(&*tensor.name))
        .both("dtype", "dtype", |tensor| Cell::text(&*tensor.dtype))
        .both("shape", "shape", |tensor| Cell::shape(&tensor.shape))
        .both("predictor", "predictor", |tensor| {
            let exact = tensor.predictor.to_owned();
            let shown = tensor.rule.as_ref().map_or_else(|| exact.clone(), |rule| format!("{exact}, {rule}"));
            Cell::Text { shown, exact }
        })
        .both("codec", "codec", |tensor| Cell::text(tensor.codec))
        .both("original", "original_bytes", |tensor| Cell::bytes(tensor.original_bytes))
        .both("packed", "packed_bytes", |tensor| Cell::bytes(tensor.packed_bytes))
        .both("changed", "changed_fraction", |tensor| {
            Cell::maybe(tensor.changed_fraction, |share| Cell::percent(share, 2))
        })
}
