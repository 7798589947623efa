//! `deltaloom bench`: how fast our coding is on somebody's own weights, beside other coders on the same bytes, all in memory.
//! Rows take turns, so that what slows the machine for a while slows all of them.

mod baselines;
mod pco;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Bases, Container, Error, Limits, PackOptions, Progress, ResolvedContainer, Texts};

use crate::args::BenchArguments;
use crate::{Answer, ui};
use baselines::{Baseline, Coder, Frames, Tensor};
use report::{Machine, Report, RowReport};

/// What packing takes beside the model, however large that is.
const PACKING_BYTES: u64 = 300_000_000;

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// Packing, and decoding every chunk with its checksum
    Deltaloom,
    /// The same, and the digest of every tensor
    #[value(name = "deltaloom+digests")]
    DeltaloomDigests,
    /// Packing, and turning the base into the result where it is in memory
    InPlace,
    /// Copying the bytes: the limit
    Memcpy,
    /// zstd, level 1
    #[value(name = "zstd-1")]
    Zstd1,
    /// zstd, level 3
    #[value(name = "zstd-3")]
    Zstd3,
    /// LZ4 blocks
    Lz4,
    /// pco on differences in ULPs, or without a base on the numbers
    Pco,
    /// zstd, level 1, of the XOR with the base
    #[value(name = "xor+zstd-1")]
    XorZstd1,
    /// zstd, level 3, of 1 MiB pieces of the byte planes of that XOR
    Bitx,
}

impl Row {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The coder that it measures, where it is not ours.
    fn baseline(self) -> Option<Baseline> {
        Some(match self {
            Self::Deltaloom | Self::DeltaloomDigests | Self::InPlace => return None,
            Self::Memcpy => Baseline::Memcpy,
            Self::Zstd1 => Baseline::Zstd(1),
            Self::Zstd3 => Baseline::Zstd(3),
            Self::Lz4 => Baseline::Lz4,
            Self::Pco => Baseline::Pco,
            Self::XorZstd1 => Baseline::XorZstd(1),
            Self::Bitx => Baseline::Bitx,
        })
    }

    fn needs_base(self) -> bool {
        matches!(self, Self::InPlace | Self::XorZstd1 | Self::Bitx)
    }
}

