//! Messages of a conversation as chat templates want them.

use std::collections::BTreeSet;

use deltaloom_lm::text::Conversation;
use serde_json::{Map, Value, json};

use crate::catalog::Text;
use crate::error::{Failure, Result};
use crate::wire::{Content, Message, Role, Variables};

/// Messages of a conversation.
const MOST_MESSAGES: usize = 4096;

/// The text that the chat template makes of messages and tools, with the start of an answer or
/// without.
pub(super) fn render(
    text: &Text,
    messages: &[Message],
    tools: &[Value],
    variables: Option<&Variables>,
    add: bool,
) -> Result<String> {
    let failed = |message: String| Failure::field("messages", message).with_code("template_failed");
    let template = text.template.as_ref().map_err(|error| failed(error.clone()))?;
    let messages = Value::Array(for_template(messages)?).to_string();
    let mut conversation = Conversation::from_json(&messages)?.with_answer(add);
    if !tools.is_empty() {
        conversation = conversation.with_tools(&json!(tools).to_string())?;
    }
    if let Some(variables) = variables {
        conversation = conversation.with_variables(&json!(variables).to_string())?;
    }
    template.render(&conversation).map_err(|error| failed(error.to_string()))
}

/// The last message, which must be one of the assistant.
pub(super) fn last_of_assistant(messages: &[Message]) -> Result<String> {
    let last = messages.iter().enumerate().next_back().filter(|(_, last)| last.role == Role::Assistant);
    let (place, last) = last.ok_or_else(|| {
        Failure::field("continue_final_message", "the last message must be one of the assistant")
    })?;
    Ok(content(place, last)?.unwrap_or_default())
}

/// Contents become texts, and arguments of calls objects.
fn for_template(messages: &[Message]) -> Result<Vec<Value>> {
    if messages.is_empty() || messages.len() > MOST_MESSAGES {
        return Err(Failure::field("messages", format!("must have from 1 to {MOST_MESSAGES} messages")));
    }
    let mut called = BTreeSet::new();
    let one = |(place, message): (usize, &Message)| {
        let wrong = |field: &str, what: &str| Err(Failure::field(format!("messages[{place}].{field}"), what));
        let mut fields = Map::new();
        let role = if message.role == Role::Developer { Role::System } else { message.role };
        fields.insert("role".to_owned(), json!(role));
        let calls = message.tool_calls.as_deref().unwrap_or_default();
        if !calls.is_empty() && message.role != Role::Assistant {
            return wrong("tool_calls", "only the assistant calls functions");
        }
        let text = content(place, message)?;
        if text.is_none() && calls.is_empty() {
            return wrong("content", "is missing");
        }
        // Templates add text to it, so it is never null.
        fields.insert("content".to_owned(), json!(text.unwrap_or_default()));
        called.extend(calls.iter().filter_map(|call| call["id"].as_str().map(str::to_owned)));
        match &message.tool_call_id {
            Some(id) if message.role == Role::Tool && called.contains(id) => {
                fields.insert("tool_call_id".to_owned(), json!(id));
            }
            None if message.role != Role::Tool => {}
            _ => return wrong("tool_call_id", "must be that of an earlier call, in a message of role tool"),
        }
        if !calls.is_empty() {
            fields.insert("tool_calls".to_owned(), calls.iter().map(with_arguments).collect());
        }
        if let Some(name) = &message.name {
            fields.insert("name".to_owned(), json!(name));
        }
        Ok(Value::Object(fields))
    };
    messages.iter().enumerate().map(one).collect()
}

/// A call whose arguments are an object, not its text.
fn with_arguments(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(Ok(parsed @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str)
    {
        *arguments = parsed;
    }
    call
}

/// The text of a message.
fn content(place: usize, message: &Message) -> Result<Option<String>> {
    let parts = match &message.content {
        None => return Ok(None),
        Some(Content::Text(text)) => return Ok(Some(text.clone())),
        Some(Content::Parts(parts)) => parts,
    };
    let mut text = String::new();
    for (number, part) in parts.iter().enumerate() {
        let field = |field: &str| format!("messages[{place}].content[{number}].{field}");
        match (part.kind.as_str(), &part.text) {
            ("text", Some(part)) => text.push_str(part),
            ("text", None) => return Err(Failure::field(field("text"), "is missing")),
            _ => {
                let failure = Failure::field(field("type"), "only parts of type text are supported");
                return Err(failure.with_code("unsupported_content"));
            }
        }
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(messages: &Value) -> Result<Vec<Value>> {
        for_template(&serde_json::from_value::<Vec<Message>>(messages.clone()).unwrap())
    }

    #[test]
    fn messages_are_made_plain() {
        let messages = json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls":
                [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ]);
        let found = prepared(&messages).unwrap();
        assert_eq!(found[0], json!({"role": "system", "content": "ab"}));
        assert_eq!(found[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(found[1]["content"], "");
        assert_eq!(found[2]["tool_call_id"], "c1");
    }

    #[test]
    fn messages_that_make_no_sense_are_refused() {
        for (bad, param) in [
            (json!([]), "messages"),
            (json!([{"role": "user", "content": null}]), "messages[0].content"),
            (json!([{"role": "tool", "content": "2", "tool_call_id": "x"}]), "messages[0].tool_call_id"),
            (json!([{"role": "tool", "content": "2"}]), "messages[0].tool_call_id"),
            (json!([{"role": "user", "content": "a", "tool_calls": [1]}]), "messages[0].tool_calls"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        ] {
            let body: Value = serde_json::from_str(&prepared(&bad).unwrap_err().json()).unwrap();
            assert_eq!(body["error"]["param"], param);
        }
    }
}
