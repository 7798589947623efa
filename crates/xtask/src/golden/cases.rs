//! Contents of the golden containers: each case is one checkpoint and the bases it is packed
//! against.
//!
//! A case never changes once its container is in the repository; new ones are added.

use deltaloom::Preset;
use half::f16;

use super::computed;
use super::numbers::{Random, bf16s, f8_e4m3s, f8_e5m2s, f16s, f32s, f64s, i8s, integers};
use super::said::Said;
use crate::files::{Tensor, safetensors, with_header};

/// One checkpoint.
pub(crate) enum Input {
    File(Vec<u8>),
    /// Files by their relative path.
    Directory(Vec<(&'static str, Vec<u8>)>),
}

/// A golden container to make.
pub(crate) struct Case {
    pub(super) name: &'static str,
    /// What it covers.
    pub(super) covers: &'static str,
    pub(super) preset: Preset,
    pub(super) chunk_log2: u8,
    pub(super) original: Input,
    pub(super) bases: Vec<Input>,
    /// Whether the bases are the steps before it, newest first.
    pub(super) has_history: bool,
    /// What the container says about itself, which is nothing in most cases.
    pub(super) said: Option<Said>,
}

impl Case {
    pub(super) fn new(
        name: &'static str,
        covers: &'static str,
        original: &[Tensor],
        bases: &[&[Tensor]],
    ) -> Self {
        let file = |tensors: &[Tensor]| Input::File(safetensors(tensors));
        Self {
            name,
            covers,
            preset: Preset::Default,
            chunk_log2: 17,
            original: file(original),
            bases: bases.iter().map(|tensors| file(tensors)).collect(),
            has_history: false,
            said: None,
        }
    }
}

/// The cases of version 1, in the order in which they were added.
pub(super) fn all() -> Vec<Case> {
    vec![
        scales(),
        sparse(),
        lanes(),
        float_deltas(),
        integer_deltas(),
        stand_alone(),
        derived(),
        renamed(),
        chunked(),
        edges(),
        empty(),
        shards(),
        two_bases(),
    ]
}

/// Cases of format version 2, in the order in which they were added.
pub(super) fn since_2() -> Vec<Case> {
    let mut cases = computed::all();
    cases.extend([mixed(), grids(), training_state(), step_of_adam()]);
    cases
}

fn mixed() -> Case {
    let mut random = Random::new(13);
    let (rows, cols) = (64, 48);
    let base = random.normals(rows * cols, 0.02);
    let factors = random.normals(rows + cols, 1.0);
    // Steps of rank one, large enough that mixed contexts save more than their overhead in a small
    // tensor.
    let step = |i: usize| 4e-4 * factors[i / cols] * factors[rows + i % cols];
    let tuned: Vec<f64> =
        base.iter().enumerate().map(|(i, value)| value + step(i) + 2e-5 * random.normal()).collect();
    let file = |v: &[f64]| {
        #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
        let integers_of: Vec<i64> = v.iter().map(|value| (value * 1e5) as i64).collect();
        [
            Tensor::new("bf16", "BF16", &[rows, cols], bf16s(v)),
            Tensor::new("f32", "F32", &[rows, cols], f32s(v)),
            Tensor::new("i16", "I16", &[rows * cols], integers(&integers_of, 2)),
        ]
    };
    Case {
        preset: Preset::Max,
        ..Case::new(
            "mixed",
            "mixed contexts and foreseen steps, BF16 and F32",
            &file(&tuned),
            &[&file(&base)],
        )
    }
}

/// Adds a normal step to each value, of `step` times its size plus `floor`.
fn moved(random: &mut Random, values: &[f64], step: f64, floor: f64) -> Vec<f64> {
    let moves = |value: &f64| value + random.normal() * (value.abs() * step + floor);
    values.iter().map(moves).collect()
}

fn scales() -> Case {
    let mut random = Random::new(1);
    let (rows, cols) = (48, 44);
    let base = random.normals(rows * cols, 0.02);
    let factors: Vec<f64> = (0..rows + cols).map(|_| [0.25, 1.0, 4.0, 16.0][random.index(4)]).collect();
    let step = |i: usize| 2e-5 * factors[i / cols] * factors[rows + i % cols];
    let tuned: Vec<f64> =
        base.iter().enumerate().map(|(i, value)| value + random.normal() * step(i)).collect();
    let tensor = |values: &[f64]| Tensor::new("w", "BF16", &[rows, cols], bf16s(values));
    Case::new("scales", "ulp with row and column scales, BF16", &[tensor(&tuned)], &[&[tensor(&base)]])
}

fn sparse() -> Case {
    let mut random = Random::new(2);
    let base = random.normals(48 * 40, 0.02);
    // Two rows and a few other elements, as in the embedding of rare words.
    let mut tuned = base.clone();
    for i in (11 * 40..12 * 40).chain(30 * 40..31 * 40).chain([3, 700, 1800]) {
        tuned[i] *= 1.0 + 0.01 * random.normal();
    }
    let tensor = |values: &[f64]| Tensor::new("w", "BF16", &[48, 40], bf16s(values));
    Case::new("sparse", "sparse, BF16", &[tensor(&tuned)], &[&[tensor(&base)]])
}

fn lanes() -> Case {
    let mut random = Random::new(3);
    let (small, medium, large) =
        (random.normals(400, 0.02), random.normals(4100, 1.0), random.normals(5400, 0.02));
    let base = [
        Tensor::new("one", "F32", &[400], f32s(&small)),
        Tensor::new("wide", "F8_E5M2", &[4100], f8_e5m2s(&medium)),
        Tensor::new("two_wide", "F32", &[5400], f32s(&large)),
    ];
    let tuned = [
        Tensor::new("one", "F32", &[400], f32s(&moved(&mut random, &small, 1e-4, 0.0))),
        Tensor::new("wide", "F8_E5M2", &[4100], f8_e5m2s(&moved(&mut random, &medium, 0.1, 0.0))),
        // Almost nothing in common, so that few symbols need many bytes.
        Tensor::new("two_wide", "F32", &[5400], f32s(&moved(&mut random, &large, 0.4, 0.0))),
    ];
    Case::new("lanes", "ulp without scales with 1, 32 and 64 lanes", &tuned, &[&base])
}

fn float_deltas() -> Case {
    let mut random = Random::new(4);
    let mut values = random.normals(400, 0.5);
    let mut others = moved(&mut random, &values, 0.01, 1e-3);
    // Sign changes, zeros of both signs, infinities, a NaN, a subnormal, and jumps over many
    // octaves.
    let special = [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-7, 1e4, -1e-4, 3.0, -3.0];
    values[..10].copy_from_slice(&special);
    others[5..15].copy_from_slice(&special);
    let file = |v: &[f64]| {
        [
            Tensor::new("f16", "F16", &[20, 20], f16s(v)),
            Tensor::new("bf16", "BF16", &[20, 20], bf16s(v)),
            Tensor::new("f64", "F64", &[100], f64s(&v[..100])),
            Tensor::new("f8_e4m3", "F8_E4M3", &[400], f8_e4m3s(v)),
            Tensor::new("f8_e5m2", "F8_E5M2", &[20, 20], f8_e5m2s(v)),
            Tensor::new("f32", "F32", &[200], f32s(&v[..200])),
        ]
    };
    Case {
        preset: Preset::Max,
        ..Case::new(
            "float_deltas",
            "residuals of every float dtype, with jumps",
            &file(&others),
            &[&file(&values)],
        )
    }
}

fn integer_deltas() -> Case {
    let mut random = Random::new(5);
    let mut values = |spread: u64| -> Vec<i64> {
        (0..90)
            .map(|_| {
                i64::try_from(random.below(2 * spread)).unwrap_or(0) - i64::try_from(spread).unwrap_or(0)
            })
            .collect()
    };
    let (narrow, wide, steps) = (values(100), values(1 << 40), values(3));
    let file = |add: i64| {
        let sum = |v: &[i64]| -> Vec<i64> { v.iter().zip(&steps).map(|(x, step)| x + add * step).collect() };
        let (narrow, wide) = (sum(&narrow), sum(&wide));
        let kinds = [("I8", 1, &narrow), ("I16", 2, &narrow), ("I32", 4, &wide), ("I64", 8, &wide)];
        let unsigned = [("U8", 1, &narrow), ("U16", 2, &narrow), ("U32", 4, &wide), ("U64", 8, &wide)];
        let mut tensors: Vec<Tensor> = kinds
            .into_iter()
            .chain(unsigned)
            .map(|(dtype, size, v)| Tensor::new(&dtype.to_lowercase(), dtype, &[6, 15], integers(v, size)))
            .collect();
        let bits: Vec<u8> = steps.iter().map(|step| u8::from(step + add > 0)).collect();
        tensors.push(Tensor::new("bool", "BOOL", &[90], bits));
        tensors
    };
    Case {
        preset: Preset::Fast,
        ..Case::new("integer_deltas", "residuals of every integer dtype", &file(1), &[&file(0)])
    }
}

fn stand_alone() -> Case {
    let mut random = Random::new(6);
    let values = random.normals(400, 0.02);
    // Half of the mantissa is zero in the whole tensor.
    let cut: Vec<u8> = f32s(&values).chunks_exact(4).flat_map(|b| [0, b[1] & 0xf0, b[2], b[3]]).collect();
    let counts: Vec<i64> = (0..400).map(|i| 1000 + 3 * i).collect();
    let bells: Vec<f64> = values.iter().map(|value| value * 1000.0).collect();
    let tensors = [
        Tensor::new("bf16", "BF16", &[16, 25], bf16s(&values)),
        Tensor::new("f16", "F16", &[400], f16s(&values)),
        Tensor::new("f32_cut", "F32", &[16, 25], cut),
        Tensor::new("f64", "F64", &[150], f64s(&values[..150])),
        Tensor::new("f8_e4m3", "F8_E4M3", &[400], f8_e4m3s(&values)),
        Tensor::new("f8_e5m2", "F8_E5M2", &[400], f8_e5m2s(&values)),
        Tensor::new("i8", "I8", &[16, 25], i8s(&bells)),
        Tensor::new("i32", "I32", &[400], integers(&counts, 4)),
        Tensor::new("u64", "U64", &[200], integers(&counts[..200], 8)),
        Tensor::new("constant", "F32", &[100, 2], f32s(&[1.5; 200])),
        Tensor::new("zeros", "BF16", &[400], vec![0; 800]),
        Tensor::new("noise", "U8", &[400], random.bytes(400)),
    ];
    Case::new("stand_alone", "float, planes, constant and raw without a base", &tensors, &[])
}

fn derived() -> Case {
    let mut random = Random::new(7);
    let (master, own, other) =
        (random.normals(200, 0.02), random.normals(200, 0.02), random.normals(200, 0.02));
    let base = [
        Tensor::new("master", "F32", &[20, 10], f32s(&master)),
        Tensor::new("same", "F32", &[200], f32s(&other)),
        Tensor::new("old_name", "BF16", &[200], bf16s(&other)),
    ];
    let tuned = [
        Tensor::new("master", "BF16", &[20, 10], bf16s_of_f32s(&master)),
        Tensor::new("own", "F32", &[200], f32s(&own)),
        Tensor::new("own.bf16", "BF16", &[200], bf16s_of_f32s(&own)),
        Tensor::new("own.f16", "F16", &[200], f16s_of_f32s(&own)),
        Tensor::new("same", "F32", &[200], f32s(&other)),
        Tensor::new("tied", "F32", &[200], f32s(&own)),
        Tensor::new("tied_to_same", "F32", &[200], f32s(&other)),
    ];
    Case::new("derived", "identical, tied, cast from the base and cast in the file", &tuned, &[&base])
}

/// Rounds to F32 and then to BF16, as a cast does.
fn bf16s_of_f32s(values: &[f64]) -> Vec<u8> {
    bf16s(&singles(values))
}

fn f16s_of_f32s(values: &[f64]) -> Vec<u8> {
    f16s(&singles(values))
}

fn singles(values: &[f64]) -> Vec<f64> {
    let single = |bytes: &[u8]| f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    f32s(values).chunks_exact(4).map(single).collect()
}

fn renamed() -> Case {
    let mut random = Random::new(8);
    let (a, b) = (random.normals(500, 0.02), random.normals(500, 0.02));
    let base = [
        Tensor::new("layers.0.w", "BF16", &[500], bf16s(&a)),
        Tensor::new("layers.1.w", "BF16", &[500], bf16s(&b)),
    ];
    let tuned = [
        Tensor::new("model.layers.0.w", "BF16", &[500], bf16s(&moved(&mut random, &a, 0.01, 0.0))),
        Tensor::new("model.layers.1.w", "BF16", &[500], bf16s(&b)),
    ];
    Case::new("renamed", "references under another name", &tuned, &[&base])
}

fn chunked() -> Case {
    let mut random = Random::new(9);
    let base = random.normals(100 * 31, 0.02);
    let mut tuned = base.clone();
    // Of the three chunks, the first is unchanged and the last becomes constant.
    let middle = moved(&mut random, &base[34 * 31..68 * 31], 0.1, 0.0);
    tuned[34 * 31..68 * 31].copy_from_slice(&middle);
    tuned[68 * 31..].fill(0.5);
    let bytes = i8s(&random.normals(17_000, 14.0));
    let tensor = |values: &[f64]| Tensor::new("w", "F8_E4M3", &[100, 31], f8_e4m3s(values));
    let long = Tensor::new("long", "I8", &[17_000], bytes);
    Case {
        chunk_log2: 10,
        ..Case::new(
            "chunked",
            "several chunks and groups, same and constant chunks beside coded ones",
            &[tensor(&tuned), long],
            &[&[tensor(&base)]],
        )
    }
}

fn edges() -> Case {
    let mut random = Random::new(10);
    let tensors = [
        Tensor::new("scalar", "F32", &[], f32s(&[3.25])),
        Tensor::new("empty", "BF16", &[0, 7], Vec::new()),
        Tensor::new("one", "F64", &[1, 1, 1], f64s(&[-0.0])),
        Tensor::new("a/../b\n\"\u{e9}", "I16", &[3], integers(&[1, -2, 3], 2)),
        Tensor::new("four_bits", "F4", &[5, 4], random.bytes(10)),
        Tensor::new("six_bits", "F6_E2M3", &[8], random.bytes(6)),
        Tensor::new("complex", "C64", &[6], random.bytes(48)),
        Tensor::new("unheard_of", "X3_NEW", &[7, 11], vec![7; 29]),
        Tensor::new("deep", "U8", &[1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2], random.bytes(256)),
    ];
    // Entries out of order, metadata in the middle, odd spaces: the header is stored unchanged.
    let mut begin = 0;
    let mut entries = Vec::new();
    for tensor in &tensors {
        entries.push(tensor.entry(begin));
        begin += tensor.bytes.len();
    }
    entries.reverse();
    entries.insert(3, r#""__metadata__": {"format":"pt", "note":"\u00e9"}"#.to_owned());
    let header = format!(" {{ {} }}\n   ", entries.join(" ,\n"));
    Case {
        original: Input::File(with_header(&header, &tensors)),
        ..Case::new("edges", "empty and scalar tensors, opaque dtypes, odd names, an odd header", &[], &[])
    }
}

fn empty() -> Case {
    Case::new("empty", "a file without tensors", &[], &[])
}

fn shards() -> Case {
    let mut random = Random::new(11);
    let (a, b) = (random.normals(320, 0.02), random.normals(320, 0.02));
    let shard =
        |name: &str, values: &[f64]| safetensors(&[Tensor::new(name, "BF16", &[16, 20], bf16s(values))]);
    let index = r#"{"metadata":{"total_size":1280},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let words: Vec<String> = (0..60).map(|i| format!("\"token{}\": {i}", random.below(1000))).collect();
    let files = |first: Vec<u8>, second: Vec<u8>| {
        vec![
            ("config.json", b"{\n  \"model_type\": \"llama\",\n  \"hidden_size\": 20\n}\n".to_vec()),
            ("model-00001-of-00002.safetensors", first),
            ("model-00002-of-00002.safetensors", second),
            ("model.safetensors.index.json", index.into()),
            ("nothing.txt", Vec::new()),
            ("tokenizer/vocab.json", format!("{{{}}}\n", words.join(", ")).into_bytes()),
        ]
    };
    let base = files(shard("a", &a), shard("b", &b));
    let tuned =
        files(shard("a", &moved(&mut random, &a, 0.01, 0.0)), shard("b", &moved(&mut random, &b, 0.1, 0.0)));
    Case {
        original: Input::Directory(tuned),
        bases: vec![Input::Directory(base)],
        ..Case::new("shards", "a directory of two shards and small files, against one", &[], &[])
    }
}

fn two_bases() -> Case {
    let mut random = Random::new(12);
    let (a, b, far) = (random.normals(400, 0.02), random.normals(400, 0.02), random.normals(400, 0.02));
    let tensor = |name: &str, values: &[f64]| Tensor::new(name, "BF16", &[20, 20], bf16s(values));
    let first = [tensor("a", &a), tensor("b", &far)];
    let second = [tensor("a", &far), tensor("b", &b)];
    let tuned =
        [tensor("a", &moved(&mut random, &a, 0.01, 0.0)), tensor("b", &moved(&mut random, &b, 0.01, 0.0))];
    Case::new("two_bases", "each tensor near another base", &tuned, &[&first, &second])
}

/// Normal numbers as multiples of a step per block of 32; with `has_origin`, counted from the least
/// of them. Steps and origins are F16 numbers.
fn quantised(random: &mut Random, rows: usize, cols: usize, has_origin: bool) -> Vec<f64> {
    let half = |x: f64| f16::from_f64(x).to_f64();
    let block = |cols: usize, random: &mut Random| {
        let values = random.normals(cols, 0.02);
        let (least, most) =
            values.iter().fold((0f64, 0f64), |(least, most), x| (least.min(*x), most.max(*x)));
        let origin = if has_origin { half(least) } else { 0.0 };
        let step = half(if has_origin { (most - least) / 15.0 } else { most.max(-least) / 127.0 });
        let point = |x: &f64| ((x - origin) / step).round() * step + origin;
        values.iter().map(point).collect::<Vec<f64>>()
    };
    let blocks = (0..rows).flat_map(|_| (0..cols).step_by(32).map(|start| (cols - start).min(32)));
    blocks.flat_map(|cols| block(cols, random)).collect()
}

fn grids() -> Case {
    let mut random = Random::new(13);
    let mut with_nan = quantised(&mut random, 20, 64, true);
    with_nan[100] = f64::NAN;
    let ternary: Vec<f64> = (0..900).map(|_| [-0.375, 0.0, 0.375][random.index(3)]).collect();
    let ids: Vec<i64> = (0..300).map(|_| [7, 1 << 50, -1][random.index(3)]).collect();
    let tensors = [
        Tensor::new("origins", "F32", &[20, 64], f32s(&with_nan)),
        Tensor::new("origins_bf16", "BF16", &[20, 64], bf16s(&quantised(&mut random, 20, 64, true))),
        Tensor::new("steps", "F32", &[33, 32], f32s(&quantised(&mut random, 33, 32, false))),
        Tensor::new("steps_odd_rows", "F16", &[30, 45], f16s(&quantised(&mut random, 30, 45, false))),
        Tensor::new("palette", "BF16", &[900], bf16s(&ternary)),
        Tensor::new("palette_of_integers", "I64", &[300], integers(&ids, 8)),
    ];
    Case {
        chunk_log2: 10,
        ..Case::new("grids", "grid with steps, with origins and with palettes", &tensors, &[])
    }
}

fn training_state() -> Case {
    let mut random = Random::new(13);
    let (rows, cols) = (40, 36);
    let factors: Vec<f64> = (0..rows + cols).map(|_| [1.0, 4.0, 64.0, 512.0][random.index(4)]).collect();
    let mut second = || -> Vec<f64> {
        let size = |i: usize| 1e-9 * factors[i / cols] * factors[rows + i % cols];
        (0..rows * cols).map(|i| size(i) * (0.5 * random.normal()).exp()).collect()
    };
    let (old, other) = (second(), second());
    let mut new: Vec<f64> = old.iter().zip(&other).map(|(a, b)| 0.3 * a + 0.7 * b).collect();
    // A row that was never trained.
    new[5 * cols..6 * cols].fill(0.0);
    let mut first = |v: &[f64]| -> Vec<f64> { v.iter().map(|v| v.sqrt() * random.normal()).collect() };
    let (m, m16) = (first(&new), first(&other));
    let tensor = |name: &str, values: &[f64]| Tensor::new(name, "F32", &[rows, cols], f32s(values));
    let half = |name: &str, values: &[f64]| Tensor::new(name, "BF16", &[rows, cols], bf16s(values));
    let tuned = [
        tensor("exp_avg.w", &m),
        tensor("exp_avg_sq.w", &new),
        half("exp_avg.u", &m16),
        half("exp_avg_sq.u", &other),
        Tensor::new("exp_avg_sq.b", "BF16", &[1200], bf16s(&other[..1200])),
    ];
    Case::new(
        "training_state",
        "scaled with and without scales, signs and a prediction; companions",
        &tuned,
        &[&[tensor("exp_avg_sq.w", &old)]],
    )
}

fn step_of_adam() -> Case {
    let mut random = Random::new(14);
    let (rows, cols) = (32, 25);
    #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
    let mut numbers =
        |size: f64| -> Vec<f32> { random.normals(rows * cols, size).into_iter().map(|x| x as f32).collect() };
    let (w, gradients, mut m) = (numbers(0.02), numbers(1e-3), numbers(3e-4));
    let mut v: Vec<f32> = numbers(1e-3).iter().map(|x| x * x).collect();
    let doubles = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let file = |m: &[f32], v: &[f32], w: &[f32], rounded: &[f64]| {
        let tensor = |name: &str, values: &[f64]| Tensor::new(name, "F32", &[rows, cols], f32s(values));
        [
            tensor("m.w", &doubles(m)),
            tensor("v.w", &doubles(v)),
            tensor("w", &doubles(w)),
            Tensor::new("half.w", "BF16", &[rows, cols], bf16s(&doubles(w))),
            // The same step with opposite sign.
            tensor("exp_avg.u", &doubles(m).iter().map(|x| -x).collect::<Vec<_>>()),
            tensor("exp_avg_sq.u", rounded),
        ]
    };
    // Elements from which nothing follows: infinite, NaN, never trained.
    v[7] = f32::INFINITY;
    m[8] = f32::NAN;
    let base = file(&m, &v, &w, &doubles(&v));
    let mut new_m: Vec<f32> = m.iter().zip(&gradients).map(|(m, g)| m + 0.1 * (g - m)).collect();
    let mut new_v: Vec<f32> = v.iter().zip(&gradients).map(|(v, g)| 0.999 * v + 0.001 * g * g).collect();
    let in_double = |(v, g): (&f32, &f32)| 0.999 * f64::from(*v) + 0.001 * f64::from(*g) * f64::from(*g);
    let rounded: Vec<f64> = v.iter().zip(&gradients).map(in_double).collect();
    (new_m[9], new_v[9]) = (0.0, 0.0);
    let moved = |i: usize| 0.9999 * w[i] - 1e-3 * new_m[i] / (new_v[i].sqrt() + 1e-8);
    let new_w: Vec<f32> = (0..rows * cols).map(moved).collect();
    Case {
        chunk_log2: 10,
        ..Case::new(
            "step_of_adam",
            "second moments and weights that follow from first moments, and a rounding of such weights",
            &file(&new_m, &new_v, &new_w, &rounded),
            &[&base],
        )
    }
}
