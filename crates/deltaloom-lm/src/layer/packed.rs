//! The layer of one fine-tune: every matrix in a resident form on top of the base, every vector
//! patched on use. For many fine-tunes of one base, use [`crate::tenancy`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::{Batch, TenantId};
use super::config::LayerConfig;
use super::names::LayerNames;
use super::weights::{LayerWeights, MatrixRole, VectorRole};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Missing, ResolvedContainer, Result};
use deltaloom_compute::{Choice, DenseMatrix, Form, PackedMatrix, PatchedVector, Run};

/// A layer whose whole weights are never resident, unless it is opened dense.
#[derive(Clone)]
pub struct PackedLayer {
    config: LayerConfig,
    matrices: BTreeMap<MatrixRole, PackedMatrix>,
    vectors: BTreeMap<VectorRole, PatchedVector>,
}

impl PackedLayer {
    /// Opens a layer of a container. A budget is divided among the matrices by their sizes; vectors
    /// use what they need, which is little.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::InvalidArgument`] for tensors that are missing, are not
    /// BF16 or F32, or do not have the shapes in `config`; [`Error::LimitExceeded`] for a budget
    /// that is too small; errors of decoding.
    pub fn open(
        resolved: &Arc<ResolvedContainer>,
        config: &LayerConfig,
        names: &LayerNames,
        choice: Choice,
    ) -> Result<Self> {
        config.check()?;
        let elems = |role: MatrixRole| config.shape(role).iter().map(|size| *size as u128).product::<u128>();
        let total: u128 = config.matrices().into_iter().map(elems).sum();
        let share = |role: MatrixRole| match choice {
            Choice::Budget(bytes) => {
                Choice::Budget(u64::try_from(u128::from(bytes) * elems(role) / total).unwrap_or(bytes))
            }
            other => other,
        };
        Self::build(
            config,
            names,
            |role, name| PackedMatrix::open(resolved, name, share(role)),
            |name| PatchedVector::open(resolved, name),
        )
    }

    /// Opens a layer of a checkpoint whose files are in memory or mapped. Its weights are
    /// multiplied in place.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::InvalidArgument`] for a checkpoint that is neither.
    pub fn of_checkpoint(
        checkpoint: &Arc<Checkpoint>,
        config: &LayerConfig,
        names: &LayerNames,
    ) -> Result<Self> {
        config.check()?;
        let find = |name: &str| -> Result<(usize, &TensorInfo)> {
            let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?}"));
            checkpoint.tensors().find(|(_, info)| info.name == name).ok_or_else(missing)
        };
        let matrix = |_, name: &str| {
            let (member, info) = find(name)?;
            let matrix = DenseMatrix::of_checkpoint(checkpoint, member, info)?;
            PackedMatrix::from_dense(&matrix, &matrix, Choice::Form(Form::Base))
        };
        let vector = |name: &str| {
            let (member, info) = find(name)?;
            PatchedVector::of_checkpoint(checkpoint, member, info)
        };
        Self::build(config, names, matrix, vector)
    }

    fn build(
        config: &LayerConfig,
        names: &LayerNames,
        mut matrix: impl FnMut(MatrixRole, &str) -> Result<PackedMatrix>,
        mut vector: impl FnMut(&str) -> Result<PatchedVector>,
    ) -> Result<Self> {
        let mut layer = Self { config: config.clone(), matrices: BTreeMap::new(), vectors: BTreeMap::new() };
        for role in config.matrices() {
            let missing =
                || Error::not_found(Missing::Layer, format!("the name of the matrix {role:?} of the layer"));
            let name = names.matrix(role).ok_or_else(missing)?;
            let opened = matrix(role, name)?;
            let (shape, [rows, cols]) = (opened.shape(), config.shape(role));
            if (shape.rows, shape.cols) != (rows, cols) {
                return Err(Error::InvalidArgument(format!(
                    "tensor {name:?} has shape [{}, {}], the layer needs [{rows}, {cols}]",
                    shape.rows, shape.cols
                )));
            }
            layer.matrices.insert(role, opened);
        }
        for (role, _) in config.vectors() {
            if let Some(name) = names.vector(role) {
                layer.vectors.insert(role, vector(name)?);
            }
        }
        Ok(layer)
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// A matrix, if the layer has it.
    #[must_use]
    pub fn matrix(&self, role: MatrixRole) -> Option<&PackedMatrix> {
        self.matrices.get(&role)
    }

    /// Bytes of memory of all its weights, without their base.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let matrices: u64 = self.matrices.values().map(PackedMatrix::resident_bytes).sum();
        matrices + self.vectors.values().map(PatchedVector::resident_bytes).sum::<u64>()
    }

    /// The same for one vector; `None` if the model does not have it.
    #[must_use]
    pub fn vector_bytes(&self, role: VectorRole) -> Option<u64> {
        self.vectors.get(&role).map(PatchedVector::resident_bytes)
    }
}

impl LayerWeights for PackedLayer {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        Self::check_tenants(batch.sequences().iter().map(|sequence| sequence.tenant))?;
        let missing = || Error::not_found(Missing::Layer, format!("the matrix {role:?} of the layer"));
        self.matrices.get(&role).ok_or_else(missing)?.matmul(x, y, run)
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        Self::check_tenants([tenant])?;
        Ok(self.vectors.get(&role).map(|vector| Cow::Owned(vector.values())))
    }
}

impl PackedLayer {
    /// Checks that the batch has only the tenant of this layer.
    fn check_tenants(tenants: impl IntoIterator<Item = TenantId>) -> Result<()> {
        match tenants.into_iter().find(|tenant| *tenant != TenantId::ONLY) {
            Some(tenant) => {
                Err(Error::not_found(Missing::Tenant, format!("{tenant} of a layer with a single fine-tune")))
            }
            None => Ok(()),
        }
    }
}
