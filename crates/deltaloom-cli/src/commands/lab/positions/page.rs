//! The page of `deltaloom lab positions`: ratios and speeds.

use deltaloom_lab::positions::{MethodReport, PositionsReport};
use deltaloom_report::{Arrangement, Axis, Bar, Bars, Figure, Page, Section, Unit};

use super::table::methods;
use crate::pages::table;
use crate::ui;

pub(super) fn page(report: &PositionsReport) -> Page {
    let mut rows: Vec<_> = report.methods.iter().collect();
    rows.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
    let section = |heading: &str, text: String, unit: Unit, value: fn(&MethodReport) -> f64| {
        let bar = |row: &&MethodReport| Bar { name: row.method.clone(), values: vec![value(row)] };
        let figure = Figure::Bars(Bars {
            axis: Axis::linear(heading, unit),
            parts: vec![heading.to_owned()],
            bars: rows.iter().map(bar).collect(),
            arrangement: Arrangement::Stacked,
        });
        Section { heading: heading.to_owned(), text, figure: Some(figure), table: None }
    };
    let bound = report.entropy_ratio.map_or_else(String::new, |ratio| {
        format!("The entropy of the {} allows a ratio of {}. ", report.entropy_of, ui::ratio(ratio))
    });
    let text = format!(
        "{bound}Coded bytes without headers. Methods in the group `baseline` compress the data itself."
    );
    let ratios = section("ratio", text, Unit::Ratio, |row| row.ratio);
    Page {
        title: format!("Position coding: {}", report.source),
        subtitle: format!(
            "{} bytes with {} set bits. The output of every method was decoded and compared byte for byte.",
            report.original_bytes, report.gaps
        ),
        sections: vec![
            Section { table: Some(table(&methods(report, &rows))), ..ratios },
            section(
                "encoding, MB/s",
                "Extraction and compression, on one thread.".into(),
                Unit::Number,
                |row| row.encode_mb_per_second,
            ),
            section(
                "decoding, MB/s",
                "Decompression and reconstruction, on one thread.".into(),
                Unit::Number,
                |row| row.decode_mb_per_second,
            ),
        ],
    }
}
