//! `/v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use deltaloom_lm::engine::{Scored, Want};
use serde_json::json;

use super::scores;
use crate::call::{Call, on_text, special, timed, with_tenant};
use crate::catalog::{Tenant, Text, now};
use crate::error::{Failure, Result};
use crate::stream::{self, Job, Step};
use crate::text::{Piece, What};
use crate::wire::{
    Common, Completion, CompletionChoice, CompletionRequest, LogProbs, Prompt, StreamOptions, Usage,
};

/// Tokens of a text if the request does not say.
const MAX_TOKENS: usize = 16;
/// Prompts of a request.
const MOST_PROMPTS: usize = 128;

/// A prompt as ids, and as it is echoed.
#[derive(Debug, Clone)]
struct Prepared {
    ids: Vec<u32>,
    echo: String,
}

pub(super) async fn answer(call: Call) -> Result<Response<Body>> {
    let common: Common = call.body.read()?;
    let own: CompletionRequest = call.body.read()?;
    let tenant = call.tenant(&common.model)?;
    let vocabulary = call.app.catalog.vocabulary;
    let parameters = common.check(vocabulary)?;
    let logprobs = check(&own, parameters.n)?;
    let (echo, add) = (own.echo.unwrap_or(false), own.add_special_tokens.unwrap_or(true));
    let max_tokens = parameters.max_tokens.unwrap_or(MAX_TOKENS);
    if max_tokens == 0 && !echo {
        return Err(Failure::field("max_tokens", "must be at least 1 without echo"));
    }
    let prompts = on_text(&tenant, move |text| prepare(text, own.prompt, add, echo, vocabulary)).await?;
    let (stream, token_ids, n) = (parameters.stream, parameters.token_ids, parameters.n);
    let job = Job {
        grammar: None,
        tenant: Arc::clone(&tenant),
        prompts: prompts.iter().map(|prompt| prompt.ids.clone()).collect(),
        parameters,
        max_tokens: Some(max_tokens),
        want: Want { prompt: logprobs.filter(|_| echo), tokens: logprobs },
        param: "prompt",
    };
    let mut running = stream::start(&call.app, &call.client, call.deadline, job).await?;
    let growing = prompts.iter().flat_map(|prompt| (0..n).map(|_| Growing::new(prompt, echo, token_ids)));
    let mut format = Format {
        id: format!("cmpl-{}", call.id),
        created: now(),
        tenant: Arc::clone(&tenant),
        growing: growing.collect(),
        has_logprobs: logprobs.is_some(),
        token_ids,
    };
    if let Some(options) = stream {
        let response = stream::events(running, move |step, usage| format.event(step, usage, options));
        return Ok(with_tenant(response, &tenant));
    }
    let mut whole: Vec<_> = (0..format.growing.len()).map(CompletionChoice::empty).collect();
    while let Some(piece) = running.next().await? {
        if let Some(choice) = format.choice(piece) {
            whole[choice.index].append(choice);
        }
    }
    Ok(timed(&format.completion(whole, Some(Some(running.usage()))), &running))
}

/// Checks the fields of a completion; the number of ranked tokens.
fn check(own: &CompletionRequest, n: usize) -> Result<Option<u8>> {
    let unsupported =
        |param: &str, message: &str| Err(Failure::field(param, message).with_code("unsupported"));
    if own.suffix.is_some() {
        return unsupported("suffix", "is not supported");
    }
    if own.best_of.is_some_and(|best_of| best_of != n) {
        return unsupported("best_of", "must equal n");
    }
    if own.response_format.as_ref().is_some_and(|format| *format != json!({"type": "text"})) {
        return unsupported("response_format", "only text is supported");
    }
    scores::check("logprobs", own.logprobs)
}

fn prepare(text: &Text, prompt: Prompt, add: bool, echo: bool, vocabulary: usize) -> Result<Vec<Prepared>> {
    let of_text = |prompt: String| {
        let ids = text.encode(&prompt, special(add))?;
        Ok(Prepared { ids, echo: prompt })
    };
    let of_ids = |ids: Vec<u32>| {
        if ids.iter().any(|id| *id as usize >= vocabulary) {
            return Err(Failure::field("prompt", format!("ids must be below {vocabulary}")));
        }
        let echo = if echo { text.tokenizer.pieces().text(&ids, true) } else { String::new() };
        Ok(Prepared { ids, echo })
    };
    let count = match &prompt {
        Prompt::Text(_) | Prompt::Ids(_) => 1,
        Prompt::Texts(texts) => texts.len(),
        Prompt::Lists(lists) => lists.len(),
    };
    if count > MOST_PROMPTS {
        return Err(Failure::field("prompt", format!("more than {MOST_PROMPTS} prompts")));
    }
    match prompt {
        Prompt::Text(text) => Ok(vec![of_text(text)?]),
        Prompt::Ids(ids) => Ok(vec![of_ids(ids)?]),
        Prompt::Texts(texts) => texts.into_iter().map(of_text).collect(),
        Prompt::Lists(lists) => lists.into_iter().map(of_ids).collect(),
    }
}

