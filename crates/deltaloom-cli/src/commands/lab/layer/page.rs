//! The page of `deltaloom lab layer`: times, sizes, memory of tenants, and where the fine-tune differs from its base.
//! Every number is the report's, or counted in the weights.

use std::ops::Range;

use anyhow::Result;
use deltaloom_lab::layer::{LayerCase, LayerReport, RunReport, TensorDelta};
use deltaloom_lab::statistics::TensorStatistics;
use deltaloom_report::{
    Arrangement, Axis, Bar, Bars, Cell, Curve, Drawn, Figure, HeatMap, Lines, Page, Section, Table, Unit,
    Zoom,
};

/// Cells of a map of a whole tensor.
const MAP_ROWS: usize = 64;
const MAP_COLS: usize = 64;
/// Rows of a part that is shown row by row.
const PART_ROWS: usize = 64;
/// Parts of a tensor that are shown if it has more: those that changed most.
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
        "Every output in mode bit-exact has the bits of the dense layer, and every one in mode fast is within 1e-5 of it."
    } else {
        "NOT every output is as right as its mode promises."
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

fn number(count: u64) -> f64 {
    count as f64
}

fn count(tokens: usize) -> String {
    if tokens == 1 { "1 token".to_owned() } else { format!("{tokens} tokens") }
}

fn whole(count: usize) -> f64 {
    number(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Packed bytes of each tensor beside XOR with zstd.
fn sizes(report: &LayerReport) -> Section {
    let all = &report.statistics;
    let columns = [
        "tensor",
        "dtype",
        "shape",
        "elements",
        "bytes",
        "packed",
        "ratio",
        "codec",
        "changed",
        "XOR bytes not zero",
        "XOR density",
        "5 bytes each",
        "XOR zstd 10",
        "COO 32",
        "bitmap",
        "CSR",
    ];
    let mut table = Table::new(&columns);
    for tensor in &all.tensors {
        let bytes = |count: u64| Cell::Value(number(count), Unit::Bytes);
        table.rows.push(vec![
            Cell::text(&*tensor.name),
            Cell::text(&*tensor.dtype),
            Cell::text(format!("{:?}", tensor.shape)),
            Cell::Value(number(tensor.sparsity.elems), Unit::Count),
            bytes(tensor.original_bytes),
            bytes(tensor.bytes.packed),
            Cell::Value(tensor.ratio, Unit::Ratio),
            Cell::text(tensor.codec),
            Cell::Value(number(tensor.sparsity.changed_elems), Unit::Count),
            Cell::Value(number(tensor.sparsity.nonzero_bytes), Unit::Count),
            Cell::Value(tensor.sparsity.byte_density, Unit::Percent),
            bytes(tensor.bytes.sparse_bytes),
            bytes(tensor.bytes.xor_zstd),
            bytes(tensor.bytes.coo_32),
            bytes(tensor.bytes.bitmap),
            bytes(tensor.bytes.csr),
        ]);
    }
    let bar = |tensor: &TensorStatistics| Bar {
        name: tensor.name.clone(),
        values: vec![number(tensor.bytes.packed), number(tensor.bytes.xor_zstd)],
    };
    let figure = Bars {
        axis: Axis::linear("bytes", Unit::Bytes),
        parts: vec!["packed".to_owned(), "XOR, zstd 10".to_owned()],
        bars: all.tensors.iter().map(bar).collect(),
        arrangement: Arrangement::Beside,
    };
    let text = format!(
        "The layer takes {} bytes packed against its base, index and digests included, of {} bytes of weights. XOR with the base and zstd 10 takes {} bytes tensor by tensor and {} in one frame, without any index. {} of {} elements differ.",
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
        table: Some(table),
    }
}

/// The layer as other tools compute it.
fn restored(report: &LayerReport) -> Section {
    let names = ["load", "decompress", "apply", "state load", "forward"];
    let columns: Vec<&str> = ["stored", "tokens"]
        .into_iter()
        .chain(names)
        .chain(["total", "deviation", "without apply", "without apply and decompress", "same bits"])
        .collect();
    let mut table = Table::new(&columns);
    let mut bars = Vec::new();
    for run in &report.restored {
        let timing = &run.timing;
        let phases = [timing.load, timing.decompress, timing.apply, timing.state_load, timing.forward];
        let values = phases.map(|time| time.mean).to_vec();
        let bounds = [timing.what_if.without_apply, timing.what_if.without_apply_and_decompress];
        let totals = [timing.end_to_end.mean, timing.end_to_end.deviation].into_iter().chain(bounds);
        let mut row = vec![Cell::text(run.stored), Cell::Value(whole(run.tokens), Unit::Count)];
        row.extend(values.iter().copied().chain(totals).map(|time| Cell::Value(time, Unit::Seconds)));
        row.push(Cell::text(if run.is_bit_exact { "yes" } else { "no" }));
        table.rows.push(row);
        bars.push(Bar { name: format!("{}, {}", run.stored, count(run.tokens)), values });
    }
    let figure = Bars {
        axis: Axis::linear("seconds", Unit::Seconds),
        parts: names.map(str::to_owned).to_vec(),
        bars,
        arrangement: Arrangement::Stacked,
    };
    let text = "For comparison: all weights are restored from what is stored, and the layer is computed after that. In a container decompressing and applying are one step.";
    Section {
        heading: "Restored whole".to_owned(),
        text: text.to_owned(),
        figure: Some(Figure::Bars(figure)),
        table: Some(table),
    }
}

fn label(run: &RunReport) -> String {
    format!("{} {}", run.form, run.mode)
}

/// Time against that of the fine-tune's own weights, by tokens.
fn forms(report: &LayerReport) -> Section {
    let mut table = Table::new(&[
        "form",
        "tokens",
        "resident",
        "median",
        "mean",
        "deviation",
        "over dense",
        "same bits",
        "error",
    ]);
    for run in &report.runs {
        table.rows.push(vec![
            Cell::text(label(run)),
            Cell::Value(whole(run.tokens), Unit::Count),
            Cell::Value(number(run.resident_bytes), Unit::Bytes),
            Cell::Value(run.forward_median_seconds, Unit::Seconds),
            Cell::Value(run.forward.mean, Unit::Seconds),
            Cell::Value(run.forward.deviation, Unit::Seconds),
            Cell::Value(run.over_dense, Unit::Ratio),
            Cell::text(if run.is_bit_exact { "yes" } else { "no" }),
            Cell::Value(run.relative_error, Unit::Number),
        ]);
    }
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
    let text = "The layer computed on each form of the weights. The form `file` is the fine-tune's own file, with which outputs are compared.";
    Section {
        heading: "Forms".to_owned(),
        text: text.to_owned(),
        figure: Some(Figure::Bars(figure)),
        table: Some(table),
    }
}

fn phases(report: &LayerReport, tokens: usize) -> Section {
    let names = ["load", "arrange", "decode", "patch", "multiply", "finish", "between"];
    let columns: Vec<&str> = ["form"]
        .into_iter()
        .chain(names)
        .chain(["total", "without patch", "without patch and decode"])
        .collect();
    let mut table = Table::new(&columns);
    let mut bars = Vec::new();
    for run in report.runs.iter().filter(|run| run.tokens == tokens) {
        let phases = [run.load, run.arrange, run.decode, run.patch, run.multiply, run.finish, run.between];
        let values: Vec<f64> = phases.iter().map(|time| time.mean.max(0.0)).collect();
        let bounds = [run.total.mean, run.without_patch_seconds, run.without_patch_and_decode_seconds];
        let cells = values.iter().copied().chain(bounds).map(|time| Cell::Value(time, Unit::Seconds));
        table.rows.push(std::iter::once(Cell::text(label(run))).chain(cells).collect());
        bars.push(Bar { name: label(run), values });
    }
    let figure = Bars {
        axis: Axis::linear("seconds", Unit::Seconds),
        parts: names.map(str::to_owned).to_vec(),
        bars,
        arrangement: Arrangement::Stacked,
    };
    let text = "Load is reading the index, finding the base's tensors and building the form; between are norms, attention between its projections, activations and biases. Threads add up what they do at once. The last two columns of the table are bounds: the total if nothing had to be patched, and if nothing had to be patched or decoded.";
    Section {
        heading: format!("Phases, {}", count(tokens)),
        text: text.to_owned(),
        figure: Some(Figure::Bars(figure)),
        table: Some(table),
    }
}

/// Times by parameter of the first packed form at each number of tokens.
fn parameters(report: &LayerReport) -> Option<Section> {
    let form = &report.runs.iter().find(|run| run.form != "file")?.form;
    let run = report.runs.iter().find(|run| run.form == *form && run.mode == "bit-exact")?;
    let mut table =
        Table::new(&["form", "tokens", "parameter", "total", "deviation", "decode", "patch", "multiply"]);
    for run in &report.runs {
        for parameter in &run.parameters {
            table.rows.push(vec![
                Cell::text(label(run)),
                Cell::Value(whole(run.tokens), Unit::Count),
                Cell::text(&*parameter.name),
                Cell::Value(parameter.total.mean, Unit::Seconds),
                Cell::Value(parameter.total.deviation, Unit::Seconds),
                Cell::Value(parameter.decode.mean, Unit::Seconds),
                Cell::Value(parameter.patch.mean, Unit::Seconds),
                Cell::Value(parameter.multiply.mean, Unit::Seconds),
            ]);
        }
    }
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
            "Where the time of the form `{}` goes at {}, the hottest parameter first; other runs are in the table.",
            label(run),
            count(run.tokens)
        ),
        figure: Some(Figure::Bars(figure)),
        table: Some(table),
    })
}

