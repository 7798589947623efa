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

const ROWS: usize = 96;
const COLS: usize = 256;
/// Rows of a head.
const HEAD: usize = 16;

/// Numbers that BF16 has. Some are zero, as are those of a row.
fn numbers(seed: u64) -> Vec<f32> {
    let bytes = bf16_bytes(&Random::new(seed).weights(ROWS * COLS));
    let mut numbers: Vec<f32> =
        bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
    numbers[3 * COLS..4 * COLS].fill(0.0);
    numbers[7] = -0.0;
    numbers
}

fn bf16(name: &str, shape: &[u64], numbers: &[f32]) -> Tensor {
    let bytes = numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes());
    tensor(name, "BF16", shape, bytes.collect())
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

/// Rows whose heads have pairs instead of halves.
fn paired(numbers: &[f32]) -> Vec<f32> {
    let from = |row: usize| row / HEAD * HEAD + row % 2 * HEAD / 2 + row % HEAD / 2;
    (0..ROWS).flat_map(|row| numbers[from(row) * COLS..(from(row) + 1) * COLS].to_vec()).collect()
}

/// Packs with small and large chunks, restores, reads parts, and returns the report.
fn packed(tuned: &[Tensor], base: &[Tensor]) -> PackReport {
    let (tuned, base) = (safetensors(tuned), safetensors(base));
    for chunk_log2 in [10, 17] {
        let (container, report) = pack_with(&tuned, &[&base], &options().with_chunk_log2(chunk_log2));
        assert!(unpack(&container, &[&base]).unwrap() == tuned);
        assert_parts(&container, &base, &tuned);
        if chunk_log2 == 17 {
            return report;
        }
    }
    unreachable!("the last size of chunks returns")
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
    let report = packed(&tuned, &base);
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
    assert_blocks(&packed(&[bf16("model.q.weight", &full, &unpaired)], &base), "model.q.weight", 0.0);
    // Blocks of a fine-tune are predicted from the base, too.
    let mut random = Random::new(9);
    let trained: Vec<f32> = second.iter().map(|x| if random.below(8) == 0 { x * 1.02 } else { *x }).collect();
    let base = [bf16("model.v.weight", &full, &second)];
    let tuned = [tensor("blk.0.attn_v.weight", "U8", &[ROWS as u64, 8 * 34], blocks(&trained, q8_0))];
    assert_blocks(&packed(&tuned, &base), "blk.0.attn_v.weight", 0.35);
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
    let report = packed(&tuned, &base);
    for tensor in &tuned {
        // Only the scales of zeros may differ.
        assert_blocks(&report, &tensor.name, 0.15);
    }
}
