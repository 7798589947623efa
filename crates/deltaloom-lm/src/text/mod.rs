//! Between text and tokens: tokenizer, streaming detokenizer, chat templates, stop strings, and
//! files of text or token ids. Nothing here knows a model; [`Tokenizer::open`] is told how many
//! rows its embedding has.

mod detokenize;
mod input;
mod stop;
mod template;
mod tokenizer;

pub use detokenize::{Detokenizer, Pieces, Position};
pub use input::{TextInput, has_ids, read_text_input};
pub use stop::{Stop, StopStrings, Stopped};
pub use template::{ChatTemplate, Conversation};
pub(crate) use tokenizer::read_small;
pub use tokenizer::{ReadFile, Special, SpecialTokens, Tokenizer};
