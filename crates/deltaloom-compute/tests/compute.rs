//! Products with packed weights equal those of the dense fine-tune: bit for bit, or within the
//! stated tolerance.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;

use std::sync::Arc;

use common::*;
use deltaloom::{Bases, Error, ResolvedContainer, with_threads};
use deltaloom_compute::{
    Choice, DenseMatrix, Form, Mode, PackedMatrix, Run, Segment, Timers, WeightType, matmul_shared,
};
use half::bf16;
use proptest::prelude::*;

const FORMS: [Form; 5] = Form::ALL;

/// A base and a fine-tune in which one of `every` elements differs, as bytes and as numbers.
struct Pair {
    rows: usize,
    cols: usize,
    weight: WeightType,
    base: Vec<u8>,
    tuned: Vec<u8>,
}

impl Pair {
    fn new(seed: u64, rows: usize, cols: usize, weight: WeightType, every: u64) -> Self {
        let mut rng = Random::new(seed);
        let numbers = rng.weights(rows * cols);
        let (base, size) = match weight {
            WeightType::Bf16 => (bf16_bytes(&numbers), 2),
            WeightType::F32 => (f32_bytes(&numbers), 4),
        };
        let mut tuned = stepped(&base, size, |_| match rng.below(every) {
            // Near and far.
            0 if rng.below(8) == 0 => rng.around_zero(3000),
            0 => 1 + rng.around_zero(60),
            _ => 0,
        });
        // A step across zero may lead to a NaN.
        for (tuned, base) in tuned.chunks_mut(size).zip(base.chunks(size)) {
            if tuned[size - 1] & 0x7f == 0x7f && tuned[size - 2] & 0x80 == 0x80 {
                tuned.copy_from_slice(base);
            }
        }
        Self { rows, cols, weight, base, tuned }
    }

    fn dense(&self, bytes: &[u8]) -> DenseMatrix {
        DenseMatrix::new(self.rows, self.cols, self.weight, bytes.to_vec()).unwrap()
    }

