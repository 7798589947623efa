//! How a reader guesses a tensor before the residual corrects it; docs/format.md section 3.
//! It names references; finding and reading them is [`crate::bases`]' work.

pub(crate) mod cast;
pub(crate) mod names;

/// Where the prediction of a tensor comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Predictor {
    /// All bits zero: the tensor is packed stand-alone.
    Zero,
    /// A tensor of a base with the same dtype and shape; `None` means that it has the same name.
    Reference(Option<String>),
    /// Equal to such a tensor.
    Identical(Option<String>),
    /// Equal to another tensor of the same container.
    Tied(usize),
    /// The rounding of an F32 tensor of a base; `None` means that it has the same name.
    Cast(Option<String>),
    /// The rounding of an F32 tensor of the same container.
    CastInternal(usize),
    /// Another tensor of the same container, of the same dtype and shape: to be near it, or only as large.
    Companion(usize),
}

impl Predictor {
    /// Word for reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Reference(_) => "reference",
            Self::Identical(_) => "identical",
            Self::Tied(_) => "tied",
            Self::Cast(_) | Self::CastInternal(_) => "cast",
            Self::Companion(_) => "companion",
        }
    }

    /// Whether chunks follow; otherwise the tensor equals its prediction.
    #[must_use]
    pub fn has_chunks(&self) -> bool {
        matches!(self, Self::Zero | Self::Reference(_) | Self::Companion(_))
    }

    /// Name of the tensor of a base that is needed, `own_name` being the tensor's.
    #[must_use]
    pub fn reference_name<'a>(&'a self, own_name: &'a str) -> Option<&'a str> {
        match self {
            Self::Reference(name) | Self::Identical(name) | Self::Cast(name) => {
                Some(name.as_deref().unwrap_or(own_name))
            }
            _ => None,
        }
    }

    /// Whether tensors of the same container may come from this one: it comes from none of them itself.
    pub(crate) fn is_root(&self) -> bool {
        self.internal().is_none() && !matches!(self, Self::Cast(_))
    }

    /// Number of the tensor of the same container that is needed.
    #[must_use]
    pub fn internal(&self) -> Option<usize> {
        match self {
            Self::Tied(tensor) | Self::CastInternal(tensor) | Self::Companion(tensor) => Some(*tensor),
            _ => None,
        }
    }
}
