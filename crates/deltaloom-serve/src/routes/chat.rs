//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use deltaloom_lm::engine::Want;
use deltaloom_lm::text::Special;

use super::{messages, scores};
use crate::call::{Call, on_text, timed, with_tenant};
use crate::catalog::{Tenant, Text, now};
use crate::error::{Failure, Result};
use crate::grammar::{CallReader, Part, Shape, Style, Tools};
use crate::stream::{self, Job, Step};
use crate::text::{Piece, What};
use crate::wire::{
    CalledFunction, Chat, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogProbs, Common,
    Delta, FinishReason, FunctionDelta, Reply, Role, StreamOptions, ToolCall, ToolCallDelta, Usage,
};

pub(super) async fn answer(call: Call) -> Result<Response<Body>> {
    let common: Common = call.body.read()?;
    let own: Chat = call.body.read()?;
    let tenant = call.tenant(&common.model)?;
    let parameters = common.check(call.app.catalog.vocabulary)?;
    let logprobs = check(&own)?;
    let (tools, shape) = asked_for(&own, tenant.text.style)?;
    let has_tools = tools.is_some();
    let max_tokens = own.max_completion_tokens.or(parameters.max_tokens);
    if max_tokens == Some(0) {
        return Err(Failure::field("max_completion_tokens", "must be at least 1"));
    }
    let prompt = on_text(&tenant, move |text| prompt(text, &own, has_tools)).await?;
    let grammar = match shape {
        Some(shape) => Some(on_text(&tenant, move |text| text.grammar(&shape)).await?),
        None => None,
    };
    let (stream, token_ids, n) = (parameters.stream, parameters.token_ids, parameters.n);
    let prompt_ids = token_ids.then(|| prompt.clone());
    let job = Job {
        tenant: Arc::clone(&tenant),
        prompts: vec![prompt],
        parameters,
        max_tokens,
        want: Want { prompt: None, tokens: logprobs },
        grammar,
        param: "messages",
    };
    let mut running = stream::start(&call.app, &call.client, call.deadline, job).await?;
    let mut format = Format {
        id: format!("chatcmpl-{}", call.id),
        created: now(),
        tenant: Arc::clone(&tenant),
        has_started: vec![false; n],
        readers: vec![tools.map(|tools| tools.reader()); n],
        has_logprobs: logprobs.is_some(),
        token_ids,
    };
    if let Some(options) = stream {
        let response = stream::events(running, move |step, usage| format.event(step, usage, options));
        return Ok(with_tenant(response, &tenant));
    }
    let mut choices: Vec<ChatChoice> = (0..n).map(|index| format.empty(index)).collect();
    while let Some(piece) = running.next().await? {
        if let Some(chunk) = format.choice(piece) {
            choices[chunk.index].append(chunk);
        }
    }
    let answer = ChatCompletion {
        id: &format.id,
        object: "chat.completion",
        created: format.created,
        model: &tenant.name,
        system_fingerprint: &tenant.fingerprint,
        choices,
        usage: running.usage(),
        prompt_token_ids: prompt_ids.as_deref(),
    };
    Ok(timed(&answer, &running))
}

/// Checks the fields of a chat; the number of ranked tokens.
fn check(own: &Chat) -> Result<Option<u8>> {
    match (own.logprobs.unwrap_or(false), own.top_logprobs) {
        (false, Some(_)) => Err(Failure::field("top_logprobs", "is only allowed with logprobs")),
        (false, None) => Ok(None),
        (true, top) => scores::check("top_logprobs", Some(top.unwrap_or(0))),
    }
}

/// The functions that may be called, and what the answer must look like.
fn asked_for(own: &Chat, style: Style) -> Result<(Option<Tools>, Option<Shape>)> {
    let tools = own.tools.as_deref().unwrap_or_default();
    let tools = Tools::of_request(tools, own.tool_choice.as_ref(), style)?;
    let format = own.response_format.as_ref().map(Shape::of_response_format).transpose()?.flatten();
    match (tools.as_ref().and_then(Tools::shape).cloned(), format) {
        (Some(_), Some(_)) => {
            Err(Failure::field("response_format", "an answer cannot be both a call and of a format"))
        }
        (call, format) => Ok((tools, call.or(format))),
    }
}

/// The ids of a conversation.
fn prompt(text: &Text, own: &Chat, has_tools: bool) -> Result<Vec<u32>> {
    let is_continued = own.continue_final_message.unwrap_or(false);
    let add = own.add_generation_prompt.unwrap_or(!is_continued);
    if is_continued && add {
        let message = "cannot be true together with continue_final_message";
        return Err(Failure::field("add_generation_prompt", message));
    }
    let last = is_continued.then(|| messages::last_of_assistant(&own.messages)).transpose()?;
    let tools = own.tools.as_deref().filter(|_| has_tools).unwrap_or_default();
    let rendered = messages::render(text, &own.messages, tools, own.chat_template_kwargs.as_ref(), add)?;
    let end = match last.as_deref().map(str::trim) {
        None => rendered.len(),
        // What the template adds behind the last message would end it.
        Some(last) => rendered.rfind(last).map(|start| start + last.len()).ok_or_else(|| {
            Failure::field("continue_final_message", "the chat template changes the last message")
        })?,
    };
    text.encode(&rendered[..end], Special::Omit)
}

