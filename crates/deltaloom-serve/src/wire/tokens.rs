//! Between text and ids, without a model's help.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Message;

/// A text or a conversation to turn into ids.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Tokenize {
    /// The fine-tune: the base if absent.
    pub(crate) model: Option<String>,
    /// A text.
    pub(crate) prompt: Option<String>,
    /// The same, as llama.cpp calls it.
    pub(crate) content: Option<String>,
    /// Or a conversation, for the chat template.
    pub(crate) messages: Option<Vec<Message>>,
    /// Adds the tokens that start texts: true for a text, false for a conversation if absent.
    pub(crate) add_special_tokens: Option<bool>,
    /// Lists the texts of the tokens, too.
    pub(crate) return_token_strs: Option<bool>,
}

/// Its ids.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Tokenized {
    pub(crate) tokens: Vec<u32>,
    pub(crate) count: usize,
    pub(crate) max_model_len: usize,
    /// With `return_token_strs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_strs: Option<Vec<String>>,
}

/// Ids to turn into text.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Detokenize {
    /// The fine-tune: the base if absent.
    pub(crate) model: Option<String>,
    pub(crate) tokens: Vec<u32>,
}

/// Their text, by the names of vLLM and of llama.cpp.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Detokenized {
    pub(crate) prompt: String,
    pub(crate) content: String,
}

/// The tokenizer of the base.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenizerInfo {
    pub(crate) eos_token: Option<String>,
    pub(crate) bos_token: Option<String>,
    /// The token that ends texts, since batches here need no padding.
    pub(crate) pad_token: Option<String>,
    pub(crate) chat_template: Option<String>,
    pub(crate) vocab_size: usize,
}
