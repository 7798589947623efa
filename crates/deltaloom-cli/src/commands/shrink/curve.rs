//! The page of `deltaloom shrink curve`.

use deltaloom_report::{Axis, Curve as Line, Drawn, Figure, Lines, Page, Section, Unit};
use deltaloom_shrink::run::{Curve, OnCurve};

use super::describe::table;
use crate::pages::table as on_page;
use crate::ui;

pub(super) fn page(curve: &Curve) -> Page {
    let line = |name: &str, points: &[OnCurve]| {
        let point =
            |point: &OnCurve| Some((point.report.student_bytes as f64, point.report.texts.first()?.kl));
        let mut points: Vec<(f64, f64)> =
            points.iter().filter_map(point).filter(|(_, kl)| *kl > 0.0).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line { name: name.to_owned(), points, drawn: Drawn::Line }
    };
    let mut curves = vec![line("search", &curve.searched)];
    if !curve.published.is_empty() {
        curves.push(line("published rules", &curve.published));
    }
    // A student on or above this line is useless.
    let ends = curves.iter().flat_map(|line| &line.points).map(|point| point.0);
    let [low, high] = ends.fold([f64::INFINITY, 0.0], |[low, high], x| [low.min(x), f64::max(high, x)]);
    if let Some(table_kl) = curve.searched.first().map(|point| point.report.table_kl) {
        let points = vec![(low, table_kl), (high, table_kl)];
        curves.push(Line { name: "table of token frequencies".into(), points, drawn: Drawn::Line });
    }
    let lines = Lines {
        x: Axis::log("packed bytes of the student", Unit::Bytes),
        y: Axis::log("KL, nats per token", Unit::Number),
        curves,
        marks: Vec::new(),
    };
    let mut sections = vec![Section {
        heading: "What a size costs".into(),
        text: "Divergence from the teacher on the first text that is measured. Every student is LOSSY. A student that is no nearer than a table of token frequencies is useless.".into(),
        figure: Some(Figure::Lines(lines)),
        table: Some(on_page(&table(&curve.searched, "search"))),
    }];
    if !curve.published.is_empty() {
        sections.push(Section {
            heading: "Published rules".into(),
            text: "The same sizes by the rules of the published toolkit: above a ratio of 10 low rank is on, above 50 ranks are halved and sparsity grows by 5 points. The bytes are those of the packed file.".into(),
            figure: None,
            table: Some(on_page(&table(&curve.published, "published rules"))),
        });
    }
    Page {
        title: "Smaller models".into(),
        subtitle: format!("Students of a model of {}.", ui::bytes(curve.teacher_bytes)),
        sections,
    }
}
