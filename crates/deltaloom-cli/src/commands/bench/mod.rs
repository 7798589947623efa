//! `deltaloom bench`: size and speed on a user's own weights, compared with other compressors on
//! the same bytes, all in memory. The rows take turns, so that a busy machine slows all of them.

mod baselines;
mod frames;
mod pco;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Bases, Container, Error, Limits, PackOptions, Progress, ResolvedContainer, Texts};
use deltaloom_lab::Rounds;

use crate::args::BenchArguments;
use crate::progress::Bar;
use crate::values::bench::Row;
use crate::{Answer, inputs, ui};
use baselines::{Baseline, Coder};
use frames::{Frames, Tensor};
use report::{Machine, Report, RowReport};

/// Memory of packing on top of the model, whatever its size.
const PACKING_BYTES: u64 = 300_000_000;

pub(crate) fn run(arguments: &BenchArguments) -> Result<Answer> {
    let rows = rows(arguments)?;
    let mut warnings = Vec::new();
    let mut open = |path: &Path| -> Result<Checkpoint> {
        let (checkpoint, of_checkpoint) = inputs::open_checkpoint(path, &[])?;
        warnings.extend(of_checkpoint);
        Ok(checkpoint)
    };
    let checkpoint = open(&arguments.checkpoint)?;
    let bases =
        arguments.bases.iter().map(|path| Ok((path.clone(), open(path)?))).collect::<Result<Vec<_>>>()?;
    check_memory(arguments, &checkpoint, &bases, &rows)?;
    let checkpoint = checkpoint.into_memory()?;
    let in_memory = |(path, base): (PathBuf, Checkpoint)| Ok((path, base.into_memory()?));
    let bases = bases.into_iter().map(in_memory).collect::<Result<Vec<_>>>()?;
    let bar = Bar::new("measuring");
    let measured = deltaloom::with_threads(arguments.threads, || {
        Ok(measure(arguments, &rows, &checkpoint, &bases, &bar))
    })??;
    bar.finish();
    let report = Report::new(arguments, &checkpoint, measured);
    if arguments.json {
        inputs::print_json(&report, &warnings)?;
    } else {
        ui::print(&report.describe())?;
    }
    Ok(Answer::Yes)
}

/// The compressor that a row measures, unless it is deltaloom.
fn baseline(row: Row) -> Option<Baseline> {
    Some(match row {
        Row::Deltaloom | Row::DeltaloomDigests | Row::InPlace | Row::Changes => return None,
        Row::Memcpy => Baseline::Memcpy,
        Row::Zstd1 => Baseline::Zstd(1),
        Row::Zstd3 => Baseline::Zstd(3),
        Row::Lz4 => Baseline::Lz4,
        Row::Pco => Baseline::Pco,
        Row::XorZstd1 => Baseline::XorZstd(1),
        Row::Bitx => Baseline::Bitx,
    })
}

/// The requested rows, in the order of the table.
fn rows(arguments: &BenchArguments) -> Result<Vec<Row>> {
    let has_base = !arguments.bases.is_empty();
    if let Some(row) = arguments.only.iter().find(|row| row.needs_base() && !has_base) {
        bail!("row {} needs --base", row.name());
    }
    let is_wanted = |row: &&Row| {
        let is_named = arguments.only.is_empty() || arguments.only.contains(row);
        is_named && (has_base || !row.needs_base())
    };
    Ok(Row::value_variants().iter().filter(is_wanted).copied().collect())
}

/// Refuses what would not fit in memory, if the available memory is known.
fn check_memory(
    arguments: &BenchArguments,
    checkpoint: &Checkpoint,
    bases: &[(PathBuf, Checkpoint)],
    rows: &[Row],
) -> Result<()> {
    // The original, the output and the container; for baselines also their frames and an XOR.
    let copies = if rows.iter().any(|row| baseline(*row).is_some()) { 5 } else { 3 };
    let of_bases: u64 = bases.iter().map(|(_, base)| base.len_bytes()).sum();
    let needed =
        checkpoint.len_bytes().saturating_mul(copies).saturating_add(of_bases).saturating_add(PACKING_BYTES);
    match Machine::available_bytes() {
        Some(available) if needed > available => bail!(
            "{}: the benchmark needs {} of memory, but {} are available; measure one shard of the model, or fewer rows with --only",
            arguments.checkpoint.display(),
            ui::bytes(needed),
            ui::bytes(available),
        ),
        _ => Ok(()),
    }
}

