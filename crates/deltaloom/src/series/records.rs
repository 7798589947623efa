//! What reports need to know about the steps, tensor by tensor. It comes from the indexes of their
//! containers, or from decoding them.
//! It judges and draws nothing; [`crate::report`] does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rayon::prelude::*;

use super::{Series, StepEntry};
use crate::bases::{ResolvedContainer, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::container::PackedTensor;
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::{Element, load};
use crate::progress::{Progress, check_cancelled};
use crate::summary::TensorReport;

/// A tensor at one step.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorRecord {
    /// Name.
    pub name: Arc<str>,
    /// Elements.
    pub elems: u64,
    /// Share of elements whose bits differ from the same tensor of the reference step; `None` where
    /// it was not compared with that.
    pub changed_fraction: Option<f64>,
    /// Share of elements that moved by less than a threshold of the caller's, where it was
    /// measured.
    pub below_fraction: Option<f64>,
    /// Size of its payloads.
    pub stored_bytes: u64,
    /// Kind of predictor.
    pub predictor: Arc<str>,
    /// Codec of most of its bytes.
    pub codec: Arc<str>,
}

/// A step of a series.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepRecord {
    /// Number of the step.
    pub step: u64,
    /// The step it was packed against.
    pub reference: Option<u64>,
    /// Time it took to add.
    pub seconds: f64,
    /// Size of the checkpoint's files.
    pub original_bytes: u64,
    /// Size of the container.
    pub stored_bytes: u64,
    /// Whether it stands by itself.
    pub is_keyframe: bool,
    /// Share of all weights that differ from the reference, where the tensors do not tell.
    pub changed_fraction: Option<f64>,
    /// Weights that are NaN or infinite.
    pub nonfinite_weights: u64,
    /// Matrices that have one value only and had more before.
    pub constant_matrices: u64,
    /// Texts of it that are numbers, such as its loss.
    pub metrics: BTreeMap<String, f64>,
    /// Stored bytes of what is no weights: states of the training, and other files.
    pub other_bytes: u64,
    /// Its weights.
    pub tensors: Vec<TensorRecord>,
}

impl Series {
    /// A step as a checkpoint with the files `model/...` and `optimizer/...`. They are in a
    /// temporary file that is removed together with it.
    ///
    /// # Errors
    /// What reading and decoding give; [`crate::Error::Cancelled`].
    pub fn checkpoint(&self, entry: &StepEntry, progress: &dyn Progress) -> Result<Checkpoint> {
        let catalog = self.catalog()?;
        self.restore(&catalog.chain(entry)?, 0, progress)
    }

    /// The contents of the steps' containers, in the order of `entries`.
    ///
    /// # Errors
    /// What reading gives; [`crate::Error::Cancelled`].
    pub fn records(&self, entries: &[StepEntry], progress: &dyn Progress) -> Result<Vec<StepRecord>> {
        progress.start(entries.iter().map(|entry| entry.stored_bytes).sum());
        // The same names occur in every step.
        let mut names: BTreeMap<String, Arc<str>> = BTreeMap::new();
        let mut name_of =
            |name: &str| Arc::clone(names.entry(name.to_owned()).or_insert_with(|| Arc::from(name)));
        let mut records = Vec::new();
        for entry in entries {
            check_cancelled(progress)?;
            let container = self.container(entry)?;
            let report = crate::inspect::inspect(&container);
            let index = container.index();
            let roles = index.roles();
            let all = || report.tensors.iter().zip(&index.tensors);
            let weights = || all().filter(|(_, packed)| roles.is_weights(packed.place));
            let others = all().filter(|(_, packed)| !roles.is_weights(packed.place));
            let mut of_computed = entry.changed_of_computed.iter().copied();
            let mut changed = |tensor: &TensorReport, packed: &PackedTensor| {
                if packed.predictor.is_reference() { tensor.changed_fraction } else { of_computed.next()? }
            };
            let tensors = weights().map(|(tensor, packed)| TensorRecord {
                name: name_of(&tensor.name),
                elems: packed.grid.rows.saturating_mul(packed.grid.cols),
                changed_fraction: changed(tensor, packed),
                below_fraction: None,
                stored_bytes: tensor.packed_bytes,
                predictor: name_of(tensor.predictor),
                codec: name_of(tensor.codec),
            });
            records.push(StepRecord {
                step: entry.step,
                reference: entry.reference,
                seconds: entry.seconds,
                original_bytes: entry.original_bytes,
                stored_bytes: entry.stored_bytes,
                is_keyframe: entry.is_keyframe(),
                // For tensors whose prediction is computed, the index does not count changes from
                // the reference; the manifest does.
                changed_fraction: entry
                    .changed_fraction
                    .filter(|_| weights().any(|(_, packed)| !packed.predictor.is_reference())),
                nonfinite_weights: entry.nonfinite_weights,
                constant_matrices: entry.constant_matrices,
                metrics: entry.metrics(),
                other_bytes: others.map(|(tensor, _)| tensor.packed_bytes).sum(),
                tensors: tensors.collect(),
            });
            progress.advance(entry.stored_bytes);
        }
        Ok(records)
    }

    /// Decodes a step and its reference. Returns, by name, the share of each float tensor's
    /// elements that moved by less than `threshold`.
    ///
    /// # Errors
    /// What reading and decoding give; [`crate::Error::Cancelled`].
    pub fn below(
        &self,
        entry: &StepEntry,
        threshold: f64,
        progress: &dyn Progress,
    ) -> Result<HashMap<String, f64>> {
        let catalog = self.catalog()?;
        let resolved = self.resolve(&catalog.chain(entry)?)?;
        let compared: Vec<(usize, &TensorSource, Element)> = (0..resolved.tensors().len())
            .filter_map(|number| {
                let packed = resolved.tensor(number);
                let reference =
                    resolved.references(number).first().filter(|_| packed.predictor.is_reference())?;
                Some((number, reference, Element::of(&resolved.info(number).dtype)?))
            })
            .collect();
        let share = |&(number, reference, element): &(usize, &TensorSource, Element)| {
            check_cancelled(progress)?;
            let share = below_of(&resolved, number, reference, element, threshold)?;
            Ok((resolved.info(number).name.clone(), share))
        };
        compared.par_iter().map(share).collect()
    }
}

fn below_of(
    resolved: &ResolvedContainer,
    number: usize,
    reference: &TensorSource,
    element: Element,
    threshold: f64,
) -> Result<f64> {
    let grid = resolved.tensor(number).grid;
    let (mut below, mut all) = (0usize, 0usize);
    for i in 0..grid.chunk_count() {
        let now = resolved.chunk(number, to_usize(i))?;
        let before = reference.bytes(grid.chunk_bytes(i))?;
        let values = |bytes: &[u8]| {
            let mut values = vec![0.0; bytes.len() / element.bytes()];
            load(element, bytes, &mut values);
            values
        };
        let (now, before) = (values(&now), values(&before));
        below += now.iter().zip(&before).filter(|(a, b)| (*a - *b).abs() < threshold).count();
        all += now.len();
    }
    Ok(below as f64 / all.max(1) as f64)
}
