//! The shape of a layer: widths, heads, norms and functions. It holds no weights;
//! [`super::LayerNames`] finds the shape from the tensors of a checkpoint.

use super::plan::{AttentionPlan, Gain, Reach, check_epsilon};
use super::weights::{MatrixRole, VectorRole};
use deltaloom::{Error, Result};

/// How tokens are normalised before attention and before the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Norm {
    /// Subtracts the mean and divides by the standard deviation.
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// Divides by the root of the mean square.
    RmsNorm {
        /// Added to the mean square.
        epsilon: f32,
    },
    /// The same, with weights that are stored less 1: Gemma.
    ZeroCentredRmsNorm {
        /// Added to the mean square.
        epsilon: f32,
    },
}

impl Norm {
    /// The number that is added before the root.
    pub(super) fn epsilon(self) -> f32 {
        let (Self::LayerNorm { epsilon } | Self::RmsNorm { epsilon } | Self::ZeroCentredRmsNorm { epsilon }) =
            self;
        epsilon
    }
}

/// Whether queries, keys and values come from one matrix or from three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Projection {
    /// One matrix with rows in this order: PyTorch's `in_proj`.
    Fused,
    /// Three matrices.
    Separate,
}

/// Two forms of GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Gelu {
    /// With the error function, PyTorch's default.
    Erf,
    /// With the hyperbolic tangent, which approximates it.
    Tanh,
}

/// The network after attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FeedForward {
    /// `down(gelu(up(x)))`.
    Gelu(Gelu),
    /// `down(max(up(x), 0))`.
    Relu,
    /// `down(silu(gate(x)) * up(x))`.
    SwiGlu,
    /// `down(gelu(gate(x)) * up(x))`.
    GeGlu(Gelu),
}

/// A pre-norm layer, which may have norms after attention and the feed-forward network as well.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct LayerConfig {
    /// Number of elements of a token.
    pub width: usize,
    /// Number of query heads.
    pub query_heads: usize,
    /// Number of key heads and of value heads, a divisor of the number of query heads.
    pub key_value_heads: usize,
    /// Number of elements of a head.
    pub head_size: usize,
    /// Number of elements of a token inside the feed-forward network.
    pub hidden_width: usize,
    /// All norms across a token.
    pub norm: Norm,
    /// Whether what attention and the feed-forward network give is normalised, too, before it is
    /// added.
    pub has_post_norms: bool,
    /// Matrices of attention.
    pub projection: Projection,
    /// The feed-forward network.
    pub feed_forward: FeedForward,
    /// Positions, and what tokens attend to.
    pub attention: AttentionPlan,
}

/// Number and size of a layer's heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads.
    pub query: usize,
    /// Number of key heads and of value heads.
    pub key_value: usize,
    /// Number of elements of a head.
    pub size: usize,
}

impl LayerConfig {
    /// A layer of a decoder: RMSNorm, separate projections, SwiGLU, causal attention without
    /// positions.
    #[must_use]
    pub fn new(width: usize, heads: Heads, hidden_width: usize) -> Self {
        Self {
            width,
            query_heads: heads.query,
            key_value_heads: heads.key_value,
            head_size: heads.size,
            hidden_width,
            norm: Norm::RmsNorm { epsilon: 1e-6 },
            has_post_norms: false,
            projection: Projection::Separate,
            feed_forward: FeedForward::SwiGlu,
            attention: AttentionPlan::new(Reach::Causal),
        }
    }

    /// Sets the norms.
    #[must_use]
    pub fn with_norm(self, norm: Norm) -> Self {
        Self { norm, ..self }
    }

    /// Sets whether there are norms after attention and the feed-forward network.
    #[must_use]
    pub fn with_post_norms(self, has_post_norms: bool) -> Self {
        Self { has_post_norms, ..self }
    }

    /// Sets the matrices of attention.
    #[must_use]
    pub fn with_projection(self, projection: Projection) -> Self {
        Self { projection, ..self }
    }

    /// Sets the feed-forward network.
    #[must_use]
    pub fn with_feed_forward(self, feed_forward: FeedForward) -> Self {
        Self { feed_forward, ..self }
    }

    /// Sets positions, and what tokens attend to.
    #[must_use]
    pub fn with_attention(self, attention: AttentionPlan) -> Self {
        Self { attention, ..self }
    }

