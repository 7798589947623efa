//! Packs a checkpoint: chooses a predictor for every tensor, then plans, encodes and writes its
//! chunks window by window.
//! The order of work is fixed, so the container depends only on the input and the preset.

mod choose;
mod history;

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use deltaloom_kernels::Number;
use rayon::prelude::*;

use crate::bases::{Base, Bases, Modules, PredictionInputs, TensorId, TensorSource};
use crate::checkpoint::output::NewFile;
use crate::checkpoint::peft::Module;
use crate::checkpoint::{Checkpoint, Member};
use crate::codec::{self, ChunkInput, ChunkShape, Codec, Coding, Family};
use crate::container::{
    ChunkEntry, ContainerWriter, Digest, GroupEntry, Identity, Index, KnownDigest, PackedTensor, Texts,
    version_for,
};
use crate::entropy::table::TableSet;
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::options::setters;
use crate::origin::{Origin, text};
use crate::pipeline::{self, WINDOW_CHUNKS};
use crate::plan::{self, Draft, GroupHistory, GroupInput, GroupPlan, Preset, SetPool};
use crate::predict::{Predictor, ReadInputs as _, cast};
use crate::progress::{Progress, check_cancelled};
use crate::scratch::{Bytes, Scratch};
use crate::summary::{self, AdapterReport, PackReport};
use crate::tensor::{ChunkGrid, TensorInfo};

/// Chunks that share tables and scales. Half a window, so that windows fill up.
const GROUP_CHUNKS: u64 = 16;

/// Names of unused modules of an adapter in a report.
const UNUSED_TOLD: usize = 20;

/// How to pack.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PackOptions {
    /// How much time it may take.
    pub preset: Preset,
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// Replace an existing target.
    pub overwrite: bool,
    /// log2 of the elements of a chunk, 10 to 20.
    pub chunk_log2: u8,
    /// Makes the container name its bases, and adds these texts. `None` leaves both out.
    pub identity: Option<Texts>,
}

setters!(PackOptions {
    with_preset(preset: Preset),
    with_threads(threads: usize),
    with_overwrite(overwrite: bool),
    with_chunk_log2(chunk_log2: u8),
    with_identity(identity: Option<Texts>),
});

impl Default for PackOptions {
    fn default() -> Self {
        Self { preset: Preset::Default, threads: 0, overwrite: false, chunk_log2: 17, identity: None }
    }
}

/// Packs `checkpoint` against `bases` into the file `target`, which appears only when it is
/// complete.
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
    let inputs = bases.inputs().and(&checkpoint.inputs());
    let mut file = NewFile::create(target, options.overwrite, &inputs)?;
    let report =
        pack_to(checkpoint, bases, file.file(), options, progress).map_err(|e| e.of_writer(target))?;
    file.commit()?;
    Ok(report)
}

