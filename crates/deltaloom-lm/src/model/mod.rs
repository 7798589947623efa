//! A language model whose weights stay packed: a base, its fine-tunes as tenants, and the keys and
//! values of the sequences that they compute.
//!
//! [`Model::forward`] takes the next tokens of any sequences of any tenants. In
//! [`deltaloom_compute::Mode::Exact`] each token gets the same bits whatever the chunks,
//! batches, threads and resident forms: those of its dense fine-tune, computed alone.
//!
//! It knows token ids, not text, and chooses none.

mod config;
mod convert;
mod gguf;
mod hidden;
mod parts;
mod perplexity;
mod positions;
mod stored;
mod tenants;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

pub use config::ModelConfig;
pub use convert::HEAD;
pub use hidden::Hidden;
pub(crate) use hidden::LOGIT_BYTES;
pub use parts::Parts;
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use positions::{Extend, Extension, PositionTable};
pub use tenants::{PLAN_FILE, Preparer};

use crate::gguf::Gguf;
use crate::layer::{
    AttentionPlan, Batch, KvFile, Layer, Memory, MemoryOptions, Past, Rotary, Sequence, SequenceId, TenantId,
};
use crate::tenancy::{Family, FamilyOptions};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Error, Result};
use deltaloom_compute::Run;
use stored::Stored;

/// A model and its fine-tunes.
pub struct Model {
    config: Arc<ModelConfig>,
    family: Family,
    preparer: Preparer,
    rotary: RotaryOfLayers,
    /// Names the attention of all layers, and the table of positions.
    plans: blake3::Hash,
    /// Where memories keep their pages, if not in memory.
    kv_file: Option<Arc<KvFile>>,
}

/// Rotary positions; each layer has the number of its own.
struct RotaryOfLayers {
    all: Vec<Rotary>,
    numbers: Vec<usize>,
}

impl RotaryOfLayers {
    fn of(config: &ModelConfig) -> Self {
        let mut all: Vec<Rotary> = Vec::new();
        let number_of = |layer| {
            let rotary = Rotary::of(layer);
            let known = all.iter().position(|other| other.is_like(&rotary));
            known.unwrap_or_else(|| {
                all.push(rotary);
                all.len() - 1
            })
        };
        let numbers = config.layers.iter().map(number_of).collect();
        Self { all, numbers }
    }
}

fn name_of_plans(config: &ModelConfig) -> blake3::Hash {
    let plans: Vec<&AttentionPlan> = config.attention().collect();
    blake3::hash(format!("{plans:?} {:?}", config.position_table).as_bytes())
}

/// The next tokens of a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// The sequence that they continue.
    pub sequence: SequenceId,
    /// Their ids.
    pub tokens: &'a [u32],
}

impl Model {
    /// The tenant that is the base itself.
    pub const BASE: TenantId = TenantId::ONLY;

    /// Opens a directory of Hugging Face, and reads its weights into memory: BF16 and F32 as they
    /// are, F16 widened to F32. A file must be a GGUF file; its BF16 weights stay BF16, and all
    /// others become the F32 numbers that llama.cpp computes for them. It ignores plans of
    /// attention that the folder has; [`crate::context::open`] runs them.
    ///
    /// # Errors
    /// [`Error::Io`]; what is wrong with the files, as [`Checkpoint::open`] and
    /// [`Self::of_checkpoint`] have it.
    pub fn open(path: &Path, options: FamilyOptions) -> Result<Self> {
        if path.is_file() {
            return Self::of_gguf(path, &Gguf::open(path)?, options);
        }
        let (text, checkpoint) = parts::read_directory(path)?;
        Self::of_checkpoint(path, checkpoint, &text, options)
    }

    /// A model in a GGUF file. `path` is where it is, which fine-tunes need.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a model that is not supported; as [`Self::of_checkpoint`].
    pub fn of_gguf(path: &Path, file: &Gguf, options: FamilyOptions) -> Result<Self> {
        let (text, checkpoint) = gguf::read(file)?;
        let mut model = Self::of_checkpoint(path, checkpoint, &text, options)?;
        model.preparer.stored = Arc::new(Stored::Gguf);
        Ok(model)
    }

