//! Families of models by their `config.json`: one table of names and one function of settings
//! each. What a family cannot express is refused by name.
//!
//! [`super::names`] finds the tensors; nothing here reads weights.

mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod opt;
mod qwen2;
mod qwen3;
mod settings;

use super::config::{FeedForward, Gelu, Heads, LayerConfig, Norm, Projection};
use super::plan::{AttentionPlan, Positions, QkNorm, Reach, Scale};
use super::weights::{MatrixRole, VectorRole};
use deltaloom::{Error, Result};

pub(crate) use settings::Settings;

/// The most layers of a model.
const MAX_LAYERS: usize = 4096;
/// The most tokens of a vocabulary.
const MAX_VOCABULARY: usize = 1 << 24;

/// Names in a kind of layer, without the prefix that all names of a layer share.
pub(crate) struct Convention {
    pub(crate) kind: &'static str,
    /// The name that identifies the convention.
    pub(crate) sign: &'static str,
    pub(crate) matrices: &'static [(MatrixRole, &'static str)],
    /// Vectors that every such layer has.
    pub(crate) vectors: &'static [(VectorRole, &'static str)],
    /// Vectors that it may have.
    pub(crate) optional: &'static [(VectorRole, &'static str)],
    /// Tensors that can be computed from the configuration.
    pub(crate) ignored: &'static [&'static str],
}

/// Names of the tensors outside the layers.
pub(crate) struct GlobalNames {
    /// Before the number of a layer.
    pub(crate) layers: &'static str,
    pub(crate) embedding: &'static str,
    /// A row for each position.
    pub(crate) positions: Option<&'static str>,
    /// The row of position 0 in it.
    pub(crate) first_position: usize,
    pub(crate) final_norm: &'static str,
    pub(crate) final_norm_bias: Option<&'static str>,
    pub(crate) head: &'static str,
}

/// The names of the families that grew out of LLaMA.
const GLOBALS: GlobalNames = GlobalNames {
    layers: "model.layers.",
    embedding: "model.embed_tokens.weight",
    positions: None,
    first_position: 0,
    final_norm: "model.norm.weight",
    final_norm_bias: None,
    head: "lm_head.weight",
};

/// A family: what its transformers class does where `config.json` is silent.
pub(crate) struct Architecture {
    /// In `config.json`.
    pub(crate) model_type: &'static str,
    pub(crate) names: Convention,
    /// Number of key heads, if it is not said; `None` for that of query heads.
    key_value_heads: Option<usize>,
    /// Size of a head, if it is not said; `None` for the width over the number of heads.
    head_size: Option<usize>,
    design: Design,
    pub(crate) globals: &'static GlobalNames,
    /// What a layer sees.
    reach: fn(&Settings, usize) -> Result<Reach>,
}

/// How the layers of a family are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Design {
    Llama,
    /// LLaMA with norms of queries and keys.
    QkNorm,
    /// The same with norms on both sides of each network, with weights stored less 1; GeGLU; a
    /// factor of embeddings; and rotary positions for each kind of reach.
    Gemma,
    /// LayerNorm, one matrix for queries, keys and values, GELU, and a table of positions.
    Gpt2,
    /// LayerNorm, biases, ReLU, and a table of positions.
    Opt,
}

/// Its sign and its name stand for all families of Hugging Face.
pub(crate) const LLAMA: &Convention = &llama::NAMES;

/// All of them.
const ARCHITECTURES: [&Architecture; 7] =
    [&gemma3::GEMMA3, &gpt2::GPT2, &llama::LLAMA, &mistral::MISTRAL, &opt::OPT, &qwen2::QWEN2, &qwen3::QWEN3];

/// Sizes outside the layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) width: usize,
    pub(crate) hidden_width: usize,
    pub(crate) layers: usize,
    pub(crate) vocabulary: usize,
}

/// A `config.json` of a known family.
pub(crate) struct Described {
    pub(crate) architecture: &'static Architecture,
    pub(crate) settings: Settings,
}

