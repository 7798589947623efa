//! The part of an element that training and casts seldom change, for finding weights by what they
//! hold.

use crate::predict::cast;
use crate::tensor::{DType, TensorInfo};

/// Sign and exponent of floats as F32 has them, whatever their dtype is; a hash of the bits of all
/// other elements.
pub(super) fn of(info: &TensorInfo, bytes: &[u8]) -> Vec<u16> {
    let size = info.number().bytes();
    match info.dtype {
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b) >> 7).collect(),
        DType::F32 => {
            bytes.as_chunks().0.iter().map(|[_, _, b2, b3]| u16::from_le_bytes([*b2, *b3]) >> 7).collect()
        }
        DType::F16 | DType::F8E4M3 | DType::F8E5M2 => {
            let mut singles = vec![0; 4 * (bytes.len() / size)];
            cast::convert_into(&info.dtype, &DType::F32, bytes, &mut singles);
            singles.as_chunks().0.iter().map(|[_, _, b2, b3]| u16::from_le_bytes([*b2, *b3]) >> 7).collect()
        }
        _ if size == 1 => bytes.iter().map(|byte| u16::from(*byte)).collect(),
        _ => bytes.chunks_exact(size).map(hash).collect(),
    }
}

fn hash(element: &[u8]) -> u16 {
    let bits = element.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let [.., b6, b7] = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    u16::from_le_bytes([b6, b7])
}
