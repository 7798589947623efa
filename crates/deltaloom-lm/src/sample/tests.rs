use super::*;
use proptest::prelude::*;

fn sampler(change: impl FnOnce(&mut Sampling), prompt: &[u32]) -> Sampler {
    let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    change(&mut sampling);
    Sampler::new(sampling, 8, prompt, 0).unwrap()
}

/// How often each id is drawn in 4,000 draws.
fn counts(change: impl FnOnce(&mut Sampling), logits: &[f32]) -> Vec<u32> {
    let mut sampler = sampler(change, &[]);
    let mut counts = vec![0; logits.len()];
    for _ in 0..4000 {
        counts[sampler.next(logits).unwrap() as usize] += 1;
    }
    counts
}

const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -3.0];

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    let mut greedy = sampler(|s| s.temperature = 0.0, &[]);
    assert_eq!(greedy.next(&LOGITS).unwrap(), 1);
    assert_eq!(greedy.next(&[-0.0, 0.0]).unwrap(), 0);
    assert_eq!(greedy.next(&[1.0; 8]).unwrap(), 0);
    let mut biased = sampler(|s| (s.temperature, s.logit_bias) = (0.0, vec![(1, -0.5), (4, 5.5)]), &[]);
    assert_eq!(biased.next(&LOGITS).unwrap(), 4);
}

#[test]
fn draws_follow_the_probabilities() {
    let all = counts(|_| {}, &LOGITS);
    let sum: f64 = LOGITS.iter().map(|logit| f64::from(*logit).exp()).sum();
    for (count, logit) in all.iter().zip(LOGITS) {
        let expected = 4000.0 * f64::from(logit).exp() / sum;
        assert!((f64::from(*count) - expected).abs() < 4.0 * expected.sqrt() + 4.0, "{all:?}");
    }
    // Twice the temperature: half the logits.
    let warm = counts(|s| s.temperature = 2.0, &LOGITS);
    assert!(warm[0] > all[0] && warm[1] < all[1]);
}

#[test]
fn filters_keep_what_they_say() {
    let kept = |change: fn(&mut Sampling)| -> Vec<usize> {
        (0..).zip(counts(change, &LOGITS)).filter(|(_, count)| *count > 0).map(|(id, _)| id).collect()
    };
    assert_eq!(kept(|s| s.top_k = 1), [1]);
    assert_eq!(kept(|s| s.top_k = 3), [1, 2, 3]);
    assert_eq!(kept(|s| s.top_k = u32::MAX), [0, 1, 2, 3, 4]);
    // The two largest have 0.394 each, the next 0.145.
    assert_eq!(kept(|s| s.top_p = 0.39), [1]);
    assert_eq!(kept(|s| s.top_p = 0.75), [1, 3]);
    assert_eq!(kept(|s| s.top_p = 0.85), [1, 2, 3]);
    assert_eq!(kept(|s| s.top_p = f32::MIN_POSITIVE), [1]);
    assert_eq!(kept(|s| s.min_p = 0.3), [1, 2, 3]);
    assert_eq!(kept(|s| s.min_p = 1.0), [1, 3]);
    assert_eq!(kept(|s| s.temperature = 1e-30), [1, 3]);
}

#[test]
fn penalties_change_what_was_seen() {
    let mut repeated = sampler(|s| (s.temperature, s.repetition_penalty) = (0.0, 2.0), &[1]);
    // 2.0 of id 1 is halved as it is in the prompt, then that of id 3 as it is in the answer.
    assert_eq!(repeated.next(&LOGITS).unwrap(), 3);
    assert_eq!(repeated.next(&LOGITS).unwrap(), 1);
    let mut negative = sampler(|s| (s.temperature, s.repetition_penalty) = (0.0, 2.0), &[0]);
    assert_eq!(negative.next(&[-1.0, -1.5]).unwrap(), 1);
    let mut present = sampler(|s| (s.temperature, s.presence_penalty) = (0.0, 0.5), &[1]);
    // The prompt does not count.
    assert_eq!([(); 4].map(|()| present.next(&LOGITS).unwrap()), [1, 3, 1, 1]);
    let mut frequent = sampler(|s| (s.temperature, s.frequency_penalty) = (0.0, 0.5), &[]);
    assert_eq!([(); 6].map(|()| frequent.next(&LOGITS).unwrap()), [1, 3, 1, 3, 1, 2]);
}

#[test]
fn broken_logits_are_errors() {
    for change in [|s: &mut Sampling| s.temperature = 0.0, |s: &mut Sampling| s.temperature = 1.0] {
        let mut sampler = sampler(change, &[]);
        assert!(sampler.next(&[0.0, f32::NAN]).is_err());
        assert!(sampler.next(&[0.0, f32::INFINITY]).is_err());
        assert!(sampler.next(&[f32::NEG_INFINITY; 2]).is_err());
        assert!(sampler.next(&[]).is_err());
    }
    let mut ruled_out = sampler(|s| s.logit_bias = vec![(0, f32::NEG_INFINITY)], &[]);
    assert!(ruled_out.next(&[0.0]).is_err());
    assert_eq!(ruled_out.next(&[0.0, -1e30]).unwrap(), 1);
}

#[test]
fn the_same_counters_give_the_same_tokens() {
    let logits: Vec<f32> = (0_u8..8).map(|id| f32::from(id) / 4.0).collect();
    let draw = |seed, request| -> Vec<u32> {
        let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, 8, &[], request).unwrap();
        (0..16).map(|_| sampler.next(&logits).unwrap()).collect()
    };
    // Fixed for ever: a change would change what users have reproduced.
    assert_eq!(draw(1, 0), [7, 7, 6, 0, 6, 4, 2, 5, 7, 6, 6, 6, 7, 0, 7, 2]);
    assert_ne!(draw(1, 0), draw(1, 1));
    assert_ne!(draw(1, 0), draw(2, 0));
}

proptest! {
    #[test]
    fn any_allowed_parameters_give_a_possible_token(
        logits in proptest::collection::vec(prop_oneof![-50.0_f32..50.0, Just(f32::NEG_INFINITY)], 1..700),
        temperature in 0.0_f32..3.0, top_k in 0_u32..600, top_p in 0.001_f32..=1.0, min_p in 0.0_f32..=1.0, seed: u64,
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, logits.len(), &[], 3).unwrap();
        match sampler.next(&logits) {
            Ok(id) => prop_assert!(logits[id as usize] > f32::NEG_INFINITY),
            Err(_) => prop_assert!(logits.iter().all(|logit| *logit == f32::NEG_INFINITY)),
        }
    }
}
