//! The interface of a layer to its weights: products and vectors by role, for the tenants of a
//! batch. It is all that [`super::forward`] needs, and does not say how weights are stored.

use std::borrow::Cow;

use super::batch::{Batch, TenantId};
use deltaloom::Result;
use deltaloom_compute::Run;

/// A matrix by its role in the layer. A [`super::LayerConfig`] says which ones exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MatrixRole {
    /// Queries, keys and values in one matrix, in this order.
    Qkv,
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// From attention back to the width of the layer.
    Output,
    /// Into the feed-forward network; with a gate, its factor.
    Up,
    /// The gate of SwiGLU or GeGLU.
    Gate,
    /// Out of the feed-forward network.
    Down,
}

impl MatrixRole {
    /// The bias that is added to its products.
    #[must_use]
    pub fn bias(self) -> VectorRole {
        match self {
            Self::Qkv => VectorRole::QkvBias,
            Self::Query => VectorRole::QueryBias,
            Self::Key => VectorRole::KeyBias,
            Self::Value => VectorRole::ValueBias,
            Self::Output => VectorRole::OutputBias,
            Self::Up => VectorRole::UpBias,
            Self::Gate => VectorRole::GateBias,
            Self::Down => VectorRole::DownBias,
        }
    }
}

/// A vector by its role in the layer. Any of them may be absent: a bias is then 0, the weight of a
/// norm 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is named for its norm or its matrix")]
#[non_exhaustive]
pub enum VectorRole {
    Norm1Weight,
    Norm1Bias,
    QkvBias,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNormWeight,
    KeyNormWeight,
    OutputBias,
    Norm2Weight,
    Norm2Bias,
    UpBias,
    GateBias,
    DownBias,
    PostNorm1Weight,
    PostNorm2Weight,
}

/// Weights of a layer, for one tenant or many.
pub trait LayerWeights {
    /// Computes `y[t] = W x[t]` without bias for every token `t` of the batch, with the matrix of
    /// the token's tenant. `x` is `[tokens, in]`, `y` is `[tokens, out]`, row-major. The previous
    /// contents of `y` do not matter.
    ///
    /// # Errors
    /// For a missing matrix or tenant, for other shapes, and errors of reading weights.
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()>;

    /// A vector of a tenant; `None` if the model has none in this role.
    ///
    /// # Errors
    /// For a missing tenant, and errors of reading weights.
    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>>;
}
