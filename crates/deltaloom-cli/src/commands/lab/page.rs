//! Pages and pictures of what the laboratory has measured; numbers and pictures alike come from the reports.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use deltaloom::checkpoint::output::NewFile;
use deltaloom::lab::positions::PositionsReport;
use deltaloom::lossy::RowReport;
use deltaloom::report::{
    Arrangement, Axis, Bar, Bars, Cell, Figure, FrontierPoint, MethodRatios, Page, Section, SeriesSummary,
    Table, Unit, methods_page,
};

use crate::args::PageArguments;

/// Writes a page, and its pictures where that is asked for.
pub(crate) fn write(page: &Page, output: &Path, svg: Option<&Path>, overwrite: bool) -> Result<()> {
    write_file(output, page.html().as_bytes(), overwrite)?;
    let Some(folder) = svg else { return Ok(()) };
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut pictures = page.pictures().into_iter();
    pictures.try_for_each(|(name, picture)| write_file(&folder.join(name), picture.as_bytes(), overwrite))
}

fn write_file(path: &Path, contents: &[u8], overwrite: bool) -> Result<()> {
    let mut file = NewFile::create(path, overwrite)?;
    file.file().write_all(contents).with_context(|| path.display().to_string())?;
    Ok(file.commit()?)
}

/// Writes a page if one is asked for.
pub(super) fn write_asked(page: impl FnOnce() -> Page, arguments: &PageArguments) -> Result<()> {
    match &arguments.html {
        Some(output) => write(&page(), output, arguments.svg.as_deref(), arguments.overwrite),
        None => Ok(()),
    }
}

/// The methods over a series: ratios in total and per step, bytes against error.
pub(super) fn tpde(rows: &[RowReport]) -> Page {
    let name = |row: &RowReport| match row.form {
        "exact" => row.method.clone(),
        form => format!("{} {form}", row.method),
    };
    let methods = rows.iter().map(|row| MethodRatios {
        name: name(row),
        total_ratio: row.ratio,
        ratios: row.steps.iter().map(|step| (step.step, step.ratio())).collect(),
    });
    #[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
    let frontier = rows.iter().filter_map(|row| {
        Some(FrontierPoint {
            group: row.form.to_owned(),
            name: name(row),
            bytes: row.out_bytes as f64,
            error: row.steps.last()?.relative_state_error?,
        })
    });
    let summary = SeriesSummary {
        methods: methods.collect(),
        frontier: frontier.collect(),
        error_label: "error of the last step, relative to its update".to_owned(),
        ..SeriesSummary::default()
    };
    let subtitle = "Every row but the exact one is LOSSY: what a reader gets is not what was stored.";
    methods_page("Threshold methods over a series", subtitle, &summary)
}

/// The methods on one pattern: ratios, and time against them.
pub(super) fn positions(report: &PositionsReport) -> Page {
    let mut rows: Vec<_> = report.methods.iter().collect();
    rows.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
    let bars = |heading: &str,
                text: String,
                unit: Unit,
                value: fn(&deltaloom::lab::positions::MethodReport) -> f64| {
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
