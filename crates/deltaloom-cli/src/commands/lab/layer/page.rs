//! The page of `deltaloom lab layer`: times, sizes, memory of tenants, and where the fine-tune
//! differs from its base. Every number is the report's, or counted in the weights.

use std::ops::Range;

use anyhow::Result;
use deltaloom_lab::layer::{LayerCase, LayerReport, RowDelta, RunReport, TensorDelta};
use deltaloom_lab::statistics::TensorStatistics;
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Curve, Drawn, Figure, HeatMap, Lines, Page, Section, Unit, Zoom,
};

use super::table;
use crate::pages::table as on_page;
use crate::ui;
use crate::ui::table::{Cell, Table};

/// Cells of a map of a whole tensor.
const MAP_ROWS: usize = 64;
const MAP_COLS: usize = 64;
/// Rows of a part whose rows are shown one by one.
const PART_ROWS: usize = 64;
/// Of a tensor with more than `FEW_PARTS`, the parts to show: those that changed most.
const PARTS: usize = 2;
const FEW_PARTS: usize = 4;

pub(super) fn page(name: &str, case: &LayerCase, report: &LayerReport) -> Result<Page> {
    let deltas = TensorDelta::all(case)?;
    let mut sections = vec![sizes(report), forms(report)];
    for tokens in tokens(report) {
        sections.push(phases(report, tokens));
    }
    sections.extend(parameters(report));
    sections.push(restored(report));
    sections.push(memory(report));
    let (matrices, vectors): (Vec<&TensorDelta>, Vec<&TensorDelta>) =
        deltas.iter().partition(|delta| delta.shape()[0] > 1);
    sections.extend(matrices.into_iter().map(matrix));
    if !vectors.is_empty() {
        sections.push(vector_map(&vectors));
    }
    let verdict = if report.is_right {
        "In mode exact, every output has the bits of the dense layer. In mode fast, every product is within its tolerance."
    } else {
        "NOT every output keeps the promise of its mode."
    };
    Ok(Page {
        title: format!("A layer on packed weights: {name}"),
        subtitle: format!(
            "{verdict}\n\nRepeats: {}, threads: {}, {}. `deltaloom lab layer` made this page.",
            report.repeats, report.threads, report.isa
        ),
        sections,
    })
}

