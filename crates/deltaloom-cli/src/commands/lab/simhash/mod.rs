//! `deltaloom lab simhash`: tables, JSON or comma-separated values of an EXPERIMENT that the library has measured.

mod page;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use deltaloom::Limits;
use deltaloom::checkpoint::Checkpoint;
use deltaloom_lab::simhash::measure::{self, Comparison, MethodReport, SimHashReport};
use deltaloom_lab::simhash::{IndexReport, IndexSettings, Matrix, index};
use serde::Serialize;

use crate::args::lab::simhash::SimHashArguments;
use crate::progress::Bar;
use crate::values::lab::HashOn;
use crate::{Answer, target, ui};

/// The tensor of the bundled weights that is taken when none is named.
const BUNDLED_TENSOR: &str = "model.layers.0.mlp.down_proj.weight";
/// Bits of signatures that are tried, and those of an index, unless others are asked for.
const BITS: [usize; 3] = [64, 128, 256];
const INDEX_BITS: usize = 256;
/// Deviation of random weights; errors and times do not depend on it.
const DEVIATION: f32 = 0.02;

/// What was compared, and the comparison.
#[derive(Debug, Serialize)]
struct Report {
    source: String,
    #[serde(flatten)]
    report: SimHashReport,
}

struct Subject {
    source: String,
    weights: Matrix,
    base: Option<Matrix>,
}

pub(crate) fn run(arguments: &SimHashArguments) -> Result<Answer> {
    if !arguments.index.is_empty() {
        return run_index(arguments);
    }
    let inputs = target::inputs(arguments.base.iter().chain(&arguments.tuned));
    ui::page::check(&arguments.report.page, &inputs)?;
    let subject = subject(arguments)?;
    let comparison = Comparison {
        bits: if arguments.bits.is_empty() { BITS.to_vec() } else { arguments.bits.clone() },
        pieces: arguments.block.clone(),
        corrections: arguments.correct.iter().map(|correct| correct.correction()).collect(),
        fraction: arguments.fraction,
        tokens: arguments.tokens,
        projection: arguments.projection.projection(),
        seed: arguments.seed,
    };
    let bar = Bar::new("measuring");
    let report = deltaloom::with_threads(1, || {
        measure::run(&subject.weights, subject.base.as_ref(), &comparison, &bar)
    });
    bar.finish();
    let report = Report { report: report.with_context(|| subject.source.clone())?, source: subject.source };
    ui::page::write_asked(|| page::page(&report.source, &report.report), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        ui::print_json(&report)?;
    } else if arguments.report.csv {
        ui::print(&page::table(&report.report).csv())?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(Answer::Yes)
}

/// The matrix to hash: of files, random, or bundled.
fn subject(arguments: &SimHashArguments) -> Result<Subject> {
    let is_delta = arguments.on == HashOn::Delta;
    if let Some((rows, cols)) = arguments.random {
        if is_delta {
            bail!("--on delta needs two checkpoints, and --random makes one matrix");
        }
        let weights = Matrix::normal(rows, cols, DEVIATION, arguments.seed.wrapping_mul(4).wrapping_add(3))?;
        return Ok(Subject { source: format!("random normal {rows}x{cols}"), weights, base: None });
    }
    let open = |path: &Path| Checkpoint::open(path, &Limits::default());
    let (tuned, base, name, source) = match (&arguments.tuned, &arguments.base) {
        (Some(tuned), Some(base)) => {
            (open(tuned)?, Some(open(base)?), arguments.tensor.as_deref(), tuned.display().to_string())
        }
        (Some(one), None) | (None, Some(one)) if is_delta => {
            bail!("--on delta needs --base and --tuned; there is only {}", one.display())
        }
        (Some(one), None) | (None, Some(one)) => {
            (open(one)?, None, arguments.tensor.as_deref(), one.display().to_string())
        }
        (None, None) => {
            let (tuned, base) = bundled()?;
            let name = arguments.tensor.as_deref().unwrap_or(BUNDLED_TENSOR);
            (tuned, Some(base), Some(name), "bundled ft_bf16.safetensors".to_owned())
        }
    };
    let (name, weights) = Matrix::read(&tuned, name)?;
    let base = match base.filter(|_| is_delta) {
        Some(base) => Some(Matrix::read(&base, Some(&name)).context("the base")?.1),
        None => None,
    };
    Ok(Subject { source: format!("{name} of {source}"), weights, base })
}

/// A bundled fine-tune and its base.
#[cfg(feature = "demo")]
fn bundled() -> Result<(Checkpoint, Checkpoint)> {
    use crate::assets::{Asset, BASE, FINE_TUNES};
    let open = |asset: &Asset| Checkpoint::from_bytes(asset.file, asset.bytes.to_vec(), &Limits::default());
    Ok((open(&FINE_TUNES[0])?, open(&BASE)?))
}

#[cfg(not(feature = "demo"))]
fn bundled() -> Result<(Checkpoint, Checkpoint)> {
    bail!("this build has no bundled weights: name a checkpoint with --base, or use --random")
}

fn describe(report: &Report) -> String {
    let it = &report.report;
    let header = [
        "method",
        "bits/weight",
        "read/token",
        "NMSE",
        "predicted",
        "time",
        "x exact",
        "hashing",
        "frontier",
        "error / best quantised at its bits",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(it.methods.iter().map(row));
    let delta = it.delta_energy.map_or_else(String::new, |energy| {
        format!("Only the difference to the base is approximated; it makes {energy:.2e} of the squares of the product. NMSE is of the difference, and the times include the base's exact product.\n")
    });
    let verdicts: String = it.verdicts.iter().map(|verdict| format!("- {verdict}\n")).collect();
    format!(
        "EXPERIMENT, everything but exact and packed is LOSSY: products of {}, {} x {}, on {}, {} random tokens, seed {}\n\n{}\n{delta}Bits count signatures, norms and scales (BF16); directions come from the seed. Exact columns are BF16 or F32 beside the signatures. Times are medians of processor time of one thread, {}.\n\nVerdicts of this run\n{verdicts}",
        ui::printable(&report.source),
        it.rows,
        it.cols,
        it.on,
        it.tokens,
        it.seed,
        ui::table(&rows),
        it.isa,
    )
}

fn row(row: &MethodReport) -> Vec<String> {
    let nmse = |value: Option<f64>| match value {
        Some(0.0) => "0".to_owned(),
        Some(value) => format!("{value:.2e}"),
        None => "-".to_owned(),
    };
    let time = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |s| format!("{:.1} us", s * 1e6));
    let rival = row.rival.as_ref().zip(row.error_over_rival);
    vec![
        row.method.clone(),
        format!("{:.2}", row.bits_per_weight),
        format!("{:.2}", row.read_bits_per_weight),
        nmse(row.nmse),
        nmse(row.predicted_nmse),
        time(row.seconds),
        row.time_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
        time(row.hash_seconds),
        if row.on_frontier { "yes" } else { "" }.to_owned(),
        rival.map_or_else(String::new, |(name, ratio)| format!("{ratio:.1} x {name}")),
    ]
}

fn run_index(arguments: &SimHashArguments) -> Result<Answer> {
    let open = |path| Checkpoint::open(path, &Limits::default());
    let checkpoints = arguments.index.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let bits = match arguments.bits[..] {
        [] => INDEX_BITS,
        [bits] => bits,
        _ => bail!("--index takes one number of bits"),
    };
    let settings = IndexSettings {
        bits,
        least_similarity: arguments.similarity,
        whole: arguments.whole,
        seed: arguments.seed,
    };
    let bar = Bar::new("signing");
    let report = deltaloom::with_threads(arguments.threads.count, || index(&checkpoints, &settings, &bar))?;
    bar.finish();
    let table = page::pairs(&report, &arguments.index);
    if arguments.report.json {
        #[derive(Serialize)]
        struct Named<'a> {
            experiment: bool,
            names: &'a [std::path::PathBuf],
            #[serde(flatten)]
            report: &'a IndexReport,
        }
        ui::print_json(&Named { experiment: true, names: &arguments.index, report: &report })?;
    } else if arguments.report.csv {
        ui::print(&table.csv())?;
    } else {
        ui::print(&describe_index(&report, &arguments.index))?;
    }
    Ok(Answer::Yes)
}

