//! Blocks of GGUF from what a base holds, and back, and scales that follow from a base's numbers.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers of tests"
)]

mod common;

use common::*;
use deltaloom::PackReport;
use deltaloom::checkpoint::gguf::{BlockKind, dequantise};

const ROWS: usize = 96;
const COLS: usize = 256;
/// Rows of a head.
const HEAD: usize = 16;

/// Numbers that BF16 has. Some are zero, as are those of a row.
fn numbers(seed: u64) -> Vec<f32> {
    let mut numbers = singles_of(&bf16_bytes(&Random::new(seed).weights(ROWS * COLS)));
    numbers[3 * COLS..4 * COLS].fill(0.0);
    numbers[7] = -0.0;
    numbers
}

fn f16(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

fn q8_0(x: &[f32]) -> Vec<u8> {
    let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let codes = x.iter().map(|x| ((x * inverse).round() as i8).cast_unsigned());
    f16(scale).into_iter().chain(codes).collect()
}

fn q4_0(x: &[f32]) -> Vec<u8> {
    let most = x.iter().fold(0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    let scale = most / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let code = |x: f32| ((x * inverse + 8.5) as i8).min(15).cast_unsigned();
    let codes = (0..16).map(|i| code(x[i]) | code(x[i + 16]) << 4);
    f16(scale).into_iter().chain(codes).collect()
}

fn of_q4_0(block: &[u8]) -> Vec<f32> {
    let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
    let number = |i: usize| (f32::from(block[2 + i % 16] >> (4 * (i / 16)) & 15) - 8.0) * scale;
    (0..32).map(number).collect()
}

/// A block of Q4_K whose scales and minima are those of the extremes of each group.
fn q4_k(x: &[f32]) -> Vec<u8> {
    let groups: Vec<&[f32]> = x.chunks(32).collect();
    let least: Vec<f32> = groups.iter().map(|x| -x.iter().fold(0f32, |least, x| least.min(*x))).collect();
    let spans = groups.iter().zip(&least).map(|(x, low)| x.iter().fold(0f32, |most, x| most.max(*x)) + low);
    let spans: Vec<f32> = spans.map(|span| span / 15.0).collect();
    let largest = |all: &[f32]| all.iter().fold(0f32, |most, x| most.max(*x));
    let units = [half::f16::from_f32(largest(&spans) / 63.0), half::f16::from_f32(largest(&least) / 63.0)];
    let [d, m] = units.map(half::f16::to_f32);
    let whole = |x: f32, unit: f32| if unit == 0.0 { 0 } else { (x / unit).round().min(63.0) as u8 };
    let u: Vec<u8> = spans.iter().map(|x| whole(*x, d)).collect();
    let v: Vec<u8> = least.iter().map(|x| whole(*x, m)).collect();
    let code = |i: usize| {
        let (scale, low) = (d * f32::from(u[i / 32]), m * f32::from(v[i / 32]));
        if scale == 0.0 { 0 } else { ((x[i] + low) / scale).round_ties_even().clamp(0.0, 15.0) as u8 }
    };
    let mut block: Vec<u8> = units.into_iter().flat_map(half::f16::to_le_bytes).collect();
    block.extend((0..4).map(|i| u[i] | u[4 + i] >> 4 << 6));
    block.extend((0..4).map(|i| v[i] | v[4 + i] >> 4 << 6));
    block.extend((0..4).map(|i| u[4 + i] & 15 | v[4 + i] << 4));
    block.extend((0..128).map(|i| code(i / 32 * 64 + i % 32) | code(i / 32 * 64 + 32 + i % 32) << 4));
    block
}

/// A block of Q6_K whose scales are those of the largest magnitude of each group.
fn q6_k(x: &[f32]) -> Vec<u8> {
    let largest = |x: &[f32]| x.iter().fold(0f32, |most, x| most.max(x.abs()));
    let d = half::f16::from_f32(largest(x) / 31.0 / 127.0);
    let unit = d.to_f32();
    let whole = |x: &[f32]| if unit == 0.0 { 0 } else { (largest(x) / 31.0 / unit).round() as i8 };
    let scales: Vec<i8> = x.chunks(16).map(whole).collect();
    let code = |i: usize| {
        let scale = unit * f32::from(scales[i / 16]);
        if scale == 0.0 { 0 } else { ((x[i] / scale).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8 }
    };
    let low = (0..128).map(|i| i / 64 * 128 + i % 64).map(|i| code(i) & 15 | code(64 + i) << 4);
    let high = (0..64).map(|i| i / 32 * 128 + i % 32);
    let high = high.map(|i| (0..4).fold(0, |byte, k| byte | code(i + 32 * k) >> 4 << (2 * k)));
    let scales = scales.iter().map(|scale| scale.cast_unsigned());
    low.chain(high).chain(scales).chain(d.to_le_bytes()).collect()
}

fn blocks_of(len: usize, numbers: &[f32], block: fn(&[f32]) -> Vec<u8>) -> Vec<u8> {
    numbers.chunks_exact(len).flat_map(block).collect()
}

/// Rows whose heads have pairs instead of halves.
fn paired(numbers: &[f32]) -> Vec<f32> {
    let from = |row: usize| row / HEAD * HEAD + row % 2 * HEAD / 2 + row % HEAD / 2;
    (0..ROWS).flat_map(|row| numbers[from(row) * COLS..(from(row) + 1) * COLS].to_vec()).collect()
}

/// Whether a tensor comes from blocks, and costs at most `share` of itself.
fn assert_blocks(report: &PackReport, name: &str, share: f64) {
    let row = report.tensors.iter().find(|row| row.name == name).unwrap();
    assert_eq!(row.predictor, "blocks", "{name}");
    let most = row.original_bytes as f64 * share;
    assert!(row.packed_bytes as f64 <= most, "{name}: {} bytes", row.packed_bytes);
}

#[test]
fn blocks_of_gguf_are_found_under_other_names_and_with_paired_rows() {
    let (first, second) = (numbers(1), numbers(2));
    let full = [ROWS as u64, COLS as u64];
    let base =
        [bf16("model.layers.0.q.weight", &full, &first), bf16("model.layers.0.v.weight", &full, &second)];
    let blocks = |numbers: &[f32], block: fn(&[f32]) -> Vec<u8>| -> Vec<u8> {
        numbers.chunks_exact(32).flat_map(block).collect()
    };
    let pairs = paired(&first);
    let tuned = [
        tensor("blk.0.attn_q.weight", "U8", &[ROWS as u64, 8 * 34], blocks(&pairs, q8_0)),
        tensor("blk.0.attn_v.weight", "U8", &[ROWS as u64, 8 * 18], blocks(&second, q4_0)),
    ];
    let report = packed_in_chunks(&tuned, &base);
    assert_blocks(&report, "blk.0.attn_q.weight", 0.0);
    assert_blocks(&report, "blk.0.attn_v.weight", 0.0);
    // What the blocks stand for.
    let codes = blocks(&pairs, q4_0);
    let restored: Vec<f32> = codes.chunks_exact(18).flat_map(of_q4_0).collect();
    let base = [tensor("blk.0.attn_q.weight", "U8", &[ROWS as u64, 8 * 18], codes)];
    let mut unpaired = vec![0.0; restored.len()];
    for (row, numbers) in restored.chunks_exact(COLS).enumerate() {
        let to = row / HEAD * HEAD + row % 2 * HEAD / 2 + row % HEAD / 2;
        unpaired[to * COLS..(to + 1) * COLS].copy_from_slice(numbers);
    }
    assert_blocks(
        &packed_in_chunks(&[bf16("model.q.weight", &full, &unpaired)], &base),
        "model.q.weight",
        0.0,
    );
    // Blocks of a fine-tune are predicted from the base, too.
    let mut random = Random::new(9);
    let trained: Vec<f32> = second.iter().map(|x| if random.below(8) == 0 { x * 1.02 } else { *x }).collect();
    let base = [bf16("model.v.weight", &full, &second)];
    let tuned = [tensor("blk.0.attn_v.weight", "U8", &[ROWS as u64, 8 * 34], blocks(&trained, q8_0))];
    assert_blocks(&packed_in_chunks(&tuned, &base), "blk.0.attn_v.weight", 0.35);
}

#[test]
fn scales_follow_from_the_numbers_of_their_groups() {
    // Each block has a size of its own.
    let size = |place: usize| 2f32.powi(i32::from((place / 32 * 7 % 9) as u8));
    let weights: Vec<f32> = numbers(3).iter().enumerate().map(|(i, x)| x * size(i)).collect();
    let full = [ROWS as u64, COLS as u64];
    let base = [bf16("m.q.weight", &full, &weights)];
    let largest = |line: &[f32]| line.iter().fold(0f32, |most, x| most.max(x.abs()));
    let f32s = |numbers: Vec<f32>| numbers.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let of_rows = weights.chunks(COLS).map(|row| largest(row) / 127.0).collect();
    let of_blocks = weights.chunks(64).map(largest).collect();
    let exponents = weights.chunks(32).map(|block| {
        let largest = largest(block);
        if largest == 0.0 { 0 } else { (largest.log2().floor() as i32 + 125) as u8 }
    });
    // The matrix of codes is transposed, and has groups of 32 rows.
    let span = |(group, col): (usize, usize)| {
        let line = &weights[col * COLS + 32 * group..col * COLS + 32 * (group + 1)];
        let (least, most) = line.iter().fold((0f32, 0f32), |(least, most), x| (least.min(*x), most.max(*x)));
        f16((most - least) / 15.0)
    };
    let spans = (0..COLS / 32).flat_map(|group| (0..ROWS).map(move |col| (group, col)));
    let spans = spans.flat_map(span).collect();
    let tuned = [
        tensor("m.q.weight_scale", "F32", &[ROWS as u64, 1], f32s(of_rows)),
        tensor("m.q.weight.absmax", "F32", &[(ROWS * COLS / 64) as u64], f32s(of_blocks)),
        tensor("m.q.weight_scales", "U8", &[ROWS as u64, (COLS / 32) as u64], exponents.collect()),
        tensor("m.q.scales", "F16", &[(COLS / 32) as u64, ROWS as u64], spans),
    ];
    let report = packed_in_chunks(&tuned, &base);
    for tensor in &tuned {
        // Only the scales of zeros may differ.
        assert_blocks(&report, &tensor.name, 0.15);
    }
}

#[test]
fn codes_of_k_quants_follow_from_numbers_and_stored_scales() {
    let (first, second) = (numbers(4), numbers(5));
    let full = [ROWS as u64, COLS as u64];
    let base =
        [bf16("model.layers.0.q.weight", &full, &first), bf16("model.layers.0.v.weight", &full, &second)];
    let pairs = paired(&first);
    let (of_q, of_v) = (blocks_of(256, &pairs, q4_k), blocks_of(256, &second, q6_k));
    let tuned = [
        tensor("blk.0.attn_q.weight", "U8", &[ROWS as u64, 144], of_q.clone()),
        tensor("blk.0.attn_v.weight", "U8", &[ROWS as u64, 210], of_v.clone()),
    ];
    // What is left are the scales.
    let report = packed_in_chunks(&tuned, &base);
    assert_blocks(&report, "blk.0.attn_q.weight", 0.12);
    assert_blocks(&report, "blk.0.attn_v.weight", 0.11);
    // Codes that somebody changed are a residual.
    let mut changed = of_v.clone();
    changed.iter_mut().step_by(211).for_each(|byte| *byte ^= 1);
    let tuned = [tensor("blk.0.attn_v.weight", "U8", &[ROWS as u64, 210], changed)];
    assert_blocks(&packed_in_chunks(&tuned, &base), "blk.0.attn_v.weight", 0.14);
    // Numbers that were blocks.
    let base = [tensor("blk.0.attn_v.weight", "U8", &[ROWS as u64, 210], of_v.clone())];
    let mut restored = vec![0.0; second.len()];
    dequantise(BlockKind::Q6K, &of_v, &mut restored).unwrap();
    assert_blocks(
        &packed_in_chunks(&[bf16("model.v.weight", &full, &restored)], &base),
        "model.v.weight",
        0.0,
    );
}

#[test]
fn experts_that_gguf_stacks_come_from_tensors_of_their_own_and_back() {
    let experts: Vec<Vec<f32>> = (10..16).map(numbers).collect();
    let full = [ROWS as u64, COLS as u64];
    let name = |i: usize| format!("model.layers.0.mlp.experts.{i}.up_proj.weight");
    let own: Vec<Tensor> = experts.iter().enumerate().map(|(i, x)| bf16(&name(i), &full, x)).collect();
    let stack = |len, block: fn(&[f32]) -> Vec<u8>| -> Vec<u8> {
        experts.iter().flat_map(|x| blocks_of(len, x, block)).collect()
    };
    let of_q8: Vec<u8> = stack(32, q8_0);
    let stacked = |bytes, row| tensor("blk.0.ffn_up_exps.weight", "U8", &[6, ROWS as u64, row], bytes);
    assert_blocks(&packed_in_chunks(&[stacked(of_q8, 8 * 34)], &own), "blk.0.ffn_up_exps.weight", 0.0);
    let of_q4 = stack(256, q4_k);
    let report = packed_in_chunks(&[stacked(of_q4.clone(), 144)], &own);
    assert_blocks(&report, "blk.0.ffn_up_exps.weight", 0.12);
    // And back.
    let mut restored = vec![0.0; 6 * ROWS * COLS];
    dequantise(BlockKind::Q4K, &of_q4, &mut restored).unwrap();
    let tuned: Vec<Tensor> =
        restored.chunks(ROWS * COLS).enumerate().map(|(i, x)| bf16(&name(i), &full, x)).collect();
    let report = packed_in_chunks(&tuned, &[stacked(of_q4, 144)]);
    (0..6).for_each(|i| assert_blocks(&report, &name(i), 0.0));
}
