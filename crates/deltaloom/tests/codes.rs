//! Matrices of small integers around 0, as lossy quantisers write them: each column has its own
//! spread. They take about the entropy of their columns.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use deltaloom::PackOptions;

/// How the weights are distributed before they are quantised.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Gaussian,
    Laplace,
}

const SHAPES: [Shape; 2] = [Shape::Gaussian, Shape::Laplace];

/// Weights whose columns differ in spread, log-normally with sigma 0.5, row by row.
fn weights(rng: &mut Random, shape: Shape, rows: usize, cols: usize) -> Vec<f32> {
    let spreads: Vec<f32> = (0..cols).map(|_| (0.5 * rng.normal()).exp()).collect();
    let mut weight = || match shape {
        Shape::Gaussian => rng.normal(),
        Shape::Laplace => {
            let size = f32::from(u16::try_from(rng.next() >> 48).unwrap());
            let sign = if rng.next() >> 63 == 0 { 1.0 } else { -1.0 };
            sign * -((size + 0.5) / 65536.0).ln()
        }
    };
    (0..rows * cols).map(|i| weight() * spreads[i % cols]).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "codes have 8 bits")]
fn quantised(weights: &[f32], step: f32) -> Vec<i8> {
    weights.iter().map(|weight| (weight / step).round() as i8).collect()
}

/// Codes of which an element takes about `bits` bits.
fn codes(rng: &mut Random, shape: Shape, (rows, cols): (usize, usize), bits: f64) -> Vec<i8> {
    let weights = weights(rng, shape, rows, cols);
    let sample = &weights[..rows.min(320) * cols];
    let (mut low, mut high) = (0.005f32, 20.0f32);
    for _ in 0..14 {
        let step = (low * high).sqrt();
        let found = estimated_bits(&quantised(sample, step), cols).0 / sample.len() as f64;
        if found > bits { low = step } else { high = step }
    }
    quantised(&weights, low)
}

/// Bits that the codes take in 16 groups of columns, and of 8 bits for each symbol of a group: the
/// columns in the order of their mean size, as many in each group, each group by its own entropy.
fn estimated_bits(codes: &[i8], cols: usize) -> (f64, f64) {
    let mut sizes: Vec<(u64, usize)> = (0..cols).map(|column| (0, column)).collect();
    for row in codes.chunks(cols) {
        sizes.iter_mut().zip(row).for_each(|(size, code)| size.0 += u64::from(code.unsigned_abs()));
    }
    sizes.sort_unstable();
    let mut group_of = vec![0; cols];
    for (place, (_, column)) in sizes.iter().enumerate() {
        group_of[*column] = place * 16 / cols;
    }
    let mut counts = vec![[0u32; 256]; 16];
    for row in codes.chunks(cols) {
        let pairs = group_of.iter().zip(row);
        pairs.for_each(|(group, code)| counts[*group][usize::from(code.cast_unsigned())] += 1);
    }
    let (mut bits, mut of_tables) = (0.0, 0.0);
    for counts in counts {
        let total: u32 = counts.iter().sum();
        for count in counts.into_iter().filter(|count| *count > 0) {
            bits -= f64::from(count) * (f64::from(count) / f64::from(total)).log2();
            of_tables += 8.0;
        }
    }
    (bits, of_tables)
}

fn bytes_of(codes: &[i8]) -> Vec<u8> {
    codes.iter().map(|code| code.cast_unsigned()).collect()
}

fn file_of(dtype: &str, (rows, cols): (usize, usize), bytes: Vec<u8>) -> Vec<u8> {
    safetensors(&[tensor("w", dtype, &[rows as u64, cols as u64], bytes)])
}

/// Packed bytes, without those that a constant tensor of this shape takes, too.
fn packed_bytes(size: (usize, usize), bytes: Vec<u8>, options: &PackOptions) -> (usize, &'static str) {
    let empty = pack_with(&file_of("I8", size, vec![0; bytes.len()]), &[], options).0;
    let (packed, report) = roundtrip_with(&file_of("I8", size, bytes), &[], options);
    (packed.len() - empty.len(), report.tensors[0].codec)
}

#[test]
fn codes_take_about_the_entropy_of_their_columns() {
    let options = PackOptions::default().with_threads(1);
    let mut rng = Random::new(1);
    for size in [(64, 64), (320, 320), (320, 864), (4096, 320)] {
        for (shape, bits) in [(Shape::Gaussian, 0.3), (Shape::Laplace, 1.0), (Shape::Gaussian, 2.6)] {
            let codes = codes(&mut rng, shape, size, bits);
            let (entropy, tables) = estimated_bits(&codes, size.1);
            let (packed, codec) = packed_bytes(size, bytes_of(&codes), &options);
            assert_eq!(codec, "ulp", "{size:?} {shape:?} {bits}");
            // The estimate leaves out the states of the coder, and which group a column is in.
            let chunks = codes.len().div_ceil(1 << 17) as f64;
            let least = (entropy + tables) / 8.0 + 3.2 * size.1 as f64 / 8.0;
            let most = 1.01 * least + 200.0 * chunks;
            assert!((packed as f64) < most, "{size:?} {shape:?} {bits}: {packed} bytes, not {most}");
        }
    }
}

#[test]
fn unsigned_codes_around_0_and_several_groups_are_the_same() {
    let mut rng = Random::new(2);
    let codes = bytes_of(&codes(&mut rng, Shape::Laplace, (2000, 96), 1.5));
    let (options, size) = (options().with_chunk_log2(12), (2000, 96));
    let packed = |dtype| roundtrip_with(&file_of(dtype, size, codes.clone()), &[], &options);
    let ((signed, report), (unsigned, _)) = (packed("I8"), packed("U8"));
    assert_eq!((signed.len(), report.tensors[0].codec), (unsigned.len(), "ulp"));
}