    /// A model whose files are in memory or mapped, with the text of its `config.json`. `path` is
    /// for messages.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a configuration that is not supported, and for tensors of
    /// other shapes or types; [`Error::NotFound`] for missing ones.
    pub fn of_checkpoint(
        path: &Path,
        checkpoint: Checkpoint,
        config_text: &str,
        options: FamilyOptions,
    ) -> Result<Self> {
        let (parts, stored) = Parts::find(checkpoint, config_text)?;
        let Parts { config, checkpoint, layers, globals, .. } = parts;
        let layers = config.layers.iter().cloned().zip(layers).collect();
        let mut family = Family::of_model(path, Arc::clone(&checkpoint), layers, &globals, options)?;
        family.add_base()?;
        let (rotary, plans) = (RotaryOfLayers::of(&config), name_of_plans(&config));
        let config = Arc::new(config);
        let preparer = Preparer {
            family: family.preparer(),
            config: Arc::clone(&config),
            path: path.into(),
            base: checkpoint,
            stored: Arc::new(stored),
        };
        Ok(Self { config, family, preparer, rotary, plans, kv_file: None })
    }

    /// Replaces the attention of all layers; weights stay. Memory and sequences of before are those
    /// of another model.
    ///
    /// # Errors
    /// As [`ModelConfig::with_attention`].
    pub fn with_attention(mut self, plans: Vec<AttentionPlan>) -> Result<Self> {
        let config = Arc::new(ModelConfig::clone(&self.config).with_attention(plans)?);
        (self.rotary, self.plans) = (RotaryOfLayers::of(&config), name_of_plans(&config));
        self.preparer.config = Arc::clone(&config);
        Ok(Self { config, ..self })
    }

    /// Replaces how the table of positions goes on behind its last row, of which every fine-tune
    /// has its own. Memory and sequences of before are those of another model.
    ///
    /// # Errors
    /// As [`ModelConfig::with_extension`].
    pub fn with_extension(mut self, extension: Option<Extension>) -> Result<Self> {
        let config = Arc::new(ModelConfig::clone(&self.config).with_extension(extension)?);
        self.plans = name_of_plans(&config);
        self.preparer.config = Arc::clone(&config);
        Ok(Self { config, ..self })
    }

    /// Keeps keys and values in a file from now on: those of every memory that is made by
    /// [`Self::memory`], with the parts that were used last in memory up to `resident_bytes`.
    /// It changes no bit. The file goes with the model and these memories.
    ///
    /// # Errors
    /// As [`KvFile::create`]; those of reading the weights, for their digest.
    pub fn with_kv_file(self, path: &Path, resident_bytes: u64) -> Result<Self> {
        let weights = self.family.digest(Self::BASE)?;
        let kv_file = Some(KvFile::create(path, weights, self.plans, resident_bytes)?);
        Ok(Self { kv_file, ..self })
    }

    /// The file with keys and values.
    #[must_use]
    pub fn kv_file(&self) -> Option<&KvFile> {
        self.kv_file.as_deref()
    }

    /// Names the attention of all layers within this process: keys and values depend on it.
    pub(crate) fn plans(&self) -> blake3::Hash {
        self.plans
    }

    /// The attention of each layer, first to last.
    pub fn attention(&self) -> impl ExactSizeIterator<Item = &AttentionPlan> {
        self.config.attention()
    }

    /// Number of positions that it was trained for, if that is said.
    #[must_use]
    pub fn trained_length(&self) -> Option<usize> {
        self.config.max_positions
    }

    /// What it computes.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The base.
    #[must_use]
    pub fn base(&self) -> &Arc<Checkpoint> {
        &self.preparer.base
    }

    /// Memory for sequences of this model.
    #[must_use]
    pub fn memory(&self, options: MemoryOptions) -> Memory {
        Memory::new(&self.config.layers, options).with_file(self.kv_file.clone())
    }

