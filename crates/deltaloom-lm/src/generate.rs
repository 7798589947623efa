//! One sequence that grows: a prompt, then token after token, until something ends it. Text comes
//! out as soon as it is certain.

use serde::Serialize;

use crate::layer::{MemoryOptions, TenantId};
use crate::model::{Chunk, Model};
use crate::sample::{Sampler, Sampling};
use crate::text::{Detokenizer, Pieces, Position, Stop, StopStrings, Stopped};
use deltaloom::{Error, Result};
use deltaloom_compute::Run;

/// Tokens of a prompt that are computed together. It changes no bit of an exact run.
const CHUNK: usize = 256;

/// What to generate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request<'a> {
    /// Ids to continue, at least one.
    pub prompt: &'a [u32],
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What ends the text.
    pub stop: Stop,
    /// Most tokens.
    pub max_tokens: usize,
    /// How keys and values are stored.
    pub memory: MemoryOptions,
}

impl<'a> Request<'a> {
    /// Continues `prompt` greedily with up to `max_tokens` tokens.
    #[must_use]
    pub fn new(prompt: &'a [u32], max_tokens: usize) -> Self {
        let (sampling, stop) = (Sampling::default(), Stop::default());
        Self { prompt, sampling, stop, max_tokens, memory: MemoryOptions::default() }
    }

    /// Sets how tokens are chosen.
    #[must_use]
    pub fn with_sampling(self, sampling: Sampling) -> Self {
        Self { sampling, ..self }
    }

    /// Sets what ends the text.
    #[must_use]
    pub fn with_stop(self, stop: Stop) -> Self {
        Self { stop, ..self }
    }

    /// Sets how keys and values are stored.
    #[must_use]
    pub fn with_memory(self, memory: MemoryOptions) -> Self {
        Self { memory, ..self }
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finish {
    /// At an id that ends texts, or at a stop string.
    Stop,
    /// It has as many tokens as were allowed.
    Length,
    /// The model has no more positions.
    Context,
    /// The caller asked to stop.
    Cancelled,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// All of it.
    pub text: String,
    /// Its ids, without one that ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What happens while a text grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// This many tokens of the prompt have been computed.
    Prompt(usize),
    /// One more token. Its text may be empty, and may hold what earlier tokens held back.
    Token(&'a str),
    /// What was held back at the end.
    Rest(&'a str),
}

/// Continues a prompt. `each` may stop the work by returning `false`.
///
/// # Errors
/// [`Error::InvalidArgument`] for a prompt that is empty or longer than the model's context, for
/// parameters out of range, and for a model that computes NaN; errors of [`Model::forward`] and of
/// `each`.
pub fn generate(
    model: &mut Model,
    tenant: TenantId,
    pieces: &Pieces,
    request: Request<'_>,
    run: &Run<'_>,
    mut each: impl FnMut(Event<'_>) -> Result<bool>,
) -> Result<Generated> {
    let Request { prompt, sampling, stop, max_tokens, memory } = request;
    let positions = model.config().longest().unwrap_or(usize::MAX);
    if prompt.is_empty() || prompt.len() > positions {
        let what = format!("a prompt of {} tokens: the model takes from 1 to {positions}", prompt.len());
        return Err(Error::InvalidArgument(what));
    }
    let mut sampler = Sampler::new(sampling, model.config().vocabulary, prompt, 0)?;
    let mut memory = model.memory(memory);
    let sequence = memory.begin(tenant);
    let mut growing = Growing::new(&stop);
    let mut done = 0;
    let mut logits = Vec::new();
    for tokens in prompt.chunks(CHUNK) {
        let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens }], run)?;
        done += tokens.len();
        if done == prompt.len() {
            logits = hidden.logits(&[tokens.len() - 1], run)?;
        }
        if !each(Event::Prompt(done))? {
            return Ok(growing.end(Finish::Cancelled));
        }
    }
    let finish = loop {
        if growing.ids.len() >= max_tokens {
            break Finish::Length;
        }
        if prompt.len() + growing.ids.len() >= positions {
            break Finish::Context;
        }
        let id = sampler.next(&logits)?;
        if stop.is_end(id) {
            break Finish::Stop;
        }
        let (new, is_stopped) = growing.push(pieces, id);
        let goes_on = each(Event::Token(new))?;
        if is_stopped {
            return Ok(growing.end(Finish::Stop));
        }
        if !goes_on {
            break Finish::Cancelled;
        }
        let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens: &[id] }], run)?;
        logits = hidden.logits(&[0], run)?;
    };
    let rest = growing.rest();
    each(Event::Rest(&growing.text[rest..]))?;
    Ok(growing.end(finish))
}

/// A text, and what is held back of it.
struct Growing {
    ids: Vec<u32>,
    text: String,
    detokenizer: Detokenizer,
    strings: StopStrings,
}

impl Growing {
    fn new(stop: &Stop) -> Self {
        let detokenizer = Detokenizer::new(Position::After, true);
        Self { ids: Vec::new(), text: String::new(), detokenizer, strings: stop.strings() }
    }

    /// The text that is certain with this id, and whether a stop string was found.
    fn push(&mut self, pieces: &Pieces, id: u32) -> (&str, bool) {
        self.ids.push(id);
        let mut new = String::new();
        self.detokenizer.push(pieces, id, &mut new);
        let before = self.text.len();
        let found = self.strings.push(&new, &mut self.text);
        (&self.text[before..], found != Stopped::No)
    }

    /// Adds what was held back, and tells where it starts.
    fn rest(&mut self) -> usize {
        let before = self.text.len();
        let mut new = String::new();
        self.detokenizer.finish(&mut new);
        if self.strings.push(&new, &mut self.text) == Stopped::No {
            self.strings.finish(&mut self.text);
        }
        before
    }

    fn end(self, finish: Finish) -> Generated {
        Generated { text: self.text, ids: self.ids, finish }
    }
}
