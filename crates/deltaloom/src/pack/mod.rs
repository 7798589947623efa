//! Packs a checkpoint: choose a predictor for every tensor, then plan, encode and write its chunks window by window.
//! The order of work is fixed, so the container depends on the input and the preset only.

mod choose;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;

use crate::bases::{Bases, TensorSource};
use crate::checkpoint::output::NewFile;
use crate::checkpoint::{Checkpoint, Member};
use crate::codec::{self, ChunkInput, ChunkShape, Codec, Coding, Encoder};
use crate::container::{ChunkEntry, ContainerWriter, Digest, Index, PackedTensor, to_usize};
use crate::entropy::table::TableSet;
use crate::error::{Error, Result};
use crate::pipeline;
use crate::plan::{self, Draft, GroupInput, GroupPlan, Preset, SetPool};
use crate::predict::Predictor;
use crate::progress::{Progress, check_cancelled};
use crate::report::{self, PackReport};
use crate::tensor::TensorInfo;

use choose::Choice;

/// Chunks that share tables and scales: half a window, so that windows fill up.
const GROUP_CHUNKS: u64 = 16;

/// How to pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// How much time it may take.
    pub preset: Preset,
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// Replace an existing target.
    pub overwrite: bool,
    /// log2 of the elements of a chunk, 10 to 20.
    pub chunk_log2: u8,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self { preset: Preset::Default, threads: 0, overwrite: false, chunk_log2: 17 }
    }
}

/// Packs `checkpoint` against `bases` into the file `target`, which appears only when it is whole.
///
/// # Errors
/// What reading or writing gives; [`Error::AlreadyExists`]; [`Error::Cancelled`].
pub fn pack(
    checkpoint: &Checkpoint,
    bases: &Bases,
    target: &Path,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport> {
    let mut file = NewFile::create(target, options.overwrite)?;
    let report = pack_to(checkpoint, bases, file.file(), options, progress).map_err(|e| match e {
        Error::Io { path, source } if path.as_os_str().is_empty() => {
            Error::Io { path: target.to_path_buf(), source }
        }
        other => other,
    })?;
    file.commit()?;
    Ok(report)
}

/// Packs `checkpoint` against `bases` into any writer.
///
/// # Errors
/// As [`pack`]; faults of the writer have an empty path.
pub fn pack_to(
    checkpoint: &Checkpoint,
    bases: &Bases,
    out: impl Write + Send,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport> {
    if !(10..=20).contains(&options.chunk_log2) {
        return Err(Error::InvalidArgument(format!("chunks of 2^{} elements", options.chunk_log2)));
    }
    let start = Instant::now();
    progress.start(checkpoint.members.iter().map(Member::data_bytes).sum());
    let (mut report, threads) = pipeline::with_threads(options.threads, || {
        Ok((pack_windows(checkpoint, bases, out, options, progress)?, rayon::current_num_threads()))
    })?;
    report.seconds = Some(start.elapsed().as_secs_f64());
    report.threads = Some(threads);
    Ok(report)
}

/// A run of chunks of one tensor that is planned as one.
struct Group {
    tensor: usize,
    chunks: std::ops::Range<u64>,
}

/// A group with its bytes read.
struct LoadedGroup {
    tensor: usize,
    target: Vec<u8>,
    prediction: Vec<u8>,
    /// Byte lengths of the chunks.
    chunk_bytes: Vec<usize>,
}

/// A group ready to be written and hashed.
struct EncodedGroup {
    loaded: LoadedGroup,
    coding: Coding<usize>,
    changed: u64,
    chunks: Vec<(Codec, Vec<u8>, u32)>,
}

fn pack_windows(
    checkpoint: &Checkpoint,
    bases: &Bases,
    out: impl Write + Send,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport> {
    let tensors: Vec<(usize, &TensorInfo)> = checkpoint.tensors().collect();
    let choices = choose::choose(checkpoint, bases, &tensors, progress)?;
    let packed = choices.iter().zip(checkpoint.places()).map(|(choice, place)| {
        let member = &checkpoint.members[place.0];
        let grid = member.grid(&member.tensors[place.1], u32::from(options.chunk_log2));
        PackedTensor::new(place, choice.predictor.clone(), grid)
    });
    let mut assembly = Assembly::new(packed.collect(), &choices);
    let groups = groups_of(&assembly.tensors);
    let packer =
        Packer { checkpoint, tensors: &tensors, choices: &choices, preset: options.preset, progress };
    let grids: Vec<_> = assembly.tensors.iter().map(|tensor| tensor.grid).collect();
    let mut pool = SetPool::default();
    let mut writer = ContainerWriter::new(out).map_err(Error::io(""))?;
    pipeline::overlapped(
        pipeline::windows(groups, |group| to_usize(group.chunks.end - group.chunks.start)),
        |window| packer.encode_window(&window, &grids, &mut pool),
        |encoded: Vec<EncodedGroup>| {
            for group in encoded {
                progress.advance(group.loaded.target.len() as u64);
                assembly.push(group, &mut writer).map_err(Error::io(""))?;
            }
            Ok(())
        },
    )?;
    let index = Index {
        layout: checkpoint.layout,
        chunk_log2: options.chunk_log2,
        members: checkpoint.members.clone(),
        tensors: assembly.finish(),
        table_sets: pool.sets,
    };
    let written = writer.finish(&index, options.preset.zstd_level()).map_err(Error::io(""))?;
    Ok(report::report(&index, written.total, written.total - written.payloads))
}

fn groups_of(tensors: &[PackedTensor]) -> Vec<Group> {
    let mut groups = Vec::new();
    for (number, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.predictor.has_chunks()) {
        let chunks = tensor.grid.chunk_count();
        let per_group = chunks.div_ceil(chunks.div_ceil(GROUP_CHUNKS).max(1)).max(1);
        let starts = (0..chunks).step_by(to_usize(per_group));
        groups.extend(
            starts.map(|start| Group { tensor: number, chunks: start..(start + per_group).min(chunks) }),
        );
    }
    groups
}

/// What encoding a window needs to know.
struct Packer<'a> {
    checkpoint: &'a Checkpoint,
    tensors: &'a [(usize, &'a TensorInfo)],
    choices: &'a [Choice],
    preset: Preset,
    progress: &'a dyn Progress,
}

