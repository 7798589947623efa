//! A model taken apart: its settings, its tensors by role, and what is around its layers, for work
//! that runs layers with weights of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::config::ModelNames;
use super::convert::{self, Conversion};
use super::stored::Stored;
use super::{ModelConfig, gguf};
use crate::gguf::Gguf;
use crate::layer::{Affine, LayerNames, apply_norm};
use crate::tenancy::GlobalNames;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Limits, Missing, Result};
use deltaloom_compute::WeightType;
use deltaloom_kernels::dense;

/// A model whose weights are in memory or mapped, as BF16 or F32.
#[derive(Clone)]
pub struct Parts {
    /// What it computes.
    pub config: ModelConfig,
    /// The text of its `config.json`.
    pub config_text: String,
    /// Its tensors, matrices as [out, in].
    pub checkpoint: Arc<Checkpoint>,
    /// Tensors of each layer by role.
    pub layers: Vec<LayerNames>,
    /// Tensors around the layers.
    pub globals: GlobalNames,
}

impl Parts {
    /// Opens a directory of Hugging Face, or a GGUF file, as [`super::Model::open`] does.
    ///
    /// # Errors
    /// As [`super::Model::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let (text, checkpoint) =
            if path.is_file() { gguf::read(&Gguf::open(path)?)? } else { read_directory(path)? };
        Self::of_checkpoint(checkpoint, &text)
    }

    /// The parts of a model whose files are in memory or mapped.
    ///
    /// # Errors
    /// As [`super::Model::of_checkpoint`].
    pub fn of_checkpoint(checkpoint: Checkpoint, config_text: &str) -> Result<Self> {
        Ok(Self::find(checkpoint, config_text)?.0)
    }

    /// Finds them, and says how the checkpoint differs from theirs.
    pub(super) fn find(checkpoint: Checkpoint, config_text: &str) -> Result<(Self, Stored)> {
        let config = ModelConfig::parse(config_text)?;
        let (checkpoint, stored) = match Conversion::of(&checkpoint, config_text)? {
            Some(conversion) => {
                let converted = conversion.checkpoint(&checkpoint)?;
                (Arc::new(converted), Stored::Converted(conversion, Arc::new(checkpoint)))
            }
            None => (Arc::new(checkpoint), Stored::Plain),
        };
        let mut tensors = BTreeMap::new();
        for (_, info) in checkpoint.weights() {
            if tensors.insert(info.name.as_str(), info.shape.as_slice()).is_some() {
                let what = format!("tensor {:?} is in two files of the model", info.name);
                return Err(Error::InvalidArgument(what));
            }
        }
        let ModelNames { layers, globals } = config.names(config_text, &tensors)?;
        if config.has_tied_head {
            convert::check_tied(&checkpoint, &globals.embedding)?;
        }
        Ok((Self { config, config_text: config_text.to_owned(), checkpoint, layers, globals }, stored))
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn shape(&self, name: &str) -> Result<&[u64]> {
        Ok(&self.tensor(name)?.1.shape)
    }

    /// The values of a tensor in F32.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] for other dtypes than BF16 and F32.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let (member, info) = self.tensor(name)?;
        let bytes = self.checkpoint.read_tensor(member, info)?;
        let weights = WeightType::of(info)?;
        let mut values = vec![0.0; bytes.len() / weights.bytes()];
        dense::widen(weights.weights(&bytes), &mut values);
        Ok(values)
    }

    /// A tensor's file and header entry.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn tensor(&self, name: &str) -> Result<(usize, &TensorInfo)> {
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the model"));
        self.checkpoint.weights().find(|(_, info)| info.name == name).ok_or_else(missing)
    }

    /// The first layer's input `[ids, width]` for sequences that all begin at position 0, given an
    /// embedding `[vocabulary, width]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an id that is not in the vocabulary, or a sequence that is
    /// longer than the table of positions.
    pub fn embed(&self, embedding: &[f32], sequences: &[&[u32]]) -> Result<Vec<f32>> {
        let (width, vocabulary) = (self.config.width, self.config.vocabulary);
        let mut x = Vec::with_capacity(sequences.iter().map(|ids| ids.len()).sum::<usize>() * width);
        for id in sequences.iter().copied().flatten() {
            let row = embedding.get(*id as usize * width..).and_then(|rest| rest.get(..width));
            x.extend(row.ok_or_else(|| {
                Error::InvalidArgument(format!("token {id} is not in a vocabulary of {vocabulary}"))
            })?);
        }
        if let (Some(table), Some(name)) = (&self.config.position_table, &self.globals.positions) {
            let values = self.values(name)?;
            let row = |row: &usize| {
                let found = values.get(row * width..).and_then(|rest| rest.get(..width));
                found
                    .ok_or_else(|| Error::InvalidArgument(format!("the table of positions has no row {row}")))
            };
            let gather = |rows: &[usize]| Ok(rows.iter().map(row).collect::<Result<Vec<_>>>()?.concat());
            table.add(sequences.iter().flat_map(|ids| 0..ids.len()), gather, &mut x)?;
        }
        if let Some(scale) = self.config.embedding_scale {
            x.iter_mut().for_each(|x| *x *= scale);
        }
        Ok(x)
    }

    /// The head's input for what the last layer gives, `[tokens, width]`.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub fn final_norm(&self, x: &[f32]) -> Result<Vec<f32>> {
        let weight = self.values(&self.globals.final_norm)?;
        let bias = self.globals.final_norm_bias.as_deref().map(|name| self.values(name)).transpose()?;
        let mut normed = vec![0.0; x.len()];
        let affine = Affine { weight: Some(&weight), bias: bias.as_deref() };
        apply_norm(self.config.final_norm, affine, self.config.width, x, &mut normed);
        Ok(normed)
    }
}

/// The text of `config.json`, and the checkpoint in memory.
pub(super) fn read_directory(path: &Path) -> Result<(String, Checkpoint)> {
    let config = path.join("config.json");
    let text = std::fs::read_to_string(&config).map_err(Error::io(&config))?;
    Ok((text, Checkpoint::open(path, &Limits::default())?.into_memory()?))
}
