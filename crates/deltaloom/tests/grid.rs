//! Tensors whose elements lie on a grid, as quantisers write them. They come back bit for bit, and
//! take about the bits of their levels.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use deltaloom::Preset;
use proptest::prelude::*;

/// A block quantiser, as the common formats define it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Quantiser {
    /// step * level, levels -127 to 127.
    Q8,
    /// step * (level - 8), levels 0 to 15; the step may be negative.
    Q4,
    /// step * level + origin, levels 0 to 15.
    Q4WithOrigin,
}

/// Quantises and dequantises one block with an F16 step and origin.
fn dequantised(quantiser: Quantiser, block: &[f32]) -> Vec<f32> {
    let half = |x: f32| half::f16::from_f32(x).to_f32();
    let farthest = block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
    let least = block.iter().copied().fold(f32::INFINITY, f32::min);
    let most = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (step, origin, levels) = match quantiser {
        Quantiser::Q8 => (farthest.abs() / 127.0, 0.0, -127.0..=127.0),
        Quantiser::Q4 => (farthest / -8.0, 0.0, -8.0..=7.0),
        Quantiser::Q4WithOrigin => ((most - least) / 15.0, least, 0.0..=15.0),
    };
    let point = |x: &f32| {
        let level = ((x - origin) / step).round().clamp(*levels.start(), *levels.end());
        half(step) * level + half(origin)
    };
    block.iter().map(point).collect()
}

fn rows_dequantised(quantiser: Quantiser, values: &[f32], cols: usize, block: usize) -> Vec<f32> {
    let blocks = values.chunks(cols).flat_map(|row| row.chunks(block));
    blocks.flat_map(|block| dequantised(quantiser, block)).collect()
}

fn bytes(dtype: &str, values: &[f32]) -> Vec<u8> {
    match dtype {
        "F32" => f32_bytes(values),
        "F16" => f16_bytes(values),
        _ => bf16_bytes(values),
    }
}

const ALL: [Quantiser; 3] = [Quantiser::Q8, Quantiser::Q4, Quantiser::Q4WithOrigin];

#[test]
fn what_a_quantiser_wrote_takes_the_bits_of_its_levels() {
    let mut rng = Random::new(1);
    let weights = rng.weights(256 * 160);
    for quantiser in ALL {
        for dtype in ["F32", "F16", "BF16"] {
            // The entropy of the levels, an F16 step and origin for 32 elements, and a little for
            // the tables.
            let bits = match quantiser {
                Quantiser::Q8 => 7.7 + 0.5,
                Quantiser::Q4 => 3.8 + 0.5,
                Quantiser::Q4WithOrigin => 3.9 + 1.0,
            };
            let values = rows_dequantised(quantiser, &weights, 160, 32);
            let file = safetensors(&[tensor("w", dtype, &[256, 160], bytes(dtype, &values))]);
            let options = options().with_chunk_log2(15);
            let (_, report) = roundtrip_with(&file, &[], &options);
            assert_eq!(report.tensors[0].codec, "grid", "{quantiser:?} {dtype}");
            let found = f64::from(u32::try_from(report.packed_bytes).unwrap()) * 8.0 / f64::from(256 * 160);
            assert!(found < bits, "{quantiser:?} {dtype}: {found} bits for an element");
        }
    }
}

#[test]
fn blocks_of_other_lengths_and_rows_that_they_do_not_divide() {
    let mut rng = Random::new(2);
    for (shape, cols, block) in [
        (vec![40, 100], 100, 64),
        (vec![64, 33], 33, 33),
        (vec![17, 3, 129], 129, 128),
        (vec![4096], 4096, 32),
        (vec![2, 1024, 1], 2048, 16),
        (vec![3, 1000], 1000, 1000),
    ] {
        let values = rng.weights(shape.iter().product::<u64>().try_into().unwrap());
        for quantiser in ALL {
            let values = rows_dequantised(quantiser, &values, cols, block);
            for dtype in ["F32", "F16", "BF16"] {
                let file = safetensors(&[tensor("w", dtype, &shape, bytes(dtype, &values))]);
                let options = options().with_chunk_log2(17);
                let (_, report) = roundtrip_with(&file, &[], &options);
                let rows_have_origins = quantiser == Quantiser::Q4WithOrigin && block == cols;
                if dtype == "F32" && !rows_have_origins {
                    assert_eq!(report.tensors[0].codec, "grid", "{quantiser:?} {shape:?}");
                }
            }
        }
    }
}