fn measure(
    arguments: &BenchArguments,
    rows: &[Row],
    checkpoint: &Checkpoint,
    bases: &[(PathBuf, Checkpoint)],
    bar: &Bar,
) -> Result<Vec<RowReport>> {
    let tensors = tensors(checkpoint, bases)?;
    let data_bytes: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let mut out = vec![0; data_bytes];
    let mut ours = Ours::new(arguments, checkpoint, bases);
    let has_baseline = rows.iter().any(|row| baseline(*row).is_some());
    let mut frames = Frames::new(if has_baseline { &tensors } else { &[] });
    let mut subjects = Vec::new();
    for row in rows {
        let coder = baseline(*row).map(Coder::new).transpose()?;
        subjects.push(Subject { row: *row, coder, packed_bytes: 0 });
    }
    let rounds = Rounds::new(arguments.rounds)?;
    bar.start(rounds.turns(rows.len()).saturating_mul(data_bytes as u64));
    let seconds = rounds.run(&mut subjects, &OnlyStops(bar), |subject, turn| -> Result<_> {
        if turn.is_warm_up {
            out.fill(0xa5);
        }
        let start = Instant::now();
        let packed_bytes = match &mut subject.coder {
            None => ours.encode(bar)?,
            Some(coder) => encode(coder, &tensors, &mut frames, bar)?,
        };
        let encode_seconds = start.elapsed().as_secs_f64();
        match subject.row {
            Row::InPlace => ours.resolved()?.read_references_into(&mut out)?,
            Row::Changes => read_plain_references(&ours.resolved()?, &mut out)?,
            _ => {}
        }
        let start = Instant::now();
        match &mut subject.coder {
            None => ours.decode(&mut out, subject.row)?,
            Some(coder) => decode(coder, &tensors, &frames, &mut out, bar)?,
        }
        let decode_seconds = start.elapsed().as_secs_f64();
        // The round that is not timed checks that every row restores its input.
        if turn.is_warm_up {
            check(&tensors, &out).with_context(|| format!("row {}", subject.row.name()))?;
            subject.packed_bytes = packed_bytes;
        }
        bar.advance(data_bytes as u64);
        Ok((encode_seconds, decode_seconds))
    })?;
    let report = |(subject, seconds): (Subject, Vec<_>)| {
        let (encode_seconds, decode_seconds) = seconds.into_iter().unzip();
        let (name, packed_bytes) = (subject.row.name(), subject.packed_bytes);
        RowReport { name, packed_bytes, encode_seconds, decode_seconds }
    };
    Ok(subjects.into_iter().zip(seconds).map(report).collect())
}

/// A row while it is measured; without a coder it is one of ours.
struct Subject {
    row: Row,
    coder: Option<Coder>,
    packed_bytes: u64,
}

/// The tensors with their counterparts: among the tensors of the same name, dtype and shape in any
/// base, the one with the most bytes in common.
fn tensors<'a>(checkpoint: &'a Checkpoint, bases: &'a [(PathBuf, Checkpoint)]) -> Result<Vec<Tensor<'a>>> {
    let with_counterpart = |(member, info): (usize, &'a TensorInfo)| {
        let bytes = checkpoint.in_memory(member, info).context("a tensor is not in memory")?;
        let is_counterpart = |other: &TensorInfo| {
            other.name == info.name && other.same_type(info) && other.len_bytes() == info.len_bytes()
        };
        let counterparts = bases.iter().flat_map(|(_, base)| {
            let found = base.tensors().filter(|(_, other)| is_counterpart(other));
            found.filter_map(|(member, other)| base.in_memory(member, other))
        });
        let in_common = |other: &&[u8]| bytes.iter().zip(*other).filter(|(a, b)| a == b).count();
        Ok(Tensor { info, bytes, reference: counterparts.max_by_key(in_common) })
    };
    checkpoint.tensors().map(with_counterpart).collect()
}

fn check(tensors: &[Tensor<'_>], mut out: &[u8]) -> Result<()> {
    for tensor in tensors {
        let is_same = out.split_off(..tensor.bytes.len()) == Some(tensor.bytes);
        ensure!(is_same, "tensor {:?} was not restored correctly", tensor.info.name);
    }
    Ok(())
}

/// Our own coding, from memory into memory.
struct Ours<'a> {
    name: &'a Path,
    checkpoint: &'a Checkpoint,
    bases: &'a [(PathBuf, Checkpoint)],
    /// The bases for decoding; their digests are computed once.
    known: Bases,
    options: PackOptions,
    packed: Arc<Vec<u8>>,
}