impl Packer<'_> {
    fn encode_window(
        &self,
        window: &[Group],
        grids: &[crate::tensor::Grid],
        pool: &mut SetPool,
    ) -> Result<Vec<EncodedGroup>> {
        check_cancelled(self.progress)?;
        let drafted: Vec<(LoadedGroup, Draft)> = window
            .par_iter()
            .map(|group| {
                let loaded = self.load(group, &grids[group.tensor])?;
                let draft = plan::draft(&self.input(&loaded, &grids[group.tensor]), self.preset);
                Ok((loaded, draft))
            })
            .collect::<Result<_>>()?;
        let (loaded, mut drafts): (Vec<LoadedGroup>, Vec<Draft>) = drafted.into_iter().unzip();
        let changed: Vec<u64> = drafts.iter().map(|draft| draft.changed).collect();
        let elems =
            |group: &LoadedGroup| (group.target.len() / self.tensors[group.tensor].1.number().bytes()) as u64;
        let elems: Vec<u64> = loaded.iter().map(elems).collect();
        let plans = plan::finish(&mut drafts, pool, &elems);
        let encoded = loaded
            .into_par_iter()
            .zip(plans)
            .zip(changed)
            .map(|((loaded, plan), changed)| {
                let chunks = self.encode_group(&loaded, &grids[loaded.tensor], &plan, &pool.sets);
                EncodedGroup { loaded, coding: plan.coding, changed, chunks }
            })
            .collect();
        Ok(encoded)
    }

    fn load(&self, group: &Group, grid: &crate::tensor::Grid) -> Result<LoadedGroup> {
        let (member, info) = self.tensors[group.tensor];
        let bytes = |i| {
            let range = grid.chunk_bytes(i);
            to_usize(range.end - range.start)
        };
        let chunk_bytes: Vec<usize> = group.chunks.clone().map(bytes).collect();
        let offset = grid.chunk_bytes(group.chunks.start).start;
        let len_bytes = chunk_bytes.iter().sum();
        let mut target = vec![0; len_bytes];
        self.checkpoint.read(member, info, offset, &mut target)?;
        let prediction = match &self.choices[group.tensor].reference {
            Some(reference) => reference.read(offset, len_bytes)?,
            None => vec![0; len_bytes],
        };
        Ok(LoadedGroup { tensor: group.tensor, target, prediction, chunk_bytes })
    }

    fn input<'a>(&self, loaded: &'a LoadedGroup, grid: &crate::tensor::Grid) -> GroupInput<'a> {
        GroupInput {
            number: self.tensors[loaded.tensor].1.number(),
            cols: to_usize(grid.cols),
            is_matrix: grid.is_matrix,
            chunks: loaded.pairs(),
            is_predicted: matches!(self.choices[loaded.tensor].predictor, Predictor::Reference(_)),
        }
    }

    fn encode_group(
        &self,
        loaded: &LoadedGroup,
        grid: &crate::tensor::Grid,
        plan: &GroupPlan,
        sets: &[TableSet],
    ) -> Vec<(Codec, Vec<u8>, u32)> {
        let number = self.tensors[loaded.tensor].1.number();
        let ready =
            plan.coding.map(|set| Ok::<Encoder, std::convert::Infallible>(codec::encoder(&sets[*set])));
        let coding = match ready {
            Ok(coding) => coding,
            Err(never) => match never {},
        };
        let cols = to_usize(grid.cols);
        let encode = |(i, (target, prediction)): (usize, (&[u8], &[u8]))| {
            let rows = target.len() / number.bytes() / cols;
            let input = ChunkInput {
                shape: ChunkShape { number, rows, cols },
                target,
                prediction,
                row_scales: plan.row_scales(i),
                symbols: plan.symbols(i),
                estimated_bytes: plan.estimated_bytes(rows * cols),
                zstd_level: self.preset.zstd_level(),
            };
            let (codec, payload) = codec::encode(&input, &coding);
            let crc = crc32fast::hash(&payload);
            (codec, payload, crc)
        };
        loaded.pairs().into_par_iter().enumerate().map(encode).collect()
    }
}

