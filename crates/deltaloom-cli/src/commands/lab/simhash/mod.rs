//! `deltaloom lab simhash`: runs an EXPERIMENT and prints it as text, JSON or CSV.

mod page;
mod table;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use deltaloom::Limits;
use deltaloom::checkpoint::Checkpoint;
use deltaloom_lab::simhash::measure::{self, Comparison, SimHashReport};
use deltaloom_lab::simhash::{IndexReport, IndexSettings, Matrix, index};
use serde::Serialize;

use crate::args::lab::simhash::SimHashArguments;
use crate::pages;
use crate::progress::Bar;
use crate::values::lab::HashOn;
use crate::{Answer, target, ui};

/// The default tensor of the bundled weights.
const BUNDLED_TENSOR: &str = "model.layers.0.mlp.down_proj.weight";
/// The default sizes of signatures, and that of an index.
const BITS: [usize; 3] = [64, 128, 256];
const INDEX_BITS: usize = 256;
/// Deviation of random weights; errors and times do not depend on it.
const DEVIATION: f32 = 0.02;

/// The subject of the comparison, and its results.
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
    pages::check(&arguments.report.page, &inputs)?;
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
    pages::write_asked(|| page::page(&report.source, &report.report), &arguments.report.page, &inputs)?;
    if arguments.report.json {
        ui::print_json(&report)?;
    } else if arguments.report.csv {
        ui::print(&table::methods(&report.report).csv())?;
    } else {
        ui::print(&describe(&report))?;
    }
    Ok(Answer::Yes)
}

/// The matrix to hash: from files, random, or bundled.
fn subject(arguments: &SimHashArguments) -> Result<Subject> {
    let is_delta = arguments.on == HashOn::Delta;
    if let Some((rows, cols)) = arguments.random {
        if is_delta {
            bail!("--on delta needs two checkpoints, but --random generates one matrix");
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
            bail!("--on delta needs both --base and --tuned, but there is only {}", one.display())
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
    let delta = it.delta_energy.map_or_else(String::new, |energy| {
        format!("Only the difference from the base is estimated; it is {energy:.2e} of the squared product. NMSE refers to the difference, and times include the base's exact product.\n")
    });
    let verdicts: String = it.verdicts.iter().map(|verdict| format!("- {verdict}\n")).collect();
    format!(
        "EXPERIMENT, everything except exact and packed is LOSSY: products of {}, {} x {}, on {}, {} random tokens, seed {}\n\n{}\n{delta}Bits include signatures, norms and scales (BF16); the hyperplanes come from the seed. Exact columns are stored as BF16 or F32 in addition to the signatures. Times are medians of processor time on one thread, {}.\n\nVerdicts of this run\n{verdicts}",
        ui::printable(&report.source),
        it.rows,
        it.cols,
        it.on,
        it.tokens,
        it.seed,
        table::methods(it).text(),
        it.isa,
    )
}

fn run_index(arguments: &SimHashArguments) -> Result<Answer> {
    let open = |path| Checkpoint::open(path, &Limits::default());
    let checkpoints = arguments.index.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let bits = match arguments.bits[..] {
        [] => INDEX_BITS,
        [bits] => bits,
        _ => bail!("--index uses one signature size: name one with --bits"),
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
    let table = table::pairs(&report, &arguments.index);
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
        ui::print(&describe_index(&report, &table.text()))?;
    }
    Ok(Answer::Yes)
}

fn describe_index(report: &IndexReport, pairs: &str) -> String {
    let exact = report.pairs.iter().filter(|pair| pair.exact).count();
    format!(
        "EXPERIMENT: {} tensors of {} checkpoints, compared by signatures of {} bits ({} in total, from {} of weights); {} tensors skipped\n\n{pairs}\n{exact} exact duplicates by digest, {} near-duplicates. The estimated cosine of unrelated tensors has a standard deviation of {:.3}. Only the nearest tensor of each checkpoint is considered.\n",
        report.tensors,
        report.checkpoints,
        report.bits,
        ui::bytes(report.signature_bytes),
        ui::bytes(report.read_bytes),
        report.skipped_tensors,
        report.pairs.len() - exact,
        report.deviation,
    )
}
