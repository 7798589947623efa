//! Recognises a layer among the tensors of a checkpoint: PyTorch's `TransformerEncoderLayer` and
//! Hugging Face's LLaMA.
//!
//! It reads only names, shapes and `config.json`. A layer with an unknown tensor is refused,
//! because it is unclear what it computes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config::{FeedForward, Gelu, LayerConfig, Mask, Norm, Projection};
use super::weights::{MatrixRole, VectorRole};
use deltaloom::{Error, Missing, Result};

/// Information that is not in the tensors.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct LayerHints<'a> {
    /// Number of the layer, if there are several.
    pub layer: usize,
    /// Number of heads of a PyTorch layer.
    pub heads: Option<usize>,
    /// Text of the `config.json` of a Hugging Face model.
    pub config: Option<&'a str>,
}

impl<'a> LayerHints<'a> {
    /// Chooses the layer, counted from 0.
    #[must_use]
    pub fn with_layer(self, layer: usize) -> Self {
        Self { layer, ..self }
    }

    /// Sets the heads of a PyTorch layer.
    #[must_use]
    pub fn with_heads(self, heads: Option<usize>) -> Self {
        Self { heads, ..self }
    }

    /// Sets the text of a `config.json`.
    #[must_use]
    pub fn with_config(self, config: Option<&'a str>) -> Self {
        Self { config, ..self }
    }
}

/// Maps roles to tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerNames {
    matrices: BTreeMap<MatrixRole, String>,
    vectors: BTreeMap<VectorRole, String>,
}

/// Names in a kind of layer, without the prefix that all names of a layer share.
struct Convention {
    kind: &'static str,
    /// The name that identifies the convention.
    sign: &'static str,
    matrices: &'static [(MatrixRole, &'static str)],
    vectors: &'static [(VectorRole, &'static str)],
    /// Tensors that can be computed from the configuration.
    ignored: &'static [&'static str],
}

const PYTORCH: Convention = Convention {
    kind: "PyTorch's TransformerEncoderLayer",
    sign: "self_attn.in_proj_weight",
    matrices: &[
        (MatrixRole::Qkv, "self_attn.in_proj_weight"),
        (MatrixRole::Output, "self_attn.out_proj.weight"),
        (MatrixRole::Up, "linear1.weight"),
        (MatrixRole::Down, "linear2.weight"),
    ],
    vectors: &[
        (VectorRole::Norm1Weight, "norm1.weight"),
        (VectorRole::Norm1Bias, "norm1.bias"),
        (VectorRole::QkvBias, "self_attn.in_proj_bias"),
        (VectorRole::OutputBias, "self_attn.out_proj.bias"),
        (VectorRole::Norm2Weight, "norm2.weight"),
        (VectorRole::Norm2Bias, "norm2.bias"),
        (VectorRole::UpBias, "linear1.bias"),
        (VectorRole::DownBias, "linear2.bias"),
    ],
    ignored: &[],
};

const LLAMA: Convention = Convention {
    kind: "Hugging Face's LLaMA",
    sign: "self_attn.q_proj.weight",
    matrices: &[
        (MatrixRole::Query, "self_attn.q_proj.weight"),
        (MatrixRole::Key, "self_attn.k_proj.weight"),
        (MatrixRole::Value, "self_attn.v_proj.weight"),
        (MatrixRole::Output, "self_attn.o_proj.weight"),
        (MatrixRole::Up, "mlp.up_proj.weight"),
        (MatrixRole::Gate, "mlp.gate_proj.weight"),
        (MatrixRole::Down, "mlp.down_proj.weight"),
    ],
    vectors: &[
        (VectorRole::Norm1Weight, "input_layernorm.weight"),
        (VectorRole::QueryBias, "self_attn.q_proj.bias"),
        (VectorRole::KeyBias, "self_attn.k_proj.bias"),
        (VectorRole::ValueBias, "self_attn.v_proj.bias"),
        (VectorRole::OutputBias, "self_attn.o_proj.bias"),
        (VectorRole::Norm2Weight, "post_attention_layernorm.weight"),
        (VectorRole::UpBias, "mlp.up_proj.bias"),
        (VectorRole::GateBias, "mlp.gate_proj.bias"),
        (VectorRole::DownBias, "mlp.down_proj.bias"),
    ],
    ignored: &["self_attn.rotary_emb.inv_freq"],
};