    /// Number of elements of all queries of a token.
    #[must_use]
    pub fn query_width(&self) -> usize {
        self.query_heads * self.head_size
    }

    /// Number of elements of all keys of a token; the same for values.
    #[must_use]
    pub fn key_value_width(&self) -> usize {
        self.key_value_heads * self.head_size
    }

    /// Number of elements of queries, keys and values of a token.
    #[must_use]
    pub fn fused_width(&self) -> usize {
        self.query_width() + 2 * self.key_value_width()
    }

    /// Rows and columns of a matrix, whether or not this layer has it.
    #[must_use]
    pub fn shape(&self, role: MatrixRole) -> [usize; 2] {
        match role {
            MatrixRole::Qkv => [self.fused_width(), self.width],
            MatrixRole::Query => [self.query_width(), self.width],
            MatrixRole::Key | MatrixRole::Value => [self.key_value_width(), self.width],
            MatrixRole::Output => [self.width, self.query_width()],
            MatrixRole::Up | MatrixRole::Gate => [self.hidden_width, self.width],
            MatrixRole::Down => [self.width, self.hidden_width],
        }
    }

    /// The matrices of this layer, in the order of their products.
    #[must_use]
    pub fn matrices(&self) -> Vec<MatrixRole> {
        let attention: &[MatrixRole] = match self.projection {
            Projection::Fused => &[MatrixRole::Qkv],
            Projection::Separate => &[MatrixRole::Query, MatrixRole::Key, MatrixRole::Value],
        };
        let feed_forward: &[MatrixRole] = match self.feed_forward {
            FeedForward::Gelu(_) | FeedForward::Relu => &[MatrixRole::Up, MatrixRole::Down],
            FeedForward::SwiGlu | FeedForward::GeGlu(_) => {
                &[MatrixRole::Up, MatrixRole::Gate, MatrixRole::Down]
            }
        };
        [attention, &[MatrixRole::Output], feed_forward].concat()
    }

    /// The vectors that this layer may have, with their lengths.
    #[must_use]
    pub fn vectors(&self) -> Vec<(VectorRole, usize)> {
        let norms =
            [VectorRole::Norm1Weight, VectorRole::Norm1Bias, VectorRole::Norm2Weight, VectorRole::Norm2Bias];
        let biases = self.matrices().into_iter().map(|role| (role.bias(), self.shape(role)[0]));
        let of_heads =
            [VectorRole::QueryNormWeight, VectorRole::KeyNormWeight].map(|role| (role, self.head_size));
        let of_heads = of_heads.into_iter().filter(|_| self.has_head_norms());
        let after = [VectorRole::PostNorm1Weight, VectorRole::PostNorm2Weight].map(|role| (role, self.width));
        let after = after.into_iter().filter(|_| self.has_post_norms);
        let norms = norms.map(|role| (role, self.width)).into_iter();
        norms.chain(after).chain(biases).chain(of_heads).collect()
    }

    /// Whether the layer's vectors hold norms of queries and keys.
    pub(crate) fn has_head_norms(&self) -> bool {
        self.attention.qk_norm.as_ref().is_some_and(|norm| norm.gain == Gain::Weights)
    }

    /// Its heads.
    #[must_use]
    pub fn heads(&self) -> Heads {
        Heads { query: self.query_heads, key_value: self.key_value_heads, size: self.head_size }
    }

    /// Checks that such a layer can exist.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] says what is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        let sizes = [
            ("width", self.width),
            ("number of query heads", self.query_heads),
            ("number of key and value heads", self.key_value_heads),
            ("head size", self.head_size),
            ("hidden width", self.hidden_width),
        ];
        // So that products of two of them do not overflow, and widths are exact in FP32.
        const LARGEST: usize = 1 << 24;
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            return wrong(format!("the {name} of a layer is {size}: must be from 1 to {LARGEST}"));
        }
        let heads = self.query_heads.checked_mul(self.head_size).filter(|width| *width <= LARGEST);
        if heads.is_none() || !self.query_heads.is_multiple_of(self.key_value_heads) {
            return wrong(format!(
                "{} query heads of {} elements cannot share {} key and value heads",
                self.query_heads, self.head_size, self.key_value_heads
            ));
        }
        check_epsilon(self.norm.epsilon())?;
        if self.attention.qk_norm.is_some() && self.projection == Projection::Fused {
            return wrong("a norm of queries and keys needs separate projections".to_owned());
        }
        self.attention.check(self.heads())
    }
}
