//! `/v1/chat/completions`.

use crate::support::Files;
use serde_json::{Value, json};

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[tokio::test]
async fn a_conversation_is_answered() {
    let files = Files::new();
    let server = files.server();
    let fields = json!({"max_tokens": 12, "logprobs": true, "top_logprobs": 2});
    let reply = server.chat(user("What is the dog called?"), fields.clone()).await;
    let answer = reply.ok();
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"].get("refusal").is_some_and(Value::is_null));
    let content = choice["message"]["content"].as_str().unwrap();
    assert!(!content.is_empty());
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(json!(tokens.len()), answer["usage"]["completion_tokens"]);
    assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    assert_eq!(tokens[0]["top_logprobs"][0]["logprob"], tokens[0]["logprob"], "greedy");
    let bytes: Vec<u8> = serde_json::from_value(tokens[0]["bytes"].clone()).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), tokens[0]["token"].as_str().unwrap());
    // The same as the completion of what the template makes.
    let body = json!({"model": "chat", "messages": user("What is the dog called?")});
    let ids = server.post("/tokenize", &body).await.ok()["tokens"].clone();
    let same = server.complete("chat", ids, json!({"max_tokens": 12})).await.ok();
    assert_eq!(same["choices"][0]["text"], content);
    assert_eq!(same["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn a_stream_starts_with_the_role() {
    let files = Files::new();
    let server = files.server();
    let whole = server.chat(user("Hello"), json!({"max_completion_tokens": 7})).await.ok();
    let fields =
        json!({"max_completion_tokens": 7, "stream": true, "stream_options": {"include_usage": true}});
    let events = server.chat(user("Hello"), fields).await.events();
    let (last, tokens) = events.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert_eq!(json!(tokens.len()), whole["usage"]["completion_tokens"]);
    for (place, event) in tokens.iter().enumerate() {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["choices"][0]["delta"].get("role").is_some(), place == 0);
        assert_eq!(event["choices"][0]["finish_reason"].is_null(), place + 1 < tokens.len());
    }
    let text: String =
        tokens.iter().map(|event| event["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
}

#[tokio::test]
async fn a_last_message_is_continued() {
    let files = Files::new();
    let server = files.server();
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]},
        {"role": "assistant", "content": "I am"},
    ]);
    let fields = json!({"continue_final_message": true, "max_tokens": 5, "return_token_ids": true});
    let answer = server.chat(messages.clone(), fields).await.ok();
    let prompt = json!({"model": "chat", "tokens": answer["prompt_token_ids"]});
    let prompt = server.post("/detokenize", &prompt).await.ok()["prompt"].as_str().unwrap().to_owned();
    assert!(prompt.ends_with("I am"), "{prompt}");
    let both = json!({"continue_final_message": true, "add_generation_prompt": true});
    assert_eq!(server.chat(messages, both).await.error(400)["param"], "add_generation_prompt");
    let error = server.chat(user("Hi"), json!({"continue_final_message": true})).await.error(400);
    assert_eq!(error["param"], "continue_final_message");
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let files = Files::new();
    let server = files.server();
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for (fields, param) in [
        (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"max_tokens": 0}), "max_completion_tokens"),
        (json!({"messages": []}), "messages"),
    ] {
        assert_eq!(server.chat(user("Hi"), fields).await.error(400)["param"], param);
    }
    assert!(
        server.chat(user("Hi"), json!({"tools": tools, "tool_choice": "none"})).await.status.is_success()
    );
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    assert_eq!(server.chat(image, json!({})).await.error(400)["code"], "unsupported_content");
    // The base has no template.
    let error = server.chat(user("Hi"), json!({"model": "base"})).await.error(400);
    assert_eq!(error["code"], "template_failed");
}
