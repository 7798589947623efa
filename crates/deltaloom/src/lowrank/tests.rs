//! Fits of matrices that were made by adding a product, and of some that were not.

use std::path::PathBuf;
use std::time::Instant;

use deltaloom_kernels::isa::{Isa, lower_to};
use deltaloom_kernels::matrix::{Strided, add_product};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::limits::Limits;
use crate::tensor::TensorInfo;

const BF16: Number = Number::float(8, 7);
const F16: Number = Number::float(5, 10);
const F32: Number = Number::float(8, 23);

/// Numbers that are nearly normal: sums of twelve even ones.
struct Normal(u64);

impl Normal {
    fn next(&mut self) -> f64 {
        let mut sum = 0.0;
        for _ in 0..12 {
            // D. Knuth's MMIX generator.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 40) as f64 / f64::from(1 << 24);
        }
        sum - 6.0
    }
}

/// The nearest number of a dtype, and its bytes.
#[expect(clippy::cast_possible_truncation, reason = "the rounding that is wanted")]
fn rounded_to(number: Number, x: f64) -> (f64, Vec<u8>) {
    let x = x as f32;
    match number {
        BF16 => (half::bf16::from_f32(x).to_f64(), half::bf16::from_f32(x).to_le_bytes().to_vec()),
        F16 => (half::f16::from_f32(x).to_f64(), half::f16::from_f32(x).to_le_bytes().to_vec()),
        _ => (f64::from(x), x.to_le_bytes().to_vec()),
    }
}

/// Normal weights as a reference, and as a target the same with a product of random factors added, or with other numbers of the same size.
fn merged(number: Number, rows: usize, cols: usize, rank: usize, rule: ProductRule) -> (Vec<u8>, Vec<u8>) {
    let mut normal = Normal(7);
    let mut change: Vec<f64> =
        (0..rows * cols).map(|_| if rank == 0 { 0.003 * normal.next() } else { 0.0 }).collect();
    let scale = 0.003 / (rank as f64).max(1.0).sqrt();
    let left: Vec<f64> = (0..rows * rank).map(|_| normal.next() * scale).collect();
    let right: Vec<f64> = (0..rank * cols).map(|_| normal.next()).collect();
    add_product(Strided::rows(&left, rank), &right, rank, cols, &mut change);
    let (mut target, mut reference) = (Vec::new(), Vec::new());
    for change in change {
        let (before, bytes) = rounded_to(number, 0.02 * normal.next());
        reference.extend(bytes);
        let added = if rule == ProductRule::Sum { change } else { rounded_to(number, change).0 };
        target.extend(rounded_to(number, before + added).1);
    }
    (target, reference)
}

fn changed(matrix: &Matrix<'_>, factors: &Factors) -> usize {
    let mut prediction = matrix.reference.to_vec();
    factors.right_factor(matrix.number).unwrap().predict(factors.rule, &factors.left, &mut prediction);
    let size = matrix.number.bytes();
    prediction.chunks(size).zip(matrix.target.chunks(size)).filter(|(a, b)| a != b).count()
}

/// What the detector says of a matrix.
fn looks(matrix: &Matrix<'_>) -> bool {
    let rows = |row: fn(&Matrix<'_>, usize) -> Vec<u8>| -> Vec<u8> {
        sampled_rows(matrix.rows, matrix.cols).flat_map(|i| row(matrix, i)).collect()
    };
    let (target, reference) =
        (rows(|matrix, i| matrix.target_row(i).to_vec()), rows(|matrix, i| matrix.reference_row(i).to_vec()));
    let sample = Matrix::new(matrix.number, matrix.cols, &target, &reference);
    sample.is_some_and(|sample| looks_low_rank(&sample, matrix.rows))
}

#[test]
fn a_merged_product_is_found_with_its_rank_and_rule() {
    for (number, rule, most_changed) in [
        (BF16, ProductRule::RoundedProduct, 10),
        (BF16, ProductRule::Sum, 10),
        (F16, ProductRule::RoundedProduct, 10),
        (F16, ProductRule::Sum, 10),
        (F32, ProductRule::RoundedProduct, 50),
    ] {
        let (target, reference) = merged(number, 160, 224, 4, rule);
        let matrix = Matrix::new(number, 224, &target, &reference).unwrap();
        let factors = fit(&matrix).unwrap();
        let percent = 100 * changed(&matrix, &factors) / (160 * 224);
        assert_eq!((factors.rank, factors.rule), (4, rule), "{number:?}");
        assert!(percent <= most_changed, "{number:?} {rule:?}: {percent} % changed");
        let bytes = factors.to_bytes();
        assert_eq!(Factors::parse(&bytes, 160, 224).unwrap(), factors);
        assert!(bytes.len() * 4 < target.len(), "{number:?}: {} bytes", bytes.len());
    }
}

#[test]
fn other_changes_are_not_taken_for_a_product() {
    for number in [BF16, F16, F32] {
        let (target, reference) = merged(number, 160, 224, 0, ProductRule::Sum);
        assert!(!looks(&Matrix::new(number, 224, &target, &reference).unwrap()));
        assert_eq!(fit(&Matrix::new(number, 224, &reference, &reference).unwrap()), None);
    }
}

