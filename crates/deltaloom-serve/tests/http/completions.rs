//! `/v1/completions`: answers are those of the model, and have the shapes that clients read.

use crate::support::Files;
use deltaloom_lm::generate::{Request, generate};
use deltaloom_lm::model::Model;
use deltaloom_lm::text::Special;
use serde_json::{Value, json};

const PROMPT: &str = "The little";

/// What the model generates alone.
fn alone(files: &Files, tenant: Option<&str>, tokens: usize) -> (Vec<u32>, String) {
    let (mut model, tokenizer) = (files.model(), files.tokenizer());
    let tenant = tenant.map_or(Model::BASE, |name| {
        let path = files.tenants().join(format!("{name}.loom"));
        let container = deltaloom::Container::open(&path, &deltaloom::Limits::default()).unwrap();
        let prepared = model.prepare(container).unwrap();
        model.admit(prepared).unwrap()
    });
    let prompt = tokenizer.encode(PROMPT, Special::Add).unwrap();
    let stop = deltaloom_lm::text::Stop::new(tokenizer.special().end.clone(), Vec::new()).unwrap();
    let request = Request::new(&prompt, tokens).with_stop(stop);
    let run = deltaloom_compute::Run::new(deltaloom_compute::Mode::Exact);
    let found = generate(&mut model, tenant, tokenizer.pieces(), request, &run, |_| Ok(true)).unwrap();
    (found.ids, found.text)
}

#[tokio::test]
async fn a_text_is_that_of_the_model_alone() {
    let files = Files::new();
    let server = files.server();
    for (name, tenant) in [("speaker", None), ("base", None), ("pirate", Some("pirate"))] {
        let (ids, text) = alone(&files, tenant, 12);
        let reply = server.complete(name, PROMPT, json!({"max_tokens": 12, "return_token_ids": true})).await;
        let answer = reply.ok();
        assert_eq!(answer["choices"][0]["text"], text, "{name}");
        let mut found: Vec<u32> = serde_json::from_value(answer["choices"][0]["token_ids"].clone()).unwrap();
        let expected_finish = if ids.len() == 12 { "length" } else { "stop" };
        if ids.len() < 12 {
            found.pop();
        }
        assert_eq!(found, ids);
        assert_eq!(answer["choices"][0]["finish_reason"], expected_finish);
        assert_eq!(answer["object"], "text_completion");
        let usage = &answer["usage"];
        assert_eq!(
            usage["total_tokens"].as_u64(),
            usage["prompt_tokens"].as_u64().zip(usage["completion_tokens"].as_u64()).map(|(a, b)| a + b)
        );
        assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
        assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("dl-"));
        assert!(reply.headers["server-timing"].to_str().unwrap().starts_with("queue;dur="));
        assert_eq!(reply.headers["x-deltaloom-tenant"], if name == "base" { "speaker" } else { name });
    }
}

