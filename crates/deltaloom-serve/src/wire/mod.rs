//! What requests and answers look like as JSON. Fields that are `null` count as absent, since
//! clients send them so.

mod admin;
mod chat;
mod completions;
mod json;
mod models;
mod sampling;
mod tokens;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Failure, Kind, Result};
pub(crate) use admin::{Lora, NewTenant, TenantEntry, TenantList, Unloaded};
pub(crate) use chat::{
    CalledFunction, Chat, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogProbs, ChatToken,
    Content, Delta, FunctionDelta, Message, Ranking, Reply, Role, ToolCall, ToolCallDelta, Variables,
};
pub(crate) use completions::{
    Completion, CompletionChoice, CompletionRequest, LogProbs, Prompt, TopLogProbs,
};
pub(crate) use models::{ModelEntry, ModelList, ModelMeta, State, Status};
pub(crate) use sampling::{Common, Parameters, StreamOptions};
pub(crate) use tokens::{Detokenize, Detokenized, Tokenize, Tokenized, TokenizerInfo};

/// The body of a request: a JSON object.
#[derive(Debug, Default)]
pub(crate) struct Body(Value);

impl Body {
    /// Parses a body.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let value = json::parse(bytes).map_err(|e| {
            Failure::new(Kind::Invalid, format!("the body is not valid JSON: {e}")).with_code("invalid_json")
        })?;
        if !value.is_object() {
            return Err(
                Failure::new(Kind::Invalid, "the body must be a JSON object").with_code("invalid_json")
            );
        }
        Ok(Self(value))
    }

    /// Its fields that `T` knows.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_path_to_error::deserialize(&self.0).map_err(|error| {
            let (path, message) = (error.path().to_string(), error.inner().to_string());
            let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            let param = match (path.as_str(), missing) {
                (".", Some(field)) => field.to_owned(),
                (_, Some(field)) => format!("{path}.{field}"),
                (_, None) => path.clone(),
            };
            Failure::field(param, message)
        })
    }

    /// The names of its fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.as_object().into_iter().flat_map(|fields| fields.keys().map(String::as_str))
    }
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Usage {
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    /// Generated tokens, with those that ended texts.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
    /// What is known about the prompts.
    pub(crate) prompt_tokens_details: PromptDetails,
}

/// What is known about the prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct PromptDetails {
    /// Tokens whose keys and values were in memory already.
    pub(crate) cached_tokens: usize,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// At a token or a string that ends it.
    Stop,
    /// It has as many tokens as were allowed, or as the model has positions.
    Length,
    /// Functions are called.
    ToolCalls,
    /// The server ended it.
    Cancelled,
}

impl FinishReason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One or several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of strings")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: DeserializeOwned>(body: &str) -> String {
        match Body::parse(body.as_bytes()).and_then(|body| body.read::<T>()) {
            Ok(_) => panic!("{body} was accepted"),
            Err(failure) => {
                let value: Value = serde_json::from_str(&failure.json()).unwrap();
                value["error"]["param"].as_str().unwrap_or_default().to_owned()
            }
        }
    }

    #[test]
    fn the_wrong_field_is_named() {
        assert_eq!(refused::<Common>(r#"{"model":"m","temperature":"1"}"#), "temperature");
        assert_eq!(refused::<Common>(r#"{"model":"m","max_tokens":1.5}"#), "max_tokens");
        assert_eq!(refused::<Common>(r#"{"model":"m","max_tokens":-1}"#), "max_tokens");
        assert_eq!(refused::<Common>(r#"{"model":"m","seed":18446744073709551616}"#), "seed");
        assert_eq!(refused::<Common>(r#"{"model":"m","stop":[1]}"#), "stop");
        assert_eq!(refused::<Common>("{}"), "model");
        assert_eq!(refused::<CompletionRequest>("{}"), "prompt");
        assert_eq!(refused::<CompletionRequest>(r#"{"prompt":[1,"a"]}"#), "prompt");
        assert_eq!(refused::<CompletionRequest>(r#"{"prompt":[-1]}"#), "prompt");
        assert_eq!(refused::<CompletionRequest>(r#"{"prompt":"a","logprobs":true}"#), "logprobs");
        assert_eq!(refused::<Chat>(r#"{"messages":[{"role":"user"},{"role":"clown"}]}"#), "messages[1].role");
        assert_eq!(refused::<Chat>(r#"{"messages":[{"content":"a"}]}"#), "messages[0].role");
        assert_eq!(refused::<Common>("[]"), "");
    }

    /// A body with one byte changed is refused or accepted, and nothing else.
    #[test]
    fn changed_bytes_do_no_harm() {
        let completion = r#"{"model":"m","prompt":[1,2],"n":2,"stop":["a"],"logit_bias":{"1":-5},"seed":7}"#;
        let chat = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}]}"#;
        let mut accepted = 0;
        for body in [completion, chat].map(str::as_bytes) {
            for place in 0..body.len() {
                for byte in *b"\0 \"'[]{}:,-.09eEtfn\\\x80\xff" {
                    let mut changed = body.to_vec();
                    changed[place] = byte;
                    let Ok(fields) = Body::parse(&changed) else { continue };
                    let checked = fields.read::<Common>().and_then(|common| common.check(100));
                    let read = fields.read::<CompletionRequest>().is_ok() || fields.read::<Chat>().is_ok();
                    accepted += usize::from(checked.is_ok() && read);
                }
            }
        }
        assert!(accepted > 0);
    }

    #[test]
    fn null_is_absent() {
        let body = Body::parse(br#"{"model":"m","stop":null,"seed":null,"n":null}"#).unwrap();
        let common: Common = body.read().unwrap();
        assert!(common.stop.is_none() && common.seed.is_none() && common.n.is_none());
    }
}