#[test]
fn the_right_factor_of_a_large_matrix_comes_from_some_of_its_rows() {
    let cols = 512;
    let rows = 2 * FITTED_ELEMS / cols + 7;
    let (target, reference) = merged(BF16, rows, cols, 2, ProductRule::RoundedProduct);
    let matrix = Matrix::new(BF16, cols, &target, &reference).unwrap();
    let factors = fit(&matrix).unwrap();
    assert_eq!((factors.rank, factors.left.len()), (2, 2 * rows));
    let percent = 100 * changed(&matrix, &factors) / (rows * cols);
    assert!(percent <= 3, "{percent} % changed");
}

#[test]
fn every_isa_finds_the_same_factors() {
    let (target, reference) = merged(BF16, 96, 128, 3, ProductRule::RoundedProduct);
    let matrix = Matrix::new(BF16, 128, &target, &reference).unwrap();
    let fits: Vec<Option<Factors>> = Isa::available()
        .into_iter()
        .map(|isa| {
            lower_to(isa);
            fit(&matrix)
        })
        .collect();
    assert!(fits[0].is_some() && fits.iter().all(|fit| *fit == fits[0]));
}

#[test]
fn infinities_and_nans_do_not_spoil_the_fit() {
    let (mut target, mut reference) = merged(BF16, 160, 224, 4, ProductRule::RoundedProduct);
    for (i, bits) in [0x7f80u16, 0xff80, 0x7fc1, 0xffff].into_iter().enumerate() {
        target[4000 * i..][..2].copy_from_slice(&bits.to_le_bytes());
        reference[4000 * i + 2000..][..2].copy_from_slice(&bits.to_le_bytes());
    }
    let matrix = Matrix::new(BF16, 224, &target, &reference).unwrap();
    let factors = fit(&matrix).unwrap();
    assert_eq!(factors.rank, 4);
    assert!(changed(&matrix, &factors) * 10 < 160 * 224);
    // Nothing but such numbers gives nothing.
    let odd: Vec<u8> = [0xff, 0x7f].repeat(160 * 224);
    assert_eq!(fit(&Matrix::new(BF16, 224, &odd, &reference).unwrap()), None);
    assert_eq!(fit(&Matrix::new(BF16, 224, &target, &odd).unwrap()), None);
}

#[test]
fn only_matrices_of_floats_that_a_product_can_predict() {
    let bytes = vec![0; 64 * 64 * 8];
    assert!(Matrix::new(Number::float(11, 52), 64, &bytes, &bytes).is_none());
    assert!(Matrix::new(Number::unsigned(16), 64, &bytes, &bytes).is_none());
    assert!(Matrix::new(BF16, 0, &bytes, &bytes).is_none());
    assert!(Matrix::new(BF16, 65, &bytes, &bytes).is_none());
    assert!(Matrix::new(BF16, usize::MAX, &bytes, &bytes).is_none());
    assert!(Matrix::new(BF16, 1, &bytes, &bytes).is_none());
    assert!(Matrix::new(BF16, 64, &bytes, &bytes[1..]).is_none());
}

/// `LM12M=dir PAIR=base,tuned cargo test --release -p deltaloom --lib -- --ignored --nocapture sizes_and_times`
#[test]
#[ignore = "a measurement of two checkpoints, which are named in the environment"]
fn sizes_and_times() {
    let (Ok(root), Ok(pair)) = (std::env::var("LM12M"), std::env::var("PAIR")) else { return };
    let open = |name: &str| Checkpoint::open(&PathBuf::from(&root).join(name), &Limits::default()).unwrap();
    let (base, tuned) = pair.split_once(',').map(|(base, tuned)| (open(base), open(tuned))).unwrap();
    let read = |checkpoint: &Checkpoint, member: usize, info: &TensorInfo| {
        let mut bytes = vec![0; usize::try_from(info.len_bytes()).unwrap()];
        checkpoint.read(member, info, 0, &mut bytes).unwrap();
        bytes
    };
    let (mut original, mut coded, mut detecting, mut fitting) = (0, 0, 0.0, 0.0);
    for (member, info) in tuned.tensors() {
        let Some((other, reference)) =
            base.tensors().find(|(_, other)| other.same_type(info) && other.name == info.name)
        else {
            continue;
        };
        let (target, reference) = (read(&tuned, member, info), read(&base, other, reference));
        original += target.len() as u64;
        let cols = info.shape.last().map_or(0, |cols| usize::try_from(*cols).unwrap());
        let matrix = Matrix::new(info.number(), cols, &target, &reference);
        let Some(matrix) = matrix.filter(|matrix| matrix.target != matrix.reference) else { continue };
        let seconds = |f: &mut dyn FnMut()| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        };
        // The least of some: the first run fetches the weights.
        let detector = (0..5).map(|_| {
            seconds(&mut || {
                std::hint::black_box(looks(&matrix));
            })
        });
        detecting += detector.fold(f64::MAX, f64::min);
        let mut factors = None;
        let elapsed = seconds(&mut || factors = fit(&matrix));
        fitting += elapsed;
        let rows: Vec<usize> = (0..matrix.rows).collect();
        let residual = quantise::cost(&matrix, &rows, factors.as_ref()) / 8;
        let factor_bytes = factors.as_ref().map_or(0, |factors| factors.to_bytes().len() as u64);
        coded += residual + factor_bytes;
        let found = factors.map(|factors| (factors.rank, factors.rule));
        println!(
            "{} {found:?}: factors {factor_bytes}, residual {residual} of {}, {elapsed:.3} s",
            info.name,
            target.len()
        );
    }
    println!(
        "{original} bytes, in changed matrices {coded}; detectors {:.2} ms, fits {fitting:.2} s",
        1e3 * detecting
    );
}
