//! Golden cases for codes of numbers, with scales, zeros and biases, and for words of 4-bit codes.
//!
//! Like all cases, they never change once their container is in the repository.

use super::cases::Case;
use super::numbers::{Random, bf16s, f8_e4m3s, f16s, f32s, i8s};
use crate::files::Tensor;

const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Codes from what a base holds, numbers from its codes, and multiples of its rows and columns.
pub(super) fn quantised() -> Case {
    let mut random = Random::new(45);
    let (mut base, mut original) = (Vec::new(), Vec::new());

    // F8 with a scale for each row, and from blocks.
    let values = random.normals(1200, 0.02);
    let scales: Vec<f64> = values.chunks(40).map(|row| single(largest(row) / 448.0)).collect();
    let scaled: Vec<f64> = values.iter().enumerate().map(|(i, x)| x / scales[i / 40]).collect();
    base.push(Tensor::new("a.weight", "BF16", &[30, 40], bf16s(&values)));
    original.push(Tensor::new("a.weight", "F8_E4M3", &[30, 40], f8_e4m3s(&scaled)));
    original.push(Tensor::new("a.weight_scale", "F32", &[30, 1], f32s(&scales)));
    let small: Vec<f64> = (0..1200).map(|i| f64::from((i * 7 % 29) - 14) / 8.0).collect();
    let scales: Vec<f64> = (0..6).map(|i| single(0.001 * f64::from(i + 1))).collect();
    let numbers: Vec<f64> =
        small.iter().enumerate().map(|(i, x)| x * scales[i / 40 / 16 * 3 + i % 40 / 16]).collect();
    base.push(Tensor::new("b.weight", "F8_E4M3", &[30, 40], f8_e4m3s(&small)));
    base.push(Tensor::new("b.weight_scale_inv", "F32", &[2, 3], f32s(&scales)));
    original.push(Tensor::new("b.weight", "BF16", &[30, 40], bf16s(&numbers)));

    // 4-bit integers in columns of words, with zeros that are stored minus 1.
    let codes: Vec<u32> = (0..1280u32).map(|i| i * i % 251 % 16).collect();
    let zeros: Vec<u32> = (0..80u32).map(|i| 6 + i % 4).collect();
    let scales: Vec<f64> = (0..80).map(|i| f64::from(i + 10) / 4096.0).collect();
    let number = |row: usize, col: usize| {
        let group = row / 16 * 40 + col;
        (f64::from(codes[row * 40 + col]) - f64::from(zeros[group])) * scales[group]
    };
    let turned: Vec<f64> =
        (0..40).flat_map(|col| (0..32).map(move |row| (row, col))).map(|(r, c)| number(r, c)).collect();
    let columns = |word: usize| (0..8).map(move |k| (word / 40 * 8 + k) * 40 + word % 40);
    let words: Vec<u8> = (0..160).flat_map(|word| packed(columns(word).map(|place| codes[place]))).collect();
    let stored: Vec<u8> =
        zeros.chunks(8).flat_map(|zeros| packed(zeros.iter().map(|zero| zero - 1))).collect();
    base.push(Tensor::new("c.qweight", "I32", &[4, 40], words));
    base.push(Tensor::new("c.qzeros", "I32", &[2, 5], stored));
    base.push(Tensor::new("c.scales", "F16", &[2, 40], f16s(&scales)));
    original.push(Tensor::new("c.weight", "F16", &[40, 32], f16s(&turned)));

    // E2M1 with powers of two, in blocks.
    let codes: Vec<u8> = random.bytes(1280).iter().map(|byte| byte & 15).collect();
    let powers: Vec<u8> = (0..40).map(|i| 118 + i % 5).collect();
    let number = |(i, code): (usize, &u8)| {
        let size = E2M1[usize::from(code & 7)] * 2f64.powi(i32::from(powers[i / 32]) - 127);
        if code & 8 == 0 { size } else { -size }
    };
    let numbers: Vec<f64> = codes.iter().enumerate().map(number).collect();
    let pairs = codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
    base.push(Tensor::new("d_blocks", "U8", &[2, 20, 1, 16], pairs));
    base.push(Tensor::new("d_scales", "U8", &[2, 20, 1], powers));
    original.push(Tensor::new("d", "BF16", &[2, 20, 32], bf16s(&numbers)));

    // Rows and columns that are multiples.
    for (name, shape, by_rows) in [("e.weight", [20, 80], true), ("f.weight", [80, 20], false)] {
        let values = random.normals(1600, 0.02);
        let factor = |i: usize| 0.5 + (if by_rows { i / shape[1] } else { i % shape[1] }) as f64 / 16.0;
        let multiples: Vec<f64> = values.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
        base.push(Tensor::new(name, "BF16", &shape, bf16s(&values)));
        original.push(Tensor::new(name, "BF16", &shape, bf16s(&multiples)));
    }

    // Codes of 4 bits with scales and biases of groups of 32.
    let values = random.normals(1280, 0.02);
    let biases: Vec<f64> = values.chunks(32).map(|group| half_single(-largest(group))).collect();
    let scales: Vec<f64> = values.chunks(32).map(|group| half_single(largest(group) / 7.5)).collect();
    let code = |i: usize| {
        let code = ((values[i] - biases[i / 32]) / scales[i / 32]).round().clamp(0.0, 15.0);
        (0..16u32).find(|known| f64::from(*known) == code).unwrap_or(0)
    };
    let words = (0..160).flat_map(|word| packed((word * 8..word * 8 + 8).map(code))).collect();
    base.push(Tensor::new("g.weight", "BF16", &[20, 64], bf16s(&values)));
    original.push(Tensor::new("g.weight", "U32", &[20, 8], words));
    original.push(Tensor::new("g.scales", "BF16", &[20, 2], bf16s(&scales)));
    original.push(Tensor::new("g.biases", "BF16", &[20, 2], bf16s(&biases)));

    Case { chunk_log2: 10, ..Case::new("quantised", "codes and numbers of codes", &original, &[&base]) }
}

