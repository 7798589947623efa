//! Requests that are wrong get an answer in our shape, and the server goes on.

use crate::support::Files;
use axum::body::Body;
use axum::http::{Method, Request};
use deltaloom_lm::engine::EngineOptions;
use deltaloom_serve::ServeOptions;
use serde_json::{Value, json};

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let files = Files::new();
    let server = files.server();
    let deep = format!("{{\"model\":{}1{}}}", "[".repeat(64), "]".repeat(64));
    let too_deep = "[".repeat(100_000);
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"7",
        b"nonsense",
        b"{} {}",
        b"{\"model\":\"base\",\"model\":\"base\",\"prompt\":\"a\"}",
        b"{\"model\":\"base\",\"prompt\":\"a\",\"x\":{\"y\":1,\"y\":2}}",
        b"{\"model\":\"\xff\",\"prompt\":\"a\"}",
        b"{\"model\":\"base\",\"prompt\":\"\\ud800\"}",
        b"{\"model\":\"base\",\"prompt\":\"a\",\"temperature\":NaN}",
        b"{\"model\":\"base\",\"prompt\":\"a\",\"temperature\":1e999}",
        too_deep.as_bytes(),
    ] {
        for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
            let error = server.request(Method::POST, path, None, body).await.error(400);
            assert_eq!(
                error["code"],
                "invalid_json",
                "{}",
                String::from_utf8_lossy(&body[..body.len().min(60)])
            );
        }
    }
    let error = server.request(Method::POST, "/v1/completions", None, deep.as_bytes()).await.error(400);
    assert_eq!(error["param"], "model");
    assert!(server.complete("base", "a\0b", json!({})).await.status.is_success(), "NUL is a character");
}

#[tokio::test]
async fn fields_out_of_range() {
    let files = Files::new();
    let server = files.server();
    let strings = |count: usize| json!((0..count).map(|i| format!("s{i}")).collect::<Vec<_>>());
    let biases = |count: usize| (0..count).map(|i| (i.to_string(), json!(1))).collect();
    let prompts = |prompt: Value| ("prompt", prompt);
    for (param, value) in [
        prompts(json!([])),
        prompts(json!([[]])),
        prompts(json!([[1], []])),
        prompts(json!([-1])),
        prompts(json!([1_000_000])),
        prompts(json!([[1, 1_000_000]])),
        prompts(json!([1.5])),
        prompts(json!([1, "a"])),
        prompts(json!([["a"]])),
        prompts(json!(7)),
        prompts(json!({})),
        prompts(Value::Null),
        prompts(json!(vec![1; 1_000_000])),
        prompts(json!(vec!["a"; 1000])),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("5")),
        ("temperature", json!(-1)),
        ("temperature", json!(1e308)),
        ("top_p", json!(0)),
        ("top_p", json!(2)),
        ("min_p", json!(-1)),
        ("n", json!(0)),
        ("n", json!(1000)),
        ("best_of", json!(2)),
        ("suffix", json!("a")),
        ("stop", strings(10_000)),
        ("stop", json!("")),
        ("stop", json!("x".repeat(1 << 20))),
        ("logit_bias", Value::Object(biases(50_000))),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"1000000": 1})),
        ("logit_bias", json!({"1": 1e300})),
        ("logprobs", json!(-1)),
        ("logprobs", json!(1000)),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("seed", json!(1e30)),
        ("seed", json!("1")),
        ("stream_options", json!({"include_usage": true})),
        ("stream", json!("yes")),
        ("response_format", json!({"type": "json_object"})),
        ("model", json!(7)),
        ("model", Value::Null),
    ] {
        let mut fields = json!({});
        fields[param] = value;
        let error = server.complete("base", "a", fields).await.error(400);
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"], param, "{error}");
    }
    // Overlapping stop strings and a huge limit are fine.
    let fine = json!({"max_tokens": 9_223_372_036_854_775_807_u64, "stop": ["ab", "abc", "b"]});
    assert!(server.complete("base", "The", fine).await.status.is_success());
    let missing = server.post("/v1/completions", &json!({"model": "base"})).await.error(400);
    assert_eq!(missing["param"], "prompt");
}

#[tokio::test]
async fn models_and_paths_that_are_not_there() {
    let files = Files::new();
    let server = files.server();
    for name in ["nobody", "../x", "", "a\u{7}b", &"x".repeat(10_000), "pirate.loom"] {
        let error = server.complete(name, "a", json!({})).await.error(404);
        assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    }
    for path in ["/nothing", "/v1", "/v1/models/nobody", "/v1/models/..%2fx", "/v1/models/%ff", "/admin"] {
        let error = server.get(path).await.error(404);
        assert_eq!(error["type"], "not_found_error");
    }
    for (method, path) in [
        (Method::GET, "/v1/completions"),
        (Method::PUT, "/v1/completions"),
        (Method::POST, "/health"),
        (Method::OPTIONS, "/v1/completions"),
        (Method::DELETE, "/admin/tenants"),
    ] {
        assert_eq!(server.request(method, path, None, b"").await.error(405)["code"], "method_not_allowed");
    }
    assert!(server.request(Method::HEAD, "/health", None, b"").await.status.is_success());
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let files = Files::new();
    let server = files.server();
    let large = format!("{{\"model\":\"base\",\"prompt\":\"{}\"}}", "a".repeat(5 << 20));
    let error = server.request(Method::POST, "/v1/completions", None, large.as_bytes()).await.error(413);
    assert_eq!(error["code"], "body_too_large");
}

#[tokio::test]
async fn unknown_fields_are_only_refused_if_asked() {
    let files = Files::new();
    let fields = json!({"max_tokens": 1, "nonsense": 1});
    assert!(files.server().complete("base", "a", fields.clone()).await.status.is_success());
    let options = ServeOptions::default().with_strict(true);
    let strict = files.server_with(EngineOptions::default(), options);
    assert_eq!(strict.complete("base", "a", fields).await.error(400)["param"], "nonsense");
    let known = json!({"max_tokens": 1, "user": "me", "stream": false, "logprobs": null});
    assert!(strict.complete("base", "a", known).await.status.is_success());
}

#[tokio::test]
async fn numbers_of_requests_and_times() {
    let files = Files::new();
    let server = files.server();
    let request = |header: &str, value: &str| {
        let request = Request::builder().method("POST").uri("/v1/completions").header(header, value);
        let body = json!({"model": "base", "prompt": "The", "max_tokens": 2});
        request.body(Body::from(body.to_string())).unwrap()
    };
    let reply = server.send(request("x-request-id", "my_id-7")).await;
    assert_eq!(reply.headers["x-request-id"], "my_id-7");
    assert_eq!(reply.ok()["id"], "cmpl-my_id-7");
    let reply = server.send(request("x-request-id", "no good")).await;
    assert_ne!(reply.headers["x-request-id"], "no good");
    let error = server.send(request("x-request-timeout-ms", "soon")).await.error(400);
    assert_eq!(error["param"], "x-request-timeout-ms");
}