/// Makes answers of pieces.
struct Format {
    id: String,
    created: u64,
    tenant: Arc<Tenant>,
    growing: Vec<Growing>,
    has_logprobs: bool,
    token_ids: bool,
}

/// A text while it grows.
#[derive(Debug)]
struct Growing {
    /// What its first piece starts with.
    echo: Option<Prepared>,
    prompt_ids: Option<Vec<u32>>,
    /// Of the prompt, until the first piece.
    scored: Vec<Scored>,
    offset: usize,
}

impl Growing {
    fn new(prompt: &Prepared, echo: bool, token_ids: bool) -> Self {
        let echo = echo.then(|| prompt.clone());
        let prompt_ids = token_ids.then(|| prompt.ids.clone());
        Self { echo, prompt_ids, scored: Vec::new(), offset: 0 }
    }
}

impl Format {
    fn completion<'a>(
        &'a self,
        choices: Vec<CompletionChoice>,
        usage: Option<Option<Usage>>,
    ) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.tenant.name,
            system_fingerprint: &self.tenant.fingerprint,
            choices,
            usage,
        }
    }

    fn event(&mut self, step: Step, usage: Usage, options: StreamOptions) -> Option<String> {
        let choices = match step {
            Step::Piece(piece) => vec![self.choice(piece)?],
            Step::End => Vec::new(),
        };
        let usage = options.usage(usage, choices.is_empty())?;
        serde_json::to_string(&self.completion(choices, usage)).ok()
    }

    /// The part of an answer that a piece brings.
    fn choice(&mut self, piece: Piece) -> Option<CompletionChoice> {
        let Piece { choice: index, what } = piece;
        let text = &self.tenant.text;
        let growing = self.growing.get_mut(index)?;
        let (token, new, finish_reason) = match what {
            What::Prompt(scored) => {
                growing.scored.extend(scored);
                return None;
            }
            What::Token { id, text, scored, finish } => (Some((id, scored)), text, finish),
            What::End { text, finish } => (None, text, Some(finish)),
            What::Done(_) | What::Failed(_) => return None,
        };
        let mut choice = CompletionChoice::empty(index);
        let mut log_probs = LogProbs::default();
        if let Some(prompt) = growing.echo.take() {
            choice.text = prompt.echo;
            if let Some(first) = prompt.ids.first() {
                log_probs.first(text, *first, &mut growing.offset);
            }
            for scored in growing.scored.drain(..) {
                log_probs.push(text, &scored, &mut growing.offset);
            }
        }
        choice.text.push_str(&new);
        choice.finish_reason = finish_reason;
        choice.prompt_token_ids = growing.prompt_ids.take();
        choice.token_ids = self.token_ids.then(|| token.iter().map(|(id, _)| *id).collect());
        if let Some((_, Some(scored))) = token {
            log_probs.push(text, &scored, &mut growing.offset);
        }
        choice.logprobs = self.has_logprobs.then_some(log_probs);
        Some(choice)
    }
}

impl CompletionChoice {
    fn empty(index: usize) -> Self {
        Self {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: None,
            prompt_token_ids: None,
            token_ids: None,
        }
    }

    /// Adds a later piece.
    fn append(&mut self, piece: Self) {
        self.text.push_str(&piece.text);
        match (&mut self.logprobs, piece.logprobs) {
            (Some(known), Some(new)) => known.append(new),
            (known, new) => *known = known.take().or(new),
        }
        self.finish_reason = piece.finish_reason.or(self.finish_reason);
        self.prompt_token_ids = piece.prompt_token_ids.or(self.prompt_token_ids.take());
        match (&mut self.token_ids, piece.token_ids) {
            (Some(known), Some(new)) => known.extend(new),
            (known, new) => *known = known.take().or(new),
        }
    }
}
