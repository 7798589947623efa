//! `deltaloom lab matmul`: output and errors. The library tests the products.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use common::Scratch;
use serde_json::{Value, json};

const SMALL: &str = "lab matmul --rows 48 --cols 80 --changed 0.2 --tokens 1,9 --rounds 1";

/// Way, mode and tokens of every product, all of which are right.
fn products(report: &Value) -> Vec<(&str, &str, u64)> {
    let rows = report["products"].as_array().unwrap().iter();
    rows.map(|row| {
        assert_eq!(row["verified"], true, "{row}");
        (row["way"].as_str().unwrap(), row["mode"].as_str().unwrap(), row["tokens"].as_u64().unwrap())
    })
    .collect()
}

#[test]
fn a_made_matrix_as_json_csv_table_and_page() {
    let scratch = Scratch::new();
    let ended = scratch.ok(&format!("{SMALL} --forms planes,csr-differences --mode both --json"));
    assert_eq!(ended.err, "");
    let report = ended.json();
    // Raw is always there; differences are only added in fast products.
    let expected = [1, 9].into_iter().flat_map(|tokens| {
        let fast = ["raw", "planes", "csr-differences"].map(|way| (way, "fast", tokens));
        fast.into_iter().chain(["raw", "planes"].map(|way| (way, "exact", tokens)))
    });
    assert_eq!(products(&report), expected.collect::<Vec<_>>());
    assert_eq!(
        (&report["rows"], &report["cols"], &report["dtype"]),
        (&json!(48), &json!(80), &json!("BF16"))
    );
    assert!(report["goals"].as_array().unwrap().iter().any(|goal| goal["goal"] == "gemv-bandwidth"));

    let csv = scratch.ok(&format!("{SMALL} --dtype f32 --csv"));
    let lines: Vec<&str> = csv.text().lines().collect();
    assert_eq!(lines.len(), 1 + 9 * 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.split(',').count() == 16), "{lines:?}");

    let table = scratch.ok(&format!("{SMALL} --html page.html --svg pictures"));
    assert!(table.text().contains("xor-zstd-blocks") && table.text().contains("9 tokens, fast"));
    let page = std::fs::read_to_string(scratch.path().join("page.html")).unwrap();
    assert!(page.contains("Every product was right.") && page.contains("Time for a token against tokens"));
    assert!(std::fs::read_dir(scratch.path().join("pictures")).unwrap().count() >= 4);
}

#[test]
fn the_matrix_of_a_checkpoint_and_of_its_container_are_the_same() {
    let scratch = Scratch::with_small_pair();
    let report = |tuned: &str| {
        let with = "--base base.safetensors --tokens 1 --rounds 1 --forms tiles,bitmap --json";
        scratch.ok(&format!("lab matmul --tuned {tuned} {with}")).json()
    };
    let (of_file, of_container) = (report("tuned.safetensors"), report("tuned.loom"));
    assert_eq!(
        (&of_file["tensor"], &of_file["rows"], &of_file["cols"]),
        (&json!("weight"), &json!(60), &json!(50))
    );
    assert_eq!(products(&of_file), products(&of_container));
    assert!(of_file["changed_elems"].as_u64() > Some(0));
    assert_eq!(of_file["changed_elems"], of_container["changed_elems"]);
}

#[test]
fn what_cannot_be_multiplied_is_said_with_what_can() {
    let scratch = Scratch::with_small_pair();
    let files = "lab matmul --base base.safetensors --tuned tuned.safetensors";
    let fails = |arguments: &str, said: &[&str]| {
        let ended = scratch.run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments}");
        for said in said {
            assert!(ended.err.contains(said), "{arguments}: {}", ended.err);
        }
    };
    fails(&format!("{files} --tensor norm"), &["is not a matrix", "weight [60, 50]"]);
    fails(&format!("{files} --tensor wait"), &["does not exist", "weight [60, 50]"]);
    fails("lab matmul --base base.safetensors --tuned base.safetensors", &["no matrix differs"]);
    fails("lab matmul --base tuned.loom --tuned base.safetensors", &["tuned.loom", "deltaloom unpack"]);
    let none = scratch.fails(3, "lab matmul --base base.safetensors --tuned none.safetensors");
    assert!(none.contains("none.safetensors"), "{none}");
    fails("lab matmul --base base.safetensors", &["--tuned"]);
    fails("lab matmul --forms zip", &["zip", "xor-zstd-tiles"]);
    fails("lab matmul --rows 0", &["2^30"]);
    fails("lab matmul --rows 8 --cols 8 --changed 1.5", &["1.5"]);
    fails("lab matmul --rows 8 --cols 8 --changed 1 --tokens 0", &["0 tokens"]);
}