/// Packs `checkpoint` against `bases` into any writer.
///
/// # Errors
/// As [`pack`]. Errors of the writer have an empty path.
pub fn pack_to(
    checkpoint: &Checkpoint,
    bases: &Bases,
    out: impl Write + Send,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackReport> {
    pack_and_see(checkpoint, bases, out, options, progress, &|_, _| {})
}

/// As [`pack_to`]. Calls `see` with the number and bytes of every tensor that has chunks, while the
/// bytes are in memory.
pub(crate) fn pack_and_see(
    checkpoint: &Checkpoint,
    bases: &Bases,
    out: impl Write + Send,
    options: &PackOptions,
    progress: &dyn Progress,
    see: &(dyn Fn(usize, &[u8]) + Sync),
) -> Result<PackReport> {
    if !(10..=20).contains(&options.chunk_log2) {
        return Err(Error::InvalidArgument(format!(
            "chunks have 2^10 to 2^20 elements, not 2^{}",
            options.chunk_log2
        )));
    }
    let start = Instant::now();
    tracing::info!(files = checkpoint.members.len(), tensors = checkpoint.tensors().count(), "packing");
    let (mut report, threads) = pipeline::with_threads(options.threads, || {
        Ok((pack_windows(checkpoint, bases, out, options, progress, see)?, rayon::current_num_threads()))
    })?;
    // If files changed meanwhile, the container would hold tensors that never existed.
    checkpoint.check_unchanged()?;
    bases.check_unchanged()?;
    report.seconds = Some(start.elapsed().as_secs_f64());
    report.threads = Some(threads);
    Ok(report)
}

/// A run of chunks of one tensor that is planned together.
struct Group {
    tensor: usize,
    chunks: std::ops::Range<u64>,
}

/// A group whose bytes were read.
struct LoadedGroup<'a> {
    tensor: usize,
    /// What is coded.
    target: Bytes<'a>,
    /// The bytes of the tensor, if other ones are coded.
    original: Option<Bytes<'a>>,
    /// `None` if the prediction is zero.
    prediction: Option<Bytes<'a>>,
    history: Option<GroupHistory>,
    /// The payloads of the chunks, if they are patches of a file of a base.
    patches: Option<Vec<Option<Scratch>>>,
    /// Byte lengths of the chunks.
    chunk_bytes: Vec<usize>,
}

/// A group that is ready to be written.
struct EncodedGroup {
    tensor: usize,
    len_bytes: usize,
    entry: GroupEntry,
    changed: u64,
    chunks: Vec<(Codec, Scratch, u32)>,
}

fn pack_windows(
    checkpoint: &Checkpoint,
    bases: &Bases,
    out: impl Write + Send,
    options: &PackOptions,
    progress: &dyn Progress,
    see: &(dyn Fn(usize, &[u8]) + Sync),
) -> Result<PackReport> {
    let tensors: Vec<(usize, &TensorInfo)> = checkpoint.tensors().collect();
    let grid_of = |&(member, info): &(usize, &TensorInfo)| {
        checkpoint.members[member].grid(info, u32::from(options.chunk_log2))
    };
    let grids: Vec<ChunkGrid> = tensors.iter().map(grid_of).collect();
    let choices = choose::choose(checkpoint, bases, &tensors, &grids, options.preset, progress)?;
    progress.start(checkpoint.members.iter().map(Member::data_bytes).sum());
    // Tensors without chunks are done.
    let done = choices.iter().zip(&tensors).filter(|(choice, _)| !choice.predictor.has_chunks());
    progress.advance(done.map(|(_, (_, info))| info.len_bytes()).sum());
    for (choice, (_, info)) in choices.iter().zip(&tensors) {
        tracing::debug!(tensor = info.name, predictor = choice.predictor.kind(), "chose a predictor");
    }
    let packed = choices
        .iter()
        .zip(checkpoint.places())
        .zip(&grids)
        .map(|((choice, place), grid)| PackedTensor::new(place, choice.predictor.clone(), *grid));
    let mut packed: Vec<PackedTensor> = packed.collect();
    let groups = groups_of(&packed);
    let packer = Packer::new(checkpoint, &tensors, &choices, &grids, &groups, options.preset, progress);
    let identity = identity(bases, &choices, options)?;
    let version = version_for(&checkpoint.members, choices.iter().map(|choice| &choice.predictor), &identity);
    let packer = Packer { see, has_nibbles: Family::Nibbles.is_in(version), ..packer };
    let mut pool = SetPool::default();
    let mut digester = Digester::new(&choices);
    let mut writer = ContainerWriter::new(out, version).map_err(Error::writing(""))?;
    pipeline::staged(
        pipeline::windows(groups, WINDOW_CHUNKS, |group| to_usize(group.chunks.end - group.chunks.start)),
        |window| packer.draft_window(&window, &mut digester),
        |drafted| Ok(packer.encode_window(drafted, &mut pool)),
        |encoded: Vec<EncodedGroup>| {
            for group in encoded {
                progress.advance(group.len_bytes as u64);
                let tensor = &mut packed[group.tensor];
                if let (Some(own), []) = (&choices[group.tensor].own_payload, &tensor.groups[..]) {
                    let crc = crc32fast::hash(&own.bytes);
                    tensor.own_payload = Some(writer.push(&own.bytes, crc).map_err(Error::writing(""))?);
                }
                tensor.changed += group.changed;
                tensor.groups.push(group.entry);
                for (codec, payload, crc) in group.chunks {
                    let payload = writer.push(&payload, crc).map_err(Error::writing(""))?;
                    tensor.chunks.push(ChunkEntry { codec, group: tensor.groups.len() - 1, payload });
                }
            }
            Ok(())
        },
    )?;
    digester.finish(&mut packed);
    packed.iter_mut().for_each(history::settle);
    let index = Index {
        version,
        layout: checkpoint.layout,
        chunk_log2: options.chunk_log2,
        members: Arc::clone(&checkpoint.members),
        tensors: packed,
        table_sets: pool.sets,
        identity,
    };
    let written = writer.finish(&index, options.preset.zstd_level(0)).map_err(Error::writing(""))?;
    let mut report = summary::of(&index, written.total, written.total - written.payloads);
    report.adapters = adapters(bases, &choices);
    Ok(report)
}