fn memory(report: &LayerReport) -> Section {
    let mut points: Vec<(&str, u64, u64)> =
        report.memory.iter().map(|row| (row.form.as_str(), row.tenants, row.bytes)).collect();
    for row in &report.counted_memory {
        let bytes = &row.with_base;
        let counted = [
            ("copies, no base", row.dense),
            ("container", bytes.packed),
            ("XOR", bytes.xor),
            ("XOR zstd 10", bytes.xor_zstd),
            ("COO 32", bytes.coo_32),
            ("COO 64", bytes.coo_64),
        ];
        points.extend(counted.map(|(form, bytes)| (form, row.tenants, bytes)));
    }
    let mut table = Table::new(&["form", "tenants", "bytes", "over copies"]);
    let mut curves: Vec<Curve> = Vec::new();
    for (form, tenants, bytes) in points {
        let copies = number(report.statistics.original_bytes) * number(tenants.max(1));
        table.rows.push(vec![
            Cell::text(form),
            Cell::Value(number(tenants), Unit::Count),
            Cell::Value(number(bytes), Unit::Bytes),
            Cell::Value(number(bytes) / copies, Unit::Ratio),
        ]);
        let point = (number(tenants), number(bytes));
        match curves.iter_mut().find(|curve| curve.name == form) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve { name: form.to_owned(), points: vec![point], drawn: Drawn::Line }),
        }
    }
    let figure = Lines {
        x: Axis::linear("tenants", Unit::Count),
        y: Axis::log("base and tenants", Unit::Bytes),
        curves,
        marks: Vec::new(),
    };
    Section {
        heading: "Memory of tenants".to_owned(),
        text: "The base once, and so many fine-tunes like this one. The first forms are resident and were multiplied in this run; the others are counted: containers and XOR with zstd must be decoded before they are used, COO has a row and a column of 32 or 64 bits for each element.".to_owned(),
        figure: Some(Figure::Lines(figure)),
        table: Some(table),
    }
}

