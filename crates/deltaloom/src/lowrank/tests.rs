//! Fits of matrices that were made by adding a product, and of others.

use std::path::PathBuf;
use std::time::Instant;

use deltaloom_kernels::isa::{Isa, lower_to};
use deltaloom_kernels::matrix::{Scalar as _, Strided};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::limits::Limits;
use crate::progress::Silent;
use crate::tensor::TensorInfo;

const BF16: Number = Number::float(8, 7);
const F16: Number = Number::float(5, 10);
const F32: Number = Number::float(8, 23);

/// Almost normal numbers: sums of twelve uniform ones.
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

/// Normal weights as a reference. The target is the same with a product of random factors added, or
/// with other numbers of the same size.
fn merged(number: Number, rows: usize, cols: usize, rank: usize, rule: ProductRule) -> Rows {
    let mut normal = Normal(7);
    let mut change: Vec<f64> =
        (0..rows * cols).map(|_| if rank == 0 { 0.003 * normal.next() } else { 0.0 }).collect();
    let scale = 0.003 / (rank as f64).max(1.0).sqrt();
    let left: Vec<f64> = (0..rows * rank).map(|_| normal.next() * scale).collect();
    let right: Vec<f64> = (0..rank * cols).map(|_| normal.next()).collect();
    f64::add_product(Strided::rows(&left, rank), &right, rank, cols, &mut change);
    let (mut target, mut reference) = (Vec::new(), Vec::new());
    for change in change {
        let (before, bytes) = rounded_to(number, 0.02 * normal.next());
        reference.extend(bytes);
        let added = if rule == ProductRule::Sum { change } else { rounded_to(number, change).0 };
        target.extend(rounded_to(number, before + added).1);
    }
    (target, reference)
}

/// A target and its reference.
struct Pair {
    shape: Shape,
    rows: Rows,
}

impl Pair {
    fn new(number: Number, cols: usize, rows: Rows) -> Option<Self> {
        let count = rows.0.len() / (cols * number.bytes()).max(1);
        Shape::new(number, count as u64, cols as u64).map(|shape| Self { shape, rows })
    }

    fn read(&self, rows: Range<usize>) -> Rows {
        let row_bytes = self.shape.cols * self.shape.number.bytes();
        let part = |bytes: &[u8]| bytes[rows.start * row_bytes..rows.end * row_bytes].to_vec();
        (part(&self.rows.0), part(&self.rows.1))
    }

    fn fit(&self) -> Option<Factors> {
        fit(self.shape, 8, &|rows| Ok(self.read(rows)), &Silent).unwrap()
    }

    /// Number of elements that a product predicts wrongly.
    fn changed(&self, factors: &Factors) -> usize {
        let (target, mut prediction) = self.rows.clone();
        let right = factors.right_factor(self.shape.number).unwrap();
        right.predict(factors.rule, &factors.left, &mut prediction);
        let size = self.shape.number.bytes();
        prediction.chunks(size).zip(target.chunks(size)).filter(|(a, b)| a != b).count()
    }

    /// The detector's answer.
    fn looks(&self) -> bool {
        expected_rank(self.shape, &|rows| Ok(self.read(rows))).unwrap().is_some()
    }
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
        let pair = Pair::new(number, 224, merged(number, 160, 224, 4, rule)).unwrap();
        let factors = pair.fit().unwrap();
        let percent = 100 * pair.changed(&factors) / (160 * 224);
        assert_eq!((factors.rank, factors.rule), (4, rule), "{number:?}");
        assert!(percent <= most_changed, "{number:?} {rule:?}: {percent} % changed");
        let bytes = factors.to_bytes();
        assert_eq!(Factors::parse(&bytes, 4, 160, 224).unwrap(), factors);
        assert!(bytes.len() * 4 < pair.rows.0.len(), "{number:?}: {} bytes", bytes.len());
    }
}

#[test]
fn high_ranks_are_expected_and_found() {
    let read = |pair: &Pair| expected_rank(pair.shape, &|rows| Ok(pair.read(rows))).unwrap();
    for rank in [12, 24] {
        let pair = Pair::new(BF16, 320, merged(BF16, 256, 320, rank, ProductRule::Sum)).unwrap();
        let expected = read(&pair).unwrap();
        assert!((rank..2 * rank).contains(&expected), "{expected} instead of {rank}");
        let factors = fit(pair.shape, expected, &|rows| Ok(pair.read(rows)), &Silent).unwrap().unwrap();
        assert_eq!(factors.rank, rank);
        // Each row and column has so many numbers fewer that tell them.
        let percent = 100 * pair.changed(&factors) / (256 * 320);
        assert!(percent <= 30, "rank {rank}: {percent} % changed");
    }
    // Factors of half the side would be as large as what they save.
    let pair = Pair::new(BF16, 320, merged(BF16, 256, 320, 128, ProductRule::Sum)).unwrap();
    assert_eq!(read(&pair), None);
}

#[test]
fn other_changes_are_not_taken_for_a_product() {
    for number in [BF16, F16, F32] {
        let (target, reference) = merged(number, 160, 224, 0, ProductRule::Sum);
        assert!(!Pair::new(number, 224, (target, reference.clone())).unwrap().looks());
        assert_eq!(Pair::new(number, 224, (reference.clone(), reference)).unwrap().fit(), None);
    }
}