/// Words in which codes of 4 bits change, few and many.
pub(super) fn nibbles() -> Case {
    let mut random = Random::new(46);
    let (mut base, mut original) = (Vec::new(), Vec::new());
    for (name, dtype, cols, step) in [("few", "U32", 10, 97), ("many", "I32", 10, 4), ("bytes", "U8", 40, 61)]
    {
        let before = random.bytes(2400);
        let mut after = before.clone();
        after.iter_mut().step_by(step).for_each(|byte| *byte ^= if *byte & 4 == 0 { 1 } else { 0x10 });
        base.push(Tensor::new(name, dtype, &[60, cols], before));
        original.push(Tensor::new(name, dtype, &[60, cols], after));
    }
    // Something that only version 4 has.
    let values = random.normals(600, 0.02);
    base.push(Tensor::new("v", "BF16", &[20, 30], bf16s(&values)));
    original.push(Tensor::new("v", "BF16", &[10, 60], bf16s(&values)));
    Case::new("nibbles", "words of 4-bit codes", &original, &[&base])
}

/// Small integers around 0 in columns of different spread.
pub(super) fn codes() -> Case {
    let mut random = Random::new(74);
    let mut tensor = |name: &str, dtype: &'static str, rows: usize, cols: usize, spread: f64| {
        let spreads: Vec<f64> = random.normals(cols, 0.7).iter().map(|x| spread * x.exp2()).collect();
        let code = |(i, x): (usize, f64)| x * spreads[i % cols];
        let values: Vec<f64> = random.normals(rows * cols, 1.0).into_iter().enumerate().map(code).collect();
        Tensor::new(name, dtype, &[rows, cols], i8s(&values))
    };
    let tensors = [
        tensor("rare", "I8", 200, 48, 0.3),
        tensor("usual", "I8", 120, 80, 1.0),
        tensor("wide", "U8", 100, 64, 6.0),
    ];
    Case::new("codes", "small integers by classes of columns", &tensors, &[])
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, x| x.abs().max(most))
}

/// Rounded to F32.
#[expect(clippy::cast_possible_truncation, reason = "it is rounded")]
fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

/// Rounded to BF16.
fn half_single(x: f64) -> f64 {
    let bytes = bf16s(&[x]);
    f64::from(f32::from_le_bytes([0, 0, bytes[0], bytes[1]]))
}

/// A word of eight codes, the lowest bits first.
fn packed(codes: impl Iterator<Item = u32>) -> [u8; 4] {
    codes.zip(0..).fold(0u32, |word, (code, field)| word | code << (4 * field)).to_le_bytes()
}
