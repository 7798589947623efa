use super::*;
use crate::isa::for_each_isa;
use proptest::prelude::*;

/// docs/arithmetic.md, word by word, for one row and the parts of one token.
fn in_order(row: &[f32], parts: &[Vec<f32>]) -> f32 {
    let flush = |x: f32| if x.is_subnormal() { 0.0 * x } else { x };
    let of_part = |part: &Vec<f32>| {
        let mut sum = 0.0;
        for (row, part) in row.chunks(BLOCK).zip(part.chunks(BLOCK)) {
            let mut both = [0.0f32; 2];
            for k in 0..BLOCK {
                let (w, x) = (row.get(k).copied().unwrap_or(0.0), part.get(k).copied().unwrap_or(0.0));
                both[k % 2] = flush(flush(w).mul_add(x, both[k % 2]));
            }
            sum = flush(sum + flush(both[0] + both[1]));
        }
        sum
    };
    let mut sums = parts.iter().rev().map(of_part);
    let first = sums.next().unwrap();
    let sum = sums.fold(first, |sum, of_part| sum + of_part);
    if sum.is_nan() { f32::NAN } else { sum }
}

/// The parts of an activation, by the words of the document.
fn parts_of(x: f32, count: usize) -> Vec<f32> {
    let mut rest = x;
    let mut parts = Vec::new();
    for _ in 0..count {
        let [below, above] =
            [0, 0x1_0000].map(|more| f32::from_bits((rest.to_bits() & 0xffff_0000).wrapping_add(more)));
        let distance = |y: f32| (f64::from(y) - f64::from(rest)).abs();
        let is_even = below.to_bits() & 0x1_0000 == 0;
        let nearest = match distance(below).partial_cmp(&distance(above)) {
            _ if !rest.is_finite() => rest,
            // The step to infinity is as large as the one before.
            _ if above.is_infinite() => {
                let half = (f64::from(below) - f64::from(f32::from_bits(below.to_bits() - 0x1_0000))) / 2.0;
                if (f64::from(rest) - f64::from(below)).abs() >= half.abs() { above } else { below }
            }
            Some(std::cmp::Ordering::Less) => below,
            Some(std::cmp::Ordering::Equal) if is_even => below,
            _ => above,
        };
        parts.push(if nearest.abs() < 2.0f32.powi(-64) { 0.0 } else { nearest });
        rest = if nearest.is_finite() { rest - nearest } else { 0.0 };
    }
    parts
}

fn bf16(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|w| w.to_le_bytes()[2..].to_vec()).collect()
}

/// What numbers look like.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Usual,
    /// Some weights are about 2^-60 and some activations about 2^-70: sums may be subnormal.
    Tiny,
    /// Some numbers are so large that products overflow.
    Huge,
    /// NaN and infinities.
    Special,
    /// Any bits.
    Any,
}

/// Number `i` of a sequence.
fn number(kind: Kind, seed: u32, i: usize, tiny: i32) -> f32 {
    let mix = |x: u32| {
        let x = (x ^ (x >> 15)).wrapping_mul(0x2c1b_3c6d);
        let x = (x ^ (x >> 12)).wrapping_mul(0x297a_2d39);
        x ^ (x >> 15)
    };
    let bits = mix(u32::try_from(i).unwrap().wrapping_mul(0x9e37_79b9) ^ seed);
    let usual = f32::from_bits((bits & 0x80ff_ffff) + 0x3c00_0000);
    let is_odd_one = mix(bits) % 8 == 0;
    match kind {
        Kind::Tiny if is_odd_one => usual * 2.0f32.powi(tiny),
        Kind::Huge if is_odd_one => usual * 2.0f32.powi(100),
        Kind::Special if is_odd_one => [f32::NAN, f32::INFINITY, -f32::INFINITY, -0.0][bits as usize % 4],
        Kind::Any => f32::from_bits(bits),
        _ => usual,
    }
}

