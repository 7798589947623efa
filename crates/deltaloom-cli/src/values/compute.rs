//! Values of the commands that keep fine-tunes in memory.

use clap::ValueEnum;
use deltaloom_compute::Form;

/// How the matrices of a fine-tune are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormName {
    /// Entropy-coded tiles, decoded while they are multiplied
    Tiles,
    /// Masks and the bytes that change
    Planes,
    /// A mask and the values that change
    Bitmap,
    /// Exact differences in sparse rows
    Csr,
    /// All weights
    Dense,
}

impl FormName {
    pub(crate) const ALL: [Self; 5] = [Self::Tiles, Self::Planes, Self::Bitmap, Self::Csr, Self::Dense];

    /// What the library calls it.
    pub(crate) fn form(self) -> Form {
        match self {
            Self::Tiles => Form::Tiles,
            Self::Planes => Form::Planes,
            Self::Bitmap => Form::Bitmap,
            Self::Csr => Form::Csr,
            Self::Dense => Form::Dense,
        }
    }
}

/// The type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheType {
    /// Two bytes a number
    Bf16,
    /// Four bytes a number
    F32,
}

/// A fraction of a whole.
pub(crate) fn parse_fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(fraction),
        Ok(_) => Err("expected a number from 0 to 1".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}
