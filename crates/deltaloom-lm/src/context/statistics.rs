//! Means of paired differences with their intervals, and the words for them.

use serde::Serialize;

/// Draws of the bootstrap.
const DRAWS: u64 = 2000;
/// A difference this small, in nats per token, is harmless.
const HARMLESS: f64 = 0.01;

/// The mean of a number that every sequence has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error; `None` for a single sequence.
    pub standard_error: Option<f64>,
    /// Lower end of the interval of 95 %: percentiles of the bootstrap over sequences.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What a gain over truncation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Word {
    /// The interval is above 0.
    Extends,
    /// It contains 0, and is narrow.
    Harmless,
    /// It contains 0, and is wide.
    Unclear,
    /// It is below 0.
    Degrades,
}

impl Word {
    /// Its spelling.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Extends => "extends",
            Self::Harmless => "harmless",
            Self::Unclear => "unclear",
            Self::Degrades => "degrades",
        }
    }
}

impl Estimate {
    /// Of at least one value. The same seed gives the same interval.
    #[must_use]
    pub fn of(values: &[f64], seed: u64) -> Self {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let spread: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = (values.len() > 1).then(|| (spread / (n - 1.0) / n).sqrt());
        let mut means: Vec<f64> = (0..DRAWS)
            .map(|draw| {
                let pick = |at| values[chosen(values.len(), seed, draw, at)];
                (0..values.len() as u64).map(pick).sum::<f64>() / n
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means[position(share, means.len())];
        Self { mean, standard_error, low: at(0.025), high: at(0.975) }
    }

    /// The same of the differences `a - b`.
    #[must_use]
    pub fn paired(a: &[f64], b: &[f64], seed: u64) -> Self {
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        Self::of(&differences, seed)
    }

    /// What it means as a gain.
    #[must_use]
    pub fn word(&self) -> Word {
        match self {
            Self { low, .. } if *low > 0.0 => Word::Extends,
            Self { high, .. } if *high < 0.0 => Word::Degrades,
            Self { low, high, .. } if (high - low) / 2.0 <= HARMLESS => Word::Harmless,
            _ => Word::Unclear,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "from 0 to below `len`")]
fn position(share: f64, len: usize) -> usize {
    ((share * len as f64) as usize).min(len.saturating_sub(1))
}

/// One of `len` numbers, drawn for a place of a draw.
fn chosen(len: usize, seed: u64, draw: u64, at: u64) -> usize {
    position(crate::sample::uniform(seed, draw, at), len)
}

/// `count` of the numbers below `len`, ascending; all of them if there are no more.
pub(super) fn some_of(len: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..len).collect();
    for at in 0..count.min(len) {
        let other = at + chosen(len - at, seed, 0, at as u64);
        numbers.swap(at, other);
    }
    numbers.truncate(count);
    numbers.sort_unstable();
    numbers
}

/// `count` places below `len`, which may be equal.
pub(super) fn places(len: usize, count: usize, seed: u64, stream: u64) -> Vec<usize> {
    (0..count as u64).map(|at| chosen(len, seed, stream, at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_mean() {
        let values: Vec<f64> = (0..64).map(|i| f64::from(i % 8)).collect();
        let estimate = Estimate::of(&values, 1);
        let error = estimate.standard_error.unwrap();
        assert_eq!(estimate.mean, 3.5);
        assert!((error - 0.2887).abs() < 0.001, "{error}");
        let width = (estimate.high - estimate.low) / error;
        assert!((3.5..4.3).contains(&width), "{width}");
        assert_eq!(estimate, Estimate::of(&values, 1));
        assert_ne!(estimate, Estimate::of(&values, 2));
        assert_eq!(Estimate::paired(&values, &values, 1).mean, 0.0);
    }

    #[test]
    fn words_follow_the_interval() {
        let word = |low, high| Estimate { mean: 0.0, standard_error: None, low, high }.word();
        assert_eq!(word(0.001, 0.5), Word::Extends);
        assert_eq!(word(-0.01, 0.01), Word::Harmless);
        assert_eq!(word(-0.02, 0.01), Word::Unclear);
        assert_eq!(word(-0.02, -0.01), Word::Degrades);
        assert_eq!(word(0.0, 0.0), Word::Harmless);
    }

    #[test]
    fn selections_have_as_many_as_asked_and_follow_the_seed() {
        assert_eq!(some_of(8, 3, 1).len(), 3);
        assert!(some_of(8, 3, 1).windows(2).all(|pair| pair[0] < pair[1]));
        assert!((0..20).any(|seed| some_of(8, 3, seed) != some_of(8, 3, 0)));
        assert_eq!(some_of(3, 9, 1), [0, 1, 2]);
        assert!(places(10, 1000, 1, 0).iter().all(|place| *place < 10));
    }
}
