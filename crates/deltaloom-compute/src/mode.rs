//! The numerical guarantee of a product.

/// How far a product may depend on how it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Not at all: rows are patched and multiplied in one order of additions.
    #[default]
    BitExact,
    /// The last bits may differ: sparse differences are multiplied separately and added to the
    /// product of the base, and many tokens use a blocked matrix product. Every element stays
    /// within [`crate::Tolerance::LIMIT`]. A token with a result that is not finite gets the
    /// bit-exact result.
    Fast,
}

impl Mode {
    /// Its name in reports and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BitExact => "bit-exact",
            Self::Fast => "fast",
        }
    }
}