    /// Computes the next tokens of some sequences through all layers, and keeps their keys and
    /// values. Nothing is kept if it fails.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a token that is not in the vocabulary, a sequence that is not
    /// in `memory` or comes twice, or the memory of another model; [`Error::LimitExceeded`] if
    /// `memory` is too small; [`Error::NotFound`] for a tenant that was retired; errors of
    /// decoding.
    pub fn forward(
        &mut self,
        memory: &mut Memory,
        chunks: &[Chunk<'_>],
        run: &Run<'_>,
    ) -> Result<Hidden<'_>> {
        self.forward_seen(memory, chunks, run, |_, _, _| Ok(()))
    }

    /// The same; `see` gets the number of each layer, the layer and its input before it runs.
    pub(crate) fn forward_seen(
        &mut self,
        memory: &mut Memory,
        chunks: &[Chunk<'_>],
        run: &Run<'_>,
        mut see: impl FnMut(usize, &Layer<'_>, &[f32]) -> Result<()>,
    ) -> Result<Hidden<'_>> {
        self.check(memory, chunks)?;
        let ids: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens).copied().collect();
        let sequences: Vec<SequenceId> = chunks.iter().map(|chunk| chunk.sequence).collect();
        let more: Vec<_> = chunks.iter().map(|chunk| (chunk.sequence, chunk.tokens.len())).collect();
        let part = |chunk: &Chunk<'_>| {
            let (tenant, position) = (memory.tenant(chunk.sequence)?, memory.tokens(chunk.sequence)?);
            Ok(Sequence { tenant, tokens: chunk.tokens.len(), position })
        };
        let batch = Batch::new(chunks.iter().map(part).collect::<Result<_>>()?)?;
        let running = self.family.start(&batch)?;
        memory.reserve(&more)?;
        let mut x = running.embed(&ids)?;
        if let Some(table) = &self.config.position_table {
            let positions = batch.sequences().iter().flat_map(|it| it.position..it.position + it.tokens);
            table.add(positions, |rows| running.positions(rows), &mut x)?;
        }
        if let Some(scale) = self.config.embedding_scale {
            x.iter_mut().for_each(|x| *x *= scale);
        }
        let longest = batch.sequences().iter().map(|it| it.position + it.tokens).max().unwrap_or(0);
        self.rotary.all.iter_mut().for_each(|rotary| rotary.prepare(longest));
        let early: Vec<Vec<[f32; 2]>> = self.rotary.all.iter().map(|rotary| rotary.early(&batch)).collect();
        for (number, rotary) in self.rotary.numbers.iter().enumerate() {
            let weights = running.layer(number)?;
            // The family knows only shapes.
            let config = &self.config.layers[number];
            let turning = self.rotary.all[*rotary].turning(&early[*rotary]);
            let layer = Layer { config, weights: &weights, batch: &batch, run, turning };
            see(number, &layer, &x)?;
            x = layer.forward(&x, Some(Past { memory, sequences: &sequences, layer: number }))?;
        }
        let grown: Vec<_> = chunks.iter().map(|chunk| (chunk.sequence, chunk.tokens)).collect();
        memory.advance(&grown);
        Ok(Hidden::new(running, &self.config, x))
    }

    fn check(&self, memory: &Memory, chunks: &[Chunk<'_>]) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if !memory.fits(self.config.layers.iter()) {
            return wrong("this memory was made for another model".to_owned());
        }
        let mut seen = BTreeSet::new();
        if chunks.iter().any(|chunk| !seen.insert(chunk.sequence)) {
            return wrong("a sequence comes twice in a batch".to_owned());
        }
        if let Some(table) = &self.config.position_table {
            let positions = table.end();
            for chunk in chunks {
                let tokens = memory.tokens(chunk.sequence)?.saturating_add(chunk.tokens.len());
                if tokens > positions {
                    return wrong(format!(
                        "a sequence of {tokens} tokens: the model has {positions} positions"
                    ));
                }
            }
        }
        let vocabulary = self.config.vocabulary;
        let mut tokens = chunks.iter().flat_map(|chunk| chunk.tokens);
        match tokens.find(|token| **token as usize >= vocabulary) {
            Some(token) => wrong(format!("token {token} is not in a vocabulary of {vocabulary}")),
            None => Ok(()),
        }
    }
}