/// Mean differences of some rows: at most so many bands of them.
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
        columns: (0..columns).map(|column| whole(column * col_step)).collect(),
        rows: cells.into_iter().enumerate().map(|(band, cells)| (name(band), cells)).collect(),
    }
}

fn matrix(delta: &TensorDelta) -> Section {
    let [rows, cols] = delta.shape();
    let mut table = Table::new(&["row", "changed", "mean difference", "largest"]);
    for (i, row) in delta.rows().iter().enumerate() {
        table.rows.push(vec![
            Cell::text(i.to_string()),
            Cell::Value(number(row.changed_elems), Unit::Count),
            Cell::Value(row.mean_abs, Unit::Number),
            Cell::Value(row.max_abs, Unit::Number),
        ]);
    }
    let points = delta.rows().iter().enumerate().map(|(i, row)| (whole(i), row.mean_abs));
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
        " The parts that changed most can be unfolded."
    } else {
        ""
    };
    Section {
        heading: format!("Differences: {}", delta.name()),
        text: format!("{changed} of {} elements differ.{more}", whole(rows) * whole(cols)),
        figure: Some(Figure::Zoom(Zoom { whole: map(delta, 0..rows, MAP_ROWS), parts })),
        table: Some(table),
    }
}

/// Bands of rows to show row by row: all of a few, or those that changed most.
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

/// All vectors below each other, each from its first element.
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
        columns: (0..columns).map(|column| whole(column * step)).collect(),
        rows: vectors.iter().map(row).collect(),
    };
    let mut table = Table::new(&["vector", "elements", "changed", "mean difference", "largest"]);
    for delta in vectors {
        let row = delta.rows().first().copied().unwrap_or_default();
        table.rows.push(vec![
            Cell::text(delta.name()),
            Cell::Value(whole(delta.shape()[1]), Unit::Count),
            Cell::Value(number(row.changed_elems), Unit::Count),
            Cell::Value(row.mean_abs, Unit::Number),
            Cell::Value(row.max_abs, Unit::Number),
        ]);
    }
    Section {
        heading: "Differences: vectors".to_owned(),
        text: "Norms and biases, each from its first element.".to_owned(),
        figure: Some(Figure::HeatMap(map)),
        table: Some(table),
    }
}
