//! Fits of real pairs, where they are.

use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::checkpoint::Checkpoint;

#[test]
#[ignore = "a measurement"]
fn measure() {
    let root = PathBuf::from(std::env::var("LM12M").unwrap());
    let pair = std::env::var("PAIR").unwrap();
    let (a, b) = pair.split_once(',').unwrap();
    let limit: usize = std::env::var("LIMIT").map_or(usize::MAX, |n| n.parse().unwrap());
    let base = Checkpoint::open(&root.join(a), &crate::limits::Limits::default()).unwrap();
    let tuned = Checkpoint::open(&root.join(b), &crate::limits::Limits::default()).unwrap();
    let (mut total, mut original, mut seconds) = (0u64, 0u64, 0.0);
    let mut done = 0;
    let (mut detections, mut detecting) = (0, 0.0);
    for (member, info) in tuned.tensors() {
        let Some((other, base_info)) = base.tensors().find(|(_, other)| other.name == info.name) else {
            continue;
        };
        let read = |checkpoint: &Checkpoint, member: usize, info: &crate::tensor::TensorInfo| {
            let mut bytes = vec![0; info.len_bytes() as usize];
            checkpoint.read(member, info, 0, &mut bytes).unwrap();
            bytes
        };
        let (target, reference) = (read(&tuned, member, info), read(&base, other, base_info));
        original += target.len() as u64;
        if target == reference || info.shape.len() != 2 || done >= limit {
            continue;
        }
        done += 1;
        let cols = info.shape[1] as usize;
        let matrix = Matrix::new(info.number(), cols, &target, &reference).unwrap();
        let detected = detect::looks_low_rank(&matrix);
        let once = || {
            let start = Instant::now();
            std::hint::black_box(detect::looks_low_rank(&matrix));
            start.elapsed().as_secs_f64()
        };
        let detector = (0..9).map(|_| once()).fold(f64::MAX, f64::min);
        detections += usize::from(detected);
        detecting += detector;
        if std::env::var("DETECT").is_ok() {
            continue;
        }
        let start = Instant::now();
        let factors = fit(&matrix);
        let elapsed = start.elapsed().as_secs_f64();
        seconds += elapsed;
        let rows: Vec<usize> = (0..matrix.rows).collect();
        let plain = quantise::cost(&matrix, &rows, None) / 8;
        let (bytes, residual) = factors
            .as_ref()
            .map_or((0, plain), |f| (f.to_bytes().len() as u64, quantise::cost(&matrix, &rows, Some(f)) / 8));
        total += bytes + residual;
        let (rank, rule) = factors.as_ref().map_or((0, None), |f| (f.rank, Some(f.rule)));
        let numbers = (matrix.rows + matrix.cols) * rank.max(1);
        println!(
            "{:50} rank {rank} {rule:?} factors {bytes} ({:.2} bits) residual {residual} ({:.4} bits) plain {plain} ratio {:.2} {elapsed:.3} s",
            info.name,
            bytes as f64 * 8.0 / numbers as f64,
            residual as f64 * 8.0 / (matrix.rows * matrix.cols) as f64,
            target.len() as f64 / (bytes + residual) as f64
        );
    }
    println!("detected {detections} of {done} in {:.3} ms", detecting * 1e3);
    println!(
        "original {original} touched coded {total} ratio {:.2}, {seconds:.2} s",
        original as f64 / total as f64
    );
}

#[test]
#[ignore = "a measurement"]
fn measure_large() {
    let side: usize = std::env::var("SIDE").unwrap().parse().unwrap();
    let rank: usize = std::env::var("RANK").unwrap().parse().unwrap();
    let size: f64 = std::env::var("SIZE").map_or(0.003, |s| s.parse().unwrap());
    let (target, reference) = merged(side, side, rank, size);
    let matrix = Matrix::new(Number::float(8, 7), side, &target, &reference).unwrap();
    let start = Instant::now();
    println!("detected {} in {:.3} ms", detect::looks_low_rank(&matrix), start.elapsed().as_secs_f64() * 1e3);
    let start = Instant::now();
    let factors = fit(&matrix);
    let elapsed = start.elapsed().as_secs_f64();
    let rows: Vec<usize> = (0..matrix.rows).collect();
    let plain = quantise::cost(&matrix, &rows, None) / 8;
    if let Some(f) = factors {
        let (bytes, residual) = (f.to_bytes().len(), quantise::cost(&matrix, &rows, Some(&f)) / 8);
        println!(
            "{side} rank {} {:?} factors {bytes} residual {residual} plain {plain} ratio {:.2} in {elapsed:.2} s",
            f.rank,
            f.rule,
            target.len() as f64 / (bytes as f64 + residual as f64)
        );
    } else {
        println!("none, plain {plain}, {elapsed:.2} s");
    }
}

/// A BF16 matrix of normal weights, and the same with a product of random factors of mean square `size` added as two BF16 tensors are.
fn merged(rows: usize, cols: usize, rank: usize, size: f64) -> (Vec<u8>, Vec<u8>) {
    let mut state = 7u64;
    let mut normal = move || {
        let mut sum = 0.0;
        for _ in 0..12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (state >> 40) as f64 / (1u64 << 24) as f64;
        }
        sum - 6.0
    };
    let scale = size / (rank as f64).sqrt();
    let left: Vec<f64> = (0..rows * rank).map(|_| normal() * scale).collect();
    let right: Vec<f64> = (0..rank * cols).map(|_| normal()).collect();
    let mut product = vec![0.0; rows * cols];
    deltaloom_kernels::matrix::add_product(
        deltaloom_kernels::matrix::Strided::rows(&left, rank),
        &right,
        rank,
        cols,
        &mut product,
    );
    let round = |x: f32| half::bf16::from_f32(x);
    let (mut target, mut reference) = (Vec::new(), Vec::new());
    for product in product {
        let before = round((normal() * 0.02) as f32);
        reference.extend(before.to_le_bytes());
        target.extend(round(before.to_f32() + round(product as f32).to_f32()).to_le_bytes());
    }
    (target, reference)
}
