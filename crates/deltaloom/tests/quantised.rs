//! Codes of what a base holds, numbers of codes that a base holds, rows and columns that are
//! multiples of others, and words of 4-bit codes.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers of tests"
)]

mod common;

use common::*;
use deltaloom::{PackReport, Texts};

const ROWS: usize = 128;
const COLS: usize = 256;
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Numbers that BF16 has, and so does F32.
fn numbers(seed: u64) -> Vec<f32> {
    singles_of(&bf16_bytes(&Random::new(seed).weights(ROWS * COLS)))
}

fn f16(name: &str, shape: &[u64], numbers: &[f32]) -> Tensor {
    let bytes = numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes());
    tensor(name, "F16", shape, bytes.collect())
}

fn f32(name: &str, shape: &[u64], numbers: &[f32]) -> Tensor {
    tensor(name, "F32", shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// The greatest magnitude of each group of `rows` x `cols`.
fn largest(numbers: &[f32], (rows, cols): (usize, usize)) -> Vec<f32> {
    let mut out = vec![0f32; ROWS.div_ceil(rows) * COLS.div_ceil(cols)];
    for (place, x) in numbers.iter().enumerate() {
        let group = place / COLS / rows * COLS.div_ceil(cols) + place % COLS / cols;
        out[group] = out[group].max(x.abs());
    }
    out
}

fn of_group(groups: &[f32], (rows, cols): (usize, usize), place: usize) -> f32 {
    groups[place / COLS / rows * COLS.div_ceil(cols) + place % COLS / cols]
}

/// Whether a tensor is quantised, and costs at most `share` of itself.
fn assert_quantised(report: &PackReport, name: &str, share: f64) {
    let row = report.tensors.iter().find(|row| row.name == name).unwrap();
    assert_eq!(row.predictor, "quantised", "{name}");
    let most = row.original_bytes as f64 * share + 64.0;
    assert!((row.packed_bytes as f64) < most, "{name}: {} bytes", row.packed_bytes);
}

fn e4m3_value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    if exponent == 0 { mantissa / 512.0 } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) }
}

fn e4m3(x: f32) -> u8 {
    let distance = |code: &u8| (e4m3_value(*code) - x.abs()).abs();
    let nearest =
        (0..127).min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))).unwrap();
    if x.is_sign_negative() { nearest | 0x80 } else { nearest }
}

#[test]
fn eight_bit_floats_with_scales_of_blocks_rows_and_tensors() {
    let weights = numbers(1);
    for (size, shape) in [
        ((32, 32), vec![4, 8]),
        ((1, COLS), vec![ROWS as u64, 1]),
        ((ROWS, COLS), vec![]),
        ((ROWS, COLS), vec![1]),
    ] {
        let scales: Vec<f32> = largest(&weights, size).iter().map(|x| x / 448.0).collect();
        let scale = |place| of_group(&scales, size, place);
        let codes: Vec<u8> = weights.iter().enumerate().map(|(i, x)| e4m3(x / scale(i))).collect();
        let value = |(i, code): (usize, &u8)| {
            let value = e4m3_value(code & 127) * scale(i);
            if code & 128 == 0 { value } else { -value }
        };
        let restored: Vec<f32> = codes.iter().enumerate().map(value).collect();
        let full = [ROWS as u64, COLS as u64];
        let quantised =
            [tensor("m.q.weight", "F8_E4M3", &full, codes), f32("m.q.weight_scale_inv", &shape, &scales)];
        let plain = |numbers: &[f32]| [bf16("m.q.weight", &full, numbers)];
        assert_quantised(&packed_in_chunks(&quantised, &plain(&weights)), "m.q.weight", 0.01);
        assert_quantised(&packed_in_chunks(&plain(&restored), &quantised), "m.q.weight", 0.0);
        // Trained after that.
        let mut random = Random::new(9);
        let trained: Vec<f32> =
            restored.iter().map(|x| if random.below(4) == 0 { x * 1.006 } else { *x }).collect();
        assert_quantised(&packed_in_chunks(&plain(&trained), &quantised), "m.q.weight", 0.3);
    }
}

/// Eight codes of 4 bits in each word, along rows.
fn words(codes: &[u8], order: [usize; 8]) -> Vec<u8> {
    let word =
        |codes: &[u8]| (0..8).fold(0u32, |word, field| word | u32::from(codes[order[field]]) << (4 * field));
    codes.chunks_exact(8).flat_map(|codes| word(codes).to_le_bytes()).collect()
}

