//! What a text must look like: JSON of a schema, a regular expression, a grammar, or a call of a
//! function. llguidance finds the ids that may come next; this room gives it the bytes of our
//! vocabulary, limits what it may spend, and hides it.

mod calls;
mod shape;
mod tools;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use deltaloom::Error;
use deltaloom_lm::engine::Constraint;
use deltaloom_lm::text::Pieces;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use crate::error::{Failure, Result};
pub(crate) use calls::{CallReader, Part};
pub(crate) use shape::Shape;
pub(crate) use tools::{Style, Tools};

/// Bytes of a token that a grammar can use. The trie refuses more than a thousand.
const LONGEST_TOKEN: usize = 1000;
/// The most that a grammar may spend: about 20 ms to build it and 15 ms for a token, and 40 MB.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    initial_lexer_fuel: 1_000_000,
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    max_lexer_states: 20_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: false,
    verbose_errors: false,
};

/// The tokens of a tokenizer as a trie of bytes. Making one takes a while; grammars share it.
pub(crate) struct Vocabulary {
    factory: ParserFactory,
    has_end: bool,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// The tokens that are text, and the ids that end texts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a vocabulary that is too large for a trie.
    pub(crate) fn new(pieces: &Pieces, ends: &[u32]) -> deltaloom::Result<Self> {
        let too_large = || Error::InvalidArgument("the vocabulary is too large for grammars".to_owned());
        let count = u32::try_from(pieces.ids()).map_err(|_| too_large())?;
        let mut words: Vec<Vec<u8>> = (0..count).map(|id| word(pieces, id)).collect();
        let mut ends: Vec<u32> = ends.iter().copied().filter(|id| *id < count).collect();
        let has_end = !ends.is_empty();
        if !has_end {
            // The crate needs one. No row of logits has its number.
            ends.push(count);
            words.push(special(b"end"));
        }
        for end in &ends {
            words[*end as usize] = special(format!("end {end}").as_bytes());
        }
        let make = || {
            let info = TokRxInfo::new(u32::try_from(words.len()).ok()?, *ends.first()?);
            let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
            let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new_simple(&tokens).ok()?;
            factory.quiet();
            *factory.limits_mut() = LIMITS;
            Some(factory)
        };
        let factory = catch_unwind(AssertUnwindSafe(make)).ok().flatten();
        Ok(Self { factory: factory.ok_or_else(too_large)?, has_end })
    }

    /// What lets only texts of a shape through. May take some milliseconds.
    ///
    /// # Errors
    /// 400 for a shape that is not understood, that nothing can have, or that is too large.
    pub(crate) fn grammar(&self, shape: &Shape) -> Result<Grammar> {
        let refused = |what: String| Failure::field(shape.param(), what).with_code("invalid_grammar");
        let grammar = shape.grammar();
        let make = || self.factory.create_parser(grammar);
        let parser = catch_unwind(AssertUnwindSafe(make))
            .map_err(|_| refused("this cannot be turned into a grammar".to_owned()))?
            .map_err(|e| refused(first_line(&e)))?;
        let mut matcher = Matcher::new(Ok(parser));
        // Some mistakes show only when the first token is asked for.
        matcher
            .compute_mask()
            .map_err(|e| refused(format!("no text can have this shape: {}", first_line(&e))))?;
        Ok(Grammar { matcher, has_end: self.has_end })
    }
}

/// The bytes of a token, marked if it is not text.
fn word(pieces: &Pieces, id: u32) -> Vec<u8> {
    let bytes = pieces.bytes(id);
    if pieces.is_special(id) {
        special(bytes)
    } else if pieces.has(id) && bytes.len() <= LONGEST_TOKEN {
        bytes.to_vec()
    } else {
        Vec::new()
    }
}

/// A token that no text has: this byte is in no UTF-8.
fn special(name: &[u8]) -> Vec<u8> {
    let name = &name[..name.len().min(LONGEST_TOKEN)];
    [&[TokTrie::SPECIAL_TOKEN_MARKER, b'<'], name, b">"].concat()
}

fn first_line(error: &impl fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// A place in a text that has a shape.
#[derive(Clone)]
pub(crate) struct Grammar {
    matcher: Matcher,
    has_end: bool,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Constraint for Grammar {
    fn apply(&mut self, logits: &mut [f32]) -> deltaloom::Result<()> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| failed(&e))?;
        let mut left = 0_usize;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id < mask.len() && mask.get(id) {
                left += 1;
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        if left == 0 {
            return Err(Error::InvalidArgument("no token continues what was asked for".to_owned()));
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> deltaloom::Result<bool> {
        self.matcher.consume_token(id).map_err(|e| failed(&e))?;
        // Without an id that ends texts, the first complete one is the last.
        Ok(self.matcher.is_stopped()
            || (!self.has_end && self.matcher.is_accepting().map_err(|e| failed(&e))?))
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn failed(error: &impl fmt::Display) -> Error {
    Error::InvalidArgument(format!("the text left its grammar: {}", first_line(error)))
}

#[cfg(test)]
mod tests;
