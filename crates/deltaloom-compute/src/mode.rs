//! The numerical guarantee of a product.

use deltaloom_kernels::pairs::Parts;

/// How far a product may depend on how it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Not at all: rows are patched and multiplied in one order of additions, which
    /// docs/arithmetic.md defines. Activations keep all bits of FP32.
    #[default]
    Exact,
    /// Not at all either, but with activations rounded to BF16 where weights are BF16: a third of
    /// the work.
    Exact16,
    /// The last bits may differ: sparse differences are multiplied separately and added to the
    /// product of the base, and products may be added in another order. Every element stays within
    /// [`crate::Tolerance::LIMIT`]. A token with a result that is not finite gets the exact one.
    Fast,
}

impl Mode {
    /// Its name in reports and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Exact16 => "exact16",
            Self::Fast => "fast",
        }
    }

    /// BF16 parts of an activation.
    pub(crate) fn parts(self) -> Parts {
        match self {
            Self::Exact | Self::Fast => Parts::Three,
            Self::Exact16 => Parts::One,
        }
    }
}
