//! What a layer asks of its weights: products and vectors by role, for the tenants of a batch.
//! It says nothing of how they are stored; [`super::forward`] needs no more than this.

use std::borrow::Cow;

use super::batch::{Batch, TenantId};
use deltaloom::Result;
use deltaloom_compute::Run;

/// A matrix by what it does in the layer. A [`super::LayerConfig`] says which of them there are.
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
    /// Into the feed-forward network; with SwiGLU what the gate is multiplied with.
    Up,
    /// The gate of SwiGLU.
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

/// A vector by what it does in the layer. Every one may be absent: a bias is then 0, the weight of a norm 1.
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
    OutputBias,
    Norm2Weight,
    Norm2Bias,
    UpBias,
    GateBias,
    DownBias,
}

/// Weights of a layer, of one tenant or of many.
pub trait LayerWeights {
    /// `y[t] = W x[t]` without bias for every token `t` of the batch, with the matrix of the token's tenant; `x` is `[tokens, in]`, `y` is `[tokens, out]`,
    /// row-major. What `y` held before does not matter.
    ///
    /// # Errors
    /// For a matrix or a tenant that is not there, for other shapes, and what reading weights gives.
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()>;

    /// A vector of a tenant; `None` where the model has none in this role.
    ///
    /// # Errors
    /// For a tenant that is not there, and what reading weights gives.
    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>>;
}
