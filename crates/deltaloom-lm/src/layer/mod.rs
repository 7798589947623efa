//! A pre-norm transformer layer, `y = x + attention(norm1(x))`, `z = y + feed_forward(norm2(y))`,
//! over the tokens of a [`Batch`].
//!
//! It does not know how weights are stored nor to whom they belong: it asks [`LayerWeights`] for
//! products and vectors by their role.

mod activation;
mod attention;
mod batch;
mod config;
mod names;
mod norm;
mod packed;
mod vector;
mod weights;

#[cfg(test)]
mod naive;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

pub use batch::{Batch, Sequence, TenantId};
pub use config::{FeedForward, Gelu, LayerConfig, Mask, Norm, Projection};
pub use names::{LayerHints, LayerNames};
pub use packed::PackedLayer;
pub use weights::{LayerWeights, MatrixRole, VectorRole};

use deltaloom::{Error, Result};
use deltaloom_compute::Run;

use attention::{Heads, Part};

/// Computes the layer's output `[tokens, width]` for `x` of the same shape, row-major, with the
/// tokens of `batch` one after another.
///
/// All arithmetic outside the products is FP32, in an order that depends only on shapes. The number
/// of threads changes no bit.
///
/// # Errors
/// [`Error::InvalidArgument`] for an invalid configuration, `x` of another shape, or a vector of
/// another length; errors of `weights`.
pub fn forward(
    config: &LayerConfig,
    weights: &dyn LayerWeights,
    batch: &Batch,
    x: &[f32],
    run: &Run<'_>,
) -> Result<Vec<f32>> {
    config.check()?;
    if batch.tokens().checked_mul(config.width) != Some(x.len()) {
        return Err(Error::InvalidArgument(format!(
            "activations have {} elements, which do not fit {} tokens of width {}",
            x.len(),
            batch.tokens(),
            config.width
        )));
    }
    if x.is_empty() {
        return Ok(Vec::new());
    }
    let layer = Layer { config, weights, batch, run };
    let attended = layer.attention(&layer.norm([VectorRole::Norm1Weight, VectorRole::Norm1Bias], x)?)?;
    let y = vector::sum(x, &attended);
    let fed = layer.feed_forward(&layer.norm([VectorRole::Norm2Weight, VectorRole::Norm2Bias], &y)?)?;
    Ok(vector::sum(&y, &fed))
}

/// One call of [`forward`].
struct Layer<'a> {
    config: &'a LayerConfig,
    weights: &'a dyn LayerWeights,
    batch: &'a Batch,
    run: &'a Run<'a>,
}

impl Layer<'_> {
    fn norm(&self, [weight, bias]: [VectorRole; 2], x: &[f32]) -> Result<Vec<f32>> {
        let width = self.config.width;
        let mut out = vec![0.0; x.len()];
        for (tenant, tokens) in self.tenants() {
            let (weight, bias) = (self.vector(weight, tenant, width)?, self.vector(bias, tenant, width)?);
            let place = tokens.start * width..tokens.end * width;
            let affine = norm::Affine { weight: weight.as_deref(), bias: bias.as_deref() };
            norm::apply(self.config.norm, affine, width, &x[place.clone()], &mut out[place]);
        }
        Ok(out)
    }

    fn attention(&self, x: &[f32]) -> Result<Vec<f32>> {
        let config = self.config;
        let (queries, keys) = (config.query_width(), config.key_value_width());
        let mut parts = match config.projection {
            Projection::Fused => {
                let fused = self.linear(MatrixRole::Qkv, x)?;
                Parts { fused: Some(fused), ..Parts::default() }
            }
            Projection::Separate => Parts {
                fused: None,
                query: self.linear(MatrixRole::Query, x)?,
                key: self.linear(MatrixRole::Key, x)?,
                value: self.linear(MatrixRole::Value, x)?,
            },
        };
        let heads = Heads {
            query: config.query_heads,
            key_value: config.key_value_heads,
            size: config.head_size,
            mask: config.mask,
        };
        if let Some(theta) = config.rotary_theta {
            let table = attention::rotary_table(theta, config.head_size, self.batch);
            match &mut parts.fused {
                // Queries and keys are adjacent in a row.
                Some(fused) => {
                    attention::rotate(&table, config.head_size, config.fused_width(), queries + keys, fused);
                }
                None => {
                    attention::rotate(&table, config.head_size, queries, queries, &mut parts.query);
                    attention::rotate(&table, config.head_size, keys, keys, &mut parts.key);
                }
            }
        }
        let [query, key, value] = match &parts.fused {
            Some(fused) => [0, queries, queries + keys].map(|first| Part {
                values: fused,
                stride: config.fused_width(),
                first,
            }),
            None => [(&parts.query, queries), (&parts.key, keys), (&parts.value, keys)]
                .map(|(values, stride)| Part { values, stride, first: 0 }),
        };
        let attended = attention::attend(&heads, self.batch, query, key, value);
        self.linear(MatrixRole::Output, &attended)
    }

    fn feed_forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut hidden = self.linear(MatrixRole::Up, x)?;
        match self.config.feed_forward {
            FeedForward::Gelu(form) => activation::gelu(form, &mut hidden),
            FeedForward::SwiGlu => {
                let gate = self.linear(MatrixRole::Gate, x)?;
                activation::swiglu(&gate, &mut hidden);
            }
        }
        self.linear(MatrixRole::Down, &hidden)
    }

    /// `W x + b` for all tokens.
    fn linear(&self, role: MatrixRole, x: &[f32]) -> Result<Vec<f32>> {
        let [rows, _] = self.config.shape(role);
        let too_large = || Error::InvalidArgument(format!("{} tokens are too many", self.batch.tokens()));
        let mut y = vec![0.0; self.batch.tokens().checked_mul(rows).ok_or_else(too_large)?];
        self.weights.matmul(role, self.batch, x, &mut y, self.run)?;
        for (tenant, tokens) in self.tenants() {
            if let Some(bias) = self.vector(role.bias(), tenant, rows)? {
                let tokens = y[tokens.start * rows..tokens.end * rows].chunks_exact_mut(rows);
                tokens.for_each(|token| vector::add(&bias, token));
            }
        }
        Ok(y)
    }

    /// Runs of tokens of one tenant, which share their vectors.
    fn tenants(&self) -> impl Iterator<Item = (TenantId, Range<usize>)> {
        self.batch.places().filter(|(_, tokens)| !tokens.is_empty()).map(|(s, tokens)| (s.tenant, tokens))
    }

    fn vector(&self, role: VectorRole, tenant: TenantId, len: usize) -> Result<Option<Cow<'_, [f32]>>> {
        let vector = self.weights.vector(role, tenant)?;
        match &vector {
            Some(vector) if vector.len() != len => Err(Error::InvalidArgument(format!(
                "{role:?} of {tenant} has {} elements, the layer needs {len}",
                vector.len()
            ))),
            _ => Ok(vector),
        }
    }
}

/// The projections of the tokens: all in one matrix, or three.
#[derive(Default)]
struct Parts {
    fused: Option<Vec<f32>>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}
