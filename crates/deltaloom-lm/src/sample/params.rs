//! How the next token is chosen, and which values are allowed.

use deltaloom::{Error, Limits, Result};

/// Ids with a bias.
const MOST_BIASES: u64 = 1024;

/// Parameters of sampling. The default is greedy: the most probable token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits: 0 takes the largest, 1 samples what the model says. From 0 to 100.
    pub temperature: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the most probable tokens that together have at least this probability. Above 0, up to
    /// 1, which keeps all.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the largest probability. From 0 to 1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the answer.
    /// Above 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Is subtracted from the logits of tokens in the answer. From -2 to 2.
    pub presence_penalty: f32,
    /// Is subtracted for each time that a token is in the answer. From -2 to 2.
    pub frequency_penalty: f32,
    /// Is added to logits of single ids. -inf rules an id out.
    pub logit_bias: Vec<(u32, f32)>,
    /// Selects the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks all values for a model with this many ids.
    ///
    /// # Errors
    /// The first value that is not allowed, with what is.
    pub fn check(&self, ids: usize) -> Result<()> {
        let wrong = |name: &str, value: f32, must: &str| {
            Err(Error::InvalidArgument(format!("{name} is {value}: must be {must}")))
        };
        // NaN is in no range.
        if !(0.0..=100.0).contains(&self.temperature) {
            return wrong("temperature", self.temperature, "from 0 to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top-p", self.top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong("min-p", self.min_p, "from 0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty <= 100.0) {
            return wrong("the repetition penalty", self.repetition_penalty, "above 0 and at most 100");
        }
        for (name, value) in [
            ("the presence penalty", self.presence_penalty),
            ("the frequency penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&value) {
                return wrong(name, value, "from -2 to 2");
            }
        }
        Limits::check("ids with a bias", self.logit_bias.len() as u64, MOST_BIASES)?;
        for (id, bias) in &self.logit_bias {
            if *id as usize >= ids {
                return Err(Error::InvalidArgument(format!("id {id} with a bias is not below {ids}")));
            }
            if !(bias.is_finite() || *bias == f32::NEG_INFINITY) {
                return wrong(&format!("the bias of id {id}"), *bias, "a number or -inf");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_range() {
        let refused = |change: &dyn Fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            assert!(sampling.check(10).is_err(), "{sampling:?}");
        };
        Sampling::default().check(10).unwrap();
        for bad in [-1.0, f32::NAN, f32::INFINITY, 1e38] {
            refused(&|s| s.temperature = bad);
            refused(&|s| s.top_p = bad);
            refused(&|s| s.min_p = bad);
            refused(&|s| s.repetition_penalty = bad);
            refused(&|s| s.frequency_penalty = bad * 3.0);
            refused(&|s| s.presence_penalty = bad * 3.0);
        }
        refused(&|s| s.top_p = 0.0);
        refused(&|s| s.repetition_penalty = 0.0);
        refused(&|s| s.logit_bias = vec![(10, 0.0)]);
        refused(&|s| s.logit_bias = vec![(0, f32::INFINITY)]);
        refused(&|s| s.logit_bias = vec![(0, f32::NAN)]);
        refused(&|s| s.logit_bias = vec![(0, 0.0); 2000]);
        let all =
            Sampling { logit_bias: vec![(9, f32::NEG_INFINITY)], temperature: 100.0, ..Sampling::default() };
        all.check(10).unwrap();
    }
}
