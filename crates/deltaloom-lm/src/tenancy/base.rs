//! The layers of the base, in memory or mapped.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layer::{LayerConfig, LayerNames, MatrixRole};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Missing, Result};
use deltaloom_compute::DenseMatrix;

/// A layer of the base.
pub(super) struct Layer {
    pub(super) config: LayerConfig,
    pub(super) names: LayerNames,
    pub(super) base: BTreeMap<MatrixRole, DenseMatrix>,
}

impl Layer {
    pub(super) fn open(checkpoint: &Arc<Checkpoint>, config: LayerConfig, names: LayerNames) -> Result<Self> {
        config.check()?;
        let tensors: BTreeMap<&str, (usize, &TensorInfo)> =
            checkpoint.tensors().map(|(member, info)| (info.name.as_str(), (member, info))).collect();
        let mut base = BTreeMap::new();
        for role in config.matrices() {
            let unnamed =
                || Error::not_found(Missing::Layer, format!("the name of the matrix {role:?} of the layer"));
            let name = names.matrix(role).ok_or_else(unnamed)?;
            let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the base"));
            let (member, info) = *tensors.get(name).ok_or_else(missing)?;
            let matrix = DenseMatrix::of_checkpoint(checkpoint, member, info)?;
            let (shape, [rows, cols]) = (matrix.shape(), config.shape(role));
            if [shape.rows, shape.cols] != [rows, cols] {
                let what = format!("tensor {name:?} has shape {shape:?}, the layer needs [{rows}, {cols}]");
                return Err(Error::InvalidArgument(what));
            }
            base.insert(role, matrix);
        }
        Ok(Self { config, names, base })
    }
}
