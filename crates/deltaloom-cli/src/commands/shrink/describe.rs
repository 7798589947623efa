//! What `deltaloom shrink` prints for people.

use std::collections::BTreeMap;

use deltaloom_shrink::run::{Curve, OnCurve, Plan, Point, Report, Verdict};

use crate::ui;
use crate::ui::table::{Cell, Table};

/// A student, under a heading: its size, what it costs, how it was chosen, and the verdict last.
pub(super) fn report(report: &Report, head: &str) -> String {
    let mut text = format!(
        "{head}\n{} of {} ({}, {:.3} bits per weight; {:.3} for each weight that was shrunk)\n",
        ui::bytes(report.student_bytes),
        ui::bytes(report.teacher_bytes),
        ui::ratio(report.ratio),
        report.bits_per_weight,
        report.bits_per_shrunk_weight,
    );
    for on in &report.texts {
        let divergence = &on.divergence;
        text.push_str(&format!(
            "{}: KL {:.5} ± {:.5} nats per token, same top token {}, perplexity {:.2} (teacher {:.2})\n",
            on.name,
            on.kl,
            on.kl_error,
            ui::percent(divergence.same_top.value, 1),
            divergence.student_perplexity,
            divergence.base_perplexity,
        ));
    }
    text.push_str(&format!("a table of token frequencies: KL {:.3}\n", report.table_kl));
    match &report.plan {
        Some(plan) => text.push_str(&plan_of(plan, report.teacher_bytes)),
        None => {
            report.forms.iter().for_each(|(form, count)| text.push_str(&format!("{count:>4} x {form}\n")))
        }
    }
    text.push_str(verdict(report.verdict));
    text.push('\n');
    text
}

pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Feasible => "feasible: every target is met",
        Verdict::Infeasible => "infeasible: a target is missed",
        Verdict::Useless => "useless: no nearer to the teacher than a table of token frequencies",
    }
}

/// The tensors that have one form.
struct Kind {
    form: String,
    count: u64,
    bits: [f64; 2],
    kl: f64,
}

fn plan_of(plan: &Plan, teacher_bytes: u64) -> String {
    let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
    for chosen in plan.tensors.values() {
        let new = || Kind { form: chosen.form.clone(), count: 0, bits: [f64::INFINITY, 0.0], kl: 0.0 };
        let kind = kinds.entry(&chosen.form).or_insert_with(new);
        kind.count += 1;
        kind.bits = [kind.bits[0].min(chosen.bits), kind.bits[1].max(chosen.bits)];
        kind.kl += chosen.kl;
    }
    let kinds: Vec<Kind> = kinds.into_values().collect();
    let forms = Table::of(&kinds)
        .shown("form", |kind| Cell::text(kind.form.as_str()))
        .shown("tensors", |kind| Cell::count(kind.count))
        .shown("bits, least", |kind| Cell::fixed(kind.bits[0], 2))
        .shown("most", |kind| Cell::fixed(kind.bits[1], 2))
        .shown("KL, expected", |kind| Cell::fixed(kind.kl, 5));
    let ratio = |bytes: u64| teacher_bytes as f64 / bytes.max(1) as f64;
    let points = Table::of(&plan.curve)
        .shown("other sizes", |point: &Point| Cell::bytes(point.bytes))
        .shown("ratio", |point| Cell::ratio(ratio(point.bytes)))
        .shown("KL, expected", |point| Cell::fixed(point.kl, 4));
    let mut text = format!("\n{}\n{}\n", forms.text(), points.text());
    text.push_str(&format!(
        "least possible: {} ({})\n",
        ui::bytes(plan.least_bytes),
        ui::ratio(ratio(plan.least_bytes))
    ));
    if let Some(bytes) = plan.bytes_for_limit {
        text.push_str(&format!(
            "the limit on KL should be met from {} on ({})\n",
            ui::bytes(bytes),
            ui::ratio(ratio(bytes))
        ));
    }
    text
}

/// The students of a curve, one in a row.
pub(super) fn table<'a>(points: &'a [OnCurve], by: &str) -> Table<'a, OnCurve> {
    let first = |point: &OnCurve| point.report.texts.first().map(|text| (text.kl, text.kl_error));
    let second = |point: &OnCurve| point.report.texts.get(1).map(|text| text.kl);
    Table::of(points)
        .shown(by, |point| Cell::ratio(point.wanted))
        .shown("bytes", |point| Cell::bytes(point.report.student_bytes))
        .shown("ratio", |point| Cell::ratio(point.report.ratio))
        .shown("KL", |point| Cell::maybe(first(point), |(kl, _)| Cell::fixed(kl, 5)))
        .shown("±", |point| Cell::maybe(first(point), |(_, error)| Cell::fixed(error, 5)))
        .shown("KL, second text", |point| Cell::maybe(second(point), |kl| Cell::fixed(kl, 5)))
        .shown("verdict", |point| {
            let verdict = verdict(point.report.verdict);
            Cell::text(verdict.split(':').next().unwrap_or(verdict))
        })
}

pub(super) fn curve(curve: &Curve) -> String {
    let mut text = format!(
        "LOSSY students of a model of {}; none is written\n{}",
        ui::bytes(curve.teacher_bytes),
        table(&curve.searched, "search").text()
    );
    if !curve.published.is_empty() {
        text.push_str(&format!("\n{}", table(&curve.published, "published rules").text()));
    }
    if let Some(table_kl) = curve.searched.first().map(|point| point.report.table_kl) {
        text.push_str(&format!("\na table of token frequencies: KL {table_kl:.3}\n"));
    }
    text
}
