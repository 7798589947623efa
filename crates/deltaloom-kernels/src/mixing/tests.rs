use proptest::prelude::*;

use super::*;

const NUMBERS: [Number; 14] = [
    Number::float(8, 7),
    Number::float(5, 10),
    Number::float(8, 23),
    Number::float(11, 52),
    Number::float(4, 3),
    Number::float(5, 2),
    Number::signed(8),
    Number::signed(16),
    Number::signed(32),
    Number::signed(64),
    Number::unsigned(8),
    Number::unsigned(16),
    Number::unsigned(32),
    Number::unsigned(64),
];

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state ^ *state >> 29
}

/// A prediction of arbitrary bits, and a target that is mostly near it.
fn chunk(number: Number, elems: usize, seed: u64) -> (Vec<u8>, Vec<u8>) {
    let (mut target, mut prediction, mut state) = (Vec::new(), Vec::new(), seed);
    for _ in 0..elems {
        let p = next(&mut state) >> (next(&mut state) % 8) & number.mask();
        let t = match next(&mut state) % 16 {
            0 => next(&mut state),
            1 => p ^ number.top_bit(),
            2..=6 => p,
            _ => p.wrapping_add(next(&mut state) % 40),
        } & number.mask();
        target.extend(&t.to_le_bytes()[..number.bytes()]);
        prediction.extend(&p.to_le_bytes()[..number.bytes()]);
    }
    (target, prediction)
}

/// BF16 weights of a matrix that moved along one direction.
fn weights(rows: usize, cols: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut target, mut prediction, mut state) = (Vec::new(), Vec::new(), 5);
    let mut uniform = || (next(&mut state) >> 40) as f32 / (1 << 24) as f32 - 0.5;
    let columns: Vec<f32> = (0..cols).map(|_| uniform()).collect();
    for _ in 0..rows {
        let row = uniform();
        for column in &columns {
            let p = uniform() * 0.1;
            let t = p + row * column * 0.01 + uniform() * 1e-4;
            prediction.extend(&p.to_le_bytes()[2..]);
            target.extend(&t.to_le_bytes()[2..]);
        }
    }
    (target, prediction)
}

fn roundtrip(shape: MixShape, rule: MixRule, target: &[u8], prediction: &[u8]) -> Vec<u8> {
    let payload = encode(shape, rule, target, prediction, Vec::new());
    let mut values = prediction.to_vec();
    assert_eq!(decode(shape, rule, &payload, &mut values), Ok(()), "{rule:?}");
    assert!(values == target, "{rule:?}");
    payload
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn chunks_of_all_numbers_come_back(
        number in prop::sample::select(&NUMBERS[..]),
        rows in 0usize..40,
        cols in 1usize..40,
        tracks: bool,
        shifts: bool,
        scale in -40i32..10,
        highest in 0u32..300,
        seed: u64,
    ) {
        let shape = MixShape { number, cols };
        let (target, prediction) = chunk(number, rows * cols, seed);
        roundtrip(shape, MixRule { tracks, shifts, scale, highest }, &target, &prediction);
        roundtrip(shape, MixRule::fit(shape, &target, &prediction), &target, &prediction);
    }

    #[test]
    fn any_bytes_give_an_error_or_elements(
        number in prop::sample::select(&NUMBERS[..]),
        payload in prop::collection::vec(any::<u8>(), 0..400),
        tracks: bool,
        shifts: bool,
        scale in -SCALE_MAX..=SCALE_MAX,
        seed: u64,
    ) {
        let (_, mut values) = chunk(number, 30 * 11, seed);
        let rule = MixRule { tracks, shifts, scale, highest: u32::MAX };
        // Any result is fine, as long as it returns.
        let _ = decode(MixShape { number, cols: 11 }, rule, &payload, &mut values);
    }
}

#[test]
fn payloads_that_are_cut_or_longer_are_refused() {
    let (target, prediction) = weights(40, 30);
    let shape = MixShape { number: NUMBERS[0], cols: 30 };
    let rule = MixRule::fit(shape, &target, &prediction);
    let payload = roundtrip(shape, rule, &target, &prediction);
    let decoded = |bytes: &[u8]| decode(shape, rule, bytes, &mut prediction.clone());
    assert_eq!(decoded(&[&payload[..], &[0]].concat()), Err(DecodeError::Trailing));
    assert!(decoded(&payload[..payload.len() / 2]).is_err());
}

#[test]
fn foreseen_steps_are_the_greater_part_of_a_rank_one_update() {
    let (target, prediction) = weights(200, 100);
    let shape = MixShape { number: NUMBERS[0], cols: 100 };
    let rule = MixRule::fit(shape, &target, &prediction);
    assert_eq!((rule.tracks, rule.shifts), (true, true));
    let tracked = roundtrip(shape, rule, &target, &prediction).len();
    let untracked = roundtrip(shape, MixRule { tracks: false, ..rule }, &target, &prediction).len();
    assert!(tracked * 5 < untracked * 4, "{tracked} {untracked}");
}

#[test]
fn a_chunk_has_the_same_payload_everywhere() {
    let (target, prediction) = weights(64, 48);
    let shape = MixShape { number: NUMBERS[0], cols: 48 };
    let rule = MixRule::fit(shape, &target, &prediction);
    let payload = encode(shape, rule, &target, &prediction, Vec::new());
    // FNV-1a
    let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    assert_eq!((payload.len(), hash), (855, 4_576_021_995_740_565_917));
}
