//! Pages and pictures of what the laboratory has measured; numbers and pictures alike come from the reports.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use deltaloom::checkpoint::output::Inputs;
use deltaloom_lab::lossy::RowReport;
use deltaloom_lab::positions::PositionsReport;
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Cell, Figure, FrontierPoint, MethodRatios, Page, Section, SeriesSummary,
    Table, Unit, methods_page,
};

use crate::args::PageArguments;
use crate::target::{self, Target};

/// Writes a page, and its pictures where that is asked for, none in the place of what was read.
pub(crate) fn write(
    page: &Page,
    output: &Path,
    svg: Option<&Path>,
    overwrite: bool,
    inputs: &Inputs,
) -> Result<()> {
    target::write_text(&Target::new(output), &page.html(), overwrite, inputs)?;
    let Some(folder) = svg else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|e| target::writing(folder, e))?;
    page.pictures().into_iter().try_for_each(|(name, picture)| {
        target::write_text(&Target::Path(folder.join(name)), &picture, overwrite, inputs)
    })
}

/// Writes a page if one is asked for.
pub(super) fn write_asked(
    page: impl FnOnce() -> Page,
    arguments: &PageArguments,
    inputs: &Inputs,
) -> Result<()> {
    match &arguments.html {
        Some(output) => write(&page(), output, arguments.svg.as_deref(), arguments.overwrite, inputs),
        None => Ok(()),
    }
}

/// Says that a page or picture cannot be written, before anything is measured.
pub(super) fn check(arguments: &PageArguments, inputs: &Inputs) -> Result<()> {
    match &arguments.html {
        Some(output) if Target::new(output) == Target::Stdout => {
            bail!("--html - would mix the page with the results; name a file")
        }
        Some(output) => Target::new(output).check(arguments.overwrite, inputs),
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
                value: fn(&deltaloom_lab::positions::MethodReport) -> f64| {
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
