//! Recognises a layer among the tensors of a checkpoint: PyTorch's `TransformerEncoderLayer` and
//! the families of Hugging Face that [`super::family`] knows.
//!
//! It reads only names, shapes and `config.json`. A layer with an unknown tensor is refused,
//! because it is unclear what it computes.

use std::collections::BTreeMap;

use super::config::{FeedForward, Gelu, LayerConfig, Norm, Projection};
use super::family::{Convention, Described, LLAMA};
use super::plan::{AttentionPlan, Reach};
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

impl Convention {
    /// The name of a matrix, empty if such a layer does not have it.
    fn matrix(&self, role: MatrixRole) -> &'static str {
        self.matrices.iter().find(|(other, _)| *other == role).map_or("", |(_, name)| name)
    }
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
    vectors: &[],
    optional: &[
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
        if let Some(prefix) = find_prefix(&PYTORCH, &tensors, hints.layer)? {
            let layer = Found { convention: &PYTORCH, prefix, tensors: &tensors };
            let config = layer.pytorch_config(hints)?;
            config.check()?;
            return Ok((config.clone(), layer.names(&config)?));
        }
        // All families of Hugging Face have this sign.
        let Some(prefix) = find_prefix(LLAMA, &tensors, hints.layer)? else {
            let kinds = [PYTORCH.kind, LLAMA.kind].join(" or ");
            let what = format!("a transformer layer with the names of {kinds}");
            return Err(Error::not_found(Missing::Layer, what));
        };
        let text = hints.config.ok_or_else(|| {
            let what = format!("the tensors of {} are not enough: config.json is needed", LLAMA.kind);
            Error::InvalidArgument(what)
        })?;
        let described = Described::parse(text)?;
        let layer = Found { convention: &described.architecture.names, prefix, tensors: &tensors };
        let [_, width] = layer.size("self_attn.q_proj.weight")?;
        let [hidden_width, _] = layer.size(layer.convention.matrix(MatrixRole::Up))?;
        let config = described.layer(hints.layer, width, hidden_width)?;
        Ok((config.clone(), layer.names(&config)?))
    }

    /// Finds the tensors of a layer whose configuration is known. `prefix` is what its names begin
    /// with.
    ///
    /// # Errors
    /// [`Error::NotFound`] for tensors that are missing; [`Error::InvalidArgument`] for those of
    /// other shapes, and for tensors that such a layer does not have.
    pub(crate) fn find(
        convention: &Convention,
        prefix: &str,
        tensors: &BTreeMap<&str, &[u64]>,
        config: &LayerConfig,
    ) -> Result<Self> {
        Found { convention, prefix, tensors }.names(config)
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
    convention: &'a Convention,
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
        let Convention { vectors, optional, .. } = self.convention;
        for (role, suffix) in vectors.iter().chain(*optional) {
            let name = self.name(suffix);
            let shape = match self.tensors.get(name.as_str()) {
                Some(shape) => *shape,
                None if optional.iter().any(|(other, _)| other == role) => continue,
                None => self.shape(&name)?,
            };
            let Some((_, len)) = lengths.iter().find(|(other, _)| other == role) else { continue };
            check_shape(&name, shape, &[*len])?;
            names.vectors.insert(*role, name);
        }
        let known = |suffix: &str| {
            let matrices = self.convention.matrices.iter().map(|(_, name)| *name);
            let vectors = vectors.iter().chain(*optional).map(|(_, name)| *name);
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
            has_post_norms: false,
            projection: Projection::Fused,
            feed_forward: FeedForward::Gelu(Gelu::Erf),
            attention: AttentionPlan::new(Reach::Full),
        })
    }
}

pub(crate) fn check_shape(name: &str, shape: &[u64], expected: &[usize]) -> Result<()> {
    if shape.iter().copied().eq(expected.iter().map(|size| *size as u64)) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("tensor {name:?} has shape {shape:?}, the layer needs {expected:?}")))
}
