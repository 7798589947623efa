//! The alternatives for serving many fine-tunes: dense copies of all of them, or one that becomes
//! the next tenant before each product.
//!
//! They multiply with the same kernels as [`deltaloom_lm::tenancy`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::bf16;

use super::case::{TenantsCase, Tensors};
use deltaloom::tensor::DType;
use deltaloom::{Bases, Error, Missing, ResolvedContainer, Result};
use deltaloom_compute::{DenseMatrix, Run, WeightType};
use deltaloom_lm::layer::{Batch, LayerNames, LayerWeights, MatrixRole, TenantId, VectorRole};
use std::path::Path;

/// A dense layer.
pub(super) struct DenseLayer {
    matrices: BTreeMap<MatrixRole, DenseMatrix>,
    vectors: BTreeMap<VectorRole, Vec<f32>>,
}

/// Dense layers of all tenants.
pub(super) struct DenseCopies(Vec<DenseLayer>);

fn missing(what: &str) -> Error {
    Error::not_found(Missing::Tensor, format!("tensor {what:?} of the layer"))
}

impl DenseLayer {
    fn new(case: &TenantsCase, tensors: &Tensors) -> Result<Self> {
        let bytes = |name: &str| tensors.get(name).ok_or_else(|| missing(name));
        let matrix = |(role, name): (MatrixRole, &str)| {
            let [rows, cols] = case.config.shape(role);
            let matrix = DenseMatrix::new(rows, cols, weight_of(case, name)?, bytes(name)?.clone())?;
            Ok((role, matrix))
        };
        let vector =
            |(role, name): (VectorRole, &str)| Ok((role, numbers(weight_of(case, name)?, bytes(name)?)));
        Ok(Self {
            matrices: case.names.matrices().map(matrix).collect::<Result<_>>()?,
            vectors: case.names.vectors().map(vector).collect::<Result<_>>()?,
        })
    }

    fn matrix_bytes(&self) -> u64 {
        self.matrices.values().map(|matrix| matrix.bytes().len() as u64).sum()
    }
}

fn weight_of(case: &TenantsCase, name: &str) -> Result<WeightType> {
    let (_, info) = case.base.tensors().find(|(_, info)| info.name == name).ok_or_else(|| missing(name))?;
    Ok(if info.dtype == DType::F32 { WeightType::F32 } else { WeightType::Bf16 })
}

fn numbers(weight: WeightType, bytes: &[u8]) -> Vec<f32> {
    match weight {
        WeightType::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        WeightType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

impl DenseCopies {
    pub(super) fn new(case: &TenantsCase) -> Result<Self> {
        Ok(Self(case.tuned.iter().map(|tensors| DenseLayer::new(case, tensors)).collect::<Result<_>>()?))
    }

    pub(super) fn matrix_bytes(&self) -> u64 {
        self.0.iter().map(DenseLayer::matrix_bytes).sum()
    }

    /// A matrix of a tenant.
    pub(super) fn matrix(&self, role: MatrixRole, tenant: usize) -> Result<&DenseMatrix> {
        self.layer(tenant)?.matrices.get(&role).ok_or_else(|| missing("matrix"))
    }

    fn layer(&self, tenant: usize) -> Result<&DenseLayer> {
        self.0.get(tenant).ok_or_else(|| Error::not_found(Missing::Tenant, format!("tenant {tenant}")))
    }
}

impl LayerWeights for DenseCopies {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        for (sequence, tokens) in batch.places().filter(|(_, tokens)| !tokens.is_empty()) {
            let matrix = self.matrix(role, sequence.tenant.number())?;
            let shape = matrix.shape();
            let x = &x[tokens.start * shape.cols..tokens.end * shape.cols];
            matrix.matmul(x, &mut y[tokens.start * shape.rows..tokens.end * shape.rows], run)?;
        }
        Ok(())
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        Ok(self.layer(tenant.number())?.vectors.get(&role).map(|vector| Cow::Borrowed(&vector[..])))
    }
}

/// One dense layer, which is turned into each tenant before it multiplies for it.
pub(super) struct Swapped {
    /// To batches it looks like tenant 0 alone.
    pub(super) layer: DenseCopies,
    resolved: Vec<ResolvedContainer>,
    /// Indices of the tensors in the containers.
    matrices: Vec<(MatrixRole, usize)>,
    vectors: Vec<(VectorRole, usize, WeightType)>,
}

impl Swapped {
    pub(super) fn new(case: &TenantsCase) -> Result<Self> {
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), case.base.clone());
        let open = |tenant| ResolvedContainer::new(case.container(tenant)?, &bases);
        let resolved = (0..case.tuned.len()).map(open).collect::<Result<Vec<_>>>()?;
        let first = resolved.first().ok_or_else(|| Error::InvalidArgument("there are no tenants".into()))?;
        let names: &LayerNames = &case.names;
        let find = |name: &str| first.find(name);
        let matrices = names.matrices().map(|(role, name)| Ok((role, find(name)?))).collect::<Result<_>>()?;
        let vectors = names.vectors().map(|(role, name)| Ok((role, find(name)?, weight_of(case, name)?)));
        let vectors = vectors.collect::<Result<_>>()?;
        let tuned =
            case.tuned.first().ok_or_else(|| Error::InvalidArgument("there are no tenants".into()))?;
        Ok(Self { layer: DenseCopies(vec![DenseLayer::new(case, tuned)?]), resolved, matrices, vectors })
    }

    /// Decodes a tenant's container over the current weights.
    pub(super) fn decode(&mut self, tenant: usize) -> Result<()> {
        let unknown = || Error::not_found(Missing::Tenant, format!("tenant {tenant}"));
        let resolved = self.resolved.get(tenant).ok_or_else(unknown)?;
        let Some(layer) = self.layer.0.first_mut() else { return Ok(()) };
        for (role, number) in &self.matrices {
            let bytes = layer.matrices.get_mut(role).and_then(DenseMatrix::bytes_mut);
            resolved.read_into(*number, bytes.ok_or_else(|| missing("matrix"))?)?;
        }
        for (role, number, weight) in &self.vectors {
            let Some(vector) = layer.vectors.get_mut(role) else { continue };
            let mut bytes = vec![0; vector.len() * weight.bytes()];
            resolved.read_into(*number, &mut bytes)?;
            *vector = numbers(*weight, &bytes);
        }
        Ok(())
    }

    /// Copies a tenant's dense weights over the current ones.
    pub(super) fn copy(&mut self, copies: &DenseCopies, tenant: usize) -> Result<()> {
        let from = copies.layer(tenant)?;
        let Some(layer) = self.layer.0.first_mut() else { return Ok(()) };
        for (role, matrix) in &mut layer.matrices {
            if let (Some(to), Some(from)) = (matrix.bytes_mut(), from.matrices.get(role)) {
                to.copy_from_slice(from.bytes());
            }
        }
        layer.vectors.clone_from(&from.vectors);
        Ok(())
    }
}
