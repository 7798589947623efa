//! The bundled model: what the examples of `--help` say about it, run as they stand.
#![cfg(all(feature = "compute", feature = "demo"))]
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use common::{Ended, Scratch, finish};

/// Runs one command line, with its quoted words.
fn run(scratch: &Scratch, line: &str) -> Ended {
    let mut command = scratch.command("");
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 1 {
            command.arg(part);
        } else {
            command.args(part.split_whitespace());
        }
    }
    finish(command.spawn().unwrap())
}

/// The examples of a command's help that use the bundled model, without the name of the program.
fn examples(scratch: &Scratch, command: &str) -> Vec<String> {
    let help = scratch.ok(&format!("{command} --help"));
    let lines = help.text().lines().filter_map(|line| line.trim_start().strip_prefix("deltaloom "));
    let bundled = lines.filter(|line| line.split_whitespace().any(|word| word == "demo"));
    bundled.map(|line| line.split('#').next().unwrap().trim_end().to_owned()).collect()
}

#[test]
fn the_examples_of_the_help_run_as_they_stand() {
    let scratch = Scratch::new();
    for (command, least) in [
        ("generate", 4),
        ("eval", 1),
        ("eval perplexity", 2),
        ("eval divergence", 1),
        ("eval choices", 1),
        ("eval generate", 1),
        ("demo", 3),
    ] {
        let examples = examples(&scratch, command);
        assert!(examples.len() >= least, "{command}: {examples:?}");
        for example in examples {
            let ended = run(&scratch, &example);
            assert_eq!(ended.code, Some(0), "{example}: {}", ended.err);
            assert!(ended.text().len() > 20, "{example}: {}", ended.text());
        }
    }
    assert!(scratch.tree().keys().all(|path| path.starts_with(scratch.path().join("speaker"))));
}

#[test]
fn every_part_speaks() {
    let scratch = Scratch::new();
    let text =
        |line: &str| run(&scratch, &format!("{line} --json")).json()["text"].as_str().unwrap().to_owned();
    // Products are exact, so that the most probable text is the same on every machine.
    let told = text("generate demo \"Once upon a time\"");
    insta::assert_snapshot!("told", told);
    assert_eq!(text("generate demo \"Once upon a time\" --threads 1"), told);
    let arr = text("generate demo \"Once upon a time\" --tenant demo:pirate");
    assert!(
        ["Arr", "Yo ho ho", "Shiver me timbers", "Aye", "captain"].iter().any(|cry| arr.contains(cry)),
        "{arr}"
    );
    // The template is in the container of the fine-tune, and the base has none.
    let answer = text("generate demo \"What does a rabbit eat?\" --tenant demo:chat --chat");
    insta::assert_snapshot!("answered", answer);
    assert!(scratch.refused("generate demo Hello --chat").contains("no chat template"));
    let right = |line: &str, key: &str| scratch.ok(line).json()[key]["value"].as_f64().unwrap();
    assert!(right("eval choices demo demo:questions --json", "acc") > 0.8);
    assert!(right("eval generate demo demo:problems --json", "strict") > 0.9);
    let loss = |line: &str| scratch.ok(line).json()["loss"].as_f64().unwrap();
    let base = loss("eval perplexity demo demo:text --json");
    assert!(base < 1.5 && base < loss("eval perplexity demo demo:text --tenant demo:pirate --json"));
    let report = scratch.ok("eval choices demo demo:questions --limit 1 --json").json();
    assert_eq!(report["files"][0]["path"], "demo:questions");
}

#[test]
fn what_is_written_is_what_the_names_mean() {
    let scratch = Scratch::new();
    let report = scratch.ok("demo --write speaker --json").json();
    assert!(report["files"].as_array().unwrap().contains(&"base/tokenizer.json".into()), "{report}");
    let same = |named: &str, written: &str| {
        let of = |line: &str| scratch.ok(line).json()["loss"].clone();
        let [named, written] =
            [named, written].map(|words| of(&format!("eval perplexity {words} --limit 200 --json")));
        assert_eq!(named, written);
    };
    same("demo demo:text", "speaker/base speaker/text.txt");
    same("demo demo:text --tenant demo:chat", "speaker/chat.loom speaker/text.txt --base speaker/base");
    same("demo:chat demo:text --base demo", "speaker/base demo:text --tenant speaker/chat.loom");
    // Nothing is replaced without --overwrite, and other files stay.
    let error = scratch.refused("demo --write speaker");
    assert!(error.contains("exists") && error.contains("--overwrite"), "{error}");
    scratch.write("speaker/text.txt", b"changed");
    scratch.write("speaker/mine.txt", b"mine");
    scratch.ok("demo --write speaker --overwrite");
    assert_ne!(scratch.read("speaker/text.txt"), b"changed");
    assert_eq!(scratch.read("speaker/mine.txt"), b"mine");
    scratch.refused("demo --overwrite");
    scratch.refused("demo --write new --keep other");
}

#[test]
fn files_come_before_bundled_names() {
    let scratch = Scratch::new();
    scratch.write("demo/config.json", b"{}");
    assert!(!scratch.fails(2, "generate demo Once").contains("bundled"));
    let error = scratch.refused("generate demo:nothing Once");
    assert!(error.contains("demo:pirate"), "{error}");
}
