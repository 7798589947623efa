//! Runs methods side by side over the checkpoints of a series, in order, and keeps what a reader of
//! each has after every step.
//!
//! The caller provides the checkpoints and evaluates the reconstructions.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::closed_loop::Step;
use super::open_loop;
use super::published::Method;
use super::reconstruction::Reconstructed;
use super::report::{RowReport, StepReport};
use super::threshold::Rule;
use deltaloom::__internals::NewDirectory;
use deltaloom::checkpoint::output::Inputs;
use deltaloom::checkpoint::{Checkpoint, Contents, Member};
use deltaloom::{Bases, Error, PackOptions, Progress, Result, pack_to};

/// The method behind a row of the table.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// The ordinary lossless container, packed against the step before.
    Exact,
    /// A published method, exactly as described.
    Published(Method),
    /// A rule in the corrected form, under the name of the method that it corrects.
    Corrected(String, Rule),
}

impl Row {
    /// Its name and its form.
    fn names(&self) -> (String, &'static str) {
        match self {
            Self::Exact => ("exact".to_owned(), "exact"),
            Self::Published(method) => (method.name().to_owned(), "published"),
            Self::Corrected(name, _) => (name.clone(), "corrected"),
        }
    }

    /// Corrected rows for these methods. Methods with the same rule share a row.
    #[must_use]
    pub fn corrected(methods: &[Method]) -> Vec<Self> {
        let mut rows: Vec<(Vec<&str>, Rule)> = Vec::new();
        for method in methods {
            match rows.iter_mut().find(|(_, rule)| *rule == method.rule()) {
                Some((names, _)) => names.push(method.name()),
                None => rows.push((vec![method.name()], method.rule())),
            }
        }
        rows.into_iter().map(|(names, rule)| Self::Corrected(names.join(", "), rule)).collect()
    }
}

/// A row, and the checkpoint that its reader has.
struct Bench {
    row: Row,
    folder: PathBuf,
    held: Option<Reconstructed>,
    steps: Vec<StepReport>,
}

/// Methods running over a series.
pub struct Laboratory {
    benches: Vec<Bench>,
    previous: Option<(u64, Checkpoint)>,
    scratch: tempfile::TempDir,
    output: Option<NewDirectory>,
    threads: usize,
}

impl Laboratory {
    /// Begins without a checkpoint. Files of corrected rows go to `output`, a folder that appears
    /// when [`Self::finish`] is called.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the output, [`Error::Io`].
    pub fn new(rows: Vec<Row>, output: Option<&Path>, threads: usize) -> Result<Self> {
        let scratch = tempfile::tempdir().map_err(Error::writing(std::env::temp_dir()))?;
        let output = output.map(|path| NewDirectory::create(path, false, &Inputs::default())).transpose()?;
        let bench = |(i, row): (usize, Row)| {
            let folder = scratch.path().join(i.to_string());
            Bench { row, folder, held: None, steps: Vec::new() }
        };
        let benches = rows.into_iter().enumerate().map(bench).collect();
        Ok(Self { benches, previous: None, scratch, output, threads })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.benches.len()
    }

    /// Amount of work for a checkpoint in bytes, for a progress bar.
    #[must_use]
    pub fn work_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        checkpoint.len_bytes() * self.benches.len() as u64
    }

    /// Stores the next checkpoint with every row. Does not restart `progress`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the step is not after the one before; errors of reading,
    /// writing or decoding; [`Error::Cancelled`].
    pub fn push(&mut self, number: u64, checkpoint: &Checkpoint, progress: &dyn Progress) -> Result<()> {
        if let Some((before, _)) = self.previous.as_ref().filter(|(before, _)| *before >= number) {
            return Err(Error::InvalidArgument(format!("step {number} does not come after step {before}")));
        }
        if let Some(member) = checkpoint.members.iter().find(|member| member.tail_bytes > 0) {
            let what = "has bytes after its last tensor, which these methods would lose";
            return Err(Error::InvalidArgument(format!("{} {what}", member.path)));
        }
        let is_framed = |member: &&Member| matches!(member.contents, Contents::Framed(_));
        if let Some(member) = checkpoint.members.iter().find(is_framed) {
            let what = "is not a safetensors file, and these methods write no other";
            return Err(Error::InvalidArgument(format!("{} {what}", member.path)));
        }
        let (output, previous, threads) = (self.output.as_ref(), self.previous.as_ref(), self.threads);
        let packed = self.scratch.path().join("exact.loom");
        let benches = &mut self.benches;
        deltaloom::with_threads(threads, || {
            let exact = pack_exactly(number, checkpoint, previous, &packed, progress)?;
            let input = Input { number, checkpoint, previous, exact: &exact, packed: &packed, output };
            benches.par_iter_mut().try_for_each(|bench| bench.push(&input, progress))
        })?;
        self.previous = Some((number, checkpoint.clone()));
        Ok(())
    }

    /// Path of a row's reconstruction after the last step; `None` if it is the original.
    #[must_use]
    pub fn reconstruction(&self, row: usize) -> Option<&Path> {
        self.benches.get(row)?.held.as_ref().map(|held| held.path.as_path())
    }

    /// Records the loss of evaluating a row's reconstruction after the last step.
    pub fn set_loss(&mut self, row: usize, loss: f64) {
        let step = self.benches.get_mut(row).and_then(|bench| bench.steps.last_mut());
        step.into_iter().for_each(|step| step.loss = Some(loss));
    }

    /// Gives the output its name and returns the results.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Io`].
    pub fn finish(self) -> Result<Vec<RowReport>> {
        self.output.map_or(Ok(()), NewDirectory::commit)?;
        let report = |bench: Bench| {
            let (name, form) = bench.row.names();
            RowReport::new(name, form, &bench.steps)
        };
        Ok(self.benches.into_iter().map(report).collect())
    }
}