#[test]
fn the_right_factor_of_a_large_matrix_comes_from_some_of_its_rows() {
    let cols = 512;
    let rows = 2 * FITTED_ELEMS / cols + 7;
    let pair = Pair::new(BF16, cols, merged(BF16, rows, cols, 2, ProductRule::RoundedProduct)).unwrap();
    let factors = pair.fit().unwrap();
    assert_eq!((factors.rank, factors.left.len()), (2, 2 * rows));
    let percent = 100 * pair.changed(&factors) / (rows * cols);
    assert!(percent <= 3, "{percent} % changed");
}

#[test]
fn no_more_rows_are_read_at_a_time_than_a_sample_and_a_block() {
    let cols = 512;
    let rows = 2 * FITTED_ELEMS / cols + 7;
    let pair = Pair::new(BF16, cols, merged(BF16, rows, cols, 2, ProductRule::RoundedProduct)).unwrap();
    let most = std::cell::Cell::new(0);
    let read = |rows: Range<usize>| {
        most.set(most.get().max(rows.len()));
        Ok(pair.read(rows))
    };
    assert!(fit(pair.shape, 8, &read, &Silent).unwrap().is_some());
    assert_eq!(most.get(), refine::rows_per_block(cols));
}

#[test]
fn a_fit_can_be_cancelled_anywhere() {
    /// Stops when it is asked for the last of a given number of times.
    struct Countdown(std::sync::atomic::AtomicUsize);
    impl Progress for Countdown {
        fn start(&self, _total_bytes: u64) {}
        fn advance(&self, _bytes: u64) {}
        fn is_cancelled(&self) -> bool {
            self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1
        }
    }
    let pair = Pair::new(BF16, 128, merged(BF16, 96, 128, 3, ProductRule::RoundedProduct)).unwrap();
    let fit = |asked: usize| {
        let countdown = Countdown(asked.into());
        let result = fit(pair.shape, 8, &|rows| Ok(pair.read(rows)), &countdown);
        (result, asked - countdown.0.into_inner().min(asked))
    };
    let (_, most) = fit(1 << 20);
    assert!(most > 10, "{most}");
    for asked in 1..=most {
        assert!(matches!(fit(asked), (Err(Error::Cancelled), _)), "{asked}");
    }
}

#[test]
fn every_isa_finds_the_same_factors() {
    let pair = Pair::new(BF16, 128, merged(BF16, 96, 128, 3, ProductRule::RoundedProduct)).unwrap();
    let fits: Vec<Option<Factors>> = Isa::available()
        .into_iter()
        .map(|isa| {
            lower_to(isa);
            pair.fit()
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
    let pair = Pair::new(BF16, 224, (target.clone(), reference.clone())).unwrap();
    let factors = pair.fit().unwrap();
    assert_eq!(factors.rank, 4);
    let changed = pair.changed(&factors);
    assert!(changed * 10 < 160 * 224, "{changed}");
    // If all numbers are like that, nothing is found.
    let odd: Vec<u8> = [0xff, 0x7f].repeat(160 * 224);
    assert_eq!(Pair::new(BF16, 224, (odd.clone(), reference)).unwrap().fit(), None);
    assert_eq!(Pair::new(BF16, 224, (target, odd)).unwrap().fit(), None);
}

#[test]
fn only_matrices_of_floats_that_a_product_can_predict() {
    let is_shape = |number, rows, cols| Shape::new(number, rows, cols).is_some();
    assert!(is_shape(BF16, 64, 64) && is_shape(F16, 64, 64) && is_shape(F32, 1 << 40, 64));
    assert!(!is_shape(Number::float(11, 52), 64, 64) && !is_shape(Number::unsigned(16), 64, 64));
    assert!(!is_shape(BF16, 64, 0) && !is_shape(BF16, 0, 64) && !is_shape(BF16, 64, 1));
    assert!(is_shape(BF16, 64, MAX_COLS as u64) && !is_shape(BF16, 64, MAX_COLS as u64 + 1));
    assert!(!is_shape(BF16, u64::MAX, 64) && !is_shape(BF16, 64, u64::MAX));
}

/// `LM12M=dir PAIR=base,tuned cargo test --release -p deltaloom --lib --
/// --ignored --nocapture sizes_and_times`
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
        let pair = Pair::new(info.number(), cols, (target, reference));
        let Some(pair) = pair.filter(|pair| pair.rows.0 != pair.rows.1) else { continue };
        let seconds = |f: &mut dyn FnMut()| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        };
        // The shortest of several runs: the first one fetches the weights.
        let detector = (0..5).map(|_| {
            seconds(&mut || {
                std::hint::black_box(pair.looks());
            })
        });
        detecting += detector.fold(f64::MAX, f64::min);
        let mut factors = None;
        let elapsed = seconds(&mut || factors = pair.fit());
        fitting += elapsed;
        let with = factors.as_ref().map(|factors| (factors, &factors.left[..]));
        let residual = quantise::cost(&pair.shape.matrix(&pair.rows), with) / 8;
        let factor_bytes = factors.as_ref().map_or(0, |factors| factors.to_bytes().len() as u64);
        coded += residual + factor_bytes;
        let found = factors.map(|factors| (factors.rank, factors.rule));
        println!(
            "{} {found:?}: factors {factor_bytes}, residual {residual} of {}, {elapsed:.3} s",
            info.name,
            pair.rows.0.len()
        );
    }
    println!(
        "{original} bytes, in changed matrices {coded}; detectors {:.2} ms, fits {fitting:.2} s",
        1e3 * detecting
    );
}