/// What is used of each adapter.
fn adapters(bases: &Bases, choices: &[Origin]) -> Vec<AdapterReport> {
    let used: HashSet<TensorId> =
        choices.iter().flat_map(|choice| &choice.references).map(TensorSource::id).collect();
    let report = |(base, modules): (&Base, &Modules)| {
        let is_used =
            |module: &&Module| base.factors_of(module).iter().all(|factor| used.contains(&factor.id()));
        let unused = modules.all().iter().filter(|module| !is_used(module));
        let unused: Vec<String> = unused.map(|module| module.name.clone()).collect();
        AdapterReport {
            path: base.path().display().to_string(),
            modules: modules.all().len() as u64,
            used_modules: (modules.all().len() - unused.len()) as u64,
            unused: unused.into_iter().take(UNUSED_TOLD).collect(),
        }
    };
    bases.adapters().map(report).collect()
}

/// The identity of the container. It names the bases that a tensor is predicted from, or all bases
/// if there is no such tensor.
fn identity(bases: &Bases, choices: &[Origin], options: &PackOptions) -> Result<Identity> {
    let Some(texts) = &options.identity else { return Ok(Identity::default()) };
    let references = || choices.iter().flat_map(|choice| &choice.references);
    let none_is_used = references().next().is_none();
    let is_used = |base: &&Base| none_is_used || references().any(|source| base.has_origin_of(source));
    let named = bases.iter().filter(is_used).map(Base::identity).collect::<Result<_>>()?;
    let identity = Identity { bases: named, texts: texts.clone() };
    identity.check(&Limits::default())?;
    Ok(identity)
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

/// Everything that encoding a window needs.
struct Packer<'a> {
    checkpoint: &'a Checkpoint,
    tensors: &'a [(usize, &'a TensorInfo)],
    choices: &'a [Origin],
    grids: &'a [ChunkGrid],
    preset: Preset,
    progress: &'a dyn Progress,
    /// The prediction of all groups without one.
    zeros: Vec<u8>,
    /// Whether words of 4-bit codes may be coded code by code.
    has_nibbles: bool,
    /// Called with the bytes of each tensor.
    see: &'a (dyn Fn(usize, &[u8]) + Sync),
}

