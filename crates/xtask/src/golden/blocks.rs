//! A golden case for blocks of GGUF and for scales that follow from numbers.
//!
//! Like all cases, it never changes once its container is in the repository.

use super::cases::Case;
use super::numbers::{Random, bf16s, f16s, f32s};
use crate::files::Tensor;

/// Blocks from what a base holds, numbers from its blocks, and scales of its rows and blocks.
pub(super) fn blocks() -> Case {
    let mut random = Random::new(49);
    let (mut base, mut original) = (Vec::new(), Vec::new());

    // Q8_0, with pairs of rows where the base has halves of heads of 8, and another name.
    let values = singles(&random.normals(1536, 0.02));
    let row = |row: usize| row / 8 * 8 + row % 2 * 4 + row % 8 / 2;
    let pairs = (0..24).flat_map(|i| &values[row(i) * 64..(row(i) + 1) * 64]).copied().collect::<Vec<f32>>();
    base.push(Tensor::new("layers.0.q.weight", "BF16", &[24, 64], bf16s(&doubles(&values))));
    let stored: Vec<u8> = pairs.chunks(32).flat_map(q8_0).collect();
    original.push(Tensor::new("blk.0.attn_q.weight", "U8", &[24, 68], stored));

    // Q4_0, with zeros.
    let mut values = singles(&random.normals(1536, 0.02));
    values[32..70].fill(0.0);
    base.push(Tensor::new("layers.0.v.weight", "BF16", &[24, 64], bf16s(&doubles(&values))));
    let stored: Vec<u8> = values.chunks(32).flat_map(q4_0).collect();
    original.push(Tensor::new("blk.0.attn_v.weight", "U8", &[24, 36], stored));

    // What blocks of Q4_1 and of Q5_0 stand for.
    for (name, kind) in [("up", 1), ("down", 2)] {
        let mut stored = Vec::new();
        let mut numbers = Vec::new();
        for block in 0..48u8 {
            let (scale, least) = (f32::from(block + 40) / 65536.0, -f32::from(block + 30) / 4096.0);
            let codes: Vec<u8> = random.bytes(32).iter().map(|byte| byte % (16 * kind)).collect();
            stored.extend(f16s(&[f64::from(scale)]));
            if kind == 1 {
                stored.extend(f16s(&[f64::from(least)]));
                numbers.extend(codes.iter().map(|code| f64::from(f32::from(*code) * scale + least)));
            } else {
                let high =
                    codes.iter().zip(0..).fold(0u32, |high, (code, i)| high | u32::from(code >> 4) << i);
                stored.extend(high.to_le_bytes());
                numbers.extend(codes.iter().map(|code| f64::from((f32::from(*code) - 16.0) * scale)));
            }
            stored.extend((0..16).map(|i| codes[i] & 15 | codes[i + 16] << 4));
        }
        let shape = [24, stored.len() / 24];
        base.push(Tensor::new(&format!("blk.0.ffn_{name}.weight"), "U8", &shape, stored));
        original.push(Tensor::new(&format!("layers.0.{name}.weight"), "BF16", &[24, 64], bf16s(&numbers)));
    }

    // Scales of rows, of blocks of a transposed matrix, and powers of two.
    let values = random.normals(4096, 0.02);
    let values: Vec<f64> = (0..4096).map(|i| values[i] * f64::from(1 << (i / 8 * 7 % 9))).collect();
    let values = singles(&values);
    base.push(Tensor::new("s.weight", "BF16", &[64, 64], bf16s(&doubles(&values))));
    let of_rows: Vec<f64> = values.chunks(64).map(|row| f64::from(largest(row).abs() / 127.0)).collect();
    original.push(Tensor::new("s.weight_scale", "F32", &[64, 1], f32s(&of_rows)));
    let group = |i: usize| &values[i % 64 * 64 + i / 64 * 16..i % 64 * 64 + i / 64 * 16 + 16];
    let span = |i: usize| {
        let (least, most) =
            group(i).iter().fold((0f32, 0f32), |(least, most), x| (least.min(*x), most.max(*x)));
        f64::from((most - least) / 15.0)
    };
    original.push(Tensor::new("s.scales", "F16", &[4, 64], f16s(&(0..256).map(span).collect::<Vec<f64>>())));
    let exponent = |block: &[f32]| {
        let [high, next, ..] = largest(block).abs().to_be_bytes();
        (high << 1 | next >> 7) - 2
    };
    let exponents: Vec<u8> = values.chunks(8).map(exponent).collect();
    original.push(Tensor::new("s.weight_exponents", "U8", &[64, 8], exponents));

    Case { chunk_log2: 10, ..Case::new("blocks", "blocks of GGUF, and scales", &original, &[&base]) }
}

/// Numbers that BF16 has.
fn singles(values: &[f64]) -> Vec<f32> {
    bf16s(values).chunks(2).map(|bytes| f32::from_le_bytes([0, 0, bytes[0], bytes[1]])).collect()
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// The first number of the largest magnitude.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, x| if x.abs() > most.abs() { *x } else { most })
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[expect(clippy::cast_possible_truncation, reason = "codes are small")]
fn q8_0(x: &[f32]) -> Vec<u8> {
    let scale = largest(x).abs() / 127.0;
    let codes = x.iter().map(|x| ((x * inverse(scale)).round() as i8).cast_unsigned());
    f16s(&[f64::from(scale)]).into_iter().chain(codes).collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "codes are small")]
fn q4_0(x: &[f32]) -> Vec<u8> {
    let scale = largest(x) / -8.0;
    let code = |x: f32| ((x * inverse(scale) + 8.5) as u8).min(15);
    let codes = (0..16).map(|i| code(x[i]) | code(x[i + 16]) << 4);
    f16s(&[f64::from(scale)]).into_iter().chain(codes).collect()
}