    fn numbers(&self, bytes: &[u8]) -> Vec<f32> {
        match self.weight {
            WeightType::Bf16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            WeightType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }

    fn container(&self) -> Arc<ResolvedContainer> {
        let dtype = if self.weight == WeightType::Bf16 { "BF16" } else { "F32" };
        let shape = [self.rows as u64, self.cols as u64];
        let file = |bytes: &[u8]| {
            safetensors(&[tensor("w", dtype, &shape, bytes.to_vec()), tensor("v", "F32", &[3], vec![7; 12])])
        };
        let (base, tuned) = (file(&self.base), file(&self.tuned));
        let (container, _) = pack(&tuned, &[&base]);
        Arc::new(resolve(&container, &bases(&[&base])).unwrap())
    }

    fn packed(&self, resolved: &Arc<ResolvedContainer>, form: Form) -> PackedMatrix {
        let packed = PackedMatrix::open(resolved, "w", Choice::Form(form)).unwrap();
        assert!(packed.form() == form || self.base == self.tuned, "{form:?}");
        packed
    }

    /// The product of the fine-tune with every token, in double precision, and the sum of the
    /// absolute products of base and fine-tune.
    fn expected(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let (weights, base) = (self.numbers(&self.tuned), self.numbers(&self.base));
        let row = |row: &[f32], base: &[f32], x: &[f32]| {
            let products = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let both = row.iter().zip(base).zip(x);
            let absolute = both.map(|((w, b), x)| f64::from(w.abs() + b.abs()) * f64::from(x.abs()));
            (products.sum::<f64>(), absolute.sum::<f64>())
        };
        let rows = || weights.chunks(self.cols).zip(base.chunks(self.cols));
        x.chunks(self.cols).flat_map(|x| rows().map(move |(w, b)| row(w, b, x)).collect::<Vec<_>>()).collect()
    }
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

fn product(matrix: &PackedMatrix, x: &[f32], run: &Run<'_>) -> Vec<f32> {
    let shape = matrix.shape();
    let mut y = vec![f32::NAN; x.len() / shape.cols * shape.rows];
    matrix.matmul(x, &mut y, run).unwrap();
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_form_multiplies_as_the_dense_fine_tune(
        seed in any::<u64>(), rows in 1usize..90, cols in 1usize..700, tokens in prop_oneof![0usize..20, 30usize..40], every in 1u64..60, is_bf16 in any::<bool>(),
    ) {
        let weight = if is_bf16 { WeightType::Bf16 } else { WeightType::F32 };
        let pair = Pair::new(seed, rows, cols, weight, every);
        let resolved = pair.container();
        let x = Random::new(seed ^ 1).weights(tokens * cols);
        let mut dense = vec![f32::NAN; tokens * rows];
        pair.dense(&pair.tuned).matmul(&x, &mut dense, &Run::default()).unwrap();
        let expected = pair.expected(&x);
        for form in FORMS {
            let packed = pair.packed(&resolved, form);
            let y = product(&packed, &x, &Run::default());
            prop_assert_eq!(bits(&y), bits(&dense), "{:?}", form);
            let fast = product(&packed, &x, &Run::new(Mode::Fast));
            for (y, (sum, absolute)) in fast.iter().zip(&expected) {
                prop_assert!((f64::from(*y) - sum).abs() <= 1e-5 * absolute, "{:?}: {} {}", form, y, sum);
            }
            // One token at a time, and on two threads.
            for (x, y) in x.chunks(cols).zip(y.chunks(rows)) {
                prop_assert_eq!(bits(&product(&packed, x, &Run::default())), bits(y));
            }
            let on_two = with_threads(2, || Ok(product(&packed, &x, &Run::default()))).unwrap();
            prop_assert_eq!(bits(&on_two), bits(&y));
        }
    }
}

#[test]
fn large_matrices_are_the_same_on_two_threads() {
    let pair = Pair::new(5, 700, 800, WeightType::Bf16, 20);
    let resolved = pair.container();
    let x = Random::new(6).weights(3 * 800);
    for form in FORMS {
        let packed = pair.packed(&resolved, form);
        let on = |threads| with_threads(threads, || Ok(product(&packed, &x, &Run::default()))).unwrap();
        assert_eq!(bits(&on(1)), bits(&on(2)), "{form:?}");
    }
}

#[test]
fn activations_and_weights_that_are_not_finite_give_what_the_dense_product_gives() {
    for weight in [WeightType::Bf16, WeightType::F32] {
        let mut pair = Pair::new(9, 20, 300, weight, 10);
        let size = pair.tuned.len() / 6000;
        for is_weight_finite in [true, false] {
            if !is_weight_finite {
                // An infinity and a NaN: all ones.
                pair.tuned[40 * size - 2..40 * size].copy_from_slice(&[0x80, 0x7f]);
                pair.tuned[5000 * size - 2..5000 * size].copy_from_slice(&[0xff, 0xff]);
            }
            let resolved = pair.container();
            let mut x = Random::new(8).weights(40 * 300);
            // Larger ones are infinite as BF16, and so in exact products, but not in fast ones.
            let largest = half::bf16::MAX.to_f32();
            (x[5], x[301], x[700], x[1000]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY, largest);
            x[2000..2300].fill(largest);
            let mut dense = vec![0.0; 800];
            pair.dense(&pair.tuned).matmul(&x, &mut dense, &Run::default()).unwrap();
            for form in FORMS {
                let opened = PackedMatrix::open(&resolved, "w", Choice::Form(form));
                if form == Form::Csr && !is_weight_finite {
                    assert!(
                        matches!(opened, Err(Error::InvalidArgument(what)) if what.contains("NaN or infinite"))
                    );
                    continue;
                }
                let packed = opened.unwrap();
                assert_eq!(bits(&product(&packed, &x, &Run::default())), bits(&dense), "{form:?}");
                // Only the kind of a non-finite result is compared.
                let fast = product(&packed, &x, &Run::new(Mode::Fast));
                for (fast, dense) in fast.iter().zip(&dense) {
                    assert_eq!(fast.is_finite(), dense.is_finite(), "{form:?} {fast} {dense}");
                    assert_eq!(fast.is_nan(), dense.is_nan(), "{form:?} {fast} {dense}");
                }
            }
        }
    }
}

#[test]
fn several_fine_tunes_share_the_product_of_their_base() {
    let pairs: Vec<Pair> = (0..4)
        .map(|i| {
            let tuned = Pair::new(3, 130, 520, WeightType::Bf16, 5 + 10 * i);
            // The last one is the base itself.
            Pair { tuned: if i == 3 { tuned.base.clone() } else { tuned.tuned }, ..tuned }
        })
        .collect();
    let base = pairs[0].dense(&pairs[0].base);
    for (form, mode) in [(Form::Csr, Mode::Fast), (Form::Csr, Mode::Exact), (Form::Bitmap, Mode::Fast)] {
        let packed: Vec<PackedMatrix> = pairs
            .iter()
            .map(|pair| {
                PackedMatrix::from_dense(&base, &pair.dense(&pair.tuned), Choice::Form(form)).unwrap()
            })
            .collect();
        let tokens = [2, 1, 0, 9, 1];
        let of = [0, 1, 2, 3, 2];
        let segments: Vec<Segment<'_>> = tokens
            .iter()
            .zip(of)
            .map(|(tokens, of)| Segment { tokens: *tokens, matrix: &packed[of] })
            .collect();
        let x = Random::new(4).weights(13 * 520);
        let mut y = vec![f32::NAN; 13 * 130];
        matmul_shared(&base, &segments, &x, &mut y, &Run::new(mode)).unwrap();
        let (mut x, mut y) = (&x[..], &y[..]);
        for (tokens, of) in tokens.iter().zip(of) {
            let (x, y) = (x.split_off(..tokens * 520).unwrap(), y.split_off(..tokens * 130).unwrap());
            let mut dense = vec![0.0; y.len()];
            pairs[of].dense(&pairs[of].tuned).matmul(x, &mut dense, &Run::default()).unwrap();
            if mode == Mode::Exact {
                assert_eq!(bits(y), bits(&dense));
            }
            for (y, (sum, absolute)) in y.iter().zip(pairs[of].expected(x)) {
                assert!((f64::from(*y) - sum).abs() <= 1e-5 * absolute);
            }
        }
        let short =
            matmul_shared(&base, &segments[1..], &[0.0; 13 * 520], &mut [0.0; 13 * 130], &Run::new(mode));
        assert!(matches!(short, Err(Error::InvalidArgument(_))));
    }
}

#[test]
fn fine_tunes_of_every_form_are_multiplied_side_by_side() {
    let pair = Pair::new(8, 130, 520, WeightType::Bf16, 9);
    let resolved = pair.container();
    let same = Pair { tuned: pair.base.clone(), ..Pair::new(8, 130, 520, WeightType::Bf16, 9) };
    let base = pair.packed(&resolved, Form::Csr).base().unwrap().clone();
    let mut packed: Vec<PackedMatrix> = FORMS.iter().map(|form| pair.packed(&resolved, *form)).collect();
    packed
        .push(PackedMatrix::from_dense(&base, &same.dense(&same.tuned), Choice::Form(Form::Planes)).unwrap());
    let x = Random::new(4).weights(520);
    for (mode, tokens) in [(Mode::Exact, 1), (Mode::Exact, 3), (Mode::Exact16, 40), (Mode::Fast, 1)] {
        let run = Run::new(mode);
        let segments: Vec<Segment<'_>> = packed.iter().map(|matrix| Segment { tokens, matrix }).collect();
        let x = x.repeat(tokens * packed.len());
        let mut y = vec![f32::NAN; packed.len() * tokens * 130];
        matmul_shared(&base, &segments, &x, &mut y, &run).unwrap();
        for (matrix, y) in packed.iter().zip(y.chunks_exact(130 * tokens)) {
            let alone = product(matrix, &x[..tokens * 520], &run);
            assert_eq!(bits(y), bits(&alone), "{mode:?} {:?}", matrix.form());
        }
    }
}

#[test]
fn views_and_conversions_multiply_like_any_other_matrix() {
    let (rows, cols) = (96, 256);
    let halves = |seed: u64| bf16_bytes(&Random::new(seed).weights(rows * cols));
    let moved = |bytes: &[u8]| stepped(bytes, 2, |i| i64::from(i % 3 == 0));
    let wide =
        |bytes: &[u8]| -> Vec<u8> { bytes.as_chunks().0.iter().flat_map(|[a, b]| [0, 0, *a, *b]).collect() };
    let (a, b, c) = (halves(1), halves(2), halves(3));
    let shape = [rows as u64, cols as u64];
    let base = safetensors(&[
        tensor("a", "BF16", &shape, a.clone()),
        tensor("b", "BF16", &shape, b.clone()),
        tensor("c", "BF16", &shape, c.clone()),
    ]);
    let fused = [moved(&a), moved(&b)].concat();
    let widened = wide(&moved(&c));
    let tuned = safetensors(&[
        tensor("fused", "BF16", &[2 * rows as u64, cols as u64], fused.clone()),
        tensor("c", "F32", &shape, widened.clone()),
    ]);
    let (container, report) = pack(&tuned, &[&base]);
    assert_eq!(predictors(&report)["fused"], "view");
    assert_eq!(predictors(&report)["c"], "converted");
    let resolved = Arc::new(resolve(&container, &bases(&[&base])).unwrap());
    let x = Random::new(4).weights(3 * cols);
    let run = Run::new(Mode::Exact);
    for (name, rows, weight, bytes) in
        [("fused", 2 * rows, WeightType::Bf16, fused), ("c", rows, WeightType::F32, widened)]
    {
        let mut expected = vec![0.0; 3 * rows];
        DenseMatrix::new(rows, cols, weight, bytes).unwrap().matmul(&x, &mut expected, &run).unwrap();
        for form in [Form::Tiles, Form::Dense] {
            let packed = PackedMatrix::open(&resolved, name, Choice::Form(form)).unwrap();
            assert_eq!(bits(&product(&packed, &x, &run)), bits(&expected), "{name} as {form:?}");
        }
        let without_base = PackedMatrix::open(&resolved, name, Choice::Form(Form::Planes));
        assert!(matches!(without_base, Err(Error::InvalidArgument(_))));
    }
}

#[test]
fn a_budget_picks_the_fastest_form_that_fits() {
    let forms = |every, weight| {
        let pair = Pair::new(1, 200, 512, weight, every);
        let resolved = pair.container();
        let sizes: Vec<(Form, u64)> =
            FORMS.iter().map(|form| (*form, pair.packed(&resolved, *form).resident_bytes())).collect();
        let bytes = |form| sizes.iter().find(|(of, _)| *of == form).unwrap().1;
        // More than the largest panel.
        let panel = 32 << 10;
        let mut found = Vec::new();
        for (form, _) in &sizes {
            let matrix = PackedMatrix::open(&resolved, "w", Choice::Budget(bytes(*form) + panel)).unwrap();
            assert!(matrix.resident_bytes() <= bytes(*form) + panel);
            found.push(matrix.form());
        }
        let too_small = PackedMatrix::open(&resolved, "w", Choice::Budget(bytes(Form::Tiles)));
        assert!(matches!(too_small, Err(Error::LimitExceeded { found, limit, .. }) if found > limit));
        found
    };
    assert_eq!(forms(60, WeightType::Bf16)[3..], [Form::Csr, Form::Csr]);
    assert_eq!(forms(2, WeightType::Bf16)[4], Form::Dense);
    assert_eq!(forms(60, WeightType::F32)[3], Form::Csr);
    assert!(forms(4, WeightType::Bf16)[1..3].iter().all(|form| [Form::Planes, Form::Bitmap].contains(form)));
}

#[test]
fn what_is_no_product_is_an_error() {
    let pair = Pair::new(1, 8, 40, WeightType::Bf16, 4);
    let resolved = pair.container();
    let open = |name: &str, choice| PackedMatrix::open(&resolved, name, choice);
    let is_invalid = |result: Result<PackedMatrix, Error>, part: &str| {
        assert!(matches!(result, Err(Error::InvalidArgument(what)) if what.contains(part)), "{part}");
    };
    is_invalid(open("v", Choice::Form(Form::Dense)), "two dimensions");
    is_invalid(open("w", Choice::Form(Form::Base)), "differs from its base");
    let missing = open("u", Choice::Form(Form::Csr));
    assert!(
        matches!(missing, Err(Error::InFile { source, .. }) if matches!(*source, Error::NotFound { .. }))
    );
    let packed = open("w", Choice::Form(Form::Bitmap)).unwrap();
    for (x, y) in [(39, 8), (40, 7), (80, 8), (0, 8), (41, 8)] {
        let result = packed.matmul(&vec![0.0; x], &mut vec![0.0; y], &Run::default());
        assert!(matches!(result, Err(Error::InvalidArgument(what)) if what.contains("[8, 40]")));
    }
    packed.matmul(&[], &mut [], &Run::default()).unwrap();

    // A base that is read but not in memory, and no base at all.
    let alone = Pair { base: pair.tuned.clone(), ..pair };
    let file = safetensors(&[tensor("w", "BF16", &[8, 40], alone.tuned.clone())]);
    let (container, _) = common::pack(&file, &[]);
    let alone = Arc::new(resolve(&container, &Bases::default()).unwrap());
    is_invalid(PackedMatrix::open(&alone, "w", Choice::Form(Form::Csr)), "not in memory");
    let budget = PackedMatrix::open(&alone, "w", Choice::Budget(640)).unwrap();
    assert_eq!(budget.form(), Form::Dense);
    assert!(DenseMatrix::new(3, 5, WeightType::F32, vec![0; 59]).is_err());
    assert!(DenseMatrix::new(usize::MAX, usize::MAX, WeightType::F32, Vec::new()).is_err());
}

#[test]
fn times_are_those_of_the_phases_that_a_form_has() {
    let pair = Pair::new(2, 300, 600, WeightType::Bf16, 8);
    let resolved = pair.container();
    let x = Random::new(4).weights(33 * 600);
    let timers = Timers::default();
    for (form, mode) in [(Form::Tiles, Mode::Exact), (Form::Planes, Mode::Fast), (Form::Csr, Mode::Fast)] {
        product(&pair.packed(&resolved, form), &x, &Run::new(mode).timed_by(&timers));
        let times = timers.take();
        assert!(times.multiply > 0.0 && times.total() > times.multiply);
        // Products in the order of lanes read activations where they are.
        assert!(form == Form::Planes || (times.load > 0.0 && times.finish > 0.0));
        assert_eq!(times.decode > 0.0, form == Form::Tiles);
        assert!(form == Form::Csr || (times.patch > 0.0) == (form == Form::Planes));
    }
    assert_eq!(timers.take().total(), 0.0);
}

#[test]
fn activations_in_bf16_are_multiplied_as_their_numbers() {
    let pair = Pair::new(2, 30, 70, WeightType::F32, 3);
    let packed = pair.packed(&pair.container(), Form::Planes);
    let x: Vec<bf16> = Random::new(4).weights(140).into_iter().map(bf16::from_f32).collect();
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let expected: Vec<bf16> =
        product(&packed, &wide, &Run::default()).into_iter().map(bf16::from_f32).collect();
    let mut y = vec![bf16::ZERO; 60];
    packed.matmul_bf16(&x, &mut y, &Run::default()).unwrap();
    assert_eq!(y, expected);
}

#[test]
fn rows_are_gathered_from_every_form() {
    for weight in [WeightType::Bf16, WeightType::F32] {
        let pair = Pair::new(91, 300, 70, weight, 6);
        let (resolved, numbers) = (pair.container(), pair.numbers(&pair.tuned));
        let rows = [7, 299, 0, 7, 150, 151];
        let expected: Vec<f32> =
            rows.iter().flat_map(|row| numbers[row * 70..][..70].iter().copied()).collect();
        for form in FORMS {
            let matrix = pair.packed(&resolved, form);
            let mut out = vec![f32::NAN; 6 * 70];
            matrix.gather(&rows, &mut out).unwrap();
            assert_eq!(bits(&out), bits(&expected), "{form:?}");
            matrix.gather(&[], &mut []).unwrap();
            assert!(matches!(matrix.gather(&[300], &mut out[..70]), Err(Error::InvalidArgument(_))));
            assert!(matches!(matrix.gather(&rows, &mut out[1..]), Err(Error::InvalidArgument(_))));
        }
        let base = PackedMatrix::from_dense(
            &pair.dense(&pair.base),
            &pair.dense(&pair.base),
            Choice::Form(Form::Base),
        );
        let mut out = vec![0.0; 70];
        base.unwrap().gather(&[299], &mut out).unwrap();
        assert_eq!(bits(&out), bits(&pair.numbers(&pair.base)[299 * 70..]));
    }
}