#[tokio::test]
async fn a_stream_has_an_event_for_each_token() {
    let files = Files::new();
    let server = files.server();
    let fields = json!({"max_tokens": 9, "logprobs": 2, "ignore_eos": true});
    let whole = server.complete("pirate", PROMPT, fields.clone()).await.ok();
    let mut streamed = fields;
    streamed["stream"] = json!(true);
    let plain = server.complete("pirate", PROMPT, streamed.clone()).await;
    let events = plain.events();
    assert_eq!(events.len(), 9);
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    streamed["stream_options"] = json!({"include_usage": true});
    let events = server.complete("pirate", PROMPT, streamed.clone()).await.events();
    let (last, tokens) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(tokens.len(), 9);
    let text: String = tokens.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(whole["choices"][0]["text"], text);
    assert!(tokens.iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    let finishes: Vec<&Value> = tokens.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
    assert!(finishes[..8].iter().all(|finish| finish.is_null()) && finishes[8] == "length");
    let probs = tokens
        .iter()
        .flat_map(|event| event["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone());
    assert_eq!(json!(probs.collect::<Vec<_>>()), whole["choices"][0]["logprobs"]["token_logprobs"]);
    streamed["stream_options"] = json!({"continuous_usage_stats": true});
    let events = server.complete("pirate", PROMPT, streamed).await.events();
    let counts: Vec<u64> =
        events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts, (1..=9).collect::<Vec<_>>());
}

/// What lm-evaluation-harness reads: arrays with one entry for each token of the prompt and exactly
/// one more, even if that ends the text.
#[tokio::test]
async fn a_harness_finds_the_probabilities_of_a_prompt() {
    let files = Files::new();
    let (server, tokenizer) = (files.server(), files.tokenizer());
    let first = tokenizer.encode("The little dog went to the river.", Special::Add).unwrap();
    let second = tokenizer.encode("The", Special::Add).unwrap();
    let fields = json!({"max_tokens": 1, "logprobs": 1, "echo": true, "seed": 1234});
    let answer = server.complete("base", json!([first, second]), fields).await.ok();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    for (choice, ids) in answer["choices"].as_array().unwrap().iter().zip([&first, &second]) {
        let probs = &choice["logprobs"];
        let list = |name: &str| probs[name].as_array().unwrap().clone();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(name).len(), ids.len() + 1, "{name}");
        }
        assert!(list("token_logprobs")[0].is_null() && list("top_logprobs")[0].is_null());
        for place in 1..=ids.len() {
            let (token, own) = (list("tokens")[place].clone(), list("token_logprobs")[place].clone());
            let top = list("top_logprobs")[place].as_object().unwrap().clone();
            assert_eq!(top[token.as_str().unwrap()], own, "the same number");
            let largest = top.values().map(|value| value.as_f64().unwrap()).fold(f64::MIN, f64::max);
            assert!(own.as_f64().unwrap() <= largest && (1..=2).contains(&top.len()));
        }
        // Greedy: the token that was generated is the most probable.
        assert_eq!(list("top_logprobs").last().unwrap().as_object().unwrap().len(), 1);
        let text: String = list("tokens").iter().map(|token| token.as_str().unwrap()).collect();
        assert!(text.contains(tokenizer.pieces().text(ids, true).trim()), "{text}");
    }
    // A token that ends the text is listed as well.
    let end = tokenizer.special().end[0];
    let fields = json!({"max_tokens": 1, "logprobs": 1, "echo": true, "logit_bias": {end.to_string(): 100}});
    let answer = server.complete("base", json!([first]), fields).await.ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), first.len() + 1);
    // Nothing is generated with 0 tokens.
    let fields = json!({"max_tokens": 0, "logprobs": 1, "echo": true});
    let answer = server.complete("base", json!([first]), fields).await.ok();
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), first.len());
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn stop_strings_end_a_text_before_them() {
    let files = Files::new();
    let server = files.server();
    let fields = json!({"max_tokens": 20, "ignore_eos": true});
    let whole = server.complete("base", PROMPT, fields).await.ok();
    let whole = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(3).collect();
    let before = &whole[..whole.find(&middle).unwrap()];
    for stop in [json!(middle), json!(["never there", middle])] {
        let fields = json!({"max_tokens": 20, "ignore_eos": true, "stop": stop});
        let answer = server.complete("base", PROMPT, fields.clone()).await.ok();
        assert_eq!(answer["choices"][0]["text"], before);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let mut streamed = fields;
        streamed["stream"] = json!(true);
        let events = server.complete("base", PROMPT, streamed).await.events();
        let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(text, before);
        assert_eq!(json!(events.len()), answer["usage"]["completion_tokens"]);
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn several_texts_of_several_prompts() {
    let files = Files::new();
    let server = files.server();
    let fields = json!({"max_tokens": 6, "n": 2, "seed": 7, "temperature": 1, "ignore_eos": true});
    let answer = server.complete("base", json!(["The", "A big"]), fields.clone()).await.ok();
    let choices = answer["choices"].as_array().unwrap();
    let indexes: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [0, 1, 2, 3]);
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(answer["usage"]["completion_tokens"], 24);
    // The same seed gives the same texts, alone as well.
    let again = server.complete("base", json!(["A big"]), fields).await.ok();
    assert_eq!(again["choices"][0]["text"], choices[2]["text"]);
    assert_eq!(again["choices"][1]["text"], choices[3]["text"]);
    // Without a seed they differ.
    let free = json!({"max_tokens": 30, "temperature": 2, "ignore_eos": true});
    let [one, two] = [
        server.complete("base", PROMPT, free.clone()).await.ok(),
        server.complete("base", PROMPT, free).await.ok(),
    ];
    assert_ne!(one["choices"][0]["text"], two["choices"][0]["text"]);
}

#[tokio::test]
async fn an_echo_starts_with_the_prompt() {
    let files = Files::new();
    let server = files.server();
    let plain = server.complete("base", PROMPT, json!({"max_tokens": 4})).await.ok();
    let echoed = server.complete("base", PROMPT, json!({"max_tokens": 4, "echo": true})).await.ok();
    let expected = format!("{PROMPT}{}", plain["choices"][0]["text"].as_str().unwrap());
    assert_eq!(echoed["choices"][0]["text"], expected);
    let fields = json!({"max_tokens": 4, "echo": true, "stream": true, "logprobs": 0});
    let events = server.complete("base", PROMPT, fields).await.events();
    let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, expected);
    let first = &events[0]["choices"][0];
    assert!(first["text"].as_str().unwrap().starts_with(PROMPT));
    assert!(first["logprobs"]["tokens"].as_array().unwrap().len() > 1);
    assert_eq!(events[1]["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn a_text_ends_with_the_context() {
    let files = Files::new();
    let server = files.server();
    let context = server.get("/v1/models/base").await.ok()["max_model_len"].as_u64().unwrap();
    let room = 3_usize;
    let prompt = vec![5; usize::try_from(context).unwrap() - room];
    let fields = json!({"max_tokens": 50, "ignore_eos": true});
    let answer = server.complete("base", json!(prompt), fields).await.ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], room);
    let long = vec![5; usize::try_from(context).unwrap() + 1];
    let error = server.complete("base", json!(long), json!({})).await.error(400);
    assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("prompt")));
}