/// Packs a step as a series does, into a file that is overwritten.
fn pack_exactly(
    number: u64,
    checkpoint: &Checkpoint,
    previous: Option<&(u64, Checkpoint)>,
    packed: &Path,
    progress: &dyn Progress,
) -> Result<StepReport> {
    let mut bases = Bases::default();
    if let Some((_, previous)) = previous {
        bases.push_checkpoint(Path::new("the step before"), previous.clone());
    }
    let file = File::create(packed).map_err(Error::writing(packed))?;
    let report = pack_to(checkpoint, &bases, &file, &PackOptions::default(), &OnlyCancel(progress))?;
    Ok(StepReport::exact(number, checkpoint.len_bytes(), report.packed_bytes))
}

/// Passes on cancellation but no progress.
struct OnlyCancel<'a>(&'a dyn Progress);

impl Progress for OnlyCancel<'_> {
    fn start(&self, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// The input of a step for all rows.
struct Input<'a> {
    number: u64,
    checkpoint: &'a Checkpoint,
    previous: Option<&'a (u64, Checkpoint)>,
    exact: &'a StepReport,
    /// The container of the exact row.
    packed: &'a Path,
    output: Option<&'a NewDirectory>,
}

impl Bench {
    fn push(&mut self, input: &Input<'_>, progress: &dyn Progress) -> Result<()> {
        let old = self.held.take();
        let folder = self.folder.join(input.number.to_string());
        std::fs::create_dir_all(&folder).map_err(Error::writing(&folder))?;
        let previous = input.previous.map(|(number, original)| {
            // A corrected series begins with its unchanged first checkpoint.
            (*number, original, old.as_ref().map_or(original, |old| &old.checkpoint))
        });
        let (report, held) = match (&self.row, previous) {
            (Row::Published(method), previous) => {
                let previous = previous.map(|(_, original, held)| (original, held));
                let number = input.number;
                let stored =
                    open_loop::store(*method, number, input.checkpoint, previous, &folder, progress)?;
                (stored.0, Some(stored.1))
            }
            (Row::Corrected(method, rule), Some((previous_number, before, held))) => {
                let (number, checkpoint) = (input.number, input.checkpoint);
                let step = Step { method, rule: *rule, number, previous_number, checkpoint, before, held };
                let file = self.file(input, "lossy.loom")?;
                let stored = match file {
                    Some(file) => {
                        let mut out = BufWriter::new(file);
                        let stored = step.store(&mut out, &folder, progress)?;
                        let file = out.into_inner().map_err(|e| Error::writing(&folder)(e.into_error()))?;
                        file.sync_all().map_err(Error::writing(&folder))?;
                        stored
                    }
                    None => step.store(io::sink(), &folder, progress)?,
                };
                (stored.0, Some(stored.1))
            }
            (Row::Corrected(..), None) => {
                if let Some(mut file) = self.file(input, "loom")? {
                    let copied = File::open(input.packed).and_then(|mut from| io::copy(&mut from, &mut file));
                    copied.and_then(|_| file.sync_all()).map_err(Error::writing(input.packed))?;
                }
                progress.advance(input.checkpoint.len_bytes());
                (input.exact.clone(), None)
            }
            (Row::Exact, _) => {
                progress.advance(input.checkpoint.len_bytes());
                (input.exact.clone(), None)
            }
        };
        self.held = held;
        self.steps.push(report);
        if let Some((number, ..)) = previous {
            let folder = self.folder.join(number.to_string());
            std::fs::remove_dir_all(&folder).map_err(Error::writing(&folder))?;
        }
        Ok(())
    }

    /// Creates the step's file in the output, if there is an output.
    fn file(&self, input: &Input<'_>, extension: &str) -> Result<Option<File>> {
        let (name, _) = self.row.names();
        // For methods that share a row, the first name.
        let name = name.split(", ").next().unwrap_or_default();
        let path = format!("{name}/step-{:08}.{extension}", input.number);
        input.output.map(|output| output.create_file(&path)).transpose()
    }
}