/// Makes answers of pieces.
struct Format {
    id: String,
    created: u64,
    tenant: Arc<Tenant>,
    has_started: Vec<bool>,
    /// Of each choice, if functions may be called.
    readers: Vec<Option<CallReader>>,
    has_logprobs: bool,
    token_ids: bool,
}

impl Format {
    fn empty(&self, index: usize) -> ChatChoice {
        ChatChoice {
            index,
            message: Reply { role: Role::Assistant, content: None, refusal: None, tool_calls: Vec::new() },
            logprobs: self.has_logprobs.then(ChatLogProbs::default),
            finish_reason: FinishReason::Cancelled,
            token_ids: self.token_ids.then(Vec::new),
        }
    }

    fn event(&mut self, step: Step, usage: Usage, options: StreamOptions) -> Option<String> {
        let choices = match step {
            Step::Piece(piece) => vec![self.choice(piece)?],
            Step::End => Vec::new(),
        };
        let usage = options.usage(usage, choices.is_empty())?;
        let chunk = ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.tenant.name,
            system_fingerprint: &self.tenant.fingerprint,
            choices,
            usage,
        };
        serde_json::to_string(&chunk).ok()
    }

    /// The part of an answer that a piece brings.
    fn choice(&mut self, piece: Piece) -> Option<ChatChunkChoice> {
        let Piece { choice: index, what } = piece;
        let (token, text, finish_reason) = match what {
            What::Token { id, text, scored, finish } => (Some((id, scored)), text, finish),
            What::End { text, finish } => (None, text, Some(finish)),
            What::Prompt(_) | What::Done(_) | What::Failed(_) => return None,
        };
        let (content, tool_calls) = self.calls(index, text, finish_reason.is_some());
        let has_calls = self.readers.get(index)?.as_ref().is_some_and(CallReader::has_calls);
        let finish_reason = match finish_reason {
            Some(FinishReason::Stop) if has_calls => Some(FinishReason::ToolCalls),
            reason => reason,
        };
        let has_started = std::mem::replace(self.has_started.get_mut(index)?, true);
        let token_ids = self.token_ids.then(|| token.iter().map(|(id, _)| *id).collect());
        let scored = token.and_then(|(_, scored)| scored);
        let tokens = scored.iter().map(|scored| scores::chat_token(&self.tenant.text, scored)).collect();
        Some(ChatChunkChoice {
            index,
            delta: Delta { role: (!has_started).then_some(Role::Assistant), content, tool_calls },
            logprobs: self.has_logprobs.then_some(ChatLogProbs { content: tokens }),
            finish_reason,
            token_ids,
        })
    }
}

impl Format {
    /// What is text and what are calls.
    fn calls(&mut self, choice: usize, text: String, is_end: bool) -> (String, Vec<ToolCallDelta>) {
        let Some(Some(reader)) = self.readers.get_mut(choice) else { return (text, Vec::new()) };
        let mut parts = reader.push(&text);
        if is_end {
            parts.extend(reader.finish());
        }
        let (mut content, mut calls) = (String::new(), Vec::new());
        for part in parts {
            let (index, name, arguments) = match part {
                Part::Content(text) => {
                    content.push_str(&text);
                    continue;
                }
                Part::Call { index, name } => (index, Some(name), String::new()),
                Part::Arguments { index, text } => (index, None, text),
            };
            calls.push(ToolCallDelta {
                index,
                id: name.is_some().then(|| format!("call-{}-{choice}-{index}", self.id)),
                kind: name.is_some().then_some("function"),
                function: FunctionDelta { name, arguments },
            });
        }
        (content, calls)
    }
}

impl ChatChoice {
    /// Adds a later piece.
    fn append(&mut self, piece: ChatChunkChoice) {
        let Delta { content, tool_calls, .. } = piece.delta;
        for call in tool_calls {
            let FunctionDelta { name, arguments } = call.function;
            match (name, self.message.tool_calls.get_mut(call.index)) {
                (_, Some(known)) => known.function.arguments.push_str(&arguments),
                (Some(name), None) => self.message.tool_calls.push(ToolCall {
                    id: call.id.unwrap_or_default(),
                    kind: "function",
                    function: CalledFunction { name, arguments },
                }),
                (None, None) => {}
            }
        }
        if !content.is_empty() || (piece.finish_reason.is_some() && self.message.tool_calls.is_empty()) {
            self.message.content.get_or_insert_default().push_str(&content);
        }
        if let (Some(known), Some(new)) = (&mut self.logprobs, piece.logprobs) {
            known.content.extend(new.content);
        }
        if let (Some(known), Some(new)) = (&mut self.token_ids, piece.token_ids) {
            known.extend(new);
        }
        self.finish_reason = piece.finish_reason.unwrap_or(self.finish_reason);
    }
}
