//! Fields that completions and chats have in common: the model, how tokens are chosen, what ends
//! the text, and how the answer is sent.

use std::collections::BTreeMap;

use deltaloom_lm::sample::Sampling;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{OneOrMany, Usage};
use crate::error::{Failure, Result};

/// Stop strings of a request.
const MOST_STOPS: usize = 16;
/// Bytes of a stop string.
const LONGEST_STOP: usize = 1024;
/// Ids that end the text.
const MOST_STOP_IDS: usize = 64;
/// Ids with a bias.
const MOST_BIASES: usize = 1024;
/// Choices of a prompt.
const MOST_CHOICES: usize = 128;
/// Bytes of what separates caches.
const LONGEST_SALT: usize = 256;

/// Fields of completions and chats.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Common {
    /// The fine-tune.
    pub(crate) model: String,
    /// Divides the logits: 0 takes the most probable token. From 0 to 100; 1 if absent.
    temperature: Option<f32>,
    /// Keeps the most probable tokens that together have this probability. 1 keeps all.
    top_p: Option<f32>,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    top_k: Option<u32>,
    /// Keeps tokens with this share of the largest probability.
    min_p: Option<f32>,
    /// Texts for each prompt: 1 if absent.
    pub(crate) n: Option<usize>,
    /// Most tokens of a text: 16 if absent, or what the context has room for in a chat. 0 only with
    /// `echo`.
    pub(crate) max_tokens: Option<usize>,
    /// Tokens before which the text cannot end.
    min_tokens: Option<usize>,
    /// Ends the text, which does not have it: a string or up to 16.
    pub(crate) stop: Option<OneOrMany>,
    /// Ids that end the text, too.
    stop_token_ids: Option<Vec<u32>>,
    /// Goes on after the tokens that end texts of this model.
    ignore_eos: Option<bool>,
    /// Selects the random numbers. The same seed gives the same text; random if absent.
    pub(crate) seed: Option<Seed>,
    /// Is subtracted from logits of tokens in the text. From -2 to 2.
    presence_penalty: Option<f32>,
    /// Is subtracted for each time that a token is in the text. From -2 to 2.
    frequency_penalty: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens in prompt or text.
    repetition_penalty: Option<f32>,
    /// Is added to the logits of these ids. From -100 to 100.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Sends each token as an event.
    stream: Option<bool>,
    /// What else is sent.
    stream_options: Option<StreamOptions>,
    /// Adds the ids of tokens to the answer.
    return_token_ids: Option<bool>,
    /// Requests with different salts share no computed prompts.
    pub(crate) cache_salt: Option<String>,
    /// Is ignored.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// What else a stream sends.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
pub(crate) struct StreamOptions {
    /// A last event has the usage and no choice.
    pub(crate) include_usage: Option<bool>,
    /// Each event has the usage so far.
    pub(crate) continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    /// The usage in an event: none for no event at all, `Some(None)` for no field, and a field that
    /// may be null.
    pub(crate) fn usage(self, usage: Usage, is_last: bool) -> Option<Option<Option<Usage>>> {
        let each = self.continuous_usage_stats.unwrap_or(false);
        let last = self.include_usage.unwrap_or(false);
        match is_last {
            true => last.then_some(Some(Some(usage))),
            false if each => Some(Some(Some(usage))),
            false => Some(last.then_some(None)),
        }
    }
}

/// A seed of 64 bits.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be an integer of 64 bits")]
pub(crate) enum Seed {
    /// Without a sign.
    Unsigned(u64),
    /// With a sign.
    Signed(i64),
}

/// The common fields after checks.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(crate) sampling: Sampling,
    /// Whether the request has a seed.
    pub(crate) is_seeded: bool,
    pub(crate) n: usize,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) min_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) ignore_eos: bool,
    /// What a stream sends, if the answer is one.
    pub(crate) stream: Option<StreamOptions>,
    pub(crate) token_ids: bool,
    pub(crate) salt: Option<String>,
}

