//! A pre-norm transformer layer, `y = x + attention(norm1(x))`, `z = y + feed_forward(norm2(y))`,
//! over the tokens of a [`Batch`].
//!
//! It does not know how weights are stored nor to whom they belong: it asks [`LayerWeights`] for
//! products and vectors by their role.

mod activation;
mod attention;
mod batch;
mod config;
pub(crate) mod family;
mod kv_file;
mod names;
mod norm;
mod packed;
mod page;
mod paged;
mod pages;
mod plan;
mod prefix;
mod resident;
mod rotary;
mod spans;
mod table;
mod vector;
mod weights;

#[cfg(test)]
mod naive;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

pub use batch::{Batch, Sequence, TenantId};
pub use config::{FeedForward, Gelu, Heads, LayerConfig, Norm, Projection};
pub use kv_file::KvFile;
pub use names::{LayerHints, LayerNames};
pub use packed::PackedLayer;
pub use page::KvType;
pub use pages::{Memory, MemoryOptions, SequenceId};
pub use plan::{AttentionPlan, Gain, Law, NormPlace, PositionMap, Positions, QkNorm, Reach, Scale};
pub use table::{By, Table};
pub use weights::{LayerWeights, MatrixRole, VectorRole};

use deltaloom::{Error, Result};
use deltaloom_compute::Run;

use attention::{Attention, Part};
use rotary::Turning;

pub(crate) use names::check_shape;
pub(crate) use norm::{Affine, apply as apply_norm};
pub(crate) use pages::Past;
pub(crate) use rotary::Rotary;
pub(crate) use table::MAX_POSITIONS;

/// Computes the layer's output `[tokens, width]` for `x` of the same shape, row-major, with the
/// tokens of `batch` one after another.
///
/// All arithmetic outside the products is FP32, in an order that depends only on shapes. The number
/// of threads changes no bit.
///
/// # Errors
/// [`Error::InvalidArgument`] for an invalid configuration, for positions that depend on the query
/// (only [`crate::model::Model`] computes those), `x` of another shape, or a vector of another
/// length; errors of `weights`.
pub fn forward(
    config: &LayerConfig,
    weights: &dyn LayerWeights,
    batch: &Batch,
    x: &[f32],
    run: &Run<'_>,
) -> Result<Vec<f32>> {
    let rotary = Rotary::of(config);
    let early = rotary.early(batch);
    Layer { config, weights, batch, run, turning: rotary.turning(&early) }.forward(x, None)
}

/// A layer with its weights, in one step.
pub(crate) struct Layer<'a> {
    pub(crate) config: &'a LayerConfig,
    pub(crate) weights: &'a dyn LayerWeights,
    pub(crate) batch: &'a Batch,
    pub(crate) run: &'a Run<'a>,
    pub(crate) turning: Turning<'a>,
}

