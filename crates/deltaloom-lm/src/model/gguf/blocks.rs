//! Numbers of tensors in GGUF files, as `dequantize_row_*` of ggml-quants.c computes them.

use super::reader::wrong;
use deltaloom::Result;

/// Numbers of a block.
const BLOCK: u64 = 32;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q8_0,
}

impl Kind {
    /// By its number of `ggml_type`.
    pub(super) fn of(number: u32, name: &str) -> Result<Self> {
        Ok(match number {
            0 => Self::F32,
            1 => Self::F16,
            30 => Self::Bf16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            8 => Self::Q8_0,
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
            Self::Q4_0 => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
            Self::Q5_0 => (BLOCK, 22),
            Self::Q8_0 => (BLOCK, 34),
        };
        numbers.is_multiple_of(block).then(|| (numbers / block).checked_mul(bytes))?
    }

    /// The numbers that these bytes stand for.
    pub(super) fn numbers(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Self::F16 => {
                bytes.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect()
            }
            Self::Bf16 => {
                bytes.as_chunks().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).to_f32()).collect()
            }
            Self::Q4_0 => bytes.as_chunks::<18>().0.iter().flat_map(q4_0).collect(),
            Self::Q4_1 => bytes.as_chunks::<20>().0.iter().flat_map(q4_1).collect(),
            Self::Q5_0 => bytes.as_chunks::<22>().0.iter().flat_map(q5_0).collect(),
            Self::Q8_0 => bytes.as_chunks::<34>().0.iter().flat_map(q8_0).collect(),
        }
    }
}

fn f16(low: u8, high: u8) -> f32 {
    half::f16::from_le_bytes([low, high]).to_f32()
}

/// Code `i` of 16 bytes: the low halves, then the high ones.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (4 * (i / 16)) & 15
}

fn q4_0(block: &[u8; 18]) -> [f32; 32] {
    let scale = f16(block[0], block[1]);
    std::array::from_fn(|i| (f32::from(nibble(&block[2..], i)) - 8.0) * scale)
}

fn q4_1(block: &[u8; 20]) -> [f32; 32] {
    let (scale, least) = (f16(block[0], block[1]), f16(block[2], block[3]));
    std::array::from_fn(|i| f32::from(nibble(&block[4..], i)) * scale + least)
}

fn q5_0(block: &[u8; 22]) -> [f32; 32] {
    let scale = f16(block[0], block[1]);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let code = |i: usize| nibble(&block[6..], i) | u8::from(high >> i & 1 == 1) << 4;
    std::array::from_fn(|i| (f32::from(code(i)) - 16.0) * scale)
}

fn q8_0(block: &[u8; 34]) -> [f32; 32] {
    let scale = f16(block[0], block[1]);
    std::array::from_fn(|i| f32::from(block[2 + i].cast_signed()) * scale)
}