impl LayerNames {
    /// Finds a layer, its configuration and its names among tensors with their shapes.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no layer of a known kind, or not the requested one.
    /// [`Error::InvalidArgument`] for missing or invalid hints, for tensors of other shapes, and
    /// for tensors that a layer of its kind does not have.
    pub fn recognise<'a>(
        tensors: impl IntoIterator<Item = (&'a str, &'a [u64])>,
        hints: &LayerHints<'_>,
    ) -> Result<(LayerConfig, Self)> {
        let tensors: BTreeMap<&str, &[u64]> = tensors.into_iter().collect();
        for convention in [&PYTORCH, &LLAMA] {
            if let Some(prefix) = find_prefix(convention, &tensors, hints.layer)? {
                let layer = Found { convention, prefix, tensors: &tensors };
                let config = match convention.kind {
                    kind if kind == PYTORCH.kind => layer.pytorch_config(hints)?,
                    _ => layer.llama_config(hints)?,
                };
                config.check()?;
                let names = layer.names(&config)?;
                return Ok((config, names));
            }
        }
        let kinds = [PYTORCH.kind, LLAMA.kind].join(" or ");
        Err(Error::not_found(Missing::Layer, format!("a transformer layer with the names of {kinds}")))
    }

    /// Tensor of a matrix.
    #[must_use]
    pub fn matrix(&self, role: MatrixRole) -> Option<&str> {
        self.matrices.get(&role).map(String::as_str)
    }

    /// Tensor of a vector; `None` if the model does not have it.
    #[must_use]
    pub fn vector(&self, role: VectorRole) -> Option<&str> {
        self.vectors.get(&role).map(String::as_str)
    }

    /// All matrices.
    pub fn matrices(&self) -> impl Iterator<Item = (MatrixRole, &str)> {
        self.matrices.iter().map(|(role, name)| (*role, name.as_str()))
    }

    /// All vectors.
    pub fn vectors(&self) -> impl Iterator<Item = (VectorRole, &str)> {
        self.vectors.iter().map(|(role, name)| (*role, name.as_str()))
    }
}

/// The common prefix of all names of the requested layer; `None` if no layer follows this
/// convention.
fn find_prefix<'a>(
    convention: &Convention,
    tensors: &BTreeMap<&'a str, &[u64]>,
    layer: usize,
) -> Result<Option<&'a str>> {
    let prefixes: Vec<&str> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(convention.sign))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    // A single layer has no number.
    let number = |prefix: &str| prefix.trim_end_matches('.').rsplit('.').next()?.parse::<usize>().ok();
    let wanted: Vec<&str> =
        prefixes.iter().copied().filter(|prefix| number(prefix).unwrap_or(0) == layer).collect();
    match (&prefixes[..], &wanted[..]) {
        ([], _) => Ok(None),
        (_, [prefix]) => Ok(Some(*prefix)),
        (_, []) => {
            let what = format!("layer {layer} (of {} with the names of {})", prefixes.len(), convention.kind);
            Err(Error::not_found(Missing::Layer, what))
        }
        (_, several) => Err(Error::InvalidArgument(format!(
            "{} layers have the number {layer}: {}",
            several.len(),
            several.join(", ")
        ))),
    }
}

/// A layer whose names are known.
struct Found<'a> {
    convention: &'static Convention,
    prefix: &'a str,
    tensors: &'a BTreeMap<&'a str, &'a [u64]>,
}