fn check(kind: Kind, [rows, cols, tokens]: [usize; 3], parts: Parts, seed: u32) -> Result<(), TestCaseError> {
    let x: Vec<f32> = (0..tokens * cols).map(|i| number(kind, seed ^ 0x5555, i, -70)).collect();
    let weights: Vec<f32> = (0..rows * cols)
        .map(|i| f32::from_bits(number(kind, seed, i, -60).to_bits() & 0xffff_0000))
        .collect();
    let mut expected = Vec::new();
    for row in weights.chunks_exact(cols) {
        for x in x.chunks_exact(cols) {
            let of_all: Vec<Vec<f32>> = x.iter().map(|x| parts_of(*x, parts.count())).collect();
            let by_part: Vec<Vec<f32>> =
                (0..parts.count()).map(|part| of_all.iter().map(|all| all[part]).collect()).collect();
            expected.push(in_order(row, &by_part).to_bits());
        }
    }
    let bytes = bf16(&weights);
    for_each_isa(|isa| {
        let mut y = vec![f32::NAN; rows * tokens];
        products(&bytes, &Activations::new(&x, cols, parts), &mut Vec::new(), &mut y);
        let found: Vec<u32> = y.iter().map(|y| y.to_bits()).collect();
        prop_assert_eq!(&found, &expected, "{:?}", isa);
        Ok(())
    })
}

proptest! {
    #[test]
    fn every_isa_and_number_of_tokens_adds_in_the_same_order(
        rows in 0usize..70, cols in 1usize..=200, tokens in 0usize..=40, parts in 0usize..3, kind in 0usize..5,
        seed in any::<u32>(),
    ) {
        let kind = [Kind::Usual, Kind::Tiny, Kind::Huge, Kind::Special, Kind::Any][kind];
        // Few products in all, since the definition is slow.
        let tokens = tokens.min(40_000 / (rows * cols).max(1)).max(1);
        check(kind, [rows, cols, tokens], [Parts::One, Parts::Two, Parts::Three][parts], seed)?;
    }
}

#[test]
fn a_token_has_the_same_bits_alone_and_among_others() {
    let (rows, cols, tokens) = (37, 100, 33);
    let x: Vec<f32> = (0..tokens * cols).map(|i| number(Kind::Usual, 5, i, 0)).collect();
    let weights = bf16(&(0..rows * cols).map(|i| number(Kind::Usual, 9, i, 0)).collect::<Vec<_>>());
    for_each_isa(|isa| {
        let mut all = vec![0.0; rows * tokens];
        products(&weights, &Activations::new(&x, cols, Parts::Three), &mut Vec::new(), &mut all);
        for (token, x) in x.chunks_exact(cols).enumerate() {
            let mut y = vec![0.0; rows];
            products(&weights, &Activations::new(x, cols, Parts::Three), &mut Vec::new(), &mut y);
            for (row, y) in y.iter().enumerate() {
                assert_eq!(y.to_bits(), all[row * tokens + token].to_bits(), "{isa:?}, token {token}");
            }
        }
        Ok::<(), ()>(())
    })
    .unwrap();
}

#[test]
fn three_parts_are_as_precise_as_numbers() {
    let (rows, cols) = (64, 576);
    let x: Vec<f32> = (0..cols).map(|i| number(Kind::Usual, 1, i, 0)).collect();
    let weights: Vec<f32> = (0..rows * cols)
        .map(|i| f32::from_bits(number(Kind::Usual, 2, i, 0).to_bits() & 0xffff_0000))
        .collect();
    let error = |parts: Parts| {
        let mut y = vec![0.0; rows];
        products(&bf16(&weights), &Activations::new(&x, cols, parts), &mut Vec::new(), &mut y);
        let (mut off, mut size) = (0.0, 0.0);
        for (row, y) in weights.chunks_exact(cols).zip(&y) {
            let exact: f64 = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            off += (f64::from(*y) - exact).powi(2);
            size += exact * exact;
        }
        (off / size).sqrt()
    };
    let (one, two, three) = (error(Parts::One), error(Parts::Two), error(Parts::Three));
    assert!(three < 5e-7 && two < 1e-5 && one < 1e-2, "{one:e} {two:e} {three:e}");
    assert!(three < two && two < one, "{one:e} {two:e} {three:e}");
}
