//! One client: a connection that it uses again, and answers that come as a stream of events.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Answer, Planned};

/// A request that takes longer has failed.
const LONGEST_REQUEST: Duration = Duration::from_secs(600);
/// Most bytes of an answer.
const MOST_BYTES: usize = 64 << 20;

/// Sends requests one after another.
pub(super) struct Client {
    address: SocketAddr,
    key: Option<String>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr, key: Option<String>) -> Self {
        Self { address, key, connection: None }
    }

    /// Sends a request and reads its answer. It never fails: the answer says what went wrong.
    pub(super) async fn complete(&mut self, planned: Planned) -> Answer {
        let mut answer = Answer::of(planned);
        let start = Instant::now();
        let done = tokio::time::timeout(LONGEST_REQUEST, self.try_complete(&mut answer, start)).await;
        answer.total = start.elapsed();
        let failure = match done {
            Ok(Ok(())) => None,
            Ok(Err(what)) => Some(what),
            Err(_) => Some("no answer in ten minutes".to_owned()),
        };
        if failure.is_some() {
            self.connection = None;
        }
        answer.failure = failure;
        answer
    }

    async fn try_complete(&mut self, answer: &mut Answer, start: Instant) -> Result<(), String> {
        let mut response = self.send(&answer.planned).await?;
        answer.status = response.status().as_u16();
        if answer.status != 200 {
            let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
            let is_refusal = [429, 503].contains(&answer.status);
            let text = String::from_utf8_lossy(&body).into_owned();
            return if is_refusal { Ok(()) } else { Err(format!("{}: {text}", answer.status)) };
        }
        let (mut held, mut bytes, mut last) = (Vec::new(), 0_usize, start);
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|e| e.to_string())?;
            let Ok(data) = frame.into_data() else { continue };
            bytes = bytes.saturating_add(data.len());
            if bytes > MOST_BYTES {
                return Err("an answer of more than 64 MiB".to_owned());
            }
            held.extend_from_slice(&data);
            while let Some(end) = held.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = held.drain(..end + 2).collect();
                let before = answer.tokens.len();
                take(answer, &event[..end])?;
                if answer.tokens.len() > before {
                    let now = Instant::now();
                    match answer.first {
                        None => answer.first = Some(now - start),
                        Some(_) => answer.gaps.push(now - last),
                    }
                    last = now;
                }
            }
        }
        let (found, wanted) = (answer.tokens.len(), answer.planned.max_tokens);
        if found == wanted { Ok(()) } else { Err(format!("{found} tokens, not {wanted}")) }
    }

    async fn send(&mut self, planned: &Planned) -> Result<Response<Incoming>, String> {
        let Planned { model, prompt, max_tokens, temperature, seed } = planned;
        let body = json!({
            "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature,
            "seed": seed, "ignore_eos": true, "logprobs": 0, "return_token_ids": true, "stream": true,
        });
        let mut request = Request::post("/v1/completions")
            .header("host", self.address.to_string())
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body.to_string()))).map_err(|e| e.to_string())?;
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => connect(self.address).await?,
        };
        connection.ready().await.map_err(|e| e.to_string())?;
        let response = connection.send_request(request).await.map_err(|e| e.to_string())?;
        self.connection = Some(connection);
        Ok(response)
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // It ends with the sender. A fault reaches the request that runs.
    tokio::spawn(connection);
    Ok(sender)
}

/// Takes the tokens of an event.
fn take(answer: &mut Answer, event: &[u8]) -> Result<(), String> {
    let Some(data) = event.strip_prefix(b"data: ") else { return Ok(()) };
    if data == b"[DONE]" {
        return Ok(());
    }
    let event: Value = serde_json::from_slice(data).map_err(|e| e.to_string())?;
    if let Some(error) = event.get("error") {
        return Err(error.to_string());
    }
    let choice = &event["choices"][0];
    let ids = choice["token_ids"].as_array().into_iter().flatten();
    let log_probs = choice["logprobs"]["token_logprobs"].as_array().into_iter().flatten();
    for (id, log_prob) in ids.zip(log_probs) {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let (Some(id), Some(log_prob)) = (id, log_prob.as_f64()) else {
            return Err(format!("no id or probability: {choice}"));
        };
        answer.tokens.push((id, log_prob));
    }
    Ok(())
}
