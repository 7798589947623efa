//! From losses to gains over truncation.

use super::report::{Controlled, EffectiveLength, KeyTokens, KvBytes, Length, Losses, MethodLosses, Price};
use super::retrieval::Retrieval;
use super::{TestOptions, starts};
use crate::context::statistics::{Estimate, Word};

/// A key token is this much more probable with all of the text, in nats.
const KEY_GAIN: f64 = 2.0;
/// And its log-probability is at least this.
const KEY_LEAST: f64 = -2.0;

/// Losses of some sequences: by sequence, then by target.
pub(super) type ByTarget = Vec<Vec<f64>>;

/// What was measured of one method.
pub(super) struct Found {
    pub(super) name: String,
    /// By length.
    pub(super) by_length: Vec<ByTarget>,
    pub(super) inside: ByTarget,
    /// Gains by gap, then by passage.
    pub(super) copies: Vec<Vec<f64>>,
    pub(super) kv: KvBytes,
    /// Losses inside the trained length of what it is compared with.
    pub(super) others: Vec<ByTarget>,
}

/// Positions that are reported together: halves of the trained length, then whole ones up to four
/// of them, then doubling.
pub(super) fn buckets(tokens: usize, trained: usize) -> Vec<[usize; 2]> {
    let mut buckets = Vec::new();
    let mut start = 0;
    while start < tokens {
        let size = match start / trained {
            0 => (trained / 2).max(1),
            1..4 => trained,
            _ => start,
        };
        // The second half may be longer by one.
        let end = if start > 0 && start < trained { trained } else { start + size };
        buckets.push([start, end.min(tokens)]);
        start = end;
    }
    buckets
}

