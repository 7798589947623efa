//! Models, tokens, metrics, the API document and the page.

use crate::support::Files;
use axum::body::Body;
use axum::http::{Method, Request};
use deltaloom_lm::engine::EngineOptions;
use deltaloom_lm::text::Special;
use deltaloom_serve::{ServeOptions, api_markdown};
use serde_json::json;

#[tokio::test]
async fn models_are_listed() {
    let files = Files::new();
    let server = files.server();
    let list = server.get("/v1/models").await.ok();
    assert_eq!(list["object"], "list");
    let entries = list["data"].as_array().unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["speaker", "chat", "pirate"]);
    for entry in entries {
        assert_eq!((&entry["object"], &entry["root"]), (&json!("model"), &json!("speaker")));
        assert!(entry["created"].as_u64().unwrap() > 0);
        assert_eq!(entry["meta"]["weights_digest"].as_str().unwrap().len(), 64);
        let one = server.get(&format!("/v1/models/{}", entry["id"].as_str().unwrap())).await.ok();
        assert_eq!(one, *entry);
    }
}

#[tokio::test]
async fn text_becomes_ids_and_back() {
    let files = Files::new();
    let (server, tokenizer) = (files.server(), files.tokenizer());
    let text = "The little dog – é";
    for field in ["prompt", "content"] {
        let body = json!({field: text, "add_special_tokens": false, "return_token_strs": true});
        let answer = server.post("/tokenize", &body).await.ok();
        let ids = tokenizer.encode(text, Special::Omit).unwrap();
        assert_eq!(answer["tokens"], json!(ids));
        assert_eq!(answer["token_strs"].as_array().unwrap().len(), ids.len());
        let back = server.post("/detokenize", &json!({"tokens": ids})).await.ok();
        assert_eq!((&back["prompt"], &back["content"]), (&json!(text), &json!(text)));
    }
    for bad in [json!([1_000_000]), json!([-1]), json!(["a"]), json!("a")] {
        let error = server.post("/detokenize", &json!({"tokens": bad})).await.error(400);
        assert!(error["param"].as_str().unwrap().starts_with("tokens"));
    }
    server.post("/tokenize", &json!({})).await.error(400);
    server
        .post("/tokenize", &json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}))
        .await
        .error(400);
    let info = server.get("/tokenizer_info").await.ok();
    let end = tokenizer.special().end[0];
    assert_eq!(info["eos_token"], String::from_utf8_lossy(tokenizer.pieces().bytes(end)).into_owned());
    assert!(info.get("bos_token").is_some() && info.get("chat_template").is_some());
}

#[tokio::test]
async fn metrics_follow_requests_and_fine_tunes() {
    let files = Files::new();
    let options = ServeOptions::default().with_admin_key(Some("root".to_owned()));
    let server = files.server_with(EngineOptions::default(), options);
    server.complete("pirate", "The", json!({"max_tokens": 4, "ignore_eos": true})).await.ok();
    // The state is noted after the step that has sent the last token.
    let mut reply = server.get("/metrics").await;
    while !reply.text.contains("num_requests_running 0\n") {
        reply = server.get("/metrics").await;
    }
    assert!(reply.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    let text = reply.text;
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "deltaloom:generation_tokens_total{model_name=\"pirate\"} 4",
        "deltaloom:request_success_total{model_name=\"pirate\",finished_reason=\"length\"} 1",
        "deltaloom:time_to_first_token_seconds_count{model_name=\"pirate\"} 1",
        "deltaloom:time_per_output_token_seconds_count{model_name=\"pirate\"} 3",
        "deltaloom:e2e_request_latency_seconds_count{model_name=\"pirate\"} 1",
        "deltaloom:num_requests_running 0",
        "deltaloom:tenant_loaded{tenant=\"pirate\",state=\"resident\",pinned=\"false\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // Each name has one type, and each line is a name, perhaps labels, and a number.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() && name.starts_with("deltaloom:"), "{line}");
    }
    server.request(Method::DELETE, "/admin/tenants/pirate", Some("root"), b"").await;
    assert!(!server.get("/metrics").await.text.contains("pirate"));
}

#[tokio::test]
async fn the_api_describes_itself() {
    let files = Files::new();
    let server = files.server();
    let document = server.get("/openapi.json").await.ok();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let reply = server.request(method.clone(), &path.replace("{name}", "nobody"), None, b"").await;
            // 404 for a path would have another code.
            assert!(!reply.text.contains("unknown_path") && reply.status != 405, "{method} {path}");
            assert!(api_markdown().contains(&format!("`{method} {path}`")));
        }
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let files = Files::new();
    let server = files.server();
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let reply = server.get(path).await;
        assert!(reply.headers["content-type"].to_str().unwrap().starts_with(kind));
        let policy = reply.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'self'") && !policy.contains("unsafe"));
        assert!(!reply.text.contains("http://") || reply.text.contains("http://www.w3.org/2000/svg"));
        assert!(!reply.text.contains("https://"));
    }
    assert_eq!(server.get("/favicon.ico").await.status, 204);
}

#[tokio::test]
async fn other_origins_are_only_answered_if_allowed() {
    let files = Files::new();
    let options = ServeOptions::default().with_origin(Some("https://page.example".to_owned()));
    let server = files.server_with(EngineOptions::default(), options);
    let request = |method: &str, origin: &str| {
        let request = Request::builder().method(method).uri("/v1/models").header("origin", origin);
        request.body(Body::empty()).unwrap()
    };
    let allowed = server.send(request("GET", "https://page.example")).await;
    assert_eq!(allowed.headers["access-control-allow-origin"], "https://page.example");
    let own = Request::post("/tokenize").header("origin", "http://a:1").header("host", "a:1");
    assert!(server.send(own.body(Body::from(r#"{"prompt": "a"}"#)).unwrap()).await.status.is_success());
    let before = server.send(request("OPTIONS", "https://page.example")).await;
    assert_eq!(before.status, 204);
    assert!(before.headers.contains_key("access-control-allow-headers"));
    for (server, origin) in [(&server, "https://other.example"), (&files.server(), "https://page.example")] {
        let reply = server.send(request("GET", origin)).await;
        assert!(reply.status.is_success() && !reply.headers.contains_key("access-control-allow-origin"));
        server.send(request("OPTIONS", origin)).await.error(405);
        let post = Request::post("/tokenize").header("origin", origin).header("host", "127.0.0.1:8080");
        let body = Body::from(r#"{"prompt": "a"}"#);
        assert_eq!(server.send(post.body(body).unwrap()).await.error(403)["code"], "origin_not_allowed");
    }
}