impl<'a> Ours<'a> {
    fn new(
        arguments: &'a BenchArguments,
        checkpoint: &'a Checkpoint,
        bases: &'a [(PathBuf, Checkpoint)],
    ) -> Self {
        // With names of bases, so that sizes are those of `pack`.
        let options = PackOptions::default()
            .with_preset(arguments.preset.into())
            .with_threads(arguments.threads)
            .with_identity(Some(Texts::new()));
        let name = &arguments.checkpoint;
        Self { name, checkpoint, bases, known: all(bases), options, packed: Arc::default() }
    }

    fn encode(&mut self, bar: &Bar) -> Result<u64> {
        let packed = Arc::make_mut(&mut self.packed);
        packed.clear();
        let bases = all(self.bases);
        deltaloom::pack_to(self.checkpoint, &bases, &mut *packed, &self.options, &OnlyStops(bar))?;
        Ok(packed.len() as u64)
    }

    fn resolved(&self) -> Result<ResolvedContainer> {
        let source = Box::new(Arc::clone(&self.packed));
        let container = Container::from_source(self.name, source, &Limits::default())?;
        Ok(ResolvedContainer::new(container, &self.known)?)
    }

    fn decode(&self, mut out: &mut [u8], row: Row) -> Result<()> {
        let resolved = self.resolved()?;
        match row {
            Row::InPlace => return Ok(resolved.apply_all(out)?),
            Row::DeltaloomDigests | Row::Changes => {}
            _ => return Ok(resolved.read_all_into(out)?),
        }
        for (number, info) in resolved.tensors().enumerate() {
            let values =
                out.split_off_mut(..usize::try_from(info.len_bytes())?).context("the output is too short")?;
            if row == Row::Changes && resolved.plain_reference(number).is_some() {
                change(&resolved, number, values)?;
                continue;
            }
            resolved.read_into(number, values)?;
            if row == Row::DeltaloomDigests {
                resolved.check(number, values)?;
            }
        }
        Ok(())
    }
}

/// Fills `out` with the references that [`change`] starts from.
fn read_plain_references(resolved: &ResolvedContainer, mut out: &mut [u8]) -> Result<()> {
    for (number, info) in resolved.tensors().enumerate() {
        let values =
            out.split_off_mut(..usize::try_from(info.len_bytes())?).context("the output is too short")?;
        if let Some((base, member, reference)) = resolved.plain_reference(number) {
            base.read(member, reference, 0, values)?;
        }
    }
    Ok(())
}

/// Turns the reference of a tensor into the tensor, element by element.
fn change(resolved: &ResolvedContainer, number: usize, values: &mut [u8]) -> Result<()> {
    resolved.changes(number, .., |changes| {
        let count = changes.offsets.len();
        let size = changes.values.len().checked_div(count).unwrap_or(1);
        let too_long = |_| Error::corrupt("a tensor is longer than memory");
        let first = usize::try_from(changes.first).map_err(too_long)?;
        for (offset, value) in changes.offsets.iter().zip(changes.values.chunks_exact(size)) {
            let at = (first + *offset as usize) * size;
            values[at..at + size].copy_from_slice(value);
        }
        Ok(())
    })?;
    Ok(())
}

fn all(bases: &[(PathBuf, Checkpoint)]) -> Bases {
    let mut all = Bases::default();
    for (path, base) in bases {
        all.push_checkpoint(path, base.clone());
    }
    all
}

/// Passes on requests to stop, but draws no progress during measurements.
struct OnlyStops<'a>(&'a Bar);

impl Progress for OnlyStops<'_> {
    fn start(&self, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

fn encode(coder: &mut Coder, tensors: &[Tensor<'_>], frames: &mut Frames, bar: &Bar) -> Result<u64> {
    frames.clear();
    for tensor in tensors {
        stop_if_asked(bar)?;
        coder.encode(tensor, frames)?;
    }
    Ok(frames.len_bytes() as u64)
}

fn decode(
    coder: &mut Coder,
    tensors: &[Tensor<'_>],
    frames: &Frames,
    mut out: &mut [u8],
    bar: &Bar,
) -> Result<()> {
    let mut frames = frames.iter();
    for tensor in tensors {
        stop_if_asked(bar)?;
        let values = out.split_off_mut(..tensor.bytes.len()).context("the output is too short")?;
        coder.decode(tensor, &mut frames, values)?;
    }
    Ok(())
}

fn stop_if_asked(bar: &Bar) -> Result<()> {
    if bar.is_cancelled() { Err(Error::Cancelled.into()) } else { Ok(()) }
}