fn transposed(codes: &[u8], cols: usize) -> Vec<u8> {
    (0..cols).flat_map(|col| codes.iter().skip(col).step_by(cols).copied()).collect()
}

#[test]
fn four_bit_integers_with_zeros_in_the_layouts_of_gptq_and_awq() {
    const IN_ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
    const INTERLEAVED: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    // The matrix of codes is [inputs, outputs], and that of numbers [outputs, inputs].
    let weights: Vec<f32> = numbers(2).iter().map(|x| half::f16::from_f32(*x).to_f32()).collect();
    let size = (32, 1);
    let scales: Vec<f32> =
        largest(&weights, size).iter().map(|x| half::f16::from_f32(x / 7.0).to_f32()).collect();
    let zeros: Vec<u8> = (0..scales.len()).map(|i| 7 + (i % 3) as u8).collect();
    let group = |place: usize| place / COLS / size.0 * COLS + place % COLS;
    let code = |(i, x): (usize, &f32)| {
        ((x / scales[group(i)]).round_ties_even() + f32::from(zeros[group(i)])).clamp(0.0, 15.0) as u8
    };
    let codes: Vec<u8> = weights.iter().enumerate().map(code).collect();
    let value = |(i, code): (usize, &u8)| (f32::from(*code) - f32::from(zeros[group(i)])) * scales[group(i)];
    let restored: Vec<f32> = codes.iter().enumerate().map(value).collect();
    let turned = |numbers: &[f32]| -> Vec<f32> {
        (0..COLS)
            .flat_map(|col| numbers.iter().skip(col).step_by(COLS).copied().collect::<Vec<_>>())
            .collect()
    };
    let plain = |numbers: &[f32]| [f16("l.0.q.weight", &[COLS as u64, ROWS as u64], &turned(numbers))];
    let (inputs, outputs) = (ROWS as u64, COLS as u64);
    let file = |qweight: Tensor, zeros: Vec<u8>| {
        [
            qweight,
            tensor("l.0.q.qzeros", "I32", &[inputs / 32, outputs / 8], zeros),
            f16("l.0.q.scales", &[inputs / 32, outputs], &scales),
        ]
    };
    // Words of GPTQ have codes of a column, and zeros are stored minus 1.
    let columns: Vec<u8> =
        codes.chunks_exact(8 * COLS).flat_map(|rows| words(&transposed(rows, COLS), IN_ORDER)).collect();
    let less: Vec<u8> = zeros.iter().map(|zero| zero - 1).collect();
    let gptq = file(tensor("l.0.q.qweight", "I32", &[inputs / 8, outputs], columns), words(&less, IN_ORDER));
    let awq = file(
        tensor("l.0.q.qweight", "I32", &[inputs, outputs / 8], words(&codes, INTERLEAVED)),
        words(&zeros, INTERLEAVED),
    );
    for quantised in [gptq, awq] {
        assert_quantised(&packed_in_chunks(&plain(&restored), &quantised), "l.0.q.weight", 0.0);
        assert_quantised(&packed_in_chunks(&quantised, &plain(&weights)), "l.0.q.qweight", 0.0);
    }
}

