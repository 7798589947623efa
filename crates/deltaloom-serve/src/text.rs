//! What the engine's events become on its thread: text. Characters that span tokens and text that
//! may become a stop string are held back. What is ready goes through a bounded channel to the
//! task that answers, which may be slow: then the engine is told to pause.

use std::sync::Arc;

use deltaloom_lm::engine::{Event, Flow, Scored, Sink, Usage};
use deltaloom_lm::generate::Finish;
use deltaloom_lm::text::{Detokenizer, Position, Stop, StopStrings, Stopped};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::catalog::Text;
use crate::error::{Failure, Kind};
use crate::wire::FinishReason;

/// Pieces that wait before the engine pauses.
const MOST_WAITING: usize = 64;
/// Pieces that still wait when the engine is told to go on.
pub(crate) const HALF_FULL: usize = MOST_WAITING / 2;
/// Pieces that a step may bring for one text after the engine has asked.
const PER_STEP: usize = 4;

/// A part of an answer.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Number of the text in its request.
    pub(crate) choice: usize,
    pub(crate) what: What,
}

/// What a part has.
#[derive(Debug)]
pub(crate) enum What {
    /// Probabilities of tokens of the prompt, from its second on.
    Prompt(Vec<Scored>),
    /// A token, the text that is certain with it, and whether it is the last.
    Token { id: u32, text: String, scored: Option<Scored>, finish: Option<FinishReason> },
    /// The end without a further token.
    End { text: String, finish: FinishReason },
    /// What it took. Nothing follows.
    Done(Usage),
    /// The engine could not go on.
    Failed(Failure),
}

/// Receives the events of one text.
pub(crate) struct TextSink {
    choice: usize,
    pieces: Sender<Piece>,
    /// Places of the channel that others may need before the next step.
    reserve: usize,
    text: Arc<Text>,
    detokenizer: Detokenizer,
    strings: StopStrings,
    /// Tokens before which stop strings do not count.
    before_stop: usize,
    left: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Growing,
    /// The text is complete, and the engine knows.
    Ended,
    /// The engine must stop: a stop string was found, or pieces got lost.
    Stopped,
}

/// The channel of a request with this many texts.
pub(crate) fn pieces(choices: usize) -> (Sender<Piece>, Receiver<Piece>) {
    channel(MOST_WAITING + PER_STEP * choices)
}

impl TextSink {
    /// For one of `choices` texts that share a channel. The text has at most `max_tokens` tokens;
    /// `stop` does not count among the first `min_tokens`.
    pub(crate) fn new(
        choice: usize,
        choices: usize,
        pieces: Sender<Piece>,
        text: Arc<Text>,
        stop: &Stop,
        [min_tokens, max_tokens]: [usize; 2],
    ) -> Self {
        Self {
            choice,
            pieces,
            reserve: PER_STEP * choices,
            text,
            detokenizer: Detokenizer::new(Position::After, true),
            strings: stop.strings(),
            before_stop: min_tokens,
            left: max_tokens,
            state: State::Growing,
        }
    }

    fn send(&mut self, what: What) {
        // The engine asks before each step, so there is room.
        if self.pieces.try_send(Piece { choice: self.choice, what }).is_err() {
            self.state = State::Stopped;
        }
    }

    fn token(&mut self, id: u32, is_end: bool, scored: Option<Scored>) {
        self.left = self.left.saturating_sub(1);
        let mut text = String::new();
        let mut is_stopped = false;
        if !is_end {
            let mut new = String::new();
            self.detokenizer.push(self.text.tokenizer.pieces(), id, &mut new);
            if self.before_stop > 1 {
                text = new;
            } else {
                is_stopped = self.strings.push(&new, &mut text) != Stopped::No;
            }
        }
        self.before_stop = self.before_stop.saturating_sub(1);
        let finish = if is_stopped {
            Some(FinishReason::Stop)
        } else if is_end || self.left == 0 {
            let reason = if is_end { FinishReason::Stop } else { FinishReason::Length };
            Some(self.rest(&mut text).unwrap_or(reason))
        } else {
            None
        };
        if finish.is_some() {
            self.state = if is_stopped { State::Stopped } else { State::Ended };
        }
        self.send(What::Token { id, text, scored, finish });
    }

    /// Appends what was held back. It may complete a stop string.
    fn rest(&mut self, text: &mut String) -> Option<FinishReason> {
        let mut new = String::new();
        self.detokenizer.finish(&mut new);
        if self.strings.push(&new, text) != Stopped::No {
            return Some(FinishReason::Stop);
        }
        self.strings.finish(text);
        None
    }
}

impl Sink for TextSink {
    fn push(&mut self, event: Event) {
        match event {
            Event::Prompt(scored) => self.send(What::Prompt(scored)),
            Event::Token { id, is_end, scored } if self.state == State::Growing => {
                self.token(id, is_end, scored);
            }
            Event::Token { .. } => {}
            Event::Done(finish, usage) => {
                if self.state == State::Growing {
                    let mut text = String::new();
                    let finish = self.rest(&mut text).unwrap_or(match finish {
                        Finish::Stop => FinishReason::Stop,
                        Finish::Length | Finish::Context => FinishReason::Length,
                        _ => FinishReason::Cancelled,
                    });
                    self.state = State::Ended;
                    self.send(What::End { text, finish });
                }
                self.send(What::Done(usage));
            }
            Event::Failed(error) => {
                self.state = State::Ended;
                let failure = Failure::new(Kind::Server, error.to_string()).with_code("computation_failed");
                self.send(What::Failed(failure));
            }
            _ => {}
        }
    }

    fn flow(&self) -> Flow {
        if self.state == State::Stopped || self.pieces.is_closed() {
            Flow::Gone
        } else if self.pieces.capacity() <= self.reserve {
            Flow::Full
        } else {
            Flow::Go
        }
    }
}
