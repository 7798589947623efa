//! Queues, time, clients that leave, and the end of a server.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::{Asked, Files};
use axum::body::Body;
use axum::http::Request;
use deltaloom_lm::engine::EngineOptions;
use deltaloom_serve::{Keys, ServeOptions};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A text that is longer than what waits for a client.
fn long(stream: bool) -> Value {
    json!({"model": "base", "prompt": "The", "max_tokens": 200, "ignore_eos": true, "stream": stream, "temperature": 0})
}

/// Starts a stream that nobody reads beyond its first event.
async fn unread(server: &Asked) -> Body {
    let request = Request::post("/v1/completions").body(Body::from(long(true).to_string())).unwrap();
    let response = server.0.answer(request).await;
    assert!(response.status().is_success());
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    body
}

async fn rest(mut body: Body) -> String {
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    String::from_utf8(text).unwrap()
}

fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_full_queue_refuses_and_recovers() {
    let files = Files::new();
    let engine = EngineOptions::default().with_sequences(1).with_waiting(1, 1000);
    let server = files.server_with(engine, ServeOptions::default());
    let first = unread(&server).await;
    let request = Request::post("/v1/completions").body(Body::from(long(true).to_string())).unwrap();
    let second = server.0.answer(request).await.into_body();
    let third = server.post("/v1/completions", &long(false)).await;
    assert_eq!(third.error(429)["type"], "rate_limit_error");
    let seconds: u64 = third.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    assert_eq!(third.headers["x-should-retry"], "true");
    // The queue is full, and everything else still answers.
    assert!(server.get("/health").await.status.is_success());
    let metrics = server.get("/metrics").await.text;
    assert_eq!(metric(&metrics, "deltaloom:num_requests_running"), 1.0);
    assert_eq!(metric(&metrics, "deltaloom:requests_refused_total{code=\"queue_full\"}"), 1.0);
    // Who leaves makes room.
    drop(first);
    assert!(rest(second).await.ends_with("data: [DONE]\n\n"));
    let metrics = server.get("/metrics").await.text;
    assert_eq!(metric(&metrics, "deltaloom:requests_cancelled_total"), 1.0);
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_its_text() {
    let files = Files::new();
    let server = files.server();
    let whole = server.post("/v1/completions", &long(false)).await.ok();
    let slow = unread(&server).await;
    // Others run meanwhile.
    assert!(server.post("/v1/completions", &long(false)).await.status.is_success());
    let events = rest(slow).await;
    assert_eq!(json!(events.matches("data: {").count() + 1), whole["usage"]["completion_tokens"]);
    assert!(events.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_key_has_its_share_of_requests() {
    let files = Files::new();
    let options = ServeOptions::default().with_keys(Keys::parse("a\nb").unwrap()).with_per_key(1);
    let server = files.server_with(EngineOptions::default(), options);
    let ask = async |key: &str, stream: bool| {
        let request = Request::post("/v1/completions").header("authorization", format!("Bearer {key}"));
        server.0.answer(request.body(Body::from(long(stream).to_string())).unwrap()).await
    };
    let first = ask("a", true).await;
    assert_eq!(ask("a", false).await.status(), 429);
    assert_eq!(ask("b", false).await.status(), 200);
    drop(first);
    assert_eq!(ask("a", false).await.status(), 200);
}

#[tokio::test]
async fn the_time_of_a_request_may_end() {
    let files = Files::new();
    let server = files.server();
    let request = |stream: bool| {
        let request = Request::post("/v1/completions").header("x-request-timeout-ms", "1");
        request.body(Body::from(long(stream).to_string())).unwrap()
    };
    assert_eq!(server.send(request(false)).await.error(504)["code"], "request_timeout");
    let stream = server.send(request(true)).await;
    assert!(stream.status.is_success());
    let last = stream.text.trim_end().rsplit("\n\n").next().unwrap();
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "request_timeout");
    assert!(!stream.text.contains("[DONE]"));
}

#[tokio::test]
async fn many_clients_get_an_answer_or_are_told_to_wait() {
    let files = Files::new();
    let engine = EngineOptions::default().with_sequences(4).with_waiting(8, 1000);
    let server = files.server_with(engine, ServeOptions::default());
    let body = json!({"model": "pirate", "prompt": "The", "max_tokens": 8});
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let (server, body) = (server.0.clone(), Body::from(body.to_string()));
            let request = Request::post("/v1/completions").body(body).unwrap();
            tokio::spawn(async move { server.answer(request).await.status().as_u16() })
        })
        .collect();
    let mut found = std::collections::BTreeMap::<u16, usize>::new();
    for status in asked {
        *found.entry(status.await.unwrap()).or_default() += 1;
    }
    assert!(found.keys().copied().eq([200, 429]), "{found:?}");
    assert!(found[&200] >= 8);
    wait_for_nothing(&server).await;
}

