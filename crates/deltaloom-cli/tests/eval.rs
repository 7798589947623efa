//! `deltaloom eval`: output and errors, on tiny random models. `deltaloom-lm` tests what they
//! compute.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::path::Path;

use common::Scratch;

/// With the tiny model `model`, 50 ids that it is likely to see, and a container of the model
/// itself, which has the ids of the base.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deltaloom-lm/tests/assets/tiny/qwen2");
    for name in ["config.json", "model.safetensors"] {
        scratch.write(&format!("model/{name}"), &std::fs::read(assets.join(name)).unwrap());
    }
    let ids: Vec<u16> = (0..50).map(|i| i * i % 96).collect();
    scratch.write("ids.u16", &ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
    scratch.write("ids.u32", &ids.iter().flat_map(|id| u32::from(*id).to_le_bytes()).collect::<Vec<_>>());
    // The last number of a row changes.
    let mut tuned = scratch.read("model/model.safetensors");
    let end = tuned.len() - 2;
    tuned[end] ^= 1;
    scratch.write("tuned/model.safetensors", &tuned);
    scratch.ok("pack tuned/model.safetensors --base model/model.safetensors -o tuned.loom");
    scratch
}

#[test]
fn a_loss_does_not_depend_on_how_it_is_computed() {
    let scratch = scratch();
    let run = |arguments: &str| scratch.ok(&format!("eval perplexity {arguments} --json")).json();
    let report = run("model ids.u16");
    let loss = report["loss"].as_f64().unwrap();
    assert!(loss > 1.0 && (report["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-9);
    assert_eq!((&report["tokens"], &report["windows"]), (&49.into(), &1.into()));
    assert_eq!((&report["window_tokens"], &report["model_type"]), (&64.into(), &"qwen2".into()));
    assert!(report["standard_error"].is_null() && report["warnings"].as_array().unwrap().is_empty());
    for same in ["model ids.u32", "model ids.u16 --chunk 7 --threads 1", "model ids.u16 --window 50"] {
        assert_eq!(run(same)["loss"], report["loss"], "{same}");
    }
    let windows = run("model ids.u16 --window 20 --stride 10");
    assert_eq!((&windows["tokens"], &windows["windows"]), (&49.into(), &4.into()));
    assert!(windows["standard_error"].as_f64().unwrap() > 0.0);
    assert_eq!(run("model ids.u16 --limit 11")["tokens"], 10);
    let precise = run("model ids.u16 --kv f32")["loss"].as_f64().unwrap();
    assert!(precise != loss && (precise - loss).abs() < 0.1);
    // A fine-tune as a tenant, as a container with its base, and as a model.
    scratch.write("tuned/config.json", &scratch.read("model/config.json"));
    let tuned = run("tuned ids.u16");
    for same in ["model ids.u16 --tenant tuned.loom", "tuned.loom ids.u16 --base model"] {
        assert_eq!(run(same)["loss"], tuned["loss"], "{same}");
    }
    let text = scratch.ok("eval perplexity model ids.u16 --window 20");
    assert!(text.text().starts_with("loss ") && text.text().contains("nats per token"), "{}", text.text());
    let lines = scratch.ok("eval perplexity model ids.u16 --json --progress json").err;
    assert!(lines.contains("\"verb\":\"computing\",\"done_bytes\":200,\"total_bytes\":200"), "{lines}");
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let scratch = scratch();
    scratch.write("odd.u16", &[1, 0, 2]);
    scratch.write("one.u16", &[1, 0]);
    scratch.write("strange.u16", &[1, 0, 96, 0]);
    scratch.write("bare/model.safetensors", &scratch.read("model/model.safetensors"));
    scratch.write("other/model.safetensors", &scratch.read("model/model.safetensors"));
    let config = String::from_utf8(scratch.read("model/config.json")).unwrap();
    scratch.write("other/config.json", config.replace("\"qwen2\"", "\"mamba\"").as_bytes());
    for (arguments, words) in [
        ("model ids.txt", "tokenizer.json"),
        ("model nothing.u16", "nothing.u16"),
        ("model odd.u16", "3 bytes"),
        ("model one.u16", "two or more"),
        ("model strange.u16", "id 96 at position 1 is not below 96"),
        ("model ids.u16 --stride 65", "must begin within it"),
        ("model ids.u16 --base model", "--base is for a container"),
        ("tuned.loom ids.u16", "--base FOLDER"),
        ("bare ids.u16", "config.json"),
        ("other ids.u16", "\"mamba\" is not supported: a state-space model"),
        ("nothing ids.u16", "nothing"),
        ("model/model.safetensors ids.u16", "GGUF"),
    ] {
        let ended = scratch.run(&format!("eval perplexity {arguments}"));
        assert!(ended.code != Some(0) && ended.err.contains(words), "{arguments}: {}", ended.err);
    }
    for usage in ["eval perplexity model ids.u16 --window 1", "eval perplexity model", "eval nothing"] {
        scratch.refused(usage);
    }
}
