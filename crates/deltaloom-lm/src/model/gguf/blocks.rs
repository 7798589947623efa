//! Numbers of tensors in GGUF files. The library has the blocks; here is which of them are
//! computed.

use super::reader::wrong;
use deltaloom::Result;
use deltaloom::checkpoint::gguf::{BlockKind, dequantise};

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    Blocks(BlockKind),
}

impl Kind {
    /// By its number of `ggml_type`.
    pub(super) fn of(number: u32, name: &str) -> Result<Self> {
        Ok(match (number, BlockKind::of_type(number)) {
            (0, _) => Self::F32,
            (1, _) => Self::F16,
            (30, _) => Self::Bf16,
            (_, Some(kind @ (BlockKind::Q4_0 | BlockKind::Q4_1 | BlockKind::Q5_0 | BlockKind::Q8_0))) => {
                Self::Blocks(kind)
            }
            _ => {
                return Err(wrong(format!(
                    "tensor {name:?} has type {number}: only F32, F16, BF16, Q4_0, Q4_1, Q5_0 and Q8_0 are \
                     computed"
                )));
            }
        })
    }

    /// Bytes of this many numbers, which fill whole blocks.
    pub(super) fn bytes(self, numbers: u64) -> Option<u64> {
        let (block, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(kind) => (kind.numbers() as u64, kind.bytes() as u64),
        };
        numbers.is_multiple_of(block).then(|| (numbers / block).checked_mul(bytes))?
    }

    /// The numbers that these bytes stand for.
    ///
    /// # Errors
    /// [`deltaloom::Error::Corrupt`] if they are not whole blocks.
    pub(super) fn numbers(self, bytes: &[u8]) -> Result<Vec<f32>> {
        Ok(match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Self::F16 => {
                bytes.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect()
            }
            Self::Bf16 => {
                bytes.as_chunks().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect()
            }
            Self::Blocks(kind) => {
                let mut numbers = vec![0.0; bytes.len() / kind.bytes() * kind.numbers()];
                dequantise(kind, bytes, &mut numbers)?;
                numbers
            }
        })
    }
}