#[test]
fn floats_of_four_bits_with_powers_of_two() {
    let weights = numbers(3);
    let size = (1, 32);
    let powers: Vec<u8> =
        largest(&weights, size).iter().map(|x| (127.0 + x.log2().floor() - 2.0) as u8).collect();
    let power = |place: usize| 2f32.powi(i32::from(powers[place / 32]) - 127);
    let code = |(i, x): (usize, &f32)| {
        let size = (x / power(i)).abs();
        let code = (0..7).filter(|code| (E2M1[*code] + E2M1[code + 1]) / 2.0 < size).count() as u8;
        if x.is_sign_negative() { code | 8 } else { code }
    };
    let codes: Vec<u8> = weights.iter().enumerate().map(code).collect();
    let value = |(i, code): (usize, &u8)| {
        let value = E2M1[usize::from(code & 7)] * power(i);
        if code & 8 == 0 { value } else { -value }
    };
    let restored: Vec<f32> = codes.iter().enumerate().map(value).collect();
    let pairs: Vec<u8> = codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect();
    let (rows, cols) = (ROWS as u64, COLS as u64);
    let blocks = [
        tensor("e.up_blocks", "U8", &[2, rows / 2, cols / 32, 16], pairs),
        tensor("e.up_scales", "U8", &[2, rows / 2, cols / 32], powers),
    ];
    assert_quantised(
        &packed_in_chunks(&[bf16("e.up", &[2, rows / 2, cols], &restored)], &blocks),
        "e.up",
        0.0,
    );
    // Each matrix transposed.
    let matrix = |numbers: &[f32]| -> Vec<f32> {
        (0..COLS)
            .flat_map(|col| numbers.iter().skip(col).step_by(COLS).copied().collect::<Vec<_>>())
            .collect()
    };
    let turned: Vec<f32> = restored.chunks_exact(ROWS * COLS / 2).flat_map(matrix).collect();
    assert_quantised(&packed_in_chunks(&[bf16("e.up", &[2, cols, rows / 2], &turned)], &blocks), "e.up", 0.0);
    assert_quantised(
        &packed_in_chunks(&blocks, &[bf16("e.up", &[2, rows / 2, cols], &weights)]),
        "e.up_blocks",
        0.02,
    );
}

#[test]
fn rows_and_columns_may_have_numbers_of_their_own() {
    let weights = numbers(4);
    let mut random = Random::new(5);
    let factors: Vec<f32> = (0..COLS).map(|_| 0.5 + random.below(1000) as f32 / 500.0).collect();
    let shape = [ROWS as u64, COLS as u64];
    let base = [bf16("a.weight", &shape, &weights)];
    for by_rows in [true, false] {
        let factor = |place: usize| factors[if by_rows { place / COLS } else { place % COLS }];
        let scaled: Vec<f32> = weights.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
        assert_quantised(&packed_in_chunks(&[bf16("a.weight", &shape, &scaled)], &base), "a.weight", 0.0);
        let trained: Vec<f32> =
            scaled.iter().map(|x| if random.below(4) == 0 { x * 1.006 } else { *x }).collect();
        assert_quantised(&packed_in_chunks(&[bf16("a.weight", &shape, &trained)], &base), "a.weight", 0.35);
    }
}

#[test]
fn words_of_codes_are_coded_code_by_code() {
    let mut random = Random::new(6);
    let codes: Vec<u8> = (0..ROWS * COLS).map(|_| random.below(16) as u8).collect();
    let changed: Vec<u8> =
        codes.iter().map(|code| if random.below(50) == 0 { (code + 1).min(15) } else { *code }).collect();
    let pairs =
        |codes: &[u8]| -> Vec<u8> { codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect() };
    for (dtype, words) in [("U8", 2), ("I8", 2), ("U32", 8), ("I32", 8)] {
        let file = |codes: &[u8]| [tensor("w", dtype, &[ROWS as u64, (COLS / words) as u64], pairs(codes))];
        let (tuned, base) = (safetensors(&file(&changed)), safetensors(&file(&codes)));
        // Only files that are version 4 anyway use it, such as those that name their base.
        let named = options().with_identity(Some(Texts::default()));
        for options in [named.clone(), named.with_chunk_log2(10)] {
            let (container, report) = pack_with(&tuned, &[&base], &options);
            assert!(unpack(&container, &[&base]).unwrap() == tuned);
            // A code changes with a probability of 1/50: 0.14 bits each, and 4 are stored.
            let bits = report.tensors[0].packed_bytes as f64 * 8.0 / codes.len() as f64;
            assert!(bits < 0.2, "{dtype}: {bits} bits a code");
        }
    }
}

