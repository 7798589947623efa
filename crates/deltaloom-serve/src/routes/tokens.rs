//! Between text and ids. Without a model's name these answer for the base and need no key, as
//! evaluation harnesses ask.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Response, StatusCode};

use super::messages;
use crate::call::{Call, json, on_text, special};
use crate::catalog::Tenant;
use crate::error::{Failure, Result};
use crate::wire::{Detokenize, Detokenized, Tokenize, Tokenized, TokenizerInfo};

/// Bytes of the text of ids. A short list of long tokens has more than its body.
const LARGEST_TEXT: usize = 64 << 20;

pub(super) async fn tokenize(call: Call) -> Result<Response<Body>> {
    let own: Tokenize = call.body.read()?;
    let tenant = named(&call, own.model.as_deref())?;
    let max_model_len = call.app.catalog.context;
    let answer = on_text(&tenant, move |text| {
        let add = own.add_special_tokens;
        let tokens = match (own.prompt.or(own.content), own.messages) {
            (Some(prompt), None) => text.encode(&prompt, special(add.unwrap_or(true)))?,
            (None, Some(messages)) => {
                let rendered = messages::render(text, &messages, &[], None, true)?;
                text.encode(&rendered, special(add.unwrap_or(false)))?
            }
            _ => return Err(Failure::field("prompt", "give either a prompt or messages")),
        };
        let strings = || tokens.iter().map(|id| text.token(*id)).collect();
        let token_strs = own.return_token_strs.unwrap_or(false).then(strings);
        Ok(Tokenized { count: tokens.len(), tokens, max_model_len, token_strs })
    });
    Ok(json(StatusCode::OK, &answer.await?))
}

pub(super) async fn detokenize(call: Call) -> Result<Response<Body>> {
    let own: Detokenize = call.body.read()?;
    let tenant = named(&call, own.model.as_deref())?;
    let answer = on_text(&tenant, move |text| {
        let pieces = text.tokenizer.pieces();
        if own.tokens.iter().any(|id| !pieces.has(*id)) {
            let message = format!("ids must be below {} and have a token", pieces.ids());
            return Err(Failure::field("tokens", message));
        }
        let bytes = own.tokens.iter().map(|id| pieces.bytes(*id).len());
        if bytes.fold(0_usize, usize::saturating_add) > LARGEST_TEXT {
            return Err(Failure::field("tokens", format!("their text has more than {LARGEST_TEXT} bytes")));
        }
        let prompt = pieces.text(&own.tokens, false);
        Ok(Detokenized { content: prompt.clone(), prompt })
    });
    Ok(json(StatusCode::OK, &answer.await?))
}

pub(super) async fn info(call: Call) -> Result<Response<Body>> {
    let tokenizer = &call.app.catalog.base().text.tokenizer;
    let (special, pieces) = (tokenizer.special(), tokenizer.pieces());
    let text = |id: u32| String::from_utf8_lossy(pieces.bytes(id)).into_owned();
    let eos_token = special.end_text.clone().or(special.end.first().map(|id| text(*id)));
    let info = TokenizerInfo {
        bos_token: special.begin_text.clone().or(special.begin.map(text)),
        pad_token: eos_token.clone(),
        eos_token,
        chat_template: special.chat_template.clone(),
        vocab_size: pieces.ids(),
    };
    Ok(json(StatusCode::OK, &info))
}

/// The base, or a fine-tune that the client may use.
fn named(call: &Call, name: Option<&str>) -> Result<Arc<Tenant>> {
    let base = call.app.catalog.base();
    match name {
        Some(name) if name != base.name => call.tenant(name),
        _ => Ok(Arc::clone(base)),
    }
}
