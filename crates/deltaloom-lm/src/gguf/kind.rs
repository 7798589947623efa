//! How a GGUF file stores the numbers of a tensor. The library has the blocks.

use super::wrong;
use deltaloom::Result;
use deltaloom::checkpoint::gguf::{BlockKind, dequantise};
use deltaloom::tensor::DType;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    Blocks(BlockKind),
}

impl Kind {
    /// By its number of `ggml_type`. `name` is the tensor's, for messages.
    pub(super) fn of(number: u32, name: &str) -> Result<Self> {
        match (number, BlockKind::of_type(number)) {
            (0, _) => Ok(Self::F32),
            (1, _) => Ok(Self::F16),
            (30, _) => Ok(Self::Bf16),
            (_, Some(kind)) => Ok(Self::Blocks(kind)),
            (_, None) => {
                let known = BlockKind::ALL.map(BlockKind::name).join(", ");
                Err(wrong(format!(
                    "tensor {name:?} has type {number}, which is not computed; known are F32, F16, BF16, {known}"
                )))
            }
        }
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

    /// The type that has all its numbers exactly: BF16 for itself, else F32.
    pub(crate) fn dtype(self) -> DType {
        if self == Self::Bf16 { DType::BF16 } else { DType::F32 }
    }

    /// The numbers that these bytes stand for, as little-endian numbers of [`Self::dtype`].
    ///
    /// # Errors
    /// [`deltaloom::Error::Corrupt`] if they are not whole blocks.
    pub(super) fn decode(self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(match self {
            Self::F32 | Self::Bf16 => bytes,
            Self::F16 => {
                let halves = bytes.as_chunks().0.iter();
                bytes_of(halves.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()))
            }
            Self::Blocks(kind) => {
                let mut numbers = vec![0.0; bytes.len() / kind.bytes() * kind.numbers()];
                dequantise(kind, &bytes, &mut numbers)?;
                bytes_of(numbers.into_iter())
            }
        })
    }
}

fn bytes_of(numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    numbers.flat_map(f32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_their_numbers() {
        let scale = half::f16::from_f32(0.5).to_le_bytes();
        let least = half::f16::from_f32(-3.0).to_le_bytes();
        let codes: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap() | 0xa0);
        let check = |kind: BlockKind, block: &[u8], first: f32, last: f32| {
            let kind = Kind::Blocks(kind);
            assert_eq!(kind.bytes(64), Some(2 * block.len() as u64));
            let numbers = kind.decode([block, block].concat()).unwrap();
            let number = |place: usize| f32::from_le_bytes(numbers.as_chunks().0[place]);
            assert_eq!((numbers.len(), number(0), number(33), number(31)), (256, first, number(1), last));
        };
        check(BlockKind::Q4_0, &[&scale[..], &codes].concat(), -4.0, 1.0);
        check(BlockKind::Q4_1, &[&scale[..], &least, &codes].concat(), -3.0, 2.0);
        check(BlockKind::Q5_0, &[&scale[..], &[1, 0, 0, 0x80], &codes].concat(), 0.0, 5.0);
        let bytes: [u8; 32] = std::array::from_fn(|i| if i == 0 { 0x80 } else { 3 });
        check(BlockKind::Q8_0, &[&scale[..], &bytes].concat(), -64.0, 1.5);
        assert_eq!((Kind::Blocks(BlockKind::Q8_0).bytes(33), Kind::F32.bytes(u64::MAX)), (None, None));
        assert_eq!(Kind::Blocks(BlockKind::Q4K).bytes(256), Some(144));
        assert_eq!(Kind::of(14, "x").unwrap(), Kind::Blocks(BlockKind::Q6K));
        assert!(Kind::of(16, "x").unwrap_err().to_string().contains("type 16"));
    }

    #[test]
    fn halves_are_widened_and_bf16_stays() {
        let one = half::f16::ONE.to_le_bytes().to_vec();
        assert_eq!(
            (Kind::F16.decode(one).unwrap(), Kind::F16.dtype()),
            (1_f32.to_le_bytes().to_vec(), DType::F32)
        );
        assert_eq!((Kind::Bf16.decode(vec![1, 2]).unwrap(), Kind::Bf16.dtype()), (vec![1, 2], DType::BF16));
    }
}
