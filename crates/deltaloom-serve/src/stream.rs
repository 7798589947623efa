//! A request that runs: it is submitted to the engine, and its pieces come back until every text
//! has ended, the client leaves, its time is over, or the server ends. As Server-Sent Events, each
//! piece is sent as soon as it is there.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use bytes::Bytes;
use deltaloom_lm::engine::{Constraint, Request, Sink, Usage as Took, Want};
use deltaloom_lm::text::Stop;
use futures_util::stream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::app::{App, Counted};
use crate::catalog::{InFlight, Tenant};
use crate::error::{Failure, Kind, Result};
use crate::grammar::Grammar;
use crate::keys::{Client, Running as OfKey};
use crate::text::{HALF_FULL, Piece, TextSink, What, pieces};
use crate::wire::{FinishReason, Parameters, PromptDetails, Usage};

/// Texts of a request.
const MOST_CHOICES: usize = 128;
/// Time without a piece after which a comment keeps a connection open.
const SILENCE: Duration = Duration::from_secs(15);
/// A point in time that is never reached.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What is to be generated.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) parameters: Parameters,
    /// Most tokens of a text; what the context has room for if absent.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) want: Want,
    /// What texts must look like, if anything.
    pub(crate) grammar: Option<Grammar>,
    /// The field that has the prompts, for messages.
    pub(crate) param: &'static str,
}

/// A request that runs. It is cancelled when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    app: Arc<App>,
    pub(crate) tenant: InFlight,
    pieces: mpsc::Receiver<Piece>,
    choices: Vec<Choice>,
    usage: Usage,
    /// The longest of each.
    took: Took,
    start: Instant,
    deadline: Instant,
    ending: watch::Receiver<bool>,
    _counted: Counted,
    _of_key: OfKey,
}

#[derive(Debug, Clone, Copy, Default)]
struct Choice {
    has_ended: bool,
    is_done: bool,
    last_token: Option<Instant>,
}

/// Submits a job of a client.
pub(crate) async fn start(
    app: &Arc<App>,
    client: &Client,
    deadline: Option<Instant>,
    job: Job,
) -> Result<Running> {
    let Job { tenant, prompts, mut parameters, max_tokens, want, grammar, param } = job;
    let n = parameters.n;
    let choices = prompts.len().saturating_mul(n);
    if choices > MOST_CHOICES {
        return Err(Failure::field(param, format!("more than {MOST_CHOICES} texts in one request")));
    }
    let counted = app.count()?;
    let of_key = client.start(app.options.per_key)?;
    if !parameters.is_seeded {
        parameters.sampling.seed = getrandom::u64()
            .map_err(|error| Failure::new(Kind::Server, format!("no random numbers: {error}")))?;
    }
    let mut ends = parameters.stop_ids.clone();
    if !parameters.ignore_eos {
        ends.extend(tenant.text.ends.iter());
    }
    ends.sort_unstable();
    ends.dedup();
    let (ends, salt): (Arc<[u32]>, _) = (ends.into(), salt(client, parameters.salt.as_deref()));
    let tenant = InFlight::new(tenant);
    let stop = Stop::new(Vec::new(), parameters.stop)?;
    let (sender, receiver) = pieces(choices);
    let mut submissions = Vec::with_capacity(choices);
    let mut usage = Usage::default();
    for prompt in prompts {
        let room = room(app.catalog.context, prompt.len(), max_tokens, param)?;
        usage.prompt_tokens += prompt.len();
        for number in 0..n {
            let mut request = Request::new(tenant.id, prompt.clone(), room);
            request.min_tokens = parameters.min_tokens;
            request.sampling = parameters.sampling.clone();
            request.choice = number as u64;
            request.end_ids = Arc::clone(&ends);
            request.want = want;
            request.salt = salt;
            request.owner = client.number();
            request.constraint = grammar.as_ref().map(Constraint::copy);
            let sink = TextSink::new(
                submissions.len(),
                choices,
                sender.clone(),
                Arc::clone(&tenant.text),
                &stop,
                [parameters.min_tokens, room],
            );
            submissions.push((request, Box::new(sink) as Box<dyn Sink>));
        }
    }
    drop(sender);
    if let Err(failure) = app.worker.submit(submissions).await {
        if failure.is_model_gone() {
            app.catalog.forget(&tenant);
            app.metrics.forget(&tenant.name);
        }
        return Err(failure);
    }
    usage.total_tokens = usage.prompt_tokens;
    Ok(Running {
        app: Arc::clone(app),
        tenant,
        pieces: receiver,
        choices: vec![Choice::default(); choices],
        usage,
        took: Took::default(),
        start: Instant::now(),
        deadline: deadline.unwrap_or_else(|| Instant::now() + NEVER),
        ending: app.ending(),
        _counted: counted,
        _of_key: of_key,
    })
}

/// Most tokens of a text after a prompt.
fn room(context: usize, prompt: usize, max_tokens: Option<usize>, param: &str) -> Result<usize> {
    if prompt == 0 {
        return Err(Failure::field(param, "a prompt must not be empty"));
    }
    let room = context.checked_sub(prompt).filter(|room| *room > 0 || max_tokens == Some(0));
    let room = room.ok_or_else(|| {
        let message = format!("a prompt of {prompt} tokens leaves no room in a context of {context}");
        Failure::field(param, message).with_code("context_length_exceeded")
    })?;
    Ok(max_tokens.map_or(room, |most| most.min(room)))
}

