//! `deltaloom context test --retrieval` on the bundled synthetic model that recalls.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::path::{Path, PathBuf};

use common::Scratch;
use serde_json::Value;

fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name)
}

/// A folder with the model.
fn restored() -> Scratch {
    let scratch = Scratch::new();
    scratch.ok(&format!("unpack {} -o model", asset("recall/recall.loom").display()));
    scratch
}

/// The words of a test with planted facts.
fn test(task: &str, lengths: &str, texts: usize) -> String {
    let text = asset("speaker/text.txt");
    format!(
        "context test model --text {} --lengths {lengths} --sequences {texts} --passages 0 --retrieval {task}",
        text.display()
    )
}

fn report(scratch: &Scratch, words: &str, recipes: &[(&str, &str)]) -> Value {
    let mut words = format!("{words} --json");
    for (number, (name, change)) in recipes.iter().enumerate() {
        let recipe = format!("context: 1\nname: {name}\ndefault: {change}\n");
        scratch.write(&format!("{number}.yaml"), recipe.as_bytes());
        words.push_str(&format!(" --recipe {number}.yaml"));
    }
    scratch.ok(&words).json()
}

fn row<'a>(report: &'a Value, name: &str, tokens: usize) -> &'a Value {
    let rows = report["retrieval"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name && row["tokens"] == tokens).unwrap()
}

fn chosen(report: &Value, name: &str, tokens: usize) -> f64 {
    row(report, name, tokens)["forced_choice"]["value"].as_f64().unwrap()
}

#[test]
fn facts_are_found_within_the_trained_length_and_by_self_extend_behind_it() {
    let scratch = restored();
    let recipes = [("self-extend", "{ map: { type: self_extend, group: 8, window: 128 } }")];
    let report = report(&scratch, &test("multikey", "256,1024", 4), &recipes);
    assert!(chosen(&report, "unchanged", 256) >= 0.99, "{report}");
    assert!(chosen(&report, "unchanged", 1024) < 0.3, "{report}");
    // Measured at 100 % (docs/benchmarks/recall.md), less 5 points.
    assert!(chosen(&report, "self-extend", 1024) >= 0.95, "{report}");
    assert!(row(&report, "self-extend", 1024)["gain"]["low"].as_f64().unwrap() > 0.0, "{report}");
    // Truncation sees the last two facts of eight, which all texts have.
    let truncation = row(&report, "truncation", 1024);
    assert_eq!((&truncation["by_depth"][7], &truncation["gain"]), (&4.into(), &Value::Null));
    let by_text = truncation["by_text"].as_array().unwrap().iter().map(|right| right.as_u64().unwrap());
    assert_eq!(by_text.sum::<u64>(), truncation["forced_choice"]["right"].as_u64().unwrap());
}

#[test]
fn facts_outside_a_window_are_at_chance() {
    let scratch = restored();
    // At the end of these texts, a window of 32 tokens holds no fact.
    let report = report(&scratch, &test("multikey", "512", 8), &[("window", "{ reach: { window: 32 } }")]);
    let share = &row(&report, "window", 512)["forced_choice"];
    let [right, of] = ["right", "of"].map(|key| share[key].as_f64().unwrap());
    let error = (7.0 / 64.0 / of).sqrt();
    assert!((right / of - 0.125).abs() <= 3.0 * error, "{share}");
}

#[test]
fn the_pass_key_is_found_within_the_trained_length() {
    let report = report(&restored(), &test("passkey", "256", 16), &[]);
    assert!(chosen(&report, "unchanged", 256) >= 0.99, "{report}");
}

#[test]
fn the_page_says_which_recipes_find_more_than_truncation() {
    let scratch = restored();
    let recipe = "context: 1\ndefault: { map: { type: self_extend, group: 8, window: 128 } }\n";
    scratch.write("far.yaml", recipe.as_bytes());
    let words = format!("{} --recipe far.yaml --report page.html", test("multikey", "1024", 2));
    let printed = scratch.ok(&words);
    let sentence = "Finds more than truncation in 1024 tokens, with 95 % confidence: far.";
    assert!(printed.text().contains(sentence), "{}", printed.text());
    assert!(String::from_utf8(scratch.read("page.html")).unwrap().contains(sentence));
}
