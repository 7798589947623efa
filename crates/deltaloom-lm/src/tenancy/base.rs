//! The weights of the base, in memory or mapped: those of its layers and, for a whole model, those
//! around them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::digest;
use crate::layer::{LayerConfig, LayerNames, MatrixRole, VectorRole};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Missing, Result};
use deltaloom_compute::{DenseMatrix, PatchedVector};

/// A matrix of a model by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum MatrixPlace {
    /// A row for each token of the vocabulary.
    Embedding,
    /// A row for each position.
    Positions,
    Layer(usize, MatrixRole),
    /// From the last norm to the vocabulary, if it is not the embedding.
    Head,
}

/// A vector of a model by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum VectorPlace {
    Layer(usize, VectorRole),
    /// The weight of the norm before the head.
    FinalNorm,
    FinalNormBias,
}

/// The tensors of a model outside its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalNames {
    /// A row for each token of the vocabulary.
    pub embedding: String,
    /// A row for each position, which is added to the embedding.
    pub positions: Option<String>,
    /// The weight of the norm before the head.
    pub final_norm: String,
    /// Its bias.
    pub final_norm_bias: Option<String>,
    /// From that norm to the vocabulary; `None` if the embedding is used again.
    pub head: Option<String>,
}

/// A base.
pub(super) struct Base {
    checkpoint: Arc<Checkpoint>,
    /// Computed when it is first asked for.
    digest: OnceLock<blake3::Hash>,
    pub(super) layers: Vec<LayerConfig>,
    pub(super) matrices: BTreeMap<MatrixPlace, Named<DenseMatrix>>,
    pub(super) vectors: BTreeMap<VectorPlace, Named<Arc<[f32]>>>,
    /// The matrices that multiply activations, in the order of their use.
    pub(super) order: Vec<MatrixPlace>,
}

/// A tensor with its name.
pub(super) struct Named<T> {
    pub(super) name: String,
    pub(super) values: T,
}

impl Base {
    pub(super) fn open(
        checkpoint: &Arc<Checkpoint>,
        layers: Vec<(LayerConfig, LayerNames)>,
        globals: Option<&GlobalNames>,
    ) -> Result<Self> {
        let tensors = by_name(checkpoint);
        let find = |name: &str| {
            let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the base"));
            tensors.get(name).copied().ok_or_else(missing)
        };
        let matrix = |name: &str| -> Result<Named<DenseMatrix>> {
            let (member, info) = find(name)?;
            let values = DenseMatrix::of_checkpoint(checkpoint, member, info)?;
            Ok(Named { name: name.to_owned(), values })
        };
        let vector = |name: &str| -> Result<Named<Arc<[f32]>>> {
            let (member, info) = find(name)?;
            let values = PatchedVector::of_checkpoint(checkpoint, member, info)?.values().into();
            Ok(Named { name: name.to_owned(), values })
        };
        let mut base = Self {
            checkpoint: Arc::clone(checkpoint),
            digest: OnceLock::new(),
            layers: Vec::new(),
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
            order: Vec::new(),
        };
        for (number, (config, names)) in layers.into_iter().enumerate() {
            config.check()?;
            for role in config.matrices() {
                let unnamed = || {
                    Error::not_found(Missing::Layer, format!("the name of the matrix {role:?} of the layer"))
                };
                let found = matrix(names.matrix(role).ok_or_else(unnamed)?)?;
                let (shape, [rows, cols]) = (found.values.shape(), config.shape(role));
                if [shape.rows, shape.cols] != [rows, cols] {
                    let name = &found.name;
                    let what =
                        format!("tensor {name:?} has shape {shape:?}, the layer needs [{rows}, {cols}]");
                    return Err(Error::InvalidArgument(what));
                }
                base.order.push(MatrixPlace::Layer(number, role));
                base.matrices.insert(MatrixPlace::Layer(number, role), found);
            }
            for (role, name) in names.vectors() {
                base.vectors.insert(VectorPlace::Layer(number, role), vector(name)?);
            }
            base.layers.push(config);
        }
        if let Some(names) = globals {
            base.matrices.insert(MatrixPlace::Embedding, matrix(&names.embedding)?);
            base.vectors.insert(VectorPlace::FinalNorm, vector(&names.final_norm)?);
            if let Some(positions) = &names.positions {
                base.matrices.insert(MatrixPlace::Positions, matrix(positions)?);
            }
            if let Some(bias) = &names.final_norm_bias {
                base.vectors.insert(VectorPlace::FinalNormBias, vector(bias)?);
            }
            if let Some(head) = &names.head {
                base.matrices.insert(MatrixPlace::Head, matrix(head)?);
            }
            base.order.push(base.head());
        }
        Ok(base)
    }

    /// The matrix that gives logits.
    pub(super) fn head(&self) -> MatrixPlace {
        let has_own = self.matrices.contains_key(&MatrixPlace::Head);
        if has_own { MatrixPlace::Head } else { MatrixPlace::Embedding }
    }

    /// The names of its tensors, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let matrices = self.matrices.values().map(|matrix| matrix.name.as_str());
        let mut names: Vec<&str> =
            matrices.chain(self.vectors.values().map(|vector| vector.name.as_str())).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The digest of its weights, as [`digest::of_weights`]. The first call reads all of them, on
    /// all threads.
    pub(super) fn digest(&self) -> Result<blake3::Hash> {
        if let Some(digest) = self.digest.get() {
            return Ok(*digest);
        }
        let tensors = by_name(&self.checkpoint);
        let hash = |name: &str| {
            let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the base"));
            let (member, info) = tensors.get(name).ok_or_else(missing)?;
            self.checkpoint.digest(*member, info, |_| Ok(()))
        };
        let names = self.names();
        let digests = names.par_iter().map(|name| hash(name)).collect::<Result<Vec<_>>>()?;
        let found = digest::of_weights(names.into_iter().zip(digests));
        Ok(*self.digest.get_or_init(|| found))
    }

    /// As [`Checkpoint::check_unchanged`]. Files in memory never change.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.checkpoint.check_unchanged()
    }

    /// Number of elements of a matrix.
    pub(super) fn elems(&self, place: MatrixPlace) -> u128 {
        let shape = self.matrices.get(&place).map(|matrix| matrix.values.shape());
        shape.map_or(0, |shape| shape.rows as u128 * shape.cols as u128)
    }
}

fn by_name(checkpoint: &Checkpoint) -> BTreeMap<&str, (usize, &TensorInfo)> {
    checkpoint.tensors().map(|(member, info)| (info.name.as_str(), (member, info))).collect()
}
