//! Rounding of F32 to the 16-bit floats, to nearest with ties to even, as trainers make BF16 and
//! F16 copies.

use crate::tensor::DType;

/// Whether a tensor of this dtype can be a rounded F32 tensor.
pub(crate) fn is_target(dtype: &DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// Rounds little-endian F32 elements to BF16 or F16.
pub(crate) fn round(dtype: &DType, singles: &[u8]) -> Vec<u8> {
    let mut out = vec![0; singles.len() / 2];
    round_into(dtype, singles, &mut out);
    out
}

/// Rounds little-endian F32 elements into the same number of BF16 or F16 elements.
pub(crate) fn round_into(dtype: &DType, singles: &[u8], out: &mut [u8]) {
    let values = singles.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let pairs = out.chunks_exact_mut(2).zip(values);
    match dtype {
        DType::F16 => pairs.for_each(|(out, v)| out.copy_from_slice(&half::f16::from_f32(v).to_le_bytes())),
        _ => pairs.for_each(|(out, v)| out.copy_from_slice(&half::bf16::from_f32(v).to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_the_one_of_the_format() {
        let bf16 =
            |bits: u32| u16::from_le_bytes(round(&DType::BF16, &bits.to_le_bytes()).try_into().unwrap());
        let f16 = |bits: u32| u16::from_le_bytes(round(&DType::F16, &bits.to_le_bytes()).try_into().unwrap());
        assert_eq!((bf16(0x3f80_8000), bf16(0x3f81_8000), bf16(0x3f80_8001)), (0x3f80, 0x3f82, 0x3f81));
        assert_eq!((bf16(0x7f7f_ffff), bf16(0xff80_0001), bf16(0x7fa1_0000)), (0x7f80, 0xffc0, 0x7fe1));
        assert_eq!((f16(0x3f80_1000), f16(0x3f80_3000), f16(0x477f_f000)), (0x3c00, 0x3c02, 0x7c00));
        assert_eq!((f16(0x3300_0000), f16(0x3300_0001), f16(0xff80_0001)), (0x0000, 0x0001, 0xfe00));
    }
}