#[test]
fn few_different_elements_are_a_palette() {
    let mut rng = Random::new(3);
    let centres = rng.weights(16);
    let picked: Vec<f32> = (0..6000).map(|_| centres[usize::try_from(rng.below(16)).unwrap()]).collect();
    let longs = (0..3000).flat_map(|_| (rng.below(5) << 40).to_le_bytes()).collect();
    let ternary: Vec<f32> =
        (0..5000).map(|_| 0.0125 * f32::from(u8::try_from(rng.below(3)).unwrap())).collect();
    let file = safetensors(&[
        tensor("f32", "F32", &[60, 100], f32_bytes(&picked)),
        tensor("bf16", "BF16", &[6000], bf16_bytes(&picked)),
        tensor("u64", "U64", &[3000], longs),
        tensor("ternary", "F16", &[50, 100], f16_bytes(&ternary)),
    ]);
    let (_, report) = roundtrip_with(&file, &[], &options().with_chunk_log2(17));
    for tensor in &report.tensors {
        assert_eq!(tensor.codec, "grid", "{}", tensor.name);
        let bits = if tensor.name == "u64" || tensor.name == "ternary" { 2.5 } else { 4.3 };
        let elems = tensor.shape.iter().product::<u64>();
        let packed = f64::from(u32::try_from(tensor.packed_bytes).unwrap()) * 8.0;
        assert!(packed < bits * f64::from(u32::try_from(elems).unwrap()), "{}: {packed}", tensor.name);
    }
}

#[test]
fn zeros_constants_and_single_elements() {
    let tensors: Vec<Tensor> = ["F32", "F16", "BF16"]
        .into_iter()
        .flat_map(|dtype| {
            let of = |name: &str, shape: &[u64], values: &[f32]| {
                tensor(&format!("{name}.{dtype}"), dtype, shape, bytes(dtype, values))
            };
            let mut halves = vec![0.0; 2048];
            halves[1024..].fill(0.5);
            let mut signs = vec![0.0; 2048];
            signs.iter_mut().step_by(3).for_each(|x| *x = -0.0);
            [
                of("zeros", &[32, 64], &[0.0; 2048]),
                of("constant", &[32, 64], &[0.37; 2048]),
                of("one", &[], &[1.5]),
                of("one_of_a_matrix", &[1, 1], &[-0.0]),
                of("halves", &[32, 64], &halves),
                of("signs", &[2048], &signs),
                of("infinite", &[2048], &[f32::NEG_INFINITY; 2048]),
            ]
        })
        .collect();
    roundtrip(&safetensors(&tensors), &[]);
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let mut rng = Random::new(4);
    let weights = rng.weights(1536);
    let steps = rows_dequantised(Quantiser::Q4, &weights, 64, 32);
    let mut origins = rows_dequantised(Quantiser::Q4WithOrigin, &weights, 64, 32);
    origins[77] = f32::NAN;
    let palette: Vec<f32> = (0..300).map(|_| weights[usize::try_from(rng.below(5)).unwrap()]).collect();
    let file = safetensors(&[
        tensor("steps", "BF16", &[24, 64], bf16_bytes(&steps)),
        tensor("origins", "F32", &[24, 64], f32_bytes(&origins)),
        tensor("palette", "F16", &[300], f16_bytes(&palette)),
    ]);
    let (container, report) = roundtrip_with(&file, &[], &options().with_chunk_log2(12));
    let codecs: Vec<&str> = report.tensors.iter().map(|tensor| tensor.codec).collect();
    assert_eq!(codecs, ["grid"; 3]);
    let folder = tempfile::tempdir().unwrap();
    for bit in 0..container.len() * 8 {
        let mut flipped = container.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(unpack_in(folder.path(), &flipped, &bases(&[])).is_err(), "bit {bit}");
    }
    for len in 0..container.len() {
        assert!(open(&container[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let mut rng = Random::new(5);
    let values = rows_dequantised(Quantiser::Q4WithOrigin, &rng.weights(512 * 128), 128, 32);
    let file = safetensors(&[tensor("w", "BF16", &[512, 128], bf16_bytes(&values))]);
    for preset in Preset::ALL {
        let with = |threads| pack_with(&file, &[], &options().with_preset(preset).with_threads(threads)).0;
        let first = with(1);
        assert!([2, 3, 0].into_iter().all(|threads| with(threads) == first), "{preset:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Grids with other things scattered over them: other elements, signed zeros, NaNs, whole rows
    /// without a grid.
    #[test]
    fn whatever_is_strewn_over_a_grid_comes_back(
        seed in any::<u64>(), quantiser in prop::sample::select(&ALL[..]), dtype in prop::sample::select(&["F32", "F16", "BF16"][..]),
        cols in 16usize..150, block in prop::sample::select(&[16usize, 32, 64, 1000][..]), strewn in 0u64..200, plain_rows in 0usize..20,
    ) {
        let mut rng = Random::new(seed);
        let rows = 2600 / cols;
        let weights = rng.weights(rows * cols);
        let mut values = rows_dequantised(quantiser, &weights, cols, block);
        let plain = plain_rows.min(rows) * cols;
        values[..plain].copy_from_slice(&weights[..plain]);
        let mut bytes = bytes(dtype, &values);
        let size = bytes.len() / values.len();
        for _ in 0..strewn {
            let at = usize::try_from(rng.below(values.len() as u64)).unwrap() * size;
            let word = [0, u32::MAX, 0x8000_0000, 0x8000, 0x7f80_0000, 0x7c00].get(usize::try_from(rng.below(9)).unwrap()).copied();
            let word = word.unwrap_or(u32::try_from(rng.next() >> 32).unwrap());
            bytes[at..at + size].copy_from_slice(&word.to_le_bytes()[..size]);
        }
        roundtrip(&safetensors(&[tensor("w", dtype, &[rows as u64, cols as u64], bytes)]), &[]);
    }
}