fn tokens(report: &LayerReport) -> Vec<usize> {
    let mut tokens: Vec<usize> = report.runs.iter().map(|run| run.tokens).collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

fn count(tokens: usize) -> String {
    ui::count(tokens as u64, "token")
}

/// Packed bytes of each tensor, and those of XOR with zstd.
fn sizes(report: &LayerReport) -> Section {
    let all = &report.statistics;
    let bar = |tensor: &TensorStatistics| Bar {
        name: tensor.name.clone(),
        values: vec![tensor.bytes.packed as f64, tensor.bytes.xor_zstd as f64],
    };
    let figure = Bars {
        axis: Axis::linear("bytes", Unit::Bytes),
        parts: vec!["packed".to_owned(), "XOR, zstd 10".to_owned()],
        bars: all.tensors.iter().map(bar).collect(),
        arrangement: Arrangement::Beside,
    };
    let text = format!(
        "Packed against its base, the layer takes {} bytes of {}, including the index and digests. XOR with the base and zstd 10 takes {} bytes tensor by tensor, and {} bytes in one frame, without an index. {} of {} elements differ.",
        all.container_bytes,
        all.original_bytes,
        all.bytes.xor_zstd,
        all.xor_zstd_joined_bytes,
        all.sparsity.changed_elems,
        all.sparsity.elems
    );
    Section {
        heading: "Packed sizes".to_owned(),
        text,
        figure: Some(Figure::Bars(figure)),
        table: Some(on_page(&table::sizes(&table::tensors(all)))),
    }
}

/// The layer as other tools compute it: after restoring all weights.
fn restored(report: &LayerReport) -> Section {
    let names = ["load", "decompress", "apply", "state load", "forward"];
    let mut bars = Vec::new();
    for run in &report.restored {
        let timing = &run.timing;
        let phases = [timing.load, timing.decompress, timing.apply, timing.state_load, timing.forward];
        let values = phases.map(|time| time.mean).to_vec();
        bars.push(Bar { name: format!("{}, {}", run.stored, count(run.tokens)), values });
    }
    let figure = Bars {
        axis: Axis::linear("seconds", Unit::Seconds),
        parts: names.map(str::to_owned).to_vec(),
        bars,
        arrangement: Arrangement::Stacked,
    };
    let text = "For comparison: all weights are restored from storage before the layer is computed. In a container, decompressing and applying are one step.";
    Section {
        heading: "Restored whole".to_owned(),
        text: text.to_owned(),
        figure: Some(Figure::Bars(figure)),
        table: Some(on_page(&table::restored(report))),
    }
}

fn label(run: &RunReport) -> String {
    format!("{} {}", run.form, run.mode)
}

/// Time against that of the fine-tune's own weights, by tokens.
fn forms(report: &LayerReport) -> Section {
    let tokens = tokens(report);
    let mut bars: Vec<Bar> = Vec::new();
    for run in &report.runs {
        let at = tokens.iter().position(|tokens| *tokens == run.tokens);
        let bar = match bars.iter().position(|bar| bar.name == label(run)) {
            Some(bar) => bar,
            None => {
                bars.push(Bar { name: label(run), values: vec![0.0; tokens.len()] });
                bars.len() - 1
            }
        };
        if let Some(value) = at.and_then(|at| bars[bar].values.get_mut(at)) {
            *value = run.over_dense;
        }
    }
    let figure = Bars {
        axis: Axis::linear("median time over that of the fine-tune's own weights", Unit::Ratio),
        parts: tokens.iter().map(|tokens| count(*tokens)).collect(),
        bars,
        arrangement: Arrangement::Beside,
    };
    let text = "The layer computed on each in-memory form of the weights. The form `file` is the fine-tune's own file; the other outputs are compared with its output.";
    Section {
        heading: "Forms".to_owned(),
        text: text.to_owned(),
        figure: Some(Figure::Bars(figure)),
        table: Some(on_page(&table::runs(&report.runs.iter().collect::<Vec<_>>()))),
    }
}

fn phases(report: &LayerReport, tokens: usize) -> Section {
    let names = ["load", "arrange", "decode", "patch", "multiply", "finish", "between"];
    let mut bars = Vec::new();
    let runs: Vec<_> = report.runs.iter().filter(|run| run.tokens == tokens).collect();
    for run in &runs {
        let phases = [run.load, run.arrange, run.decode, run.patch, run.multiply, run.finish, run.between];
        let values: Vec<f64> = phases.iter().map(|time| time.mean.max(0.0)).collect();
        bars.push(Bar { name: label(run), values });
    }
    let figure = Bars {
        axis: Axis::linear("seconds", Unit::Seconds),
        parts: names.map(str::to_owned).to_vec(),
        bars,
        arrangement: Arrangement::Stacked,
    };
    let text = "`load` is reading the index, finding the base's tensors and building the form. `between` is norms, attention between its projections, activations and biases. Times of several threads are added up. The last two columns of the table are bounds: the total if nothing had to be patched, and if nothing had to be patched or decoded.";
    Section {
        heading: format!("Phases, {}", count(tokens)),
        text: text.to_owned(),
        figure: Some(Figure::Bars(figure)),
        table: Some(on_page(&table::phases(&runs))),
    }
}

/// Times by parameter of the first packed form at each number of tokens.
fn parameters(report: &LayerReport) -> Option<Section> {
    let form = &table::first_packed(report)?.form;
    let run = report.runs.iter().find(|run| run.form == *form && run.mode == "exact")?;
    let rows: Vec<_> =
        report.runs.iter().flat_map(|run| run.parameters.iter().map(move |it| (run, it))).collect();
    let bar = |parameter: &deltaloom_lab::layer::ParameterTimes| Bar {
        name: parameter.name.clone(),
        values: [parameter.decode, parameter.patch, parameter.multiply].map(|time| time.mean).to_vec(),
    };
    let figure = Bars {
        axis: Axis::linear("seconds", Unit::Seconds),
        parts: ["decode", "patch", "multiply"].map(str::to_owned).to_vec(),
        bars: run.parameters.iter().map(bar).collect(),
        arrangement: Arrangement::Stacked,
    };
    Some(Section {
        heading: "Parameters".to_owned(),
        text: format!(
            "Where the time of the form `{}` goes with {}, slowest parameter first. The table has the other runs too.",
            label(run),
            count(run.tokens)
        ),
        figure: Some(Figure::Bars(figure)),
        table: Some(on_page(&table::parameters(&rows))),
    })
}

fn memory(report: &LayerReport) -> Section {
    let line =
        |name: &str, points: Vec<(f64, f64)>| Curve { name: name.to_owned(), points, drawn: Drawn::Line };
    let resident = table::forms(report).into_iter().map(|form| {
        let rows = report.memory.iter().filter(|row| row.form == form);
        line(form, rows.map(|row| (row.tenants as f64, row.bytes as f64)).collect())
    });
    let counted = table::COUNTED.into_iter().map(|(form, bytes)| {
        let rows = report.counted_memory.iter();
        line(form, rows.map(|row| (row.tenants as f64, bytes(row) as f64)).collect())
    });
    let curves = resident.chain(counted).collect();
    let figure = Lines {
        x: Axis::linear("tenants", Unit::Count),
        y: Axis::log("base and tenants", Unit::Bytes),
        curves,
        marks: Vec::new(),
    };
    Section {
        heading: "Memory of tenants".to_owned(),
        text: "The base once, and N fine-tunes like this one; copies need no base. The first forms were kept in memory and multiplied in this run. The others are only counted: containers and XOR with zstd must be decoded before use, and COO stores a row and a column of 32 or 64 bits per element.".to_owned(),
        figure: Some(Figure::Lines(figure)),
        table: Some(on_page(&table::memory(report))),
    }
}

/// Mean differences of some rows, in at most `most_rows` bands.
fn map(delta: &TensorDelta, rows: Range<usize>, most_rows: usize) -> HeatMap {
    let row_step = rows.len().div_ceil(most_rows.max(1)).max(1);
    let col_step = delta.shape()[1].div_ceil(MAP_COLS).max(1);
    let cells = delta.grid(rows.clone(), [row_step, col_step]);
    let columns = cells.first().map_or(0, Vec::len);
    let name = |band: usize| {
        let first = rows.start + band * row_step;
        match first + row_step.min(rows.end - first) - 1 {
            last if last > first => format!("rows {first} to {last}"),
            _ => format!("row {first}"),
        }
    };
    HeatMap {
        x: Axis::linear("column", Unit::Count),
        value: Axis::log("mean absolute difference", Unit::Number),
        columns: (0..columns).map(|column| (column * col_step) as f64).collect(),
        rows: cells.into_iter().enumerate().map(|(band, cells)| (name(band), cells)).collect(),
    }
}

fn matrix(delta: &TensorDelta) -> Section {
    let [rows, cols] = delta.shape();
    let numbered: Vec<(usize, &RowDelta)> = delta.rows().iter().enumerate().collect();
    let table = Table::of(&numbered).shown("row", |(i, _)| Cell::count(i));
    let table = differences(table, |(_, row)| **row);
    let points = delta.rows().iter().enumerate().map(|(i, row)| (i as f64, row.mean_abs));
    let by_row = Lines {
        x: Axis::linear("row", Unit::Count),
        y: Axis::linear("mean absolute difference", Unit::Number),
        curves: vec![Curve { name: "row".to_owned(), points: points.collect(), drawn: Drawn::Line }],
        marks: Vec::new(),
    };
    let mut parts = vec![("Every row".to_owned(), Figure::Lines(by_row))];
    parts.extend(hottest(delta).into_iter().map(|rows| {
        (format!("Rows {} to {}", rows.start, rows.end - 1), Figure::HeatMap(map(delta, rows, PART_ROWS)))
    }));
    let changed: u64 = delta.rows().iter().map(|row| row.changed_elems).sum();
    let more = if rows.div_ceil(PART_ROWS) > FEW_PARTS {
        " The parts that changed most can be unfolded below."
    } else {
        ""
    };
    Section {
        heading: format!("Differences: {}", delta.name()),
        text: format!("{changed} of {} elements differ.{more}", rows as f64 * cols as f64),
        figure: Some(Figure::Zoom(Zoom { whole: map(delta, 0..rows, MAP_ROWS), parts })),
        table: Some(on_page(&table)),
    }
}

/// Bands whose rows are shown one by one: all if there are few, otherwise those that changed most.
fn hottest(delta: &TensorDelta) -> Vec<Range<usize>> {
    let rows = delta.shape()[0];
    let mut bands: Vec<Range<usize>> =
        (0..rows).step_by(PART_ROWS).map(|start| start..(start + PART_ROWS).min(rows)).collect();
    if rows <= MAP_ROWS {
        return Vec::new();
    }
    if bands.len() > FEW_PARTS {
        let heat =
            |band: &Range<usize>| delta.rows()[band.clone()].iter().map(|row| row.mean_abs).sum::<f64>();
        bands.sort_by(|a, b| heat(b).total_cmp(&heat(a)));
        bands.truncate(PARTS);
        bands.sort_by_key(|band| band.start);
    }
    bands
}

/// One map of all vectors, a row for each.
fn vector_map(vectors: &[&TensorDelta]) -> Section {
    let longest = vectors.iter().map(|delta| delta.shape()[1]).max().unwrap_or(0);
    let step = longest.div_ceil(MAP_COLS).max(1);
    let columns = longest.div_ceil(step);
    let row = |delta: &&TensorDelta| {
        let mut cells = delta.grid(0..1, [1, step]).pop().unwrap_or_default();
        cells.resize(columns, None);
        (delta.name().to_owned(), cells)
    };
    let map = HeatMap {
        x: Axis::linear("element", Unit::Count),
        value: Axis::log("mean absolute difference", Unit::Number),
        columns: (0..columns).map(|column| (column * step) as f64).collect(),
        rows: vectors.iter().map(row).collect(),
    };
    let table = Table::of(vectors)
        .shown("vector", |delta| Cell::text(delta.name()))
        .shown("elements", |delta| Cell::count(delta.shape()[1]));
    let table = differences(table, |delta| delta.rows().first().copied().unwrap_or_default());
    Section {
        heading: "Differences: vectors".to_owned(),
        text: "Norms and biases, each from its first element.".to_owned(),
        figure: Some(Figure::HeatMap(map)),
        table: Some(on_page(&table)),
    }
}

/// Adds columns for the difference of a row.
fn differences<'a, T>(table: Table<'a, T>, row: impl Fn(&T) -> RowDelta) -> Table<'a, T> {
    table
        .shown("changed", |it| Cell::count(row(it).changed_elems))
        .shown("mean difference", |it| Cell::power(row(it).mean_abs, 2))
        .shown("largest", |it| Cell::power(row(it).max_abs, 2))
}
