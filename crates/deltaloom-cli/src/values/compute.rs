//! Values of the commands that keep fine-tunes in memory.

use clap::ValueEnum;
use deltaloom_compute::{Form, Mode};
use deltaloom_lm::context::ExportFamily;
use deltaloom_lm::context::tester::Task;
use deltaloom_lm::layer::KvType;

/// The form in which a fine-tune's matrices are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormName {
    /// Entropy-coded tiles, decoded during multiplication
    Tiles,
    /// Masks and the bytes that changed
    Planes,
    /// A mask and the values that changed
    Bitmap,
    /// Exact differences as compressed sparse rows
    Csr,
    /// All weights, uncompressed
    Dense,
}

impl FormName {
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
    /// 2 bytes per number
    Bf16,
    /// 4 bytes per number
    F32,
}

impl CacheType {
    /// What the library calls it.
    pub(crate) fn kv_type(self) -> KvType {
        match self {
            Self::Bf16 => KvType::Bf16,
            Self::F32 => KvType::F32,
        }
    }
}

/// The type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActivationType {
    /// All bits of FP32
    F32,
    /// Rounded to BF16, as most runtimes do: long prompts take down to a third of the time
    Bf16,
}

impl ActivationType {
    /// What the library calls it.
    pub(crate) fn mode(self) -> Mode {
        match self {
            Self::F32 => Mode::Exact,
            Self::Bf16 => Mode::Exact16,
        }
    }
}

/// A fraction of a whole.
pub(crate) fn parse_fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(fraction),
        Ok(_) => Err("expected a number from 0 to 1".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// Facts that are planted in a text and asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TaskName {
    /// Eight keys with a number each
    Multikey,
    /// One number
    Passkey,
    /// Eight numbers that are handed on twice
    Tracking,
}

impl TaskName {
    /// What the library calls it.
    pub(crate) fn task(self) -> Task {
        match self {
            Self::Multikey => Task::Multikey,
            Self::Passkey => Task::Passkey,
            Self::Tracking => Task::Tracking,
        }
    }
}

/// A family of transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FamilyName {
    /// One table of positions for all layers
    Llama,
    /// The same, and layers without positions
    Smollm3,
}

impl FamilyName {
    /// What the library calls it.
    pub(crate) fn family(self) -> ExportFamily {
        match self {
            Self::Llama => ExportFamily::Llama,
            Self::Smollm3 => ExportFamily::SmolLm3,
        }
    }
}