#[test]
fn rows_of_codes_have_their_groups_by_an_index() {
    const GROUP: usize = 32;
    let weights: Vec<f32> = numbers(12).iter().map(|x| half::f16::from_f32(*x).to_f32()).collect();
    let index: Vec<usize> = (0..COLS).map(|col| (col * 7 + 3) % COLS / GROUP).collect();
    let scale = |(group, row): (usize, usize)| {
        let members = (0..COLS).filter(|col| index[*col] == group);
        let largest = members.map(|col| weights[row * COLS + col].abs()).fold(0f32, f32::max);
        half::f16::from_f32(largest / 7.0).to_f32()
    };
    let places = (0..COLS / GROUP).flat_map(|group| (0..ROWS).map(move |row| (group, row)));
    let scales: Vec<f32> = places.map(scale).collect();
    let code = |(i, x): (usize, &f32)| {
        let scale = scales[index[i % COLS] * ROWS + i / COLS];
        ((x / scale).round_ties_even() + 8.0).clamp(0.0, 15.0) as u8
    };
    let codes: Vec<u8> = weights.iter().enumerate().map(code).collect();
    let value =
        |(i, code): (usize, &u8)| (f32::from(*code) - 8.0) * scales[index[i % COLS] * ROWS + i / COLS];
    let restored: Vec<f32> = codes.iter().enumerate().map(value).collect();
    let word = |place: usize| {
        let (row, first) = (place % ROWS, place / ROWS * 8);
        (0..8).fold(0u32, |word, j| word | u32::from(codes[row * COLS + first + j]) << (4 * j)).to_le_bytes()
    };
    let indices = index.iter().flat_map(|group| (*group as u32).to_le_bytes()).collect();
    let quantised = [
        tensor(
            "m.q.qweight",
            "I32",
            &[COLS as u64 / 8, ROWS as u64],
            (0..COLS / 8 * ROWS).flat_map(word).collect(),
        ),
        f16("m.q.scales", &[(COLS / GROUP) as u64, ROWS as u64], &scales),
        tensor("m.q.g_idx", "I32", &[COLS as u64], indices),
    ];
    let plain = |numbers: &[f32]| [f16("m.q.weight", &[ROWS as u64, COLS as u64], numbers)];
    assert_quantised(&packed_in_chunks(&quantised, &plain(&weights)), "m.q.qweight", 0.01);
    assert_quantised(&packed_in_chunks(&plain(&restored), &quantised), "m.q.weight", 0.0);
}

/// The levels of NF4.
const NF4: [f32; 16] = [
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

fn nearest(rising: &[f32], x: f32) -> u8 {
    rising.windows(2).filter(|pair| (pair[0] + pair[1]) / 2.0 < x).count() as u8
}

#[test]
fn nested_scales_of_bitsandbytes_have_a_table_scales_and_an_offset() {
    let weights = numbers(70);
    let scales = largest(&weights, (1, 64));
    let offset = scales.iter().sum::<f32>() / scales.len() as f32;
    let apart: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
    let outer: Vec<f32> =
        apart.chunks(256).map(|all| all.iter().fold(0f32, |most, x| most.max(x.abs()))).collect();
    let table: Vec<f32> = (0..=255u8).map(|i| f32::from(i) / 127.5 - 1.0).collect();
    let inner: Vec<u8> = (0..scales.len()).map(|i| nearest(&table, apart[i] / outer[i / 256])).collect();
    let codes: Vec<u8> = (0..weights.len())
        .map(|i| nearest(&NF4, weights[i] * (1.0 / of_group(&scales, (1, 64), i))))
        .collect();
    let words = codes.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let state =
        format!("{{\"quant_type\": \"nf4\", \"blocksize\": 64, \"nested_offset\": {}}}", f64::from(offset));
    let name = "layers.0.q_proj.weight";
    let of = |part: &str| format!("{name}.{part}");
    let four_bits = [
        tensor(name, "U8", &[(ROWS * COLS / 2) as u64, 1], words),
        tensor(&of("absmax"), "U8", &[scales.len() as u64], inner.clone()),
        f32(&of("nested_absmax"), &[outer.len() as u64], &outer),
        f32(&of("nested_quant_map"), &[256], &table),
        f32(&of("quant_map"), &[16], &NF4),
        tensor(&of("quant_state.bitsandbytes__nf4"), "U8", &[state.len() as u64], state.into_bytes()),
    ];
    let full = [ROWS as u64, COLS as u64];
    assert_quantised(&packed_in_chunks(&four_bits, &[bf16(name, &full, &weights)]), name, 0.0);
    let restored: Vec<f32> = (0..weights.len())
        .map(|i| {
            let scale = table[usize::from(inner[i / 64])] * outer[i / 64 / 256] + offset;
            NF4[usize::from(codes[i])] * scale
        })
        .collect();
    assert_quantised(&packed_in_chunks(&[bf16(name, &full, &restored)], &four_bits), name, 0.0);
}
