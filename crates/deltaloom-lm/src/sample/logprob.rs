//! Logarithms of probabilities: of one id, and of the most probable ones. They come from the
//! model's own logits, before penalties and temperature.

use std::cmp::Ordering;

use deltaloom::{Error, Result};

/// Logits as probabilities.
#[derive(Debug, Clone, Copy)]
pub struct LogProbs<'a> {
    logits: &'a [f32],
    /// Largest logit, and logarithm of the sum of exponentials above it.
    largest: f64,
    log_sum: f64,
}

/// An id with the logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Ranked {
    /// The id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub log_prob: f64,
}

/// The largest logit.
///
/// # Errors
/// There are no logits; one is NaN or +inf; all are -inf.
pub fn check_logits(logits: &[f32]) -> Result<f32> {
    let mut largest = f32::NEG_INFINITY;
    for (id, logit) in logits.iter().enumerate() {
        if logit.is_nan() || *logit == f32::INFINITY {
            return Err(Error::InvalidArgument(format!("the model computed {logit} for id {id}")));
        }
        largest = largest.max(*logit);
    }
    if largest == f32::NEG_INFINITY {
        return Err(Error::InvalidArgument("no token is possible: all logits are -inf".to_owned()));
    }
    Ok(largest)
}

/// Descending logits, and ascending ids among equal ones.
fn by_rank(a: (u32, f32), b: (u32, f32)) -> Ordering {
    // Adding 0 makes one bit pattern of both zeros.
    (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0))
}

impl<'a> LogProbs<'a> {
    /// Sums the exponentials, in FP64 and in the order of ids.
    ///
    /// # Errors
    /// As [`check_logits`].
    pub fn new(logits: &'a [f32]) -> Result<Self> {
        let largest = f64::from(check_logits(logits)?);
        let sum: f64 = logits.iter().map(|logit| libm::exp(f64::from(*logit) - largest)).sum();
        Ok(Self { logits, largest, log_sum: libm::log(sum) })
    }

    /// Number of ids.
    #[must_use]
    pub fn ids(&self) -> usize {
        self.logits.len()
    }

    /// Natural logarithm of the probability of an id; -inf if there is no such id.
    #[must_use]
    pub fn of(&self, id: u32) -> f64 {
        let logit = self.logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        f64::from(logit) - self.largest - self.log_sum
    }

    /// The most probable id; of equal ones the lowest.
    #[must_use]
    pub fn best(&self) -> u32 {
        self.top(1).first().map_or(0, |first| first.id)
    }

    /// The `count` most probable ids, in descending order; of equal ones the lower first.
    #[must_use]
    pub fn top(&self, count: usize) -> Vec<Ranked> {
        let mut ranked: Vec<(u32, f32)> = (0..).zip(self.logits.iter().copied()).collect();
        keep_top(&mut ranked, count);
        ranked.into_iter().map(|(id, _)| Ranked { id, log_prob: self.of(id) }).collect()
    }
}

/// Keeps the `count` first by rank, and sorts them.
pub(super) fn keep_top(ranked: &mut Vec<(u32, f32)>, count: usize) {
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count, |a, b| by_rank(*a, *b));
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(|a, b| by_rank(*a, *b));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_to_one() {
        let logits = [1.0_f32, -2.0, 3.5, f32::NEG_INFINITY, 3.5];
        let probs = LogProbs::new(&logits).unwrap();
        let sum: f64 = (0..5).map(|id| libm::exp(probs.of(id))).sum();
        assert!((sum - 1.0).abs() < 1e-15);
        assert_eq!(probs.of(3), f64::NEG_INFINITY);
        assert_eq!(probs.of(9), f64::NEG_INFINITY);
    }

    #[test]
    fn the_lowest_id_comes_first_among_equals() {
        let logits = [1.0_f32, 4.0, -1.0, 4.0, 4.0];
        let probs = LogProbs::new(&logits).unwrap();
        assert_eq!(probs.best(), 1);
        let ids = |count| probs.top(count).iter().map(|ranked| ranked.id).collect::<Vec<_>>();
        assert_eq!(ids(2), [1, 3]);
        assert_eq!(ids(9), [1, 3, 4, 0, 2]);
        assert_eq!(ids(0), [0_u32; 0]);
        assert_eq!(probs.top(1)[0].log_prob, probs.of(1));
        // Zero has two bit patterns, and they are equal.
        assert_eq!(LogProbs::new(&[-0.0, 0.0]).unwrap().best(), 0);
    }

    #[test]
    fn broken_logits_are_errors() {
        let message = |logits: &[f32]| check_logits(logits).unwrap_err().to_string();
        assert!(message(&[0.0, f32::NAN]).contains("NaN for id 1"));
        assert!(message(&[f32::INFINITY]).contains("inf for id 0"));
        assert!(message(&[f32::NEG_INFINITY; 3]).contains("-inf"));
        assert!(message(&[]).contains("-inf"));
    }
}