impl<'a> Packer<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        tensors: &'a [(usize, &'a TensorInfo)],
        choices: &'a [Origin],
        grids: &'a [ChunkGrid],
        groups: &[Group],
        preset: Preset,
        progress: &'a dyn Progress,
    ) -> Self {
        let unpredicted = groups.iter().filter(|group| choices[group.tensor].predictor.is_zero());
        let longest = unpredicted.map(|group| group.byte_range(&grids[group.tensor]).count()).max();
        let zeros = vec![0; longest.unwrap_or(0)];
        Self {
            checkpoint,
            tensors,
            choices,
            grids,
            preset,
            progress,
            zeros,
            has_nibbles: false,
            see: &|_, _| {},
        }
    }

    /// Reads a window, and hashes its bytes while its groups are drafted.
    fn draft_window(
        &self,
        window: &[Group],
        digester: &mut Digester,
    ) -> Result<Vec<(LoadedGroup<'_>, Draft)>> {
        check_cancelled(self.progress)?;
        let mut loaded: Vec<LoadedGroup<'_>> =
            window.par_iter().map(|group| self.load(group)).collect::<Result<_>>()?;
        let patches: Vec<_> = loaded.iter_mut().map(|group| group.patches.take()).collect();
        let draft = |(group, patches): (&LoadedGroup<'_>, _)| {
            check_cancelled(self.progress)?;
            Ok(match patches {
                Some(patches) => plan::draft_of_patches(patches),
                None => plan::draft(&self.input(group), self.preset),
            })
        };
        let draft_all = || loaded.par_iter().zip(patches).map(draft).collect::<Result<Vec<Draft>>>();
        let (drafts, ()) = rayon::join(draft_all, || digester.update(&loaded));
        Ok(loaded.into_iter().zip(drafts?).collect())
    }

    fn encode_window(&self, drafted: Vec<(LoadedGroup<'_>, Draft)>, pool: &mut SetPool) -> Vec<EncodedGroup> {
        let (loaded, mut drafts): (Vec<LoadedGroup<'_>>, Vec<Draft>) = drafted.into_iter().unzip();
        let changed: Vec<u64> = drafts.iter().map(|draft| draft.changed).collect();
        let elems = |group: &LoadedGroup<'_>| (group.target.len() / self.number(group.tensor).bytes()) as u64;
        let elems: Vec<u64> = loaded.iter().map(elems).collect();
        let plans = plan::finish(&mut drafts, pool, &elems);
        let encode = |((group, plan), changed): ((LoadedGroup<'_>, GroupPlan), u64)| EncodedGroup {
            tensor: group.tensor,
            len_bytes: group.original().len(),
            chunks: self.encode_group(&group, &plan, &pool.sets),
            entry: GroupEntry { coding: plan.coding, tables: plan.tables },
            changed: if self.choices[group.tensor].predictor.counts_changes() { changed } else { 0 },
        };
        loaded.into_par_iter().zip(plans).zip(changed).map(encode).collect()
    }

    fn load(&self, group: &Group) -> Result<LoadedGroup<'_>> {
        let (member, info) = self.tensors[group.tensor];
        let grid = &self.grids[group.tensor];
        let choice = &self.choices[group.tensor];
        let own_bytes = self.checkpoint.bytes(member, info, group.byte_range(grid))?;
        (self.see)(group.tensor, &own_bytes);
        let (target, original) = match choice.predictor.coded_dtype() {
            None => (own_bytes, None),
            Some(dtype) => {
                let grid = grid.of_dtype(dtype);
                let mut coded = Scratch::of_len(group.byte_range(&grid).count());
                cast::convert_into(&info.dtype, dtype, &own_bytes, &mut coded);
                (Bytes::Read(coded), Some(own_bytes))
            }
        };
        let grid = &self.coded_grid(group.tensor);
        let bytes = group.byte_range(grid);
        let chunk_bytes = group.chunks.clone().map(|i| grid.chunk_bytes(i).count()).collect();
        let (prediction, history) = if let Predictor::History { .. } = choice.predictor {
            let (prediction, history) = history::load(choice, info, grid, group.chunks.clone())?;
            (Some(Bytes::Read(prediction)), Some(history))
        } else {
            (self.predict(choice, info, bytes)?, None)
        };
        let patches = match (&choice.predictor, &choice.references[..]) {
            (Predictor::Text(_), [reference]) => Some(self.patches(group, reference, &target)?),
            _ => None,
        };
        Ok(LoadedGroup { tensor: group.tensor, target, original, prediction, history, patches, chunk_bytes })
    }

    /// The patches of the chunks of a group.
    fn patches(
        &self,
        group: &Group,
        reference: &TensorSource,
        target: &[u8],
    ) -> Result<Vec<Option<Scratch>>> {
        let (grid, choice) = (&self.grids[group.tensor], &self.choices[group.tensor]);
        let start = grid.chunk_bytes(group.chunks.start).start;
        let patch = |chunk: u64| {
            let place = grid.chunk_bytes(chunk);
            let target = &target[to_usize(place.start - start)..to_usize(place.end - start)];
            let prefix = &choice.prefixes[to_usize(chunk)];
            let laid_out = choice.laid_out.as_deref();
            Ok(text::encode(reference, laid_out, prefix, target, self.preset)?.map(Scratch::from))
        };
        group.chunks.clone().into_par_iter().map(patch).collect()
    }

    /// The grid of what is coded of a tensor.
    fn coded_grid(&self, tensor: usize) -> ChunkGrid {
        let grid = self.grids[tensor];
        self.choices[tensor].predictor.coded_dtype().map_or(grid, |dtype| grid.of_dtype(dtype))
    }

    /// The type of what is coded of a tensor.
    fn number(&self, tensor: usize) -> Number {
        self.choices[tensor].predictor.coded(self.tensors[tensor].1).0.number()
    }

    /// The prediction of a range of a tensor: borrowed from memory, read, or computed. `None` if it
    /// is zero.
    fn predict(
        &self,
        choice: &'a Origin,
        info: &'a TensorInfo,
        range: std::ops::Range<u64>,
    ) -> Result<Option<Bytes<'a>>> {
        let (info, predictor) = choice.predictor.coded(info);
        if predictor.is_zero() {
            return Ok(None);
        }
        let own = |other: usize, start: u64, out: &mut [u8]| {
            let (member, info) = self.tensors[other];
            self.checkpoint.read(member, info, start, out)
        };
        let mut inputs = PredictionInputs {
            references: &choice.references,
            tensors: predictor.internals(),
            own,
            payload: choice.own_payload.as_ref().map(|own| &*own.ready),
            memo: None,
        };
        if predictor.is_unmodified() {
            return inputs.bytes(0, range).map(Some);
        }
        let mut out = Scratch::of_len(to_usize(range.end - range.start));
        predictor.predict(&info, range.start, &mut inputs, &mut out)?;
        Ok(Some(Bytes::Read(out)))
    }

    fn input<'b>(&'b self, loaded: &'b LoadedGroup<'_>) -> GroupInput<'b> {
        let grid = &self.grids[loaded.tensor];
        GroupInput {
            number: self.number(loaded.tensor),
            cols: to_usize(grid.cols),
            is_matrix: grid.is_matrix,
            chunks: loaded.pairs(&self.zeros),
            is_predicted: loaded.prediction.is_some(),
            may_have_nibbles: self.has_nibbles && grid.is_matrix,
            history: loaded.history.as_ref(),
        }
    }

    fn encode_group(
        &self,
        loaded: &LoadedGroup<'_>,
        plan: &GroupPlan,
        sets: &[TableSet],
    ) -> Vec<(Codec, Scratch, u32)> {
        let number = self.number(loaded.tensor);
        let tables = plan.tables.map(|set| codec::encoder(&sets[set]));
        let cols = to_usize(self.grids[loaded.tensor].cols);
        let encode = |(i, (target, prediction)): (usize, (&[u8], &[u8]))| {
            let rows = target.len() / number.bytes() / cols;
            let input = ChunkInput {
                shape: ChunkShape { number, rows, cols },
                target,
                prediction,
                classes: loaded.classes(&plan.coding, i),
                row_scales: plan.row_scales(i),
                material: plan.material(i),
                estimated_bytes: plan.estimated_bytes(rows * cols),
                zstd_level: self.preset.zstd_level(target.len()),
            };
            let (codec, payload) = codec::encode(&input, &plan.coding, tables.as_ref());
            let crc = crc32fast::hash(&payload);
            (codec, payload, crc)
        };
        loaded.pairs(&self.zeros).into_par_iter().enumerate().map(encode).collect()
    }
}

