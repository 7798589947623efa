//! `/v1/chat/completions`: a conversation is answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FinishReason, Usage};

/// Variables of a template.
pub(crate) type Variables = Map<String, Value>;

/// Fields of a chat, beside the common ones.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Chat {
    /// The conversation so far.
    pub(crate) messages: Vec<Message>,
    /// Most tokens of the answer. Goes before `max_tokens`.
    pub(crate) max_completion_tokens: Option<usize>,
    /// Whether probabilities are listed.
    pub(crate) logprobs: Option<bool>,
    /// The most probable tokens that are listed at each place, from 0 to 20.
    pub(crate) top_logprobs: Option<u8>,
    /// Functions that the model may call, each with a name and the JSON schema of its parameters.
    pub(crate) tools: Option<Vec<Value>>,
    /// `"none"`, `"auto"` (if absent), `"required"`, or a function with its name.
    pub(crate) tool_choice: Option<Value>,
    /// `{"type": ..}` of `text` (if absent), `json_object`, `json_schema` with
    /// `json_schema.schema`, `regex` with `pattern`, or `grammar` with a `grammar` in Lark of
    /// llguidance.
    pub(crate) response_format: Option<Value>,
    /// More variables of the chat template.
    pub(crate) chat_template_kwargs: Option<Variables>,
    /// The prompt ends with the start of an answer: true if absent.
    pub(crate) add_generation_prompt: Option<bool>,
    /// The last message is continued instead.
    pub(crate) continue_final_message: Option<bool>,
}

/// One message.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct Message {
    pub(crate) role: Role,
    /// A text, or parts of type `text`.
    pub(crate) content: Option<Content>,
    /// Who speaks.
    pub(crate) name: Option<String>,
    /// Calls of functions by the assistant.
    pub(crate) tool_calls: Option<Vec<Value>>,
    /// The call that a message of role `tool` answers.
    pub(crate) tool_call_id: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Instructions.
    System,
    /// The same under a newer name.
    Developer,
    /// Who asks.
    User,
    /// The model.
    Assistant,
    /// The result of a function.
    Tool,
}

/// What is said.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a string or a list of parts with a type")]
pub(crate) enum Content {
    /// A text.
    Text(String),
    /// A text in parts.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct Part {
    /// Only `text`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The text.
    pub(crate) text: Option<String>,
}

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatCompletion<'a> {
    pub(crate) id: &'a str,
    /// `chat.completion`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    /// Of the weights and the order of additions.
    pub(crate) system_fingerprint: &'a str,
    pub(crate) choices: Vec<ChatChoice>,
    pub(crate) usage: Usage,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
}

/// One of the answers.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatChoice {
    pub(crate) index: usize,
    pub(crate) message: Reply,
    pub(crate) logprobs: Option<ChatLogProbs>,
    pub(crate) finish_reason: FinishReason,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// What the model says.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Reply {
    pub(crate) role: Role,
    /// Null if functions are called and nothing else is said.
    pub(crate) content: Option<String>,
    /// Always null.
    pub(crate) refusal: Option<String>,
    /// Functions that the model calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

/// A call of a function.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) function: CalledFunction,
}

/// The function of a call.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CalledFunction {
    pub(crate) name: String,
    /// JSON, as the model wrote it.
    pub(crate) arguments: String,
}

/// An event of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatChunk<'a> {
    pub(crate) id: &'a str,
    /// `chat.completion.chunk`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    /// Of the weights and the order of additions.
    pub(crate) system_fingerprint: &'a str,
    pub(crate) choices: Vec<ChatChunkChoice>,
    /// Only if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<Usage>>,
}

/// A piece of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatChunkChoice {
    pub(crate) index: usize,
    pub(crate) delta: Delta,
    pub(crate) logprobs: Option<ChatLogProbs>,
    pub(crate) finish_reason: Option<FinishReason>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// What is new.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Delta {
    /// In the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<Role>,
    pub(crate) content: String,
    /// Parts of calls of functions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCallDelta>,
}

/// A part of a call of a function.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ToolCallDelta {
    /// Number of the call in the answer.
    pub(crate) index: usize,
    /// In the first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// `function`, in the first part.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionDelta,
}

/// What is new of a call.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FunctionDelta {
    /// In the first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// More of the arguments.
    pub(crate) arguments: String,
}

/// Probabilities of an answer.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct ChatLogProbs {
    pub(crate) content: Vec<ChatToken>,
}

/// A token of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ChatToken {
    #[serde(flatten)]
    pub(crate) itself: Ranking,
    pub(crate) top_logprobs: Vec<Ranking>,
}

/// A token with its probability.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Ranking {
    /// Its text; `bytes:\x..` where its bytes are not UTF-8.
    pub(crate) token: String,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f64,
    pub(crate) bytes: Vec<u8>,
}
