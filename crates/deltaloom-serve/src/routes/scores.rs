//! Probabilities of tokens as clients of OpenAI read them.

use deltaloom_lm::engine::Scored;

use crate::catalog::Text;
use crate::error::{Failure, Result};
use crate::wire::{ChatToken, LogProbs, Ranking, TopLogProbs};

/// Stands for a probability of 0, since JSON has no infinity.
const IMPOSSIBLE: f64 = -9999.0;
/// Most ranked tokens.
const MOST_RANKED: u8 = 20;

/// Checks a number of ranked tokens.
pub(super) fn check(param: &str, count: Option<u8>) -> Result<Option<u8>> {
    match count {
        Some(count) if count > MOST_RANKED => {
            Err(Failure::field(param, format!("must be from 0 to {MOST_RANKED}")))
        }
        count => Ok(count),
    }
}

fn finite(log_prob: f64) -> f64 {
    if log_prob.is_finite() { log_prob } else { IMPOSSIBLE }
}

/// The ranked ids of a place and the token itself, the most probable first.
fn ranked(scored: &Scored) -> Vec<(u32, f64)> {
    let mut ranked: Vec<(u32, f64)> = scored.top.iter().map(|it| (it.id, finite(it.log_prob))).collect();
    if !ranked.iter().any(|(id, _)| *id == scored.id) {
        ranked.push((scored.id, finite(scored.log_prob)));
    }
    ranked
}

impl LogProbs {
    /// Adds the first token of a prompt, which has no probability.
    pub(super) fn first(&mut self, text: &Text, id: u32, offset: &mut usize) {
        self.tokens.push(text.token(id));
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
        self.place(text, id, offset);
    }

    /// Adds a token. Ids with the same text are one entry with the larger value.
    pub(super) fn push(&mut self, text: &Text, scored: &Scored, offset: &mut usize) {
        let mut top: Vec<(String, f64)> = Vec::new();
        for (id, log_prob) in ranked(scored) {
            let token = text.token(id);
            match top.iter_mut().find(|(other, _)| *other == token) {
                Some((_, known)) => *known = known.max(log_prob),
                None => top.push((token, log_prob)),
            }
        }
        self.tokens.push(text.token(scored.id));
        self.token_logprobs.push(Some(finite(scored.log_prob)));
        self.top_logprobs.push(Some(TopLogProbs(top)));
        self.place(text, scored.id, offset);
    }

    fn place(&mut self, text: &Text, id: u32, offset: &mut usize) {
        self.text_offset.push(*offset);
        let pieces = text.tokenizer.pieces();
        if !pieces.is_special(id) {
            *offset += String::from_utf8_lossy(pieces.bytes(id)).chars().count();
        }
    }

    /// Adds those of a later piece.
    pub(super) fn append(&mut self, mut other: Self) {
        self.tokens.append(&mut other.tokens);
        self.token_logprobs.append(&mut other.token_logprobs);
        self.top_logprobs.append(&mut other.top_logprobs);
        self.text_offset.append(&mut other.text_offset);
    }
}

/// A token of a chat.
pub(super) fn chat_token(text: &Text, scored: &Scored) -> ChatToken {
    let ranking = |id: u32, log_prob: f64| Ranking {
        token: text.token(id),
        logprob: finite(log_prob),
        bytes: text.tokenizer.pieces().bytes(id).to_vec(),
    };
    let top_logprobs = scored.top.iter().map(|it| ranking(it.id, it.log_prob)).collect();
    ChatToken { itself: ranking(scored.id, scored.log_prob), top_logprobs }
}