impl Group {
    /// The place of its bytes in the tensor.
    fn byte_range(&self, grid: &ChunkGrid) -> std::ops::Range<u64> {
        let last = grid.chunk_bytes(self.chunks.end.saturating_sub(1));
        grid.chunk_bytes(self.chunks.start).start..last.end
    }
}

impl LoadedGroup<'_> {
    /// The bytes of the tensor.
    fn original(&self) -> &[u8] {
        self.original.as_ref().unwrap_or(&self.target)
    }

    /// Classes of the elements of a chunk, if its coding has them.
    fn classes(&self, coding: &Coding, chunk: usize) -> Option<&[u8]> {
        let Coding::History { kind, .. } = coding else { return None };
        self.history.as_ref()?.classes(*kind).get(chunk).map(|classes| &**classes)
    }

    /// Target and prediction of every chunk. `zeros` must be at least as long as the group.
    fn pairs<'a>(&'a self, zeros: &'a [u8]) -> Vec<(&'a [u8], &'a [u8])> {
        let prediction = self.prediction.as_deref().unwrap_or(zeros);
        let mut at = 0;
        let pair = |len: &usize| {
            let range = at..at + len;
            at += len;
            (&self.target[range.clone()], &prediction[range])
        };
        self.chunk_bytes.iter().map(pair).collect()
    }
}

