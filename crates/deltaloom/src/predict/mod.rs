//! How a reader guesses a tensor before the residual corrects it; docs/format.md section 3.
//! It names references. [`crate::bases`] finds and reads them.

mod adam;
mod adapter;
mod blend;
pub(crate) mod cast;
mod factors;
pub(crate) mod names;
pub(crate) mod number;

pub(crate) use adam::{Adam, AdamForm};
pub(crate) use adapter::{Adapter, Merge};
pub(crate) use blend::{Blend, BlendForm, Precision};

pub(crate) use adam::ADAM_INPUTS;
pub(crate) use adapter::MAX_RANK;
pub(crate) use blend::MAX_REFERENCES;
pub(crate) use factors::{Factors, MAX_FACTORS_RANK, ReadyFactors};
pub use number::{Element, load};

use crate::tensor::{DType, TensorInfo};

/// Where the prediction of a tensor comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Predictor {
    /// All bits zero: the tensor is packed on its own.
    Zero,
    /// A tensor of a base with the same dtype and shape. `None` means that its name is the same,
    /// too.
    Reference(Option<String>),
    /// Equal to such a tensor.
    Identical(Option<String>),
    /// Equal to another tensor of the same container.
    Tied(usize),
    /// A rounded F32 tensor of a base. `None` means that its name is the same.
    Cast(Option<String>),
    /// A rounded F32 tensor of the same container.
    CastInternal(usize),
    /// A tensor of a base plus a product of two factors, which are in the container. `None` means
    /// that its name is the same.
    LowRank {
        /// Name of that tensor.
        reference: Option<String>,
        /// Columns of the left factor, rows of the right one.
        rank: usize,
    },
    /// A tensor of a base plus a merged low-rank adapter.
    Adapter(Box<Adapter>),
    /// A combination of several tensors of bases.
    Blend(Box<Blend>),
    /// Another tensor of the same container with the same dtype and shape. It is similar, or at
    /// least of similar magnitude.
    Companion(usize),
    /// A step of Adam from tensors of a base and of the same container.
    Adam(Box<Adam>),
    /// As `Reference`, with earlier states of the tensor as a context.
    History {
        /// Name of the reference and of its ancestors. `None` stands for the tensor's own name.
        reference: Option<String>,
        /// Number of ancestors.
        hops: usize,
    },
}

/// Most ancestors of a reference that a history has.
pub(crate) const MAX_HOPS: usize = 16;

impl Predictor {
    /// Name in reports.
    #[must_use]
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Reference(_) => "reference",
            Self::Identical(_) => "identical",
            Self::Tied(_) => "tied",
            Self::Cast(_) | Self::CastInternal(_) => "cast",
            Self::LowRank { .. } => "lowrank",
            Self::Adapter(_) => "adapter",
            Self::Blend(_) => "blend",
            Self::Companion(_) => "companion",
            Self::Adam(_) => "adam",
            Self::History { .. } => "history",
        }
    }

    /// Whether chunks follow. Otherwise the tensor equals its prediction.
    #[must_use]
    pub(crate) fn has_chunks(&self) -> bool {
        match self {
            Self::Zero
            | Self::Reference(_)
            | Self::LowRank { .. }
            | Self::Adapter(_)
            | Self::Blend(_)
            | Self::Companion(_)
            | Self::Adam(_)
            | Self::History { .. } => true,
            Self::Identical(_) | Self::Tied(_) | Self::Cast(_) | Self::CastInternal(_) => false,
        }
    }

    /// The tensors of bases that the prediction needs, in the order of their digests: names, dtypes
    /// and shapes. `info` describes the predicted tensor.
    pub(crate) fn references(&self, info: &TensorInfo) -> Vec<TensorInfo> {
        let like = |name: &Option<String>| TensorInfo {
            name: name.as_ref().unwrap_or(&info.name).clone(),
            ..info.clone()
        };
        match self {
            Self::Zero | Self::Tied(_) | Self::CastInternal(_) | Self::Companion(_) => Vec::new(),
            Self::Reference(name) | Self::Identical(name) | Self::LowRank { reference: name, .. } => {
                vec![like(name)]
            }
            Self::Cast(name) => {
                let master = like(name);
                vec![TensorInfo::sized(master.name, DType::F32, master.shape)]
            }
            Self::Adapter(adapter) => adapter.references(info, like(&adapter.reference)),
            Self::Blend(blend) => blend.references.iter().map(like).collect(),
            Self::Adam(adam) => adam.references.iter().map(like).collect(),
            Self::History { reference, hops } => vec![like(reference); hops + 1],
        }
    }

    /// Number of tensors of bases that the prediction needs.
    pub(crate) fn reference_count(&self) -> usize {
        match self {
            Self::Zero | Self::Tied(_) | Self::CastInternal(_) | Self::Companion(_) => 0,
            Self::Reference(_) | Self::Identical(_) | Self::LowRank { .. } | Self::Cast(_) => 1,
            Self::Adapter(_) => 3,
            Self::Blend(blend) => blend.references.len(),
            Self::Adam(adam) => adam.references.len(),
            Self::History { hops, .. } => hops + 1,
        }
    }

    /// A tensor may only depend on tensors of the same container with a lower level, so that
    /// decoding it ends soon.
    pub(crate) fn level(&self) -> u8 {
        match self {
            Self::Zero
            | Self::Reference(_)
            | Self::Identical(_)
            | Self::LowRank { .. }
            | Self::Adapter(_)
            | Self::Blend(_)
            | Self::History { .. } => 0,
            Self::Adam(adam) => match adam.form {
                AdamForm::SecondMoment => 1,
                AdamForm::Weights => 2,
            },
            Self::Tied(_) | Self::Cast(_) | Self::CastInternal(_) | Self::Companion(_) => 3,
        }
    }

    /// Whether its level is 0, so that any other tensor may depend on it.
    pub(crate) fn is_root(&self) -> bool {
        self.level() == 0
    }

    /// Whether changed elements are counted. They are if their number says how much has changed.
    pub(crate) fn counts_changes(&self) -> bool {
        self.has_chunks() && !matches!(self, Self::Zero | Self::Companion(_))
    }

    /// Whether the prediction is an unmodified tensor of a base. Then elements that differ from one
    /// differ from the other.
    pub(crate) fn is_reference(&self) -> bool {
        matches!(self, Self::Reference(_) | Self::Identical(_) | Self::History { .. })
    }

    /// Numbers of the tensors of the same container that the prediction needs.
    #[must_use]
    pub(crate) fn internals(&self) -> &[usize] {
        match self {
            Self::Tied(tensor) | Self::CastInternal(tensor) | Self::Companion(tensor) => {
                std::slice::from_ref(tensor)
            }
            Self::Adam(adam) => &adam.tensors,
            _ => &[],
        }
    }

    /// The rule of a computed prediction, for people.
    pub(crate) fn rule(&self) -> Option<String> {
        match self {
            Self::LowRank { rank, .. } => Some(format!("rank {rank}")),
            Self::Adapter(adapter) => Some(adapter.to_string()),
            Self::Blend(blend) => Some(blend.to_string()),
            Self::Adam(adam) => Some(adam.to_string()),
            Self::History { hops, .. } => Some(format!("{hops} ancestors")),
            _ => None,
        }
    }
}
