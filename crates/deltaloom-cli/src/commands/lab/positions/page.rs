//! The page of `deltaloom lab positions`.

use deltaloom_lab::positions::{MethodReport, PositionsReport};
use deltaloom_report::{Arrangement, Axis, Bar, Bars, Cell, Figure, Page, Section, Table, Unit};

/// The methods on one pattern: ratios, and time against them.
pub(super) fn page(report: &PositionsReport) -> Page {
    let mut rows: Vec<_> = report.methods.iter().collect();
    rows.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
    let bars = |heading: &str, text: String, unit: Unit, value: fn(&MethodReport) -> f64| {
        let axis = Axis::linear(heading, unit);
        let mut table = Table::new(&["method", "group", heading, "verified"]);
        table.rows = rows
            .iter()
            .map(|row| {
                let verified = if row.verified { "yes" } else { "no" };
                vec![
                    Cell::text(&*row.method),
                    Cell::text(row.group),
                    Cell::Value(value(row), unit),
                    Cell::text(verified),
                ]
            })
            .collect();
        let bars =
            rows.iter().map(|row| Bar { name: row.method.clone(), values: vec![value(row)] }).collect();
        let parts = vec![heading.to_owned()];
        let figure = Figure::Bars(Bars { axis, parts, bars, arrangement: Arrangement::Stacked });
        Section { heading: heading.to_owned(), text, figure: Some(figure), table: Some(table) }
    };
    let bound = report.entropy_ratio.map_or_else(String::new, |ratio| {
        format!("The entropy of the {} allows {ratio:.2}. ", report.entropy_of)
    });
    let text = format!(
        "{bound}Coded bytes without headers. Methods of the group baseline compress the data itself."
    );
    Page {
        title: format!("Position coding: {}", report.source),
        subtitle: format!(
            "{} bytes, {} set bits; every method was decoded and compared byte for byte.",
            report.original_bytes, report.gaps
        ),
        sections: vec![
            bars("ratio", text, Unit::Ratio, |row| row.ratio),
            bars("encoding, MB/s", "Extraction and compression, one thread.".into(), Unit::Number, |row| {
                row.encode_mb_per_second
            }),
            bars(
                "decoding, MB/s",
                "Decompression and reconstruction, one thread.".into(),
                Unit::Number,
                |row| row.decode_mb_per_second,
            ),
        ],
    }
}
