//! Packs a series step by step, each against the previous one, with and without the history of its
//! weights as a context. Reports sizes, and the time to restore a step.
//!
//! The steps come from `just make-series`; every one is restored and compared.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, PackReport, ResolvedContainer, Silent};

use crate::say;

/// What to measure.
pub struct Series<'a> {
    /// Folder of the steps: directories with a file model.safetensors, in the order of their names.
    pub folder: &'a Path,
    /// Most steps on which a step's container depends, including the keyframe.
    pub chain: usize,
    /// Use every Nth step.
    pub stride: usize,
    /// Number of steps to pack; 0 for all.
    pub steps: usize,
    /// log2 of the elements of a chunk.
    pub chunk_log2: u8,
    /// Pack against the last `chain` steps as plain files instead of their containers; the sizes
    /// are the same.
    pub plain: bool,
    /// Where to keep the containers, if anywhere.
    pub keep: Option<&'a Path>,
}

/// Packs the series and prints a line for each step. A step depends on up to `chain` steps before
/// it, the oldest of which is a keyframe.
///
/// # Errors
/// Errors of reading or packing; a step that is not restored exactly.
pub fn run(series: &Series<'_>) -> Result<()> {
    ensure!(series.chain > 0, "a chain has at least one step");
    let mut steps: Vec<PathBuf> = std::fs::read_dir(series.folder)
        .with_context(|| series.folder.display().to_string())?
        .map(|entry| Ok(entry?.path().join("model.safetensors")))
        .collect::<Result<_>>()?;
    steps.sort();
    let mut steps: Vec<PathBuf> = steps.into_iter().step_by(series.stride.max(1)).collect();
    if series.steps > 0 {
        steps.truncate(series.steps);
    }
    say(
        "| step | hops | changed | without | ratio | with history | ratio | index | get without, ms | get with, ms |",
    )?;
    say("|---|---|---|---|---|---|---|---|---|---|")?;
    let temporary = tempfile::tempdir()?;
    let folder = series.keep.unwrap_or(temporary.path());
    let chain = || Chain { most: series.chain, plain: series.plain, steps: Vec::new() };
    let (mut plain, mut historic) = (chain(), chain());
    for (i, step) in steps.iter().enumerate() {
        let original = checkpoint_bytes(step)?;
        let [without, with] = [("plain", false, &mut plain), ("history", true, &mut historic)].map(
            |(name, has_history, chain)| {
                let target = folder.join(format!("{i:06}-{name}.loom"));
                let options = PackOptions::default().with_chunk_log2(series.chunk_log2).with_overwrite(true);
                chain.add(step, &target, &options, has_history, &original)
            },
        );
        let (without, with) = (without?, with?);
        let changed: f64 = with
            .report
            .tensors
            .iter()
            .map(|tensor| {
                let elems = tensor.original_bytes as f64;
                tensor.changed_fraction.unwrap_or(0.0) * elems
            })
            .sum();
        let changed = changed / with.report.original_bytes as f64;
        say(&format!(
            "| {i} | {} | {:.2} % | {} | {:.2} | {} | {:.2} | {} | {:.1} | {:.1} |",
            with.hops,
            100.0 * changed,
            without.report.packed_bytes,
            without.report.ratio,
            with.report.packed_bytes,
            with.report.ratio,
            with.report.index_bytes,
            without.get_ms,
            with.get_ms
        ))?;
    }
    Ok(())
}

/// The steps on which the next one depends, newest first.
struct Chain {
    most: usize,
    plain: bool,
    steps: Vec<PathBuf>,
}

struct Packed {
    report: PackReport,
    hops: usize,
    get_ms: f64,
}

impl Chain {
    fn add(
        &mut self,
        step: &Path,
        target: &Path,
        options: &PackOptions,
        has_history: bool,
        original: &[u8],
    ) -> Result<Packed> {
        match self.plain {
            true => self.steps.truncate(self.most),
            false if self.steps.len() >= self.most => self.steps.clear(),
            false => {}
        }
        let limits = Limits::default();
        let mut direct = Bases::open(&self.steps, &limits)?;
        match self.steps.first() {
            Some(_) if has_history => direct.set_history(&self.steps)?,
            // Here, too, the reference is the newest step.
            Some(newest) => direct = direct.open_against(newest, &limits)?,
            None => {}
        }
        let checkpoint = Checkpoint::open(step, &limits)?;
        let report = deltaloom::pack(&checkpoint, &direct, target, options, &Silent)?;
        let mut best = f64::INFINITY;
        let mut out = vec![0; original.len()];
        for _ in 0..3 {
            let container = Container::open(target, &limits)?;
            let resolved = ResolvedContainer::new(container, &direct)?;
            let start = Instant::now();
            deltaloom::with_threads(1, || resolved.read_all_into(&mut out))?;
            best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(out == original, "{} is not restored exactly", step.display());
        let hops = self.steps.len();
        self.steps.insert(0, if self.plain { step } else { target }.to_path_buf());
        Ok(Packed { report, hops, get_ms: best })
    }
}

/// The bytes of all tensors, one after another.
fn checkpoint_bytes(step: &Path) -> Result<Vec<u8>> {
    let limits = Limits::default();
    let mut one = Vec::new();
    let checkpoint = Checkpoint::open(step, &limits)?;
    deltaloom::pack_to(&checkpoint, &Bases::default(), &mut one, &PackOptions::default(), &Silent)?;
    let container = Container::from_source(step, Box::new(one), &limits)?;
    let resolved = ResolvedContainer::new(container, &Bases::default())?;
    let mut out = vec![0; usize::try_from(resolved.tensors().map(|t| t.len_bytes()).sum::<u64>())?];
    resolved.read_all_into(&mut out)?;
    Ok(out)
}