pub(crate) fn run(arguments: &BenchArguments) -> Result<Answer> {
    let rows = rows(arguments)?;
    let mut warnings = Vec::new();
    let mut open = |path: &Path| -> Result<Checkpoint> {
        let (checkpoint, of_checkpoint) = super::open_checkpoint(path)?;
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
    let bar = ui::Bar::new("measuring");
    let measured = deltaloom::with_threads(arguments.threads, || {
        Ok(measure(arguments, &rows, &checkpoint, &bases, &bar))
    })??;
    bar.finish();
    let report = Report::new(arguments, &checkpoint, measured);
    if arguments.json {
        super::print_json(&report, &warnings)?;
    } else {
        ui::print(&report.describe())?;
    }
    Ok(Answer::Yes)
}

/// The rows that are asked for, in the order of the table.
fn rows(arguments: &BenchArguments) -> Result<Vec<Row>> {
    let has_base = !arguments.bases.is_empty();
    if let Some(row) = arguments.only.iter().find(|row| row.needs_base() && !has_base) {
        bail!("row {} needs a base: give one with --base", row.name());
    }
    let is_wanted = |row: &&Row| {
        let is_named = arguments.only.is_empty() || arguments.only.contains(row);
        is_named && (has_base || !row.needs_base())
    };
    Ok(Row::value_variants().iter().filter(is_wanted).copied().collect())
}

/// Refuses what would not fit in memory, where the system says how much there is.
fn check_memory(
    arguments: &BenchArguments,
    checkpoint: &Checkpoint,
    bases: &[(PathBuf, Checkpoint)],
    rows: &[Row],
) -> Result<()> {
    // The original, the output, the container; and what the baselines encode, with the XOR of the largest tensor.
    let copies = if rows.iter().any(|row| row.baseline().is_some()) { 5 } else { 3 };
    let of_bases: u64 = bases.iter().map(|(_, base)| base.len_bytes()).sum();
    let needed =
        checkpoint.len_bytes().saturating_mul(copies).saturating_add(of_bases).saturating_add(PACKING_BYTES);
    match Machine::available_bytes() {
        Some(available) if needed > available => bail!(
            "{}: measuring takes {} of memory, {} are available: measure one shard of the model, or fewer rows with --only",
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
    bar: &ui::Bar,
) -> Result<Vec<RowReport>> {
    let tensors = tensors(checkpoint, bases)?;
    let data_bytes: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
    let mut out = vec![0; data_bytes];
    let mut ours = Ours::new(arguments, checkpoint, bases);
    let has_baseline = rows.iter().any(|row| row.baseline().is_some());
    let mut frames = Frames::new(if has_baseline { &tensors } else { &[] });
    let mut coders = Vec::new();
    for row in rows {
        coders.push(row.baseline().map(Coder::new).transpose()?);
    }
    let mut reports: Vec<RowReport> = rows.iter().map(|row| RowReport::new(row.name())).collect();
    bar.start((data_bytes * rows.len() * (arguments.rounds + 1)) as u64);
    // Round 0 warms up: it shows that every row gives back what it was given, and touches all memory.
    for round in 0..=arguments.rounds {
        for ((row, coder), report) in rows.iter().zip(&mut coders).zip(&mut reports) {
            if round == 0 {
                out.fill(0xa5);
            }
            let start = Instant::now();
            let packed_bytes = match coder {
                None => ours.encode(bar)?,
                Some(coder) => encode(coder, &tensors, &mut frames, bar)?,
            };
            let encode_seconds = start.elapsed().as_secs_f64();
            if *row == Row::InPlace {
                ours.resolved()?.read_references_into(&mut out)?;
            }
            let start = Instant::now();
            match coder {
                None => ours.decode(&mut out, *row)?,
                Some(coder) => decode(coder, &tensors, &frames, &mut out, bar)?,
            }
            let decode_seconds = start.elapsed().as_secs_f64();
            if round == 0 {
                check(&tensors, &out).with_context(|| format!("row {}", report.name))?;
                report.packed_bytes = packed_bytes;
            } else {
                report.encode_seconds.push(encode_seconds);
                report.decode_seconds.push(decode_seconds);
            }
            bar.advance(data_bytes as u64);
        }
    }
    Ok(reports)
}

/// The tensors with their counterparts: of those with the same name, dtype and shape in any base, the one with the most bytes in common.
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
        ensure!(is_same, "tensor {:?} does not come back as it was", tensor.info.name);
    }
    Ok(())
}

/// Our own coding, from memory into memory.
struct Ours<'a> {
    name: &'a Path,
    checkpoint: &'a Checkpoint,
    bases: &'a [(PathBuf, Checkpoint)],
    /// Where references are found when decoding: their digests are computed once.
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

    fn encode(&mut self, bar: &ui::Bar) -> Result<u64> {
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
            Row::DeltaloomDigests => {}
            _ => return Ok(resolved.read_all_into(out)?),
        }
        for (number, info) in resolved.tensors().enumerate() {
            let values =
                out.split_off_mut(..usize::try_from(info.len_bytes())?).context("the output is too short")?;
            resolved.read_into(number, values)?;
            resolved.check(number, values)?;
        }
        Ok(())
    }
}

fn all(bases: &[(PathBuf, Checkpoint)]) -> Bases {
    let mut all = Bases::default();
    for (path, base) in bases {
        all.push_checkpoint(path, base.clone());
    }
    all
}

/// Lets the library ask whether to stop, and keeps the bar out of what is measured.
struct OnlyStops<'a>(&'a ui::Bar);

impl Progress for OnlyStops<'_> {
    fn start(&self, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

fn encode(coder: &mut Coder, tensors: &[Tensor<'_>], frames: &mut Frames, bar: &ui::Bar) -> Result<u64> {
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
    bar: &ui::Bar,
) -> Result<()> {
    let mut frames = frames.iter();
    for tensor in tensors {
        stop_if_asked(bar)?;
        let values = out.split_off_mut(..tensor.bytes.len()).context("the output is too short")?;
        coder.decode(tensor, &mut frames, values)?;
    }
    Ok(())
}

fn stop_if_asked(bar: &ui::Bar) -> Result<()> {
    if bar.is_cancelled() { Err(Error::Cancelled.into()) } else { Ok(()) }
}