impl Described {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] says which setting is wrong or not supported.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let settings: Settings = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let known = ARCHITECTURES.into_iter().find(|it| it.model_type == settings.model_type);
        let architecture = known.ok_or_else(|| unsupported("model_type", &settings.model_type))?;
        settings.check(match architecture.design {
            Design::Llama | Design::QkNorm => "silu",
            Design::Gemma => "gelu_pytorch_tanh",
            Design::Gpt2 => "gelu_new",
            Design::Opt => "relu",
        })?;
        match architecture.design {
            Design::Gpt2 => gpt2::check(&settings)?,
            Design::Opt => opt::check(&settings)?,
            Design::Llama | Design::QkNorm | Design::Gemma => {}
        }
        let described = Self { architecture, settings };
        described.positions(Reach::Causal)?;
        Ok(described)
    }

    /// The sizes outside the layers, all of which must be there.
    pub(crate) fn sizes(&self) -> Result<Sizes> {
        let within = |name: &str, size: Option<usize>, most: usize| match size {
            Some(size) if (1..=most).contains(&size) => Ok(size),
            Some(size) => Err(wrong(format!("{name} is {size}: must be from 1 to {most}"))),
            None => Err(wrong(format!("{name} is missing"))),
        };
        let it = &self.settings;
        Ok(Sizes {
            width: within("hidden_size", it.hidden_size, 1 << 24)?,
            hidden_width: within("intermediate_size", self.hidden_width(), 1 << 24)?,
            layers: within("num_hidden_layers", it.num_hidden_layers, MAX_LAYERS)?,
            vocabulary: within("vocab_size", it.vocab_size, MAX_VOCABULARY)?,
        })
    }

    pub(crate) fn norm(&self) -> Norm {
        let epsilon = self.settings.norm_epsilon;
        match self.architecture.design {
            Design::Llama | Design::QkNorm => Norm::RmsNorm { epsilon: epsilon.unwrap_or(1e-6) },
            Design::Gemma => Norm::ZeroCentredRmsNorm { epsilon: epsilon.unwrap_or(1e-6) },
            Design::Gpt2 => Norm::LayerNorm { epsilon: epsilon.unwrap_or(1e-5) },
            // transformers reads no other.
            Design::Opt => Norm::LayerNorm { epsilon: 1e-5 },
        }
    }

    /// Whether matrices are stored as [in, out].
    pub(crate) fn is_transposed(&self) -> bool {
        self.architecture.design == Design::Gpt2
    }

    fn hidden_width(&self) -> Option<usize> {
        let it = &self.settings;
        match self.architecture.design {
            Design::Gpt2 => it.intermediate_size.or(it.hidden_size?.checked_mul(4)),
            _ => it.intermediate_size,
        }
    }

    /// The factor of embeddings of this width.
    pub(crate) fn embedding_scale(&self, width: usize) -> Option<f32> {
        (self.architecture.design == Design::Gemma).then(|| (width as f32).sqrt())
    }

    /// Whether the embedding is also the head.
    pub(crate) fn has_tied_head(&self) -> bool {
        let default = matches!(self.architecture.design, Design::Gemma | Design::Gpt2 | Design::Opt);
        self.settings.tie_word_embeddings.unwrap_or(default)
    }

    /// How positions enter a layer with this reach.
    fn positions(&self, reach: Reach) -> Result<Positions> {
        match self.architecture.design {
            Design::Llama | Design::QkNorm => self.settings.positions(),
            Design::Gemma => gemma3::positions(&self.settings, reach),
            Design::Gpt2 | Design::Opt => Ok(Positions::None),
        }
    }

    /// Layer `number` of this width.
    pub(crate) fn layer(&self, number: usize, width: usize, hidden_width: usize) -> Result<LayerConfig> {
        let Self { architecture, settings } = self;
        let query = settings.num_attention_heads;
        let size = settings.head_dim.or(architecture.head_size).map_or_else(
            || match query {
                0 => Err(wrong("num_attention_heads is 0".to_owned())),
                _ if width.is_multiple_of(query) => Ok(width / query),
                _ => Err(wrong(format!("a width of {width} cannot be divided into {query} heads"))),
            },
            Ok,
        )?;
        let key_value = settings.num_key_value_heads.or(architecture.key_value_heads).unwrap_or(query);
        let reach = (architecture.reach)(settings, number)?;
        let plan = AttentionPlan::new(reach).with_positions(self.positions(reach)?);
        let config = LayerConfig::new(width, Heads { query, key_value, size }, hidden_width);
        let config = config.with_norm(self.norm());
        let config = match architecture.design {
            Design::Llama => config.with_attention(plan),
            Design::QkNorm => config.with_attention(plan.with_qk_norm(Some(QkNorm::of_weights(self.norm())))),
            Design::Gemma => {
                let scale = Scale::Constant(gemma3::scale(settings));
                let config = config.with_post_norms(true).with_feed_forward(FeedForward::GeGlu(Gelu::Tanh));
                config.with_attention(
                    plan.with_qk_norm(Some(QkNorm::of_weights(self.norm()))).with_scale(scale),
                )
            }
            Design::Gpt2 => {
                let config = config.with_projection(Projection::Fused).with_attention(plan);
                config.with_feed_forward(FeedForward::Gelu(Gelu::Tanh))
            }
            Design::Opt => config.with_attention(plan).with_feed_forward(FeedForward::Relu),
        };
        config.check()?;
        Ok(config)
    }
}

/// A setting that makes no sense.
fn wrong(what: String) -> Error {
    Error::InvalidArgument(format!("config.json: {what}"))
}

/// A setting that nothing here can compute.
fn unsupported(setting: &str, value: &str) -> Error {
    let why = match value {
        value if value.contains("moe") || value == "mixtral" => ": a mixture of experts",
        "deepseek_v2" | "deepseek_v3" => ": multi-head latent attention",
        value if value.contains("mamba") => ": a state-space model",
        _ => "",
    };
    wrong(format!("{setting} {value:?} is not supported{why}"))
}
