//! Keys and values in a file, the longest sequence that memory holds, and folders for transformers.

mod common;

use std::path::Path;

use common::Scratch;

/// With a tiny model and ids for it.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deltaloom-lm/tests/assets/tiny/llama3");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        if let Ok(bytes) = std::fs::read(assets.join(name)) {
            scratch.write(&format!("model/{name}"), &bytes);
        }
    }
    let ids: Vec<u8> = (0..2000u32).flat_map(|i| ((i * i / 7 % 90) as u16).to_le_bytes()).collect();
    scratch.write("ids.u16", &ids);
    scratch.write("window.yaml", b"context: 1\ndefault: { reach: { window: 16 } }\n");
    scratch
}

const LONG: &str = "eval perplexity model ids.u16 --window 2000 --kv f32";

#[test]
fn keys_and_values_in_a_file_change_nothing() {
    let scratch = scratch();
    let before = scratch.tree();
    let loss = |words: &str| scratch.ok(&format!("{words} --json")).json()["loss"].clone();
    let plain = loss(LONG);
    for room in ["0", "8kB", "64MB"] {
        assert_eq!(loss(&format!("{LONG} --kv-file kv --kv-memory {room}")), plain, "{room}");
    }
    let test = "context test model --text ids.u16 --trained 16 --lengths 48 --sequences 2 --passages 2 --recipe window.yaml";
    let methods =
        |words: &str| scratch.ok(&format!("{words} --json")).json()["lengths"][0]["methods"].clone();
    assert_eq!(methods(&format!("{test} --kv-file kv --kv-memory 4kB")), methods(test));
    assert_eq!(scratch.tree(), before, "the file goes");
    let generated =
        |words: &str| scratch.ok(&format!("generate demo Once --max-tokens 60 {words}")).text().to_owned();
    assert_eq!(generated("--kv-file kv --kv-memory 1kB"), generated(""));
}

#[test]
fn a_file_that_is_there_stays() {
    let scratch = scratch();
    let before = scratch.tree();
    for (path, words) in
        [("ids.u16", "exists"), ("model/config.json", "exists"), ("model", "not a regular file")]
    {
        let error = scratch.refused(&format!("{LONG} --kv-file {path}"));
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(scratch.tree(), before);
    assert!(scratch.refused(&format!("{LONG} --kv-memory 1MB")).contains("--kv-file"));
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_the_file_goes() {
    let scratch = scratch();
    let before = scratch.tree();
    let arguments = format!("{LONG} --kv-file kv --kv-memory 1kB");
    let mut command = std::process::Command::new("sh");
    // A quarter of a megabyte at most; keys and values need three times as much.
    command.args(["-c", r#"ulimit -f 256; exec "$@""#, "sh", env!("CARGO_BIN_EXE_deltaloom")]);
    command.args(arguments.split_whitespace());
    scratch.prepare(&mut command);
    let error = scratch.fails_as(4, command, &arguments);
    assert!(error.contains("kv") && error.contains("File too large"), "{error}");
    assert_eq!(scratch.tree(), before);
}

#[test]
fn the_longest_sequence_is_found_by_trying() {
    let scratch = scratch();
    let limit = |words: &str| scratch.ok(&format!("context limit model {words} --json")).json();
    assert!(limit("--memory 1GB")["measured"].is_null());
    let all = limit("--memory 1GB --measure --up-to 600");
    let tried = all["measured"]["tried"].as_array().unwrap();
    let tokens: Vec<u64> = tried.iter().map(|tried| tried["tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens, [512, 600]);
    assert_eq!(
        (&all["measured"]["longest"]["tokens"], &tried[1]["outcome"]),
        (&600.into(), &"worked".into())
    );
    assert_eq!(all["measured"]["longest"]["kv_bytes"], 19 * 3 * 2048);
    // The program alone needs more on Linux; elsewhere, keys and values do.
    let none = limit("--memory 60kB --measure");
    assert!(none["measured"]["tried"][0]["outcome"] == "no_memory", "{none}");
    let text = scratch.ok("context limit model --memory 1GB --measure --up-to 40 --recipe window.yaml");
    assert!(text.text().contains("measured, with weights and steps: 40 tokens"), "{}", text.text());
    scratch.refused("context limit model --memory 1GB --up-to 40");
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_ends_the_other_process() {
    let scratch = scratch();
    let words = "context limit model --memory 1GB --measure --up-to 1000000";
    let mut child = scratch.command(words).spawn().unwrap();
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    let children = || std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
    common::wait(&mut child, || !children().is_empty());
    let other = children();
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let ended = common::finish(child);
    assert_eq!((ended.code, ended.text()), (Some(130), ""));
    assert!(!Path::new("/proc").join(other).exists());
}

#[test]
fn an_exported_folder_is_whole() {
    let scratch = scratch();
    scratch.write("model/more/notes.txt", b"of the model");
    let apply = |words: &str| format!("context apply model --recipe window.yaml --export out {words}");
    scratch.ok(&apply("--as smollm3"));
    assert_eq!(scratch.read("out/more/notes.txt"), b"of the model");
    assert_eq!(scratch.read("out/model.safetensors"), scratch.read("model/model.safetensors"));
    let config: serde_json::Value = serde_json::from_slice(&scratch.read("out/config.json")).unwrap();
    assert_eq!((&config["model_type"], &config["sliding_window"]), (&"smollm3".into(), &16.into()));
    let before = scratch.tree();
    assert!(scratch.refused(&apply("--as smollm3")).contains("exists"));
    let error = scratch.refused(&format!("{} --as llama", apply("").replace("out", "other")));
    assert!(error.contains("layers 0, 1, 2: a window"), "{error}");
    assert_eq!(scratch.tree(), before);
}
