//! Input of the layer experiment: one layer of a base and of a fine-tune, and the latter packed
//! against the former, all in memory. It does no timing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::statistics;
use crate::statistics::LayerStatistics;
use deltaloom::__internals::to_usize;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{
    Bases, Container, Error, Limits, Missing, PackOptions, PackReport, Progress, ResolvedContainer, Result,
    pack_to,
};
use deltaloom_compute::{Choice, DenseMatrix};
use deltaloom_lm::layer::{LayerConfig, LayerHints, LayerNames, MatrixRole, PackedLayer};

/// Name of the packed layer in messages.
const PACKED: &str = "layer.loom";

/// One layer of two checkpoints.
pub struct LayerCase {
    config: LayerConfig,
    names: LayerNames,
    base: Arc<Checkpoint>,
    tuned: Arc<Checkpoint>,
    container: Vec<u8>,
    packed: PackReport,
}

impl LayerCase {
    /// Takes a layer from both checkpoints and packs it. Only the tensors of the layer are read.
    ///
    /// # Errors
    /// What [`LayerNames::recognise`] refuses; [`Error::InvalidArgument`] if base and fine-tune
    /// differ in dtype or shape; errors of reading and packing.
    pub fn new(
        base: &Checkpoint,
        tuned: &Checkpoint,
        hints: &LayerHints<'_>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let shapes = tuned.tensors().map(|(_, info)| (info.name.as_str(), info.shape.as_slice()));
        let (config, names) = LayerNames::recognise(shapes, hints)?;
        let wanted: BTreeSet<&str> =
            names.matrices().map(|(_, name)| name).chain(names.vectors().map(|(_, name)| name)).collect();
        let (base, tuned) = (excerpt(base, &wanted)?, excerpt(tuned, &wanted)?);
        for (a, b) in
            base.members.iter().flat_map(|m| &m.tensors).zip(tuned.members.iter().flat_map(|m| &m.tensors))
        {
            if !a.same_type(b) {
                return Err(Error::InvalidArgument(format!(
                    "tensor {:?} is {} {:?} in the base and {} {:?} in the fine-tune",
                    a.name, a.dtype, a.shape, b.dtype, b.shape
                )));
            }
        }
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), base.clone());
        let mut container = Vec::new();
        let options = PackOptions::default().with_threads(rayon::current_num_threads());
        let packed = pack_to(&tuned, &bases, &mut container, &options, progress)?;
        Ok(Self { config, names, base: Arc::new(base), tuned: Arc::new(tuned), container, packed })
    }

    /// Shape of the layer.
    #[must_use]
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// Roles of its tensors.
    #[must_use]
    pub fn names(&self) -> &LayerNames {
        &self.names
    }

    /// The layer in the base, in memory.
    #[must_use]
    pub fn base(&self) -> &Arc<Checkpoint> {
        &self.base
    }

    /// The layer in the fine-tune, in memory.
    #[must_use]
    pub fn tuned(&self) -> &Arc<Checkpoint> {
        &self.tuned
    }

    /// The fine-tune packed against the base.
    #[must_use]
    pub fn container(&self) -> &[u8] {
        &self.container
    }

    /// The report from packing it.
    #[must_use]
    pub fn packed(&self) -> &PackReport {
        &self.packed
    }

    /// Reads the container's index and finds the references of its tensors.
    ///
    /// # Errors
    /// None for a valid case.
    pub fn resolve(&self) -> Result<Arc<ResolvedContainer>> {
        let source = Box::new(self.container.clone());
        let container = Container::from_source(Path::new(PACKED), source, &Limits::default())?;
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), Checkpoint::clone(&self.base));
        Ok(Arc::new(ResolvedContainer::new(container, &bases)?))
    }

    /// Sizes of the difference in every form.
    pub(super) fn statistics(&self, progress: &dyn Progress) -> Result<LayerStatistics> {
        statistics::measure(&self.base, &self.tuned, self.resolve()?.container(), progress)
    }

    /// Opens the layer in a resident form.
    ///
    /// # Errors
    /// As [`PackedLayer::open`].
    pub fn open(&self, choice: Choice) -> Result<PackedLayer> {
        PackedLayer::open(&self.resolve()?, &self.config, &self.names, choice)
    }

    /// A matrix of one of the two checkpoints.
    pub(super) fn matrix(&self, checkpoint: &Arc<Checkpoint>, role: MatrixRole) -> Result<DenseMatrix> {
        let missing = || Error::not_found(Missing::Layer, format!("the matrix {role:?} of the layer"));
        let name = self.names.matrix(role).ok_or_else(missing)?;
        let (member, info) = checkpoint.tensors().find(|(_, info)| info.name == name).ok_or_else(missing)?;
        DenseMatrix::of_checkpoint(checkpoint, member, info)
    }

    /// Opens the layer of the fine-tune with the weights of its file.
    ///
    /// # Errors
    /// As [`PackedLayer::of_checkpoint`].
    pub fn dense(&self) -> Result<PackedLayer> {
        PackedLayer::of_checkpoint(&self.tuned, &self.config, &self.names)
    }
}

/// Copies some tensors to a checkpoint in memory, ordered by name.
fn excerpt(checkpoint: &Checkpoint, wanted: &BTreeSet<&str>) -> Result<Checkpoint> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for name in wanted {
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the layer"));
        let (member, info): (usize, &TensorInfo) =
            checkpoint.tensors().find(|(_, info)| info.name == *name).ok_or_else(missing)?;
        let begin = data.len();
        data.resize(begin + to_usize(info.len_bytes()), 0);
        checkpoint.read(member, info, 0, &mut data[begin..])?;
        let entry =
            json!({"dtype": info.dtype.name(), "shape": info.shape, "data_offsets": [begin, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat();
    Checkpoint::from_bytes("layer.safetensors", file, &Limits::default())
}