impl Found<'_> {
    /// The matrices and vectors, after checking all shapes against the configuration.
    fn names(&self, config: &LayerConfig) -> Result<LayerNames> {
        let mut names = LayerNames::default();
        for (role, suffix) in self.convention.matrices {
            let name = self.name(suffix);
            let shape = self.shape(&name)?;
            check_shape(&name, shape, &config.shape(*role))?;
            names.matrices.insert(*role, name);
        }
        let lengths = config.vectors();
        for (role, suffix) in self.convention.vectors {
            let name = self.name(suffix);
            let (Some(shape), Some((_, len))) =
                (self.tensors.get(name.as_str()), lengths.iter().find(|(other, _)| other == role))
            else {
                continue;
            };
            check_shape(&name, shape, &[*len])?;
            names.vectors.insert(*role, name);
        }
        let known = |suffix: &str| {
            let matrices = self.convention.matrices.iter().map(|(_, name)| *name);
            let vectors = self.convention.vectors.iter().map(|(_, name)| *name);
            matrices.chain(vectors).chain(self.convention.ignored.iter().copied()).any(|name| name == suffix)
        };
        // A file with a single layer without a prefix may have any other tensors.
        let mut others = self.tensors.keys().filter(|name| {
            name.strip_prefix(self.prefix).is_some_and(|suffix| !known(suffix)) && !self.prefix.is_empty()
        });
        match others.next() {
            Some(name) => Err(Error::InvalidArgument(format!(
                "tensor {name:?} is not part of a layer of {}, so it is unclear what this layer computes",
                self.convention.kind
            ))),
            None => Ok(names),
        }
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn shape(&self, name: &str) -> Result<&[u64]> {
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the layer"));
        self.tensors.get(name).copied().ok_or_else(missing)
    }

    /// Rows and columns of a matrix.
    fn size(&self, suffix: &str) -> Result<[usize; 2]> {
        let name = self.name(suffix);
        let shape = self.shape(&name)?;
        let sizes = match shape {
            [rows, cols] => usize::try_from(*rows).ok().zip(usize::try_from(*cols).ok()),
            _ => None,
        };
        let (rows, cols) = sizes.ok_or_else(|| {
            Error::InvalidArgument(format!("tensor {name:?} has shape {shape:?}, which is not a matrix"))
        })?;
        Ok([rows, cols])
    }

    fn pytorch_config(&self, hints: &LayerHints<'_>) -> Result<LayerConfig> {
        let [_, width] = self.size("self_attn.in_proj_weight")?;
        let [hidden_width, _] = self.size("linear1.weight")?;
        let heads = hints.heads.ok_or_else(|| {
            Error::InvalidArgument(format!(
                "the tensors of {} do not show the number of heads, so it must be specified",
                self.convention.kind
            ))
        })?;
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::InvalidArgument(format!(
                "a width of {width} cannot be divided into {heads} heads"
            )));
        }
        Ok(LayerConfig {
            width,
            query_heads: heads,
            key_value_heads: heads,
            head_size: width / heads,
            hidden_width,
            norm: Norm::LayerNorm { epsilon: 1e-5 },
            projection: Projection::Fused,
            feed_forward: FeedForward::Gelu(Gelu::Erf),
            rotary_theta: None,
            mask: Mask::Full,
        })
    }

    fn llama_config(&self, hints: &LayerHints<'_>) -> Result<LayerConfig> {
        let text = hints.config.ok_or_else(|| {
            let what =
                format!("the tensors of {} are not enough: config.json is needed", self.convention.kind);
            Error::InvalidArgument(what)
        })?;
        let settings: LlamaSettings =
            serde_json::from_str(text).map_err(|e| Error::InvalidArgument(format!("config.json: {e}")))?;
        settings.check()?;
        let [query_width, width] = self.size("self_attn.q_proj.weight")?;
        let [hidden_width, _] = self.size("mlp.up_proj.weight")?;
        let query_heads = settings.num_attention_heads;
        if query_heads == 0 || !query_width.is_multiple_of(query_heads) {
            let what =
                format!("queries of {query_width} elements cannot be divided into {query_heads} heads");
            return Err(Error::InvalidArgument(what));
        }
        Ok(LayerConfig {
            width,
            query_heads,
            key_value_heads: settings.num_key_value_heads.unwrap_or(query_heads),
            head_size: settings.head_dim.unwrap_or(query_width / query_heads),
            hidden_width,
            norm: Norm::RmsNorm { epsilon: settings.rms_norm_eps },
            projection: Projection::Separate,
            feed_forward: FeedForward::SwiGlu,
            rotary_theta: Some(settings.theta()),
            mask: Mask::Causal,
        })
    }
}

fn check_shape(name: &str, shape: &[u64], expected: &[usize]) -> Result<()> {
    if shape.iter().copied().eq(expected.iter().map(|size| *size as u64)) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("tensor {name:?} has shape {shape:?}, the layer needs {expected:?}")))
}

/// The settings that are read from a LLaMA's `config.json`. Absent settings have the defaults of
/// transformers.
#[derive(Debug, Deserialize)]
struct LlamaSettings {
    model_type: String,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_epsilon")]
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rotary>,
    /// Where transformers stores them from version 5 on.
    rope_parameters: Option<Rotary>,
    hidden_act: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Rotary {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
}

fn default_epsilon() -> f32 {
    1e-6
}

impl LlamaSettings {
    fn check(&self) -> Result<()> {
        let rotary = [&self.rope_scaling, &self.rope_parameters].into_iter().flatten();
        let scaled = rotary.filter_map(|it| it.rope_type.as_deref()).find(|kind| *kind != "default");
        let refused = if self.model_type != "llama" {
            Some(("model_type", self.model_type.as_str()))
        } else if let Some(activation) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            Some(("hidden_act", activation))
        } else {
            scaled.map(|kind| ("rope_type", kind))
        };
        match refused {
            Some((setting, value)) => {
                Err(Error::InvalidArgument(format!("config.json: {setting} {value:?} is not supported")))
            }
            None => Ok(()),
        }
    }

    fn theta(&self) -> f32 {
        let nested = self.rope_parameters.as_ref().and_then(|it| it.rope_theta);
        nested.or(self.rope_theta).unwrap_or(10_000.0)
    }
}
