//! How a tensor was made, with evidence. Samples rule out, and only all bytes prove.
//! There is one file for each answer, in which these functions have the same meaning:
//!
//! - `applies` looks at dtype and shape only: whether the answer is possible at all.
//! - `score` looks at a sample: whether the answer is possible, or what it costs.
//! - `prove` compares all bytes and returns their digest. `fit` finds the numbers of an answer that
//!   a residual makes exact.
//!
//! Packing takes the answers as predictions, and reports of lineage take them as findings. Nothing
//! is written here.

mod adam;
mod adapter;
mod anchors;
pub(crate) mod blend;
mod blocks;
pub(crate) mod cast;
mod codes;
mod companion;
pub(crate) mod content;
pub(crate) mod converted;
mod cover;
pub(crate) mod drift;
mod equality;
mod find;
mod fingerprints;
mod heads;
pub(crate) mod identical;
mod json;
mod layouts;
mod least_squares;
mod lines;
mod low_rank;
mod nearest;
mod quantised;
mod scaled;
mod scales;
mod steps;
mod subject;
pub(crate) mod text;
mod tied;
pub(crate) mod view;

use std::ops::Range;
use std::sync::Arc;

use crate::bases::TensorSource;
use crate::container::Digest;
use crate::error::Result;
use crate::predict::{OwnPayload, Predictor};
use crate::tensor::TensorInfo;

pub(crate) use find::{by_codes, computed, find, views};
pub(crate) use subject::{Subject, predict_from};
pub(crate) use tied::Ties;

/// A payload of a prediction, as stored and as used.
#[derive(Clone)]
pub(crate) struct FoundPayload {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) ready: Arc<OwnPayload>,
}

/// How a tensor is predicted, and the evidence.
pub(crate) struct Origin {
    pub(crate) predictor: Predictor,
    /// The tensors that it is predicted from.
    pub(crate) references: Vec<TensorSource>,
    /// The tensor's digest, if the whole tensor was compared.
    pub(crate) digest: Option<Digest>,
    /// The digests of the references, unless they are hashed while the tensor is packed.
    pub(crate) reference_digests: Option<Vec<Digest>>,
    /// What the prediction has in the container.
    pub(crate) own_payload: Option<FoundPayload>,
    /// Of a file that is packed as patches: the part of the reference for each chunk.
    pub(crate) prefixes: Vec<Range<u64>>,
    /// The reference of patches, if it is laid out anew.
    pub(crate) laid_out: Option<Vec<u8>>,
}

impl Origin {
    fn unknown() -> Self {
        Self::coded(Predictor::Zero, Vec::new())
    }

    /// An origin that leaves a residual.
    pub(crate) fn coded(predictor: Predictor, references: Vec<TensorSource>) -> Self {
        Self {
            predictor,
            references,
            digest: None,
            reference_digests: None,
            own_payload: None,
            prefixes: Vec::new(),
            laid_out: None,
        }
    }

    /// An origin without a residual. `reference_digests` are those of the references.
    fn proven(
        predictor: Predictor,
        digest: Digest,
        references: Vec<TensorSource>,
        reference_digests: Vec<Digest>,
    ) -> Self {
        Self {
            predictor,
            references,
            digest: Some(digest),
            reference_digests: Some(reference_digests),
            own_payload: None,
            prefixes: Vec::new(),
            laid_out: None,
        }
    }

    /// Hashes the references now, since they are not read as predictions later.
    pub(crate) fn with_reference_digests(mut self) -> Result<Self> {
        let digests = self.references.iter().map(TensorSource::digest).collect::<Result<_>>()?;
        self.reference_digests = Some(digests);
        Ok(self)
    }
}

/// Name of the reference, unless it is the tensor's own.
fn reference_name(info: &TensorInfo, reference: &TensorSource) -> Option<String> {
    let name = &reference.info().name;
    (*name != info.name).then(|| name.clone())
}
