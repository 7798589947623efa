//! Conversions between floats, to nearest with ties to even, as trainers make copies of other
//! dtypes; docs/format.md section 3.5.

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

/// Whether elements of one dtype can be converted to another.
pub(crate) fn converts(from: &DType, to: &DType) -> bool {
    from == to || (is_float(from) && is_float(to))
}

fn is_float(dtype: &DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16 | DType::F8E4M3 | DType::F8E5M2)
}

/// Converts elements of one dtype into the same number of elements of another. Both must be floats
/// of at most 32 bits, unless they are equal.
pub(crate) fn convert_into(from: &DType, to: &DType, bytes: &[u8], out: &mut [u8]) {
    match (from, to) {
        _ if from == to => out.copy_from_slice(bytes),
        (DType::F32, DType::BF16 | DType::F16) => round_into(to, bytes, out),
        (DType::F32, _) => {
            let singles = bytes.as_chunks().0.iter();
            out.iter_mut().zip(singles).for_each(|(out, b)| *out = to_f8(to, f32::from_le_bytes(*b)));
        }
        (_, DType::F32) => widen_into(from, bytes, out),
        _ => {
            let mut singles = vec![0; 4 * bytes.len() / size(from)];
            widen_into(from, bytes, &mut singles);
            convert_into(&DType::F32, to, &singles, out);
        }
    }
}

fn size(dtype: &DType) -> usize {
    match dtype {
        DType::F32 => 4,
        DType::BF16 | DType::F16 => 2,
        _ => 1,
    }
}

/// Elements as F32, which is exact. The top mantissa bit of a NaN is set.
fn widen_into(from: &DType, bytes: &[u8], out: &mut [u8]) {
    let out = out.as_chunks_mut().0.iter_mut();
    match from {
        DType::BF16 => out
            .zip(bytes.as_chunks().0)
            .for_each(|(out, b)| *out = half::bf16::from_le_bytes(*b).to_f32().to_le_bytes()),
        DType::F16 => out
            .zip(bytes.as_chunks().0)
            .for_each(|(out, b)| *out = half::f16::from_le_bytes(*b).to_f32().to_le_bytes()),
        _ => {
            let values: Vec<[u8; 4]> = (0..=u8::MAX).map(|code| of_f8(from, code).to_le_bytes()).collect();
            out.zip(bytes).for_each(|(out, b)| *out = values[usize::from(*b)]);
        }
    }
}

/// The largest number of an F8.
pub(super) fn largest_f8(dtype: &DType) -> Option<f32> {
    match dtype {
        DType::F8E4M3 => Some(448.0),
        DType::F8E5M2 => Some(57344.0),
        _ => None,
    }
}

/// The value of an F8.
fn of_f8(dtype: &DType, code: u8) -> f32 {
    if *dtype == DType::F8E5M2 {
        // The upper byte of an F16.
        return half::f16::from_le_bytes([0, code]).to_f32();
    }
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::from_bits(0x7fc0_0000),
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Rounds to an F8. Too large becomes infinity in E5M2, and NaN in E4M3, which has no infinity.
pub(super) fn to_f8(dtype: &DType, value: f32) -> u8 {
    let (mantissa_bits, bias) = if *dtype == DType::F8E5M2 { (2, 15) } else { (3, 7) };
    let bits = value.to_bits();
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        let payload = u8::try_from(bits >> 21 & 3).unwrap_or(0);
        return sign | if *dtype == DType::F8E5M2 { 0x7e | payload } else { 0x7f };
    }
    let largest = if *dtype == DType::F8E5M2 { 0x7c } else { 0x7f };
    let exponent = i32::try_from(bits >> 23 & 0xff).unwrap_or(0) - 127;
    // The step between neighbours; below the least normal number it stays the same.
    let step = exponent.max(1 - bias) - mantissa_bits;
    let steps = (f64::from(value.abs()) * 2f64.powi(-step)).round_ties_even();
    let code =
        f64::from((step + mantissa_bits + bias) << mantissa_bits) + steps - f64::from(1 << mantissa_bits);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it saturates, never below 0"
    )]
    let code = code as u8;
    sign | code.min(largest)
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

    fn converted(from: &DType, to: &DType, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; bytes.len() / size(from) * size(to)];
        convert_into(from, to, bytes, &mut out);
        out
    }

    #[test]
    fn every_f8_survives_a_wider_dtype_and_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        for f8 in [DType::F8E4M3, DType::F8E5M2] {
            for wide in [DType::F32, DType::BF16, DType::F16] {
                let back = converted(&wide, &f8, &converted(&f8, &wide, &all));
                // A NaN gets its top mantissa bit.
                let is_nan = |code: u8| of_f8(&f8, code).is_nan();
                let expected = |code: u8| if is_nan(code) { code | 2 } else { code };
                for (code, back) in all.iter().zip(back) {
                    assert_eq!(back, expected(*code), "{f8} {code:#x} by {wide}");
                }
            }
        }
    }

    #[test]
    fn f8_rounds_to_even_and_overflows_as_the_format_says() {
        let of = |dtype: &DType, value: f32| to_f8(dtype, value);
        let (e4m3, e5m2) = (DType::F8E4M3, DType::F8E5M2);
        assert_eq!((of(&e4m3, 1.0), of(&e4m3, 1.0625), of(&e4m3, 1.1875)), (0x38, 0x38, 0x3a));
        assert_eq!((of(&e4m3, 448.0), of(&e4m3, 464.0), of(&e4m3, 464.1)), (0x7e, 0x7e, 0x7f));
        assert_eq!((of(&e4m3, -1e9), of(&e4m3, f32::INFINITY), of(&e4m3, -0.0)), (0xff, 0x7f, 0x80));
        assert_eq!((of(&e4m3, 2f32.powi(-10)), of(&e4m3, 1.5 * 2f32.powi(-9))), (0, 2));
        assert_eq!((of(&e5m2, 57344.0), of(&e5m2, 61440.0), of(&e5m2, f32::NAN)), (0x7b, 0x7c, 0x7e));
        assert_eq!(of(&e5m2, f32::from_bits(1)), 0);
    }
}
