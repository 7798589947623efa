//! `/v1/completions`: a text is continued.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

use super::{FinishReason, Usage};

/// Fields of a completion, beside the common ones.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct CompletionRequest {
    /// What is continued.
    pub(crate) prompt: Prompt,
    /// The most probable tokens that are listed at each place, from 0 to 20.
    pub(crate) logprobs: Option<u8>,
    /// The answer starts with the prompt.
    pub(crate) echo: Option<bool>,
    /// Adds the tokens that start texts: true if absent.
    pub(crate) add_special_tokens: Option<bool>,
    /// Must equal `n`.
    pub(crate) best_of: Option<usize>,
    /// Is not supported.
    pub(crate) suffix: Option<String>,
    /// Only `{"type": "text"}`.
    pub(crate) response_format: Option<serde_json::Value>,
}

/// One prompt or several, each a text or ids.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "must be a string, a list of strings, a list of ids, or a list of lists of ids"
)]
pub(crate) enum Prompt {
    /// A text.
    Text(String),
    /// The ids of one prompt.
    Ids(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// The ids of several prompts.
    Lists(Vec<Vec<u32>>),
}

/// An answer, or an event of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Completion<'a> {
    pub(crate) id: &'a str,
    /// `text_completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    /// Of the weights and the order of additions.
    pub(crate) system_fingerprint: &'a str,
    pub(crate) choices: Vec<CompletionChoice>,
    /// In a stream only if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

/// A text, or a piece of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CompletionChoice {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) logprobs: Option<LogProbs>,
    pub(crate) finish_reason: Option<FinishReason>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// One entry for each token.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct LogProbs {
    /// Texts of tokens; `bytes:\x..` where the bytes are not UTF-8.
    pub(crate) tokens: Vec<String>,
    /// Natural logarithms of their probabilities. The first token of a prompt has none.
    pub(crate) token_logprobs: Vec<Option<f64>>,
    /// The most probable tokens and the token itself.
    pub(crate) top_logprobs: Vec<Option<TopLogProbs>>,
    /// Characters of the choice's text before the token.
    pub(crate) text_offset: Vec<usize>,
}

/// Texts with logarithms of probabilities, the most probable first. An object of JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopLogProbs(pub(crate) Vec<(String, f64)>);

impl Serialize for TopLogProbs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(text, log_prob)| map.serialize_entry(text, log_prob))?;
        map.end()
    }
}

impl JsonSchema for TopLogProbs {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "TopLogProbs".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": {"type": "number"}})
    }
}
