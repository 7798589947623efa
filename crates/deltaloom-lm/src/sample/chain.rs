//! The chain from logits to an id. In this order, each step on what the one before left:
//!
//! 1. logit bias, 2. repetition penalty, 3. presence and frequency penalties;
//! 4. greedy, if the temperature is 0: the lowest id among the largest logits, and the end;
//! 5. temperature, 6. top-k, 7. top-p, 8. min-p;
//! 9. a draw: probabilities are added by ascending ids until they exceed a random number.
//!
//! Steps 5 to 8 are in the order of transformers.

use super::logprob::{check_logits, keep_top};
use super::params::Sampling;
use super::random::uniform;
use super::seen::Seen;
use deltaloom::Result;

/// Tokens that are ranked first when top-p looks for its last one.
const FIRST_RANKED: usize = 256;

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    request: u64,
    position: u64,
    seen: Seen,
    logits: Vec<f32>,
}

/// A token that is left, with its weight: its probability up to a common factor.
type Weighted = (u32, f32, f64);

impl Sampler {
    /// For a sequence after `prompt`. `request` tells sequences with the same seed apart.
    ///
    /// # Errors
    /// As [`Sampling::check`], for a model with `ids` ids.
    pub fn new(sampling: Sampling, ids: usize, prompt: &[u32], request: u64) -> Result<Self> {
        sampling.check(ids)?;
        let seen = if sampling.repetition_penalty == 1.0 { Seen::default() } else { Seen::new(prompt) };
        Ok(Self { sampling, request, position: 0, seen, logits: Vec::with_capacity(ids) })
    }

    /// The next token. `logits` has one number for each id, as the model computed them.
    ///
    /// # Errors
    /// As [`check_logits`], before or after biases and penalties.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        check_logits(logits)?;
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.adjust();
        let largest = check_logits(&self.logits)?;
        let id = if self.sampling.temperature == 0.0 { self.greedy(largest) } else { self.draw(largest) };
        self.position += 1;
        self.seen.add(id);
        Ok(id)
    }

    /// Steps 1 to 3.
    fn adjust(&mut self) {
        let Sampling { logit_bias, repetition_penalty, presence_penalty, frequency_penalty, .. } =
            &self.sampling;
        for (id, bias) in logit_bias {
            change(&mut self.logits, *id, |logit| logit + bias);
        }
        if *repetition_penalty != 1.0 {
            for id in self.seen.all() {
                let penalty = *repetition_penalty;
                change(
                    &mut self.logits,
                    id,
                    |logit| {
                        if logit > 0.0 { logit / penalty } else { logit * penalty }
                    },
                );
            }
        }
        if *presence_penalty != 0.0 || *frequency_penalty != 0.0 {
            for (id, count) in self.seen.answer() {
                // Exact: no sequence has 2^24 tokens.
                let times = count as f32;
                change(&mut self.logits, id, |logit| logit - (presence_penalty + frequency_penalty * times));
            }
        }
    }

    fn greedy(&self, largest: f32) -> u32 {
        let place = (0..).zip(&self.logits).find(|(_, logit)| **logit == largest);
        place.map_or(0, |(id, _)| id)
    }

    /// Steps 5 to 9.
    fn draw(&self, largest: f32) -> u32 {
        let temperature = f64::from(self.sampling.temperature);
        let weight = |(id, logit): (u32, f32)| -> Weighted {
            (id, logit, libm::exp((f64::from(logit) - f64::from(largest)) / temperature))
        };
        let mut left: Vec<(u32, f32)> =
            (0..).zip(self.logits.iter().copied()).filter(|(_, logit)| *logit > f32::NEG_INFINITY).collect();
        let top_k = self.sampling.top_k as usize;
        if top_k > 0 {
            keep_top(&mut left, top_k);
        }
        if self.sampling.top_p < 1.0 {
            keep_probable(&mut left, f64::from(self.sampling.top_p), |ranked| weight(ranked).2);
        }
        left.sort_unstable_by_key(|(id, _)| *id);
        let mut left: Vec<Weighted> = left.into_iter().map(weight).collect();
        // The largest weight is 1.
        left.retain(|(_, _, weight)| *weight >= f64::from(self.sampling.min_p));
        let sum: f64 = left.iter().map(|(_, _, weight)| weight).sum();
        let limit = uniform(self.sampling.seed, self.request, self.position) * sum;
        let mut passed = 0.0;
        let drawn = left.iter().find(|(_, _, weight)| {
            passed += weight;
            passed > limit
        });
        // If the limit was rounded up to the sum, the last token is meant.
        drawn.or(left.last()).map_or_else(|| self.greedy(largest), |(id, ..)| *id)
    }
}

fn change(logits: &mut [f32], id: u32, to: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = to(*logit);
    }
}

/// Keeps the first by rank that together have at least the share `top_p` of all weights.
fn keep_probable(left: &mut Vec<(u32, f32)>, top_p: f64, weight: impl Fn((u32, f32)) -> f64) {
    let all: f64 = left.iter().map(|token| weight(*token)).sum();
    let mut ranked = FIRST_RANKED;
    loop {
        let mut first = left.clone();
        keep_top(&mut first, ranked);
        let mut passed = 0.0;
        let last = first.iter().position(|token| {
            passed += weight(*token);
            passed >= top_p * all
        });
        if last.is_some() || first.len() == left.len() {
            first.truncate(last.map_or(first.len(), |last| last + 1));
            *left = first;
            return;
        }
        ranked = ranked.saturating_mul(8);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