#[tokio::test]
async fn who_leaves_after_any_event_is_cancelled() {
    let files = Files::new();
    let server = files.server();
    for events in 0..4 {
        let request = Request::post("/v1/completions").body(Body::from(long(true).to_string())).unwrap();
        let mut body = server.0.answer(request).await.into_body();
        for _ in 0..events {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        wait_for_nothing(&server).await;
    }
    let metrics = server.get("/metrics").await.text;
    assert_eq!(metric(&metrics, "deltaloom:requests_cancelled_total"), 4.0);
}

/// Waits until the engine has no request. Its state is noted after each step.
async fn wait_for_nothing(server: &Asked) {
    while requests(server).await > 0.0 {
        tokio::task::yield_now().await;
    }
}

/// Requests that run or wait.
async fn requests(server: &Asked) -> f64 {
    let metrics = server.get("/metrics").await.text;
    ["running", "waiting"]
        .map(|kind| metric(&metrics, &format!("deltaloom:num_requests_{kind}")))
        .iter()
        .sum()
}

/// Serves a socket.
async fn listen(server: &Asked) -> (SocketAddr, JoinHandle<deltaloom::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running = server.0.clone();
    (address, tokio::spawn(async move { running.run(listener).await }))
}

#[tokio::test]
async fn requests_finish_before_the_server_ends() {
    let files = Files::new();
    let server = files.server();
    let (_, running) = listen(&server).await;
    let stream = unread(&server).await;
    assert!(server.get("/ready").await.status.is_success());
    server.0.drain();
    assert_eq!(server.get("/ready").await.status, 503);
    assert_eq!(server.get("/ready").await.json()["status"], "draining");
    assert!(server.get("/health").await.status.is_success());
    let refused = server.post("/v1/completions", &long(false)).await;
    assert_eq!(refused.error(503)["code"], "server_shutting_down");
    assert!(refused.headers.contains_key("retry-after"));
    assert!(rest(stream).await.ends_with("data: [DONE]\n\n"));
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn requests_that_do_not_finish_are_told() {
    let files = Files::new();
    let options = ServeOptions::default().with_drain_time(Duration::ZERO);
    let server = files.server_with(EngineOptions::default(), options);
    let (_, running) = listen(&server).await;
    let stream = unread(&server).await;
    server.0.drain();
    running.await.unwrap().unwrap();
    let text = rest(stream).await;
    assert!(text.contains("\"server_shutting_down\"") && !text.contains("[DONE]"), "{text}");
}

async fn read(stream: &mut TcpStream, until: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(until) {
        let mut more = [0; 4096];
        match stream.read(&mut more).await.unwrap() {
            0 => break,
            count => text.extend_from_slice(&more[..count]),
        }
    }
    String::from_utf8(text).unwrap()
}

fn post(body: &Value) -> String {
    let body = body.to_string();
    format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn sockets_work_as_http_says() {
    let files = Files::new();
    let server = files.server();
    let (address, running) = listen(&server).await;
    // Two requests at once on one connection.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /nothing HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let text = read(&mut stream, "unknown_path").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("HTTP/1.1 404 Not Found\r\n"), "{text}");
    // A stream, in chunks.
    stream.write_all(post(&long(true)).as_bytes()).await.unwrap();
    let text = read(&mut stream, "0\r\n\r\n").await;
    assert!(
        text.contains("transfer-encoding: chunked") && text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"),
        "{text}"
    );
    // No HTTP.
    let mut other = TcpStream::connect(address).await.unwrap();
    other.write_all(b"\x16\x03\x01\x02\x00 hello\r\n\r\n").await.unwrap();
    assert!(!read(&mut other, "never").await.contains("200 OK"));
    // A head without an end.
    let mut large = TcpStream::connect(address).await.unwrap();
    let _ = large.write_all(format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(200_000)).as_bytes()).await;
    assert!(!read(&mut large, "\r\n\r\n").await.contains("200 OK"));
    server.0.drain();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_closes_a_socket_is_cancelled() {
    let files = Files::new();
    let server = files.server();
    let (address, running) = listen(&server).await;
    let mut body = long(false);
    // More than the client waits for.
    body["n"] = json!(64);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(post(&body).as_bytes()).await.unwrap();
    while requests(&server).await == 0.0 {
        tokio::task::yield_now().await;
    }
    drop(stream);
    wait_for_nothing(&server).await;
    let metrics = server.get("/metrics").await.text;
    assert_eq!(metric(&metrics, "deltaloom:requests_cancelled_total"), 1.0);
    server.0.drain();
    running.await.unwrap().unwrap();
}