impl LoadedGroup {
    fn pairs(&self) -> Vec<(&[u8], &[u8])> {
        let mut at = 0;
        let pair = |len: &usize| {
            let range = at..at + len;
            at += len;
            (&self.target[range.clone()], &self.prediction[range])
        };
        self.chunk_bytes.iter().map(pair).collect()
    }
}

/// Collects what was written into the tensors of the index, and hashes them on the way.
struct Assembly {
    tensors: Vec<PackedTensor>,
    hashers: Option<(usize, blake3::Hasher, blake3::Hasher)>,
}

impl Assembly {
    fn new(mut tensors: Vec<PackedTensor>, choices: &[Choice]) -> Self {
        let empty = blake3::hash(b"");
        for (tensor, choice) in tensors.iter_mut().zip(choices) {
            // Tensors without elements never come by.
            let (digest, reference_digest) = choice.digests.unwrap_or((empty, None));
            tensor.digest = digest;
            tensor.reference_digest = reference_digest;
            if matches!(tensor.predictor, Predictor::Reference(_)) {
                tensor.reference_digest = Some(empty);
            }
        }
        Self { tensors, hashers: None }
    }

    fn push<W: Write>(
        &mut self,
        group: EncodedGroup,
        writer: &mut ContainerWriter<W>,
    ) -> std::io::Result<()> {
        let number = group.loaded.tensor;
        if self.hashers.as_ref().is_none_or(|(current, ..)| *current != number) {
            self.close_tensor();
            self.hashers = Some((number, blake3::Hasher::new(), blake3::Hasher::new()));
        }
        let tensor = &mut self.tensors[number];
        let has_reference = matches!(tensor.predictor, Predictor::Reference(_));
        if let Some((_, target, reference)) = &mut self.hashers {
            target.update(&group.loaded.target);
            if has_reference {
                reference.update(&group.loaded.prediction);
            }
        }
        if has_reference {
            tensor.changed += group.changed;
        }
        tensor.groups.push(group.coding);
        for (codec, payload, crc) in group.chunks {
            let entry: ChunkEntry = writer.push(codec, tensor.groups.len() - 1, &payload, crc)?;
            tensor.chunks.push(entry);
        }
        Ok(())
    }

    fn close_tensor(&mut self) {
        if let Some((number, target, reference)) = self.hashers.take() {
            let tensor = &mut self.tensors[number];
            tensor.digest = target.finalize();
            if tensor.reference_digest.is_some() {
                tensor.reference_digest = Some(reference.finalize());
            }
        }
    }

    fn finish(mut self) -> Vec<PackedTensor> {
        self.close_tensor();
        // A tied tensor has the digest of its target, whenever that was packed.
        for i in 0..self.tensors.len() {
            if let Predictor::Tied(target) = self.tensors[i].predictor {
                self.tensors[i].digest = self.tensors[target].digest;
            }
        }
        self.tensors
    }
}

/// Digests of a tensor and of its reference.
type Digests = (Digest, Option<Digest>);

/// A reference under consideration.
type Reference = TensorSource;
