//! The page about a student.

use std::collections::BTreeMap;

use deltaloom_report::{Arrangement, Axis, Bar, Bars, Cell, Figure, Page, Section, Table, Unit};
use deltaloom_shrink::run::{Made, Report};

use super::describe::verdict;
use super::samples::Samples;
use crate::ui;

/// All of it; the verdict is last.
pub(super) fn page(
    experiment: &str,
    made: &Made,
    compliance: &BTreeMap<&'static str, bool>,
    samples: Option<&Samples>,
) -> Page {
    let report = &made.report;
    let teacher = made.teacher.file_name().unwrap_or_default().to_string_lossy();
    let subtitle = format!(
        "LOSSY: numbers were changed on purpose, and the teacher cannot be restored from it.\n\n{} of {} ({}; {:.3} \
         bits per weight, and {:.3} for each weight that was shrunk). Experiment: {experiment}.",
        ui::bytes(report.student_bytes),
        ui::bytes(report.teacher_bytes),
        ui::ratio(report.ratio),
        report.bits_per_weight,
        report.bits_per_shrunk_weight,
    );
    let mut sections = vec![
        divergence(report),
        bytes(
            "Bytes by place",
            "Bytes of the packed weights by their place in the model.",
            report.sizes.by_place.iter().map(|(place, bytes)| (place.name(), *bytes)).collect(),
        ),
        bytes(
            "Bytes by kind",
            "The same bytes by what they are: small integers (codes) and their steps, positions in sparse \
             matrices (bits), floats of low-rank factors, other floats (values).",
            report.sizes.by_kind.iter().map(|(kind, bytes)| (kind.name(), *bytes)).collect(),
        ),
        forms(report),
        matrices(made),
    ];
    sections.extend(samples.map(text));
    sections.extend(warnings(report));
    sections.push(conclusion(report, compliance));
    Page { title: format!("LOSSY student of {teacher}"), subtitle, sections }
}

fn section(heading: &str, text: &str, table: Table) -> Section {
    Section { heading: heading.to_owned(), text: text.to_owned(), figure: None, table: Some(table) }
}

fn fixed(value: f64, digits: usize) -> Cell {
    Cell::Written { shown: format!("{value:.digits$}"), exact: value.to_string() }
}

fn divergence(report: &Report) -> Section {
    let names =
        ["text", "tokens", "KL", "±", "reverse KL", "same top", "top-5 overlap", "perplexity", "teacher's"];
    let mut table = Table::new(&names);
    for on in &report.texts {
        let it = &on.divergence;
        table.rows.push(vec![
            Cell::text(&*on.name),
            Cell::Value(it.tokens as f64, Unit::Count),
            fixed(on.kl, 5),
            fixed(on.kl_error, 5),
            fixed(it.reverse_kl, 5),
            Cell::Value(it.same_top.value, Unit::Percent),
            Cell::Value(it.top5_overlap, Unit::Percent),
            fixed(it.student_perplexity, 3),
            fixed(it.base_perplexity, 3),
        ]);
    }
    let text = format!(
        "Divergence from the teacher (Kullback-Leibler, in nats per token) on text that nothing was fitted to. A table \
         of token frequencies has {:.3}.",
        report.table_kl
    );
    section("Divergence", &text, table)
}

fn bytes(heading: &str, text: &str, parts: Vec<(&'static str, u64)>) -> Section {
    let all: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let mut table = Table::new(&["part", "bytes", "share"]);
    table.rows = parts
        .iter()
        .map(|(name, bytes)| {
            let share = *bytes as f64 / all.max(1) as f64;
            vec![
                Cell::text(*name),
                Cell::Written { shown: ui::bytes(*bytes), exact: bytes.to_string() },
                Cell::Value(share, Unit::Percent),
            ]
        })
        .collect();
    let bar = |(name, bytes): &(&str, u64)| Bar { name: (*name).to_owned(), values: vec![*bytes as f64] };
    let bars = Bars {
        axis: Axis::linear("bytes of the packed student", Unit::Bytes),
        parts: vec!["bytes".to_owned()],
        bars: parts.iter().map(bar).collect(),
        arrangement: Arrangement::Beside,
    };
    Section { figure: Some(Figure::Bars(bars)), ..section(heading, text, table) }
}

fn forms(report: &Report) -> Section {
    let mut table = Table::new(&["form", "matrices"]);
    for (form, count) in &report.forms {
        table.rows.push(vec![Cell::text(&**form), Cell::Value(*count as f64, Unit::Count)]);
    }
    section("Forms", "How matrices are stored, and how many.", table)
}

fn matrices(made: &Made) -> Section {
    let mut table = Table::new(&["matrix", "form", "bytes"]);
    for (name, form) in &made.forms {
        let bytes = made.report.sizes.matrices.get(name).copied().unwrap_or(0);
        table.rows.push(vec![
            Cell::text(&**name),
            Cell::text(form.name()),
            Cell::Value(bytes as f64, Unit::Bytes),
        ]);
    }
    section(
        "Matrices",
        "Each matrix that was shrunk, with the bytes of its numbers in the packed file.",
        table,
    )
}

fn text(samples: &Samples) -> Section {
    let mut table = Table::new(&["who", "text"]);
    let rows = [("prompt", &samples.prompt), ("teacher", &samples.teacher), ("student", &samples.student)];
    table.rows = Vec::from(rows.map(|(who, text)| vec![Cell::text(who), Cell::text(ui::printable(text))]));
    section("Text", "What both say after the same words, always the most probable token.", table)
}

fn warnings(report: &Report) -> Option<Section> {
    let text = report.warnings.join("\n\n");
    (!text.is_empty()).then(|| Section { heading: "Warnings".to_owned(), text, figure: None, table: None })
}

fn conclusion(report: &Report, compliance: &BTreeMap<&'static str, bool>) -> Section {
    let mut table = Table::new(&["target", "met"]);
    for (target, is_met) in compliance {
        table.rows.push(vec![Cell::text(*target), Cell::text(if *is_met { "yes" } else { "no" })]);
    }
    let table = (!table.rows.is_empty()).then_some(table);
    let text = format!("{}.", verdict(report.verdict));
    Section { heading: "Verdict".to_owned(), text, figure: None, table }
}