/// Keeps the prompts of clients apart, so that nobody can learn by time what others asked.
fn salt(client: &Client, own: Option<&str>) -> Option<[u8; 32]> {
    if client.number() == 0 && own.is_none() {
        return None;
    }
    let mut hasher = blake3::Hasher::new_derive_key("deltaloom 2026-11 salt of a client's prompts");
    hasher.update(&client.number().to_le_bytes());
    hasher.update(own.unwrap_or_default().as_bytes());
    Some(*hasher.finalize().as_bytes())
}

impl Running {
    /// Tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Times, for a response header.
    pub(crate) fn timing(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let Took { queued, prefill, decode, .. } = self.took;
        format!("queue;dur={:.1}, prefill;dur={:.1}, decode;dur={:.1}", ms(queued), ms(prefill), ms(decode))
    }

    /// The next piece; `None` when all texts have ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>> {
        while !self.choices.iter().all(|choice| choice.is_done) {
            let piece = tokio::select! {
                biased;
                _ = self.ending.wait_for(|end| *end) => return Err(Failure::shutting_down()),
                () = sleep_until(self.deadline) => {
                    let failure = Failure::new(Kind::Timeout, "the time of the request is over");
                    return Err(failure.with_code("request_timeout"));
                }
                piece = self.pieces.recv() => piece,
            };
            let Some(piece) = piece else {
                // The engine owes nothing more to a text that a stop string has ended.
                if self.choices.iter().all(|choice| choice.has_ended) {
                    break;
                }
                return Err(Failure::engine_gone());
            };
            if self.pieces.len() == HALF_FULL {
                self.app.worker.wake();
            }
            match self.note(&piece) {
                Some(failure) => return Err(failure),
                None if matches!(piece.what, What::Done(_)) => {}
                None => return Ok(Some(piece)),
            }
        }
        self.choices.iter_mut().for_each(|choice| choice.is_done = true);
        Ok(None)
    }

    fn note(&mut self, piece: &Piece) -> Option<Failure> {
        let Self { app, tenant, choices, usage, took, start, .. } = self;
        let choice = choices.get_mut(piece.choice)?;
        let end = |choice: &mut Choice, reason: FinishReason| {
            choice.has_ended = true;
            app.metrics.ended(&tenant.name, reason);
        };
        match &piece.what {
            What::Prompt(_) => {}
            What::Token { finish, .. } => {
                usage.completion_tokens += 1;
                usage.total_tokens += 1;
                let now = Instant::now();
                match choice.last_token.replace(now) {
                    None => app.metrics.first_token(&tenant.name, now - *start),
                    Some(before) => app.metrics.next_token(&tenant.name, now - before),
                }
                if let Some(reason) = finish {
                    end(choice, *reason);
                }
            }
            What::End { finish, .. } => end(choice, *finish),
            What::Done(used) => {
                choice.is_done = true;
                let PromptDetails { cached_tokens } = &mut usage.prompt_tokens_details;
                *cached_tokens += used.cached_tokens;
                took.queued = took.queued.max(used.queued);
                took.prefill = took.prefill.max(used.prefill);
                took.decode = took.decode.max(used.decode);
                app.metrics.used(&tenant.name, used, start.elapsed());
            }
            What::Failed(failure) => return Some(failure.clone()),
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.choices.iter().all(|choice| choice.has_ended) {
            self.app.metrics.cancelled();
        }
        self.pieces.close();
        // The engine may sleep because this request took nothing.
        self.app.worker.wake();
    }
}

/// What an event is made of.
pub(crate) enum Step {
    /// A piece.
    Piece(Piece),
    /// All texts have ended.
    End,
}

/// A response that sends an event for each piece. `event` makes the JSON of an event, or none.
pub(crate) fn events<F>(running: Running, event: F) -> Response<Body>
where
    F: FnMut(Step, Usage) -> Option<String> + Send + 'static,
{
    let state = Some((running, event));
    let body = stream::unfold(state, |state| async move {
        let (mut running, mut event) = state?;
        loop {
            let Ok(next) = timeout(SILENCE, running.next()).await else {
                return Some((
                    Ok::<_, Infallible>(Bytes::from_static(b": waiting\n\n")),
                    Some((running, event)),
                ));
            };
            return match next {
                Ok(Some(piece)) => {
                    let usage = running.usage();
                    let Some(json) = event(Step::Piece(piece), usage) else { continue };
                    Some((Ok(data(&json)), Some((running, event))))
                }
                Ok(None) => {
                    let last = event(Step::End, running.usage());
                    let last = last.map(|json| data(&json)).unwrap_or_default();
                    let end = [&last, &b"data: [DONE]\n\n"[..]].concat();
                    Some((Ok(end.into()), None))
                }
                Err(failure) => Some((Ok(data(&failure.json())), None)),
            };
        }
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies must not collect events.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// An event. JSON has no line breaks.
fn data(json: &str) -> Bytes {
    format!("data: {json}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_with_the_context() {
        assert_eq!(room(10, 4, None, "prompt").unwrap(), 6);
        assert_eq!(room(10, 4, Some(3), "prompt").unwrap(), 3);
        assert_eq!(room(10, 4, Some(usize::MAX), "prompt").unwrap(), 6);
        assert_eq!(room(10, 10, Some(0), "prompt").unwrap(), 0);
        for (prompt, most) in [(0, None), (10, None), (10, Some(1)), (11, Some(0))] {
            assert!(room(10, prompt, most, "prompt").is_err(), "{prompt}");
        }
    }

    #[test]
    fn events_are_framed() {
        assert_eq!(data("{}"), "data: {}\n\n");
    }
}