/// The mean of each sequence over some positions.
fn means(losses: &ByTarget, [start, end]: [usize; 2]) -> Vec<f64> {
    losses.iter().map(|losses| losses[start..end].iter().sum::<f64>() / (end - start) as f64).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn summary(losses: &ByTarget, tokens: usize, buckets: &[[usize; 2]]) -> Losses {
    let of = |bucket: &[usize; 2]| mean(&means(losses, *bucket));
    Losses { loss: of(&[0, tokens]), buckets: buckets.iter().map(of).collect() }
}

pub(super) fn lengths(
    base: &[[ByTarget; 2]],
    found: &[Found],
    options: &TestOptions,
    ids: usize,
) -> Vec<Length> {
    let length = |(number, tokens): (usize, &usize)| {
        let (tokens, [truncation, apart]) = (*tokens, &base[number]);
        let buckets = buckets(tokens, options.trained);
        let unchanged = &found[0].by_length[number];
        let keys = key_tokens(unchanged, truncation, options.trained);
        let methods = found.iter().map(|found| {
            let losses = &found.by_length[number];
            let difference = |bucket: &[usize; 2]| {
                Estimate::paired(&means(losses, *bucket), &means(truncation, *bucket), options.seed)
            };
            let behind = [options.trained, tokens];
            let gain = (tokens > options.trained)
                .then(|| Estimate::paired(&means(truncation, behind), &means(losses, behind), options.seed));
            MethodLosses {
                name: found.name.clone(),
                losses: summary(losses, tokens, &buckets),
                differences: buckets.iter().map(difference).collect(),
                word: gain.map(|gain| gain.word()),
                gain,
                key_tokens: perplexities(&keys, losses, truncation),
            }
        });
        Length {
            tokens,
            starts: starts(ids, tokens, options.sequences),
            unchanged: summary(unchanged, tokens, &buckets),
            truncation: summary(truncation, tokens, &buckets),
            trained_length: summary(apart, tokens, &buckets),
            methods: methods.collect(),
            buckets,
        }
    };
    options.lengths.iter().enumerate().map(length).collect()
}

/// Sequence and target of the tokens that need far ones.
fn key_tokens(long: &ByTarget, short: &ByTarget, trained: usize) -> Vec<(usize, usize)> {
    let of = |(sequence, (long, short)): (usize, (&Vec<f64>, &Vec<f64>))| {
        let is_key =
            |target: &usize| short[*target] - long[*target] >= KEY_GAIN && -long[*target] >= KEY_LEAST;
        let targets: Vec<_> = (trained..long.len()).filter(is_key).map(|target| (sequence, target)).collect();
        targets
    };
    long.iter().zip(short).enumerate().flat_map(of).collect()
}

fn perplexities(keys: &[(usize, usize)], method: &ByTarget, truncation: &ByTarget) -> Option<KeyTokens> {
    let of = |losses: &ByTarget| {
        let sum: f64 = keys.iter().map(|(sequence, target)| losses[*sequence][*target]).sum();
        (sum / keys.len() as f64).exp()
    };
    (!keys.is_empty()).then(|| KeyTokens {
        tokens: keys.len(),
        perplexity: of(method),
        truncation_perplexity: of(truncation),
    })
}

pub(super) fn prices(found: &[Found], options: &TestOptions) -> Vec<Price> {
    let all = [0, options.inside()];
    let unchanged = means(&found[0].inside, all);
    let price = |found: &Found| {
        let losses = means(&found.inside, all);
        Price {
            name: found.name.clone(),
            tokens: options.inside(),
            loss: mean(&losses),
            difference: Estimate::paired(&losses, &unchanged, options.seed),
        }
    };
    found.iter().map(price).collect()
}

/// Where a choice of layers stands among random ones.
pub(super) fn controlled(found: &Found, options: &TestOptions) -> Option<Controlled> {
    let loss = |losses: &ByTarget| mean(&means(losses, [0, options.inside()]));
    let own = loss(&found.inside);
    let others: Vec<f64> = found.others.iter().map(loss).collect();
    let better = others.iter().filter(|other| **other <= own).count();
    (!others.is_empty()).then(|| Controlled {
        name: found.name.clone(),
        loss: own,
        rank: 1 + better,
        p_value: (1 + better) as f64 / (1 + others.len()) as f64,
        controls: others,
    })
}

/// Share of the facts found at half the trained length that must be found, too.
const ENOUGH: f64 = 0.85;

/// The largest length at which a method is not worse than truncation, and finds enough.
pub(super) fn effective(lengths: &[Length], asked: &[Retrieval], trained: usize) -> Vec<EffectiveLength> {
    let Some(longest) = lengths.last() else { return Vec::new() };
    let share = |name: &str, tokens: usize| {
        let row = asked.iter().find(|row| row.name == name && row.tokens == tokens);
        row.and_then(|row| row.forced_choice).map(|share| share.value)
    };
    let of = |number: usize| {
        let name = longest.methods[number].name.as_str();
        let least = share(name, trained / 2).map(|share| ENOUGH * share);
        let end = |length: &Length| {
            if length.methods[number].word == Some(Word::Degrades) {
                return Some(format!("at {} tokens the loss is above that of truncation", length.tokens));
            }
            let (found, least) = (share(name, length.tokens)?, least?);
            (found < least).then(|| {
                let [found, least] = [100.0 * found, 100.0 * least];
                format!(
                    "at {} tokens {found:.0} % of the facts were found, wanted {least:.0} %",
                    length.tokens
                )
            })
        };
        let reached = lengths.iter().take_while(|length| end(length).is_none()).last();
        let reason = lengths.iter().find_map(end).unwrap_or_else(|| match least {
            _ if longest.tokens <= trained => "no longer text was measured".to_owned(),
            Some(_) => "the longest length of the test".to_owned(),
            None => "the longest length of the test; retrieval was not measured".to_owned(),
        });
        EffectiveLength { name: name.to_owned(), tokens: reached.map(|length| length.tokens), reason }
    };
    (0..longest.methods.len()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_all_positions() {
        assert_eq!(buckets(1024, 256), [[0, 128], [128, 256], [256, 512], [512, 768], [768, 1024]]);
        assert_eq!(buckets(100, 256), [[0, 100]]);
        assert_eq!(buckets(300, 256), [[0, 128], [128, 256], [256, 300]]);
        for (tokens, trained) in [(5000, 255), (7, 1), (9, 2), (70_000, 512)] {
            let buckets = buckets(tokens, trained);
            assert!(buckets.iter().all(|[start, end]| start < end));
            assert!(buckets.windows(2).all(|pair| pair[0][1] == pair[1][0]));
            assert_eq!((buckets[0][0], buckets.last().unwrap()[1]), (0, tokens));
        }
    }

    #[test]
    fn key_tokens_are_those_that_far_ones_help() {
        let long = vec![vec![0.1, 0.1, 0.1, 3.0]];
        let short = vec![vec![9.0, 2.5, 1.0, 9.0]];
        // The first is inside the trained length; the last is improbable anyway.
        assert_eq!(key_tokens(&long, &short, 1), [(0, 1)]);
        let found = perplexities(&[(0, 1)], &long, &short).unwrap();
        assert!((found.perplexity - 0.1_f64.exp()).abs() < 1e-12 && found.truncation_perplexity > 12.0);
        assert_eq!(perplexities(&[], &long, &short), None);
    }
}