fn describe_index(report: &IndexReport, names: &[std::path::PathBuf]) -> String {
    let header = ["tensor", "nearest", "bits apart", "cosine, estimated", "of the samples", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let full = |checkpoint: usize, tensor: &str| {
        let path = names.get(checkpoint).map_or_else(String::new, |path| path.display().to_string());
        ui::printable(&format!("{path}: {tensor}"))
    };
    rows.extend(report.pairs.iter().map(|pair| {
        vec![
            full(pair.first_checkpoint, &pair.first_tensor),
            full(pair.second_checkpoint, &pair.second_tensor),
            pair.distance.to_string(),
            format!("{:.4}", pair.similarity),
            pair.sample_cosine.map_or_else(|| "-".to_owned(), |cosine| format!("{cosine:.6}")),
            if pair.exact { "exact duplicate" } else { "near" }.to_owned(),
        ]
    }));
    let exact = report.pairs.iter().filter(|pair| pair.exact).count();
    format!(
        "EXPERIMENT: {} tensors of {} checkpoints by signatures of {} bits ({} in all, made from {} of weights); {} others skipped\n\n{}\n{exact} exact duplicates by digest, {} near ones. Estimated cosines of unrelated tensors deviate by {:.3}; only the nearest of each checkpoint is looked at.\n",
        report.tensors,
        report.checkpoints,
        report.bits,
        ui::bytes(report.signature_bytes),
        ui::bytes(report.read_bytes),
        report.skipped_tensors,
        ui::table(&rows),
        report.pairs.len() - exact,
        report.deviation,
    )
}