impl Common {
    /// Checks all fields for a model with this many ids.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub(crate) fn check(self, vocabulary: usize) -> Result<Parameters> {
        let n = self.n.unwrap_or(1);
        if !(1..=MOST_CHOICES).contains(&n) {
            return Err(Failure::field("n", format!("must be from 1 to {MOST_CHOICES}")));
        }
        let stop = self.stop.map(OneOrMany::into_vec).unwrap_or_default();
        if stop.len() > MOST_STOPS {
            return Err(Failure::field("stop", format!("must have at most {MOST_STOPS} strings")));
        }
        if stop.iter().any(|text| text.is_empty() || text.len() > LONGEST_STOP) {
            return Err(Failure::field("stop", format!("strings must have from 1 to {LONGEST_STOP} bytes")));
        }
        let stop_ids = self.stop_token_ids.unwrap_or_default();
        if stop_ids.len() > MOST_STOP_IDS || stop_ids.iter().any(|id| *id as usize >= vocabulary) {
            let message = format!("must be at most {MOST_STOP_IDS} ids below {vocabulary}");
            return Err(Failure::field("stop_token_ids", message));
        }
        if self.stream != Some(true) && self.stream_options.is_some() {
            return Err(Failure::field("stream_options", "is only allowed with stream"));
        }
        if self.cache_salt.as_ref().is_some_and(|salt| salt.is_empty() || salt.len() > LONGEST_SALT) {
            return Err(Failure::field("cache_salt", format!("must have from 1 to {LONGEST_SALT} bytes")));
        }
        let sampling = Sampling {
            temperature: within("temperature", self.temperature, 1.0, 0.0, 100.0)?,
            top_k: self.top_k.unwrap_or(0),
            top_p: within("top_p", self.top_p, 1.0, f32::MIN_POSITIVE, 1.0)?,
            min_p: within("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition_penalty: within("repetition_penalty", self.repetition_penalty, 1.0, 0.01, 100.0)?,
            presence_penalty: within("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: biases(self.logit_bias.unwrap_or_default(), vocabulary)?,
            seed: match self.seed {
                Some(Seed::Unsigned(seed)) => seed,
                Some(Seed::Signed(seed)) => seed.cast_unsigned(),
                None => 0,
            },
        };
        Ok(Parameters {
            sampling,
            is_seeded: self.seed.is_some(),
            n,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens.unwrap_or(0),
            stop,
            stop_ids,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stream: (self.stream == Some(true)).then(|| self.stream_options.unwrap_or_default()),
            token_ids: self.return_token_ids.unwrap_or(false),
            salt: self.cache_salt,
        })
    }
}

fn within(param: &str, value: Option<f32>, absent: f32, from: f32, to: f32) -> Result<f32> {
    let value = value.unwrap_or(absent);
    // NaN is in no range.
    if (from..=to).contains(&value) {
        return Ok(value);
    }
    let message = match param {
        "top_p" => "must be above 0 and at most 1".to_owned(),
        _ => format!("must be from {from} to {to}"),
    };
    Err(Failure::field(param, message))
}

fn biases(given: BTreeMap<String, f32>, vocabulary: usize) -> Result<Vec<(u32, f32)>> {
    let wrong = |message: String| Failure::field("logit_bias", message);
    if given.len() > MOST_BIASES {
        return Err(wrong(format!("must have at most {MOST_BIASES} ids")));
    }
    let one = |(id, bias): (String, f32)| {
        let id = id.parse().ok().filter(|id: &u32| (*id as usize) < vocabulary);
        let id = id.ok_or_else(|| wrong(format!("keys must be ids below {vocabulary}")))?;
        if (-100.0..=100.0).contains(&bias) {
            Ok((id, bias))
        } else {
            Err(wrong("must be from -100 to 100".to_owned()))
        }
    };
    given.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Body;
    use super::*;

    fn check(fields: &str) -> Result<Parameters> {
        let body = format!(r#"{{"model":"m"{fields}}}"#);
        Body::parse(body.as_bytes())?.read::<Common>()?.check(100)
    }

    #[test]
    fn every_range_is_checked() {
        let many = |count: usize| (0..count).map(|i| format!(r#""s{i}""#)).collect::<Vec<_>>().join(",");
        for (param, value) in [
            ("temperature", "-1"),
            ("temperature", "1e308"),
            ("top_p", "0"),
            ("top_p", "2"),
            ("top_p", "-0.1"),
            ("min_p", "2"),
            ("n", "0"),
            ("n", "1000"),
            ("presence_penalty", "3"),
            ("frequency_penalty", "-3"),
            ("repetition_penalty", "0"),
            ("stop", r#""""#),
            ("stop", &format!("[{}]", many(17))),
            ("stop", &format!(r#""{}""#, "x".repeat(1 << 20))),
            ("stop_token_ids", "[100]"),
            ("logit_bias", r#"{"100":1}"#),
            ("logit_bias", r#"{"a":1}"#),
            ("logit_bias", r#"{"1":101}"#),
            ("stream_options", "{}"),
            ("cache_salt", r#""""#),
            ("top_k", "-1"),
            ("stream", "1"),
            ("seed", "1.5"),
        ] {
            let failure = check(&format!(r#","{param}":{value}"#)).unwrap_err();
            let json: serde_json::Value = serde_json::from_str(&failure.json()).unwrap();
            assert_eq!(json["error"]["param"], param, "{value:.40}");
        }
    }

    #[test]
    fn absent_fields_have_defaults() {
        let parameters = check("").unwrap();
        assert_eq!(parameters.sampling, Sampling { temperature: 1.0, ..Sampling::default() });
        assert!(parameters.stream.is_none() && !parameters.is_seeded && parameters.n == 1);
        assert_eq!(check(r#","seed":-1"#).unwrap().sampling.seed, u64::MAX);
    }
}