/// All small integers resemble each other. Only copies, and codes of which a few differ, are near.
#[test]
fn codes_of_other_matrices_are_no_prediction() {
    let options = PackOptions::default().with_threads(1);
    let mut rng = Random::new(5);
    for bits in [0.3, 1.45, 2.2] {
        let sizes = [(320, 320), (320, 320), (864, 320), (320, 864), (320, 320), (864, 320)];
        let mut matrices: Vec<_> = sizes
            .iter()
            .map(|size| (*size, bytes_of(&codes(&mut rng, Shape::Gaussian, *size, bits))))
            .collect();
        let alone: usize =
            matrices.iter().map(|(size, codes)| packed_bytes(*size, codes.clone(), &options).0).sum();
        let mut changed = matrices[0].1.clone();
        changed.iter_mut().step_by(1001).for_each(|code| *code ^= 1);
        matrices.push(((320, 320), changed));
        let tensors: Vec<_> = matrices
            .iter()
            .enumerate()
            .map(|(i, ((rows, cols), codes))| {
                tensor(&format!("w{i}.codes"), "I8", &[*rows as u64, *cols as u64], codes.clone())
            })
            .collect();
        let (packed, report) = roundtrip_with(&safetensors(&tensors), &[], &options);
        let most = alone + alone / 100 + 2000;
        assert!(packed.len() < most, "{bits} bits: {} bytes, alone {alone}", packed.len());
        let predictors: Vec<_> = report.tensors.iter().map(|tensor| tensor.predictor).collect();
        assert_eq!(predictors.iter().filter(|name| **name != "zero").count(), 1, "{predictors:?}");
    }
}

#[test]
fn words_of_flags_or_smaller_codes_are_left_alone() {
    let mut rng = Random::new(3);
    let words = rng.bytes(64 * 256);
    let flags: Vec<u8> = words.iter().map(|word| word & 1).collect();
    let file =
        safetensors(&[tensor("words", "U8", &[64, 256], words), tensor("flags", "U8", &[64, 256], flags)]);
    let report = roundtrip(&file, &[]);
    assert!(report.tensors.iter().all(|tensor| tensor.codec != "ulp"), "{:?}", report.tensors);
}

#[test]
fn columns_of_any_shape_and_the_largest_codes_come_back() {
    let mut rng = Random::new(4);
    let one_column: Vec<u8> =
        (0..40 * 33).map(|i| if i % 33 == 7 { rng.next().to_le_bytes()[0] } else { 0 }).collect();
    let narrow: Vec<u8> = (0..5000).map(|_| rng.around_zero(2).to_le_bytes()[0]).collect();
    let extreme: Vec<u8> =
        (0..60 * 50).map(|i| if i % 97 == 0 { 0x80 } else { rng.around_zero(1).to_le_bytes()[0] }).collect();
    roundtrip(
        &safetensors(&[
            tensor("one column", "I8", &[40, 33], one_column),
            tensor("narrow", "I8", &[5000, 1], narrow.clone()),
            tensor("wide", "I8", &[5, 1000], narrow.clone()),
            tensor("deep", "U8", &[5, 10, 100], narrow),
            tensor("extreme", "I8", &[60, 50], extreme),
            tensor("single", "I8", &[1, 1], vec![0x80]),
        ]),
        &[],
    );
}

#[test]
#[ignore = "prints the table of docs/adr/0074"]
fn measure() {
    let options = PackOptions::default().with_threads(1);
    for size in [(64, 64), (320, 320), (864, 320), (320, 864), (8192, 320)] {
        for shape in SHAPES {
            for bits in [0.3, 1.0, 1.5, 2.0, 2.6, 4.0] {
                let mut rng = Random::new(7);
                let codes = codes(&mut rng, shape, size, bits);
                let per_code = 1.0 / codes.len() as f64;
                let (entropy, tables) = estimated_bits(&codes, size.1);
                let (packed, codec) = packed_bytes(size, bytes_of(&codes), &options);
                let (estimate, packed) = ((entropy + tables) * per_code, packed as f64 * 8.0 * per_code);
                println!(
                    "{size:?} {shape:?} {bits}: entropy {:.4}, estimate {estimate:.4}, packed {packed:.4} by {codec}, {:+.2} %",
                    entropy * per_code,
                    (packed / estimate - 1.0) * 100.0
                );
            }
        }
    }
}

/// Best of some runs on one thread.
#[test]
#[ignore = "prints the speeds of docs/adr/0074; with --release"]
fn measure_speed() {
    let options = PackOptions::default().with_threads(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let size = (8192, 320);
    for bits in [0.3, 1.0, 2.0, 2.6, 4.0] {
        let codes = codes(&mut Random::new(7), Shape::Gaussian, size, bits);
        let start = std::time::Instant::now();
        let (packed, report) = pack_with(&file_of("I8", size, bytes_of(&codes)), &[], &options);
        let packing = start.elapsed().as_secs_f64();
        let resolved = resolve(&packed, &bases(&[])).unwrap();
        let mut out = vec![0; codes.len()];
        let mut decode = || {
            let start = std::time::Instant::now();
            pool.install(|| resolved.read_into(0, &mut out)).unwrap();
            start.elapsed().as_secs_f64()
        };
        let best = (0..20).map(|_| decode()).fold(f64::INFINITY, f64::min);
        let speed = |seconds: f64| codes.len() as f64 / seconds * 1e-9;
        println!(
            "{bits} bits, {}: packed at {:.2} GB/s, decoded at {:.2} GB/s",
            report.tensors[0].codec,
            speed(packing),
            speed(best)
        );
    }
}
