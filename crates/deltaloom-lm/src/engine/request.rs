//! What is asked of the engine, and what it gives back.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::generate::Finish;
use crate::layer::TenantId;
use crate::sample::{Ranked, Sampling};
use deltaloom::{Error, Result};

/// A text to continue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request {
    /// The fine-tune that continues it.
    pub tenant: TenantId,
    /// Ids to continue, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate. With 0 only the prompt is computed.
    pub max_tokens: usize,
    /// Tokens before which no end id can be drawn.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tells texts with the same seed apart: the number of the choice within its request.
    pub choice: u64,
    /// Ids that end the text, in ascending order.
    pub end_ids: Arc<[u32]>,
    /// Which probabilities are reported.
    pub want: Want,
    /// Requests with different salts share no pages of their prompts.
    pub salt: Option<Salt>,
    /// Who asks: requests of one tenant are served fairly by owner.
    pub owner: u64,
    /// Rules out ids while the text grows.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl Request {
    /// Continues `prompt` greedily with up to `max_tokens` tokens.
    #[must_use]
    pub fn new(tenant: TenantId, prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            tenant,
            prompt,
            max_tokens,
            min_tokens: 0,
            sampling: Sampling::default(),
            choice: 0,
            end_ids: Arc::from([]),
            want: Want::default(),
            salt: None,
            owner: 0,
            constraint: None,
        }
    }
}

/// Separates the prompts of different users, so that nobody can find out by time what others asked.
pub type Salt = [u8; 32];

/// Which probabilities are reported, each with this many of the most probable ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// Of the prompt's tokens, except the first.
    pub prompt: Option<u8>,
    /// Of generated tokens.
    pub tokens: Option<u8>,
}

/// Rules out ids while a text grows, such as those that break a grammar.
pub trait Constraint: std::fmt::Debug + Send {
    /// Sets the logits of ids that cannot come next to -inf.
    ///
    /// # Errors
    /// Nothing can come next.
    fn apply(&mut self, logits: &mut [f32]) -> Result<()>;

    /// Notes the id that was drawn. The text ends after it if the answer is `true`.
    ///
    /// # Errors
    /// The id was ruled out.
    fn accept(&mut self, id: u32) -> Result<bool>;

    /// A copy, for another choice of the same request.
    fn copy(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.copy()
    }
}

/// A token with the logarithm of its probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scored {
    /// The id.
    pub id: u32,
    /// Natural logarithm of its probability, before penalties, temperature and constraints.
    pub log_prob: f64,
    /// The most probable ids at its place, in descending order.
    pub top: Vec<Ranked>,
}

/// What happens to a request, in order.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Probabilities of more tokens of the prompt. The first token has none.
    Prompt(Vec<Scored>),
    /// One more token.
    Token {
        /// Its id.
        id: u32,
        /// Whether it is an id that ends the text, which has no text itself.
        is_end: bool,
        /// Its probability, if wanted.
        scored: Option<Scored>,
    },
    /// The end.
    Done(Finish, Usage),
    /// The end after a failure.
    Failed(Error),
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those whose keys and values were in memory already.
    pub cached_tokens: usize,
    /// Generated tokens, with one that ended the text.
    pub tokens: usize,
    /// How often its pages were given to others and computed again.
    pub preemptions: u32,
    /// From submission until its first token was computed.
    pub queued: Duration,
    /// From then until its first generated token.
    pub prefill: Duration,
    /// From then until the end.
    pub decode: Duration,
}

/// Whether the receiver of a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It takes more.
    Go,
    /// It cannot take more now: the request pauses and keeps its pages.
    Full,
    /// It is gone, or has what it wants: the request ends.
    Gone,
}

/// Receives the events of one request, on the thread of the engine. It must not block.
pub trait Sink: Send {
    /// Takes an event. It is asked for [`Self::flow`] before the next step.
    fn push(&mut self, event: Event);

    /// Whether a step may compute more for this request.
    fn flow(&self) -> Flow;
}

/// Why a request was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Too many requests or tokens wait already.
    #[error("{waiting} requests with {tokens} tokens wait already")]
    Full {
        /// Requests that wait.
        waiting: usize,
        /// Their tokens.
        tokens: usize,
    },
    /// The prompt, or all keys and values of the text, do not fit.
    #[error("a text of {tokens} tokens: at most {limit} fit {limited_by}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Most tokens.
        limit: usize,
        /// What limits it.
        limited_by: &'static str,
    },
    /// No such tenant.
    #[error("{0} is not served")]
    UnknownTenant(TenantId),
    /// A parameter out of range.
    #[error(transparent)]
    Invalid(Error),
}
