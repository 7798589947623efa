//! A container in words, from the report of packing or inspecting it.

use std::collections::BTreeMap;

use deltaloom::{PackReport, Share};

use crate::ui;

/// One line with sizes, ratio and, if known, time.
pub(crate) fn summary(report: &PackReport) -> String {
    let sizes = format!(
        "{} -> {}, ratio {:.3}",
        ui::bytes(report.original_bytes),
        ui::bytes(report.packed_bytes),
        report.ratio,
    );
    let rate = |seconds: f64| report.original_bytes as f64 / 1e6 / seconds.max(1e-9);
    match report.seconds {
        Some(seconds) => format!("{sizes}, {seconds:.2} s, {:.0} MB/s", rate(seconds)),
        None => sizes,
    }
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
    let mut out = format!("{}, index {}\n\n", summary(report), ui::bytes(report.index_bytes));
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
        out.push_str(&tensor_table(report));
    }
    out
}

fn shares(kind: &str, counted: &str, shares: &BTreeMap<&'static str, Share>) -> String {
    let mut rows = vec![vec![kind.to_owned(), counted.to_owned(), "packed".to_owned()]];
    rows.extend(
        shares
            .iter()
            .map(|(name, share)| vec![(*name).to_owned(), share.count.to_string(), ui::bytes(share.bytes)]),
    );
    ui::table(&rows)
}

fn tensor_table(report: &PackReport) -> String {
    let header = ["tensor", "dtype", "shape", "predictor", "codec", "original", "packed", "changed"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(report.tensors.iter().map(|tensor| {
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        let predictor = tensor.predictor;
        vec![
            ui::printable(&tensor.name),
            ui::printable(&tensor.dtype),
            format!("[{}]", shape.join(",")),
            tensor.rule.as_ref().map_or_else(|| predictor.to_owned(), |rule| format!("{predictor}, {rule}")),
            tensor.codec.to_owned(),
            ui::bytes(tensor.original_bytes),
            ui::bytes(tensor.packed_bytes),
            tensor.changed_fraction.map_or_else(|| "-".to_owned(), |f| format!("{:.2} %", 100.0 * f)),
        ]
    }));
    ui::table(&rows)
}
