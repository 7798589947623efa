//! Golden cases for blocks of 256 numbers, and for scales that are codes themselves or go by an
//! index.
//!
//! Like all cases, they never change once their container is in the repository.

use deltaloom::checkpoint::gguf::{BlockKind, dequantise};

use super::cases::Case;
use super::numbers::{Random, bf16s, f16s, f32s};
use crate::files::Tensor;

/// Rows of a tensor, and columns.
const ROWS: usize = 4;
const COLS: usize = 256;

/// The kinds, where their F16 numbers are, and the bytes that must not be 0, so that no scale is.
const KINDS: [(BlockKind, &[usize], usize); 7] = [
    (BlockKind::Q2K, &[80, 82], 16),
    (BlockKind::Q3K, &[108], 0),
    (BlockKind::Q4K, &[0, 2], 0),
    (BlockKind::Q5K, &[0, 2], 0),
    (BlockKind::Q6K, &[208], 0),
    (BlockKind::Iq4Nl, &[0], 0),
    (BlockKind::Iq4Xs, &[0], 0),
];

/// The kinds of K-quants and of unequally spaced codes, each from numbers and back.
pub(super) fn k_quants() -> Case {
    let mut random = Random::new(51);
    let (mut base, mut original) = (Vec::new(), Vec::new());
    for (i, (kind, halves, uneven)) in KINDS.into_iter().enumerate() {
        for (part, to_codes) in [("up", true), ("down", false)] {
            let blocks = blocks(&mut random, kind, halves, uneven);
            let mut numbers = vec![0.0; ROWS * COLS];
            // The sizes fit, since both are those of whole blocks.
            let _whole = dequantise(kind, &blocks, &mut numbers);
            let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
            let numbers = Tensor::new(
                &format!("model.layers.{i}.mlp.{part}_proj.weight"),
                "BF16",
                &[ROWS, COLS],
                bf16s(&numbers),
            );
            let shape = [ROWS, blocks.len() / ROWS];
            let blocks = Tensor::new(&format!("blk.{i}.ffn_{part}.weight"), "U8", &shape, blocks);
            let (before, after) = if to_codes { (numbers, blocks) } else { (blocks, numbers) };
            base.push(before);
            original.push(after);
        }
    }
    Case { chunk_log2: 10, ..Case::new("k_quants", "blocks of 256 numbers of GGUF", &original, &[&base]) }
}

/// Random blocks with small F16 numbers.
fn blocks(random: &mut Random, kind: BlockKind, halves: &[usize], uneven: usize) -> Vec<u8> {
    let mut blocks = random.bytes(ROWS * COLS / kind.numbers() * kind.bytes());
    for block in blocks.chunks_mut(kind.bytes()) {
        block[..uneven].iter_mut().for_each(|byte| *byte |= 1);
        for at in halves {
            let number = f16s(&[random.unit() / 4096.0 + 1.0 / 4096.0]);
            block[*at..*at + 2].copy_from_slice(&number);
        }
    }
    blocks
}

/// 4-bit floats whose scales are codes with a table, scales and an offset, and integers whose rows
/// have their scales by an index; each from numbers and back.
pub(super) fn nested() -> Case {
    let mut random = Random::new(52);
    let (mut base, mut original) = (Vec::new(), Vec::new());
    for (i, to_codes) in [(0, true), (1, false)] {
        let (codes, numbers) = four_bits(&mut random, &format!("layers.{i}.q_proj.weight"));
        let (words, weights) = indexed(&mut random, &format!("m.{i}.q"));
        let (before, after) = if to_codes { (&mut original, &mut base) } else { (&mut base, &mut original) };
        before.extend(codes.into_iter().chain(words));
        after.extend([numbers, weights]);
    }
    let covers = "codes with nested scales, and with an index";
    Case { chunk_log2: 10, ..Case::new("nested", covers, &original, &[&base]) }
}

/// Tensors as bitsandbytes stores them, and the numbers that they stand for.
fn four_bits(random: &mut Random, name: &str) -> (Vec<Tensor>, Tensor) {
    const LEVELS: [f32; 16] = [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ];
    const OFFSET: f32 = 0.0625;
    let outer = 0.03125f32;
    let table: Vec<f32> = (0..=255u8).map(|i| f32::from(i) / 127.5 - 1.0).collect();
    let inner = random.bytes(32);
    let codes: Vec<u8> = random.bytes(2048).iter().map(|byte| byte & 15).collect();
    let number = |(i, code): (usize, &u8)| {
        let scale = table[usize::from(inner[i / 64])] * outer + OFFSET;
        f64::from(LEVELS[usize::from(*code)] * scale)
    };
    let numbers: Vec<f64> = codes.iter().enumerate().map(number).collect();
    let singles = |values: &[f32]| f32s(&values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>());
    let of = |part: &str| format!("{name}.{part}");
    let words = codes.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let state = format!("{{\"quant_type\": \"nf4\", \"blocksize\": 64, \"nested_offset\": {OFFSET}}}");
    let stored = vec![
        Tensor::new(name, "U8", &[1024, 1], words),
        Tensor::new(&of("absmax"), "U8", &[32], inner.clone()),
        Tensor::new(&of("nested_absmax"), "F32", &[1], singles(&[outer])),
        Tensor::new(&of("nested_quant_map"), "F32", &[256], singles(&table)),
        Tensor::new(&of("quant_map"), "F32", &[16], singles(&LEVELS)),
        Tensor::new(&of("quant_state.bitsandbytes__nf4"), "U8", &[state.len()], state.into_bytes()),
    ];
    (stored, Tensor::new(name, "BF16", &[16, 128], bf16s(&numbers)))
}

/// Words in columns with scales of groups of 32 rows that an index names, and their numbers.
fn indexed(random: &mut Random, name: &str) -> (Vec<Tensor>, Tensor) {
    let (rows, cols, group) = (16usize, 128usize, 32usize);
    let index: Vec<usize> = (0..cols).map(|col| (col * 7 + 3) % cols / group).collect();
    let scales: Vec<f64> = (0..4 * rows).map(|_| (64.0 + (64.0 * random.unit()).floor()) / 65536.0).collect();
    let codes: Vec<u8> = random.bytes(rows * cols).iter().map(|byte| byte & 15).collect();
    let number = |i: usize| (f64::from(codes[i]) - 8.0) * scales[index[i % cols] * rows + i / cols];
    let word = |place: usize| {
        let (row, first) = (place % rows, place / rows * 8);
        (0..8).fold(0u32, |word, j| word | u32::from(codes[row * cols + first + j]) << (4 * j)).to_le_bytes()
    };
    let groups = index.iter().flat_map(|group| [group.to_le_bytes()[0], 0, 0, 0]).collect();
    let stored = vec![
        Tensor::new(&format!("{name}.qweight"), "I32", &[16, 16], (0..256).flat_map(word).collect()),
        Tensor::new(&format!("{name}.scales"), "F16", &[4, 16], f16s(&scales)),
        Tensor::new(&format!("{name}.g_idx"), "I32", &[128], groups),
    ];
    let numbers: Vec<f64> = (0..rows * cols).map(number).collect();
    (stored, Tensor::new(&format!("{name}.weight"), "F16", &[rows, cols], f16s(&numbers)))
}