/// Hashes tensors while their groups pass in file order. Also hashes references that are unmodified
/// predictions.
struct Digester {
    digests: Vec<(Digest, Vec<Digest>)>,
    /// Whether a tensor's predictions are the bytes of its reference.
    hashes_predictions: Vec<bool>,
    current: Option<(usize, blake3::Hasher, blake3::Hasher)>,
}

impl Digester {
    fn new(choices: &[Origin]) -> Self {
        // Tensors without elements never pass.
        let empty = blake3::hash(b"");
        let known = |choice: &Origin| {
            let of_references = choice.reference_digests.clone();
            let of_references =
                of_references.unwrap_or_else(|| choice.references.iter().map(|_| empty).collect());
            (choice.digest.unwrap_or(empty), of_references)
        };
        Self {
            digests: choices.iter().map(known).collect(),
            hashes_predictions: choices.iter().map(|choice| choice.reference_digests.is_none()).collect(),
            current: None,
        }
    }

    fn update(&mut self, groups: &[LoadedGroup<'_>]) {
        for group in groups {
            if self.current.as_ref().is_none_or(|(tensor, ..)| *tensor != group.tensor) {
                self.close();
                self.current = Some((group.tensor, blake3::Hasher::new(), blake3::Hasher::new()));
            }
            if let Some((tensor, target, reference)) = &mut self.current {
                target.update(group.original());
                if let Some(prediction) =
                    group.prediction.as_ref().filter(|_| self.hashes_predictions[*tensor])
                {
                    reference.update(prediction);
                }
            }
        }
    }

    fn close(&mut self) {
        if let Some((tensor, target, reference)) = self.current.take() {
            let (digest, reference_digests) = &mut self.digests[tensor];
            *digest = target.finalize();
            if self.hashes_predictions[tensor] {
                reference_digests.iter_mut().for_each(|digest| *digest = reference.finalize());
            }
        }
    }

    fn finish(mut self, tensors: &mut [PackedTensor]) {
        self.close();
        for (i, tensor) in tensors.iter_mut().enumerate() {
            // A tied tensor has the digest of its target, no matter when that was packed.
            let tied = if let Predictor::Tied(target) = tensor.predictor { target } else { i };
            tensor.digest = self.digests[tied].0;
            let of_references = std::mem::take(&mut self.digests[i].1);
            tensor.reference_digests = of_references.into_iter().map(KnownDigest::Whole).collect();
        }
    }
}
