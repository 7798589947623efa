//! `deltaloom generate`, and the tasks of `eval`, on a tiny random model whose tokens are single
//! characters. `deltaloom-lm` tests what they compute.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::path::Path;

use common::Scratch;
use serde_json::{Value, json};

/// With the tiny model `model` and a container of a fine-tune.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deltaloom-lm/tests/assets/tiny/qwen2");
    for name in ["config.json", "model.safetensors"] {
        scratch.write(&format!("model/{name}"), &std::fs::read(assets.join(name)).unwrap());
    }
    let vocab: serde_json::Map<String, Value> = (b' '..=b'~')
        .map(|byte| if byte == b' ' { 'Ġ' } else { char::from(byte) })
        .zip(0..)
        .map(|(letter, id)| (letter.to_string(), id.into()))
        .collect();
    let tokenizer = json!({
        "added_tokens": [{"id": 95, "content": "<end>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    scratch.write("model/tokenizer.json", tokenizer.to_string().as_bytes());
    let mut tuned = scratch.read("model/model.safetensors");
    let end = tuned.len() - 2;
    tuned[end] ^= 0x40;
    scratch.write("tuned/model.safetensors", &tuned);
    scratch.ok("pack tuned/model.safetensors --base model/model.safetensors -o tuned.loom");
    scratch
}

#[test]
fn text_comes_to_standard_output() {
    let scratch = scratch();
    let plain = scratch.ok("generate model Once --max-tokens 9");
    assert_eq!(plain.text().trim_end_matches('\n').len(), 9);
    assert!(plain.err.contains("prompt: 4 tokens") && plain.err.contains("text: 9 tokens"), "{}", plain.err);
    let report = scratch.ok("generate model Once --max-tokens 9 --json --threads 1").json();
    assert_eq!(report["text"], plain.text().trim_end_matches('\n'));
    assert_eq!((&report["finish"], &report["tokens"]), (&"length".into(), &9.into()));
    let draw = |seed: u32| {
        let command = format!("generate model Once --temperature 2 --seed {seed} --max-tokens 30 --json");
        scratch.ok(&command).json()["text"].clone()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    for tuned in ["generate model Once --tenant tuned.loom", "generate tuned.loom Once --base model"] {
        scratch.ok(tuned);
    }
}

#[test]
fn chats_need_a_template() {
    let scratch = scratch();
    assert!(scratch.refused("generate model Once --chat").contains("no chat template"));
    scratch.write(
        "model/chat_template.jinja",
        b"{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}",
    );
    let report = scratch.ok("generate model Once --chat --system S --max-tokens 1 --json").json();
    assert_eq!(report["prompt_tokens"], "system: S;user: Once;".len());
    scratch.write("model/chat_template.jinja", b"{{ raise_exception('no chats') }}");
    assert!(scratch.refused("generate model Once --chat").contains("no chats"));
}

#[test]
fn what_cannot_be_generated_is_refused() {
    let scratch = scratch();
    assert!(scratch.refused("generate model Once --temperature -1").contains("temperature"));
    assert!(scratch.refused("generate model Once --top-p 0").contains("top-p"));
    assert!(scratch.refused("generate tuned.loom Once").contains("--base FOLDER"));
    scratch.write("bare/config.json", &scratch.read("model/config.json"));
    scratch.write("bare/model.safetensors", &scratch.read("model/model.safetensors"));
    assert!(scratch.fails(3, "generate bare Once").contains("tokenizer.json"));
    scratch.write("bare/tokenizer.json", b"{}");
    assert!(scratch.refused("generate bare Once").contains("not a tokenizer"));
}

#[test]
fn texts_serve_as_ids() {
    let scratch = scratch();
    scratch.write("text.txt", b"Once upon a time");
    let ids: Vec<u8> = "Once upon a time".bytes().flat_map(|byte| [byte - b' ', 0]).collect();
    scratch.write("text.u16", &ids);
    let loss =
        |file: &str| scratch.ok(&format!("eval perplexity model {file} --json")).json()["loss"].clone();
    assert_eq!(loss("text.txt"), loss("text.u16"));
    let report = scratch.ok("eval perplexity model text.txt --json").json();
    // A token is a byte.
    let bits = report["loss"].as_f64().unwrap() / std::f64::consts::LN_2;
    assert!((report["bits_per_byte"].as_f64().unwrap() - bits).abs() < 1e-12);
    assert!(scratch.ok("eval perplexity model text.u16 --json").json()["bits_per_byte"].is_null());
    let run = |student: &str, file: &str| {
        scratch.ok(&format!("eval divergence model {student} --tokens {file} --json")).json()
    };
    let itself = run("model", "text.txt");
    assert_eq!((&itself["mean_kl"], &itself["tokens"]), (&0.0.into(), &15.into()));
    let tuned = run("tuned.loom", "text.u16");
    assert!(tuned["mean_kl"].as_f64().unwrap() > 0.0);
    assert!(scratch.ok("eval divergence model tuned.loom --tokens text.txt").text().contains("mean KL"));
    // The fine-tune as a model of its own.
    scratch.write("tuned/config.json", &scratch.read("model/config.json"));
    let as_model = run("tuned", "text.u16");
    assert_eq!((&as_model["mean_kl"], &as_model["same_top"]), (&tuned["mean_kl"], &tuned["same_top"]));
    let other = String::from_utf8(scratch.read("model/config.json")).unwrap().replace("96", "95");
    scratch.write("tuned/config.json", other.as_bytes());
    let refused = scratch.run("eval divergence model tuned --tokens text.u16");
    assert!(refused.code != Some(0) && refused.err.contains("[95, 32]"), "{}", refused.err);
}

#[test]
fn a_gguf_file_is_a_model_with_its_tokenizer() {
    let scratch = Scratch::new();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deltaloom-lm/tests/assets/tiny");
    for name in ["mistral.gguf", "mistral/config.json", "mistral/model.safetensors"] {
        scratch.write(name, &std::fs::read(assets.join(name)).unwrap());
    }
    scratch.write("text.txt", b"the path and the bath");
    let text = scratch.ok("generate mistral.gguf bath --max-tokens 5 --json").json();
    assert_eq!((&text["prompt_tokens"], &text["model_type"]), (&3.into(), &"mistral".into()));
    // [bath]:
    let chat = scratch.ok("generate mistral.gguf bath --max-tokens 5 --chat --json").json();
    assert_eq!(chat["prompt_tokens"], 6);
    for pair in ["mistral.gguf mistral", "mistral.gguf mistral.gguf"] {
        let report = scratch.ok(&format!("eval divergence {pair} --tokens text.txt --json")).json();
        assert_eq!((&report["mean_kl"], &report["tokens"]), (&0.0.into(), &16.into()), "{pair}");
    }
    let refused = scratch.run("eval divergence mistral mistral.gguf --tokens text.txt");
    assert!(refused.code != Some(0) && refused.err.contains("tokenizer.json"), "{}", refused.err);
}

#[test]
fn tasks_give_shares_and_digests() {
    let scratch = scratch();
    let item = r#"{"context": "The sky is", "choices": ["blue", "red"], "answer": 0}"#;
    scratch.write("items.jsonl", format!("{item}\n{item}\n").as_bytes());
    let report = scratch.ok("eval choices model items.jsonl --json").json();
    assert_eq!((&report["acc"]["of"], &report["kind"]), (&2.into(), &"sample".into()));
    assert_eq!(report["files"][0]["digest"].as_str().unwrap().len(), 64);
    assert!(scratch.ok("eval choices model items.jsonl").text().contains("a sample from 2 items"));
    scratch.write("items.jsonl", b"{}");
    assert!(scratch.refused("eval choices model items.jsonl").contains("line 1"));
    let problem = r#"{"question": "How much is 2 + 2?", "answer": "It is 4.\n#### 4"}"#;
    scratch.write("problems.jsonl", problem.as_bytes());
    let report = scratch.ok("eval generate model problems.jsonl --max-tokens 8 --json").json();
    assert_eq!((&report["strict"]["of"], &report["kind"]), (&1.into(), &"sample".into()));
    let shown = "eval generate model problems.jsonl --examples problems.jsonl --shots 1 --max-tokens 4";
    assert!(scratch.refused(shown).contains("from 1 to 64"));
}