impl Layer<'_> {
    /// The output for `x`, which is `[tokens, width]`. With `past`, the tokens continue sequences:
    /// their keys and values go to pages, and attention reads them only from there, so that it
    /// makes no difference in how many steps a sequence is computed.
    pub(crate) fn forward(&self, x: &[f32], past: Option<Past<'_>>) -> Result<Vec<f32>> {
        self.config.check()?;
        if self.batch.tokens().checked_mul(self.config.width) != Some(x.len()) {
            return Err(Error::InvalidArgument(format!(
                "activations have {} elements, which do not fit {} tokens of width {}",
                x.len(),
                self.batch.tokens(),
                self.config.width
            )));
        }
        if x.is_empty() {
            return Ok(Vec::new());
        }
        let LayerConfig { norm, width, has_post_norms, .. } = *self.config;
        let before = |weight, bias, x: &[f32]| self.norm(norm, width, Some(weight), Some(bias), x);
        let after = |weight, x: Vec<f32>| match has_post_norms {
            true => self.norm(norm, width, Some(weight), None, &x),
            false => Ok(x),
        };
        let normed = before(VectorRole::Norm1Weight, VectorRole::Norm1Bias, x)?;
        let attended = after(VectorRole::PostNorm1Weight, self.attention(&normed, past)?)?;
        let y = vector::sum(x, &attended);
        let normed = before(VectorRole::Norm2Weight, VectorRole::Norm2Bias, &y)?;
        let fed = after(VectorRole::PostNorm2Weight, self.feed_forward(&normed)?)?;
        Ok(vector::sum(&y, &fed))
    }

    /// Normalises parts of `size` elements: tokens, or heads of queries or keys.
    fn norm(
        &self,
        norm: Norm,
        size: usize,
        weight: Option<VectorRole>,
        bias: Option<VectorRole>,
        x: &[f32],
    ) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len()];
        let of_token = x.len() / self.batch.tokens();
        for (tenant, tokens) in self.tenants() {
            let vector = |role: Option<VectorRole>| match role {
                Some(role) => self.vector(role, tenant, size),
                None => Ok(None),
            };
            let (weight, bias) = (vector(weight)?, vector(bias)?);
            let place = tokens.start * of_token..tokens.end * of_token;
            let affine = norm::Affine { weight: weight.as_deref(), bias: bias.as_deref() };
            norm::apply(norm, affine, size, &x[place.clone()], &mut out[place]);
        }
        Ok(out)
    }

    /// Queries `[tokens, query_width]` and keys `[tokens, key_value_width]` of the layer's input,
    /// as attention multiplies them but for the factor of scores.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one matrix of all three, and for positions that depend on the
    /// query; as [`Self::forward`].
    pub(crate) fn queries_and_keys(&self, x: &[f32]) -> Result<[Vec<f32>; 2]> {
        let LayerConfig { norm, width, .. } = *self.config;
        let normed = self.norm(norm, width, Some(VectorRole::Norm1Weight), Some(VectorRole::Norm1Bias), x)?;
        match (self.parts(&normed)?, self.turning) {
            (Parts { fused: None, query, key, .. }, Turning::Early(_) | Turning::Never) => Ok([query, key]),
            _ => Err(Error::InvalidArgument(
                "queries and keys are only apart where they have matrices of their own and positions that \
                 do not depend on the query"
                    .to_owned(),
            )),
        }
    }

    /// The projections of normalised tokens, with norms of their heads, and turned if that does not
    /// depend on the query.
    fn parts(&self, x: &[f32]) -> Result<Parts> {
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
        if let Some(norm) = &config.attention.qk_norm {
            let before = norm.before_turning(config.attention.attention_factor());
            let of_heads = |role, x: &[f32]| {
                let weight = Some(role).filter(|_| norm.gain == Gain::Weights);
                self.norm(before, config.head_size, weight, None, x)
            };
            parts.query = of_heads(VectorRole::QueryNormWeight, &parts.query)?;
            parts.key = of_heads(VectorRole::KeyNormWeight, &parts.key)?;
        }
        if let Turning::Early(turns) = self.turning {
            let rotate = |stride, width, values: &mut [f32]| {
                rotary::rotate(turns, config.head_size, stride, width, values);
            };
            match &mut parts.fused {
                // Queries and keys are adjacent in a row.
                Some(fused) => rotate(config.fused_width(), queries + keys, fused),
                None => {
                    rotate(queries, queries, &mut parts.query);
                    rotate(keys, keys, &mut parts.key);
                }
            }
        }
        Ok(parts)
    }

    fn attention(&self, x: &[f32], past: Option<Past<'_>>) -> Result<Vec<f32>> {
        let config = self.config;
        let (queries, keys) = (config.query_width(), config.key_value_width());
        let parts = self.parts(x)?;
        let [query, key, value] = match &parts.fused {
            Some(fused) => [0, queries, queries + keys].map(|first| Part {
                values: fused,
                stride: config.fused_width(),
                first,
            }),
            None => [(&parts.query, queries), (&parts.key, keys), (&parts.value, keys)]
                .map(|(values, stride)| Part { values, stride, first: 0 }),
        };
        let late = if let Turning::Late(rotary) = self.turning { Some(rotary) } else { None };
        let attention = Attention { heads: config.heads(), plan: &config.attention, late };
        let attended = match (past, late) {
            (None, Some(_)) => {
                let what = "these positions depend on the query: attention to them needs a memory";
                return Err(Error::InvalidArgument(what.to_owned()));
            }
            (None, None) => attention::attend(&attention, self.batch, query, key, value),
            (Some(past), _) => {
                past.memory.store(past.layer, past.sequences, self.batch, key, value)?;
                paged::attend(&attention, &past, self.batch, query)?
            }
        };
        self.linear(MatrixRole::Output, &attended)
    }

    fn feed_forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        let mut hidden = self.linear(MatrixRole::Up, x)?;
        match self.config.feed_forward {
            FeedForward::Gelu(form) => activation::gelu(form, &mut hidden),
            FeedForward::Relu => activation::relu(&mut hidden),
            FeedForward::SwiGlu => activation::swiglu(&self.linear(MatrixRole::Gate, x)?, &mut hidden),
            FeedForward::GeGlu(form) => {
                let mut gate = self.linear(MatrixRole::Gate, x)?;
                activation::gelu(form, &mut gate);
                vector::multiply(&gate, &mut hidden);
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
