//! `deltaloom lab positions`: output and errors. The library tests the methods.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use common::{Scratch, asset};
use serde_json::{Value, json};

fn names(report: &Value) -> Vec<&str> {
    report["methods"].as_array().unwrap().iter().map(|row| row["method"].as_str().unwrap()).collect()
}

#[test]
fn positions_of_a_pattern_as_json_csv_and_table() {
    let scratch = Scratch::new();
    let arguments =
        "lab positions --size 256KiB --pattern clustered --methods elias_delta+zstd,ours --seed 7";
    let ended = scratch.ok(&format!("{arguments} --json"));
    assert_eq!(ended.err, "");
    let report = ended.json();
    assert_eq!(
        (&report["source"], &report["seed"], &report["original_bytes"]),
        (&json!("clustered"), &json!(7), &json!(1 << 18))
    );
    // The order is that of the table, whatever was asked for first.
    let expected = ["elias_delta+zstd", "rice", "golomb-fit", "rans", "bytes-rice", "bitmap", "run-length"];
    assert_eq!(names(&report), expected);
    for row in report["methods"].as_array().unwrap() {
        assert_eq!(row["verified"], true, "{row}");
        assert!(row["container_bytes"].as_u64() > row["coded_bytes"].as_u64(), "{row}");
    }
    let again = scratch.ok(&format!("{arguments} --json --threads 1")).json();
    let sizes = |report: &Value| {
        report["methods"].as_array().unwrap().iter().map(|row| row["coded_bytes"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&report), sizes(&again));

    let csv = scratch.ok(&format!("{arguments} --csv"));
    let lines: Vec<&str> = csv.text().lines().collect();
    assert_eq!(lines.len(), 1 + expected.len());
    assert!(lines.iter().all(|line| line.split(',').count() == 16), "{lines:?}");
    let table = scratch.ok(arguments);
    for name in expected {
        assert!(table.text().lines().any(|line| line.split(' ').next() == Some(name)), "{name}");
    }
    assert!(table.text().contains("best") && table.text().contains("fastest"));
}

#[test]
fn positions_of_a_file_and_its_baselines() {
    let scratch = Scratch::with_assets(&["base"]);
    let before = scratch.tree();
    let report =
        scratch.ok("lab positions --pattern base.safetensors --methods baselines,bitmap --json").json();
    assert!(before == scratch.tree(), "nothing is written beside it");
    assert_eq!(names(&report), ["bitmap", "data-zlib-9", "data-lz4", "data-zstd-3", "data-zstd-19"]);
    assert_eq!(report["original_bytes"], asset("base").len());
    assert_eq!((&report["seed"], &report["entropy_of"]), (&Value::Null, &json!("order 0")));
    assert!(report["methods"].as_array().unwrap().iter().all(|row| row["verified"] == true));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let scratch = Scratch::new();
    let unknown = scratch.refused("lab positions --size 1kB --methods elias");
    assert!(unknown.contains("elias_delta+zlib") && unknown.contains("published"), "{unknown}");
    let nowhere = scratch.fails(3, "lab positions --pattern rnadom");
    assert!(nowhere.contains("clustered") && nowhere.contains("rnadom"), "{nowhere}");
    scratch.refused("lab positions --size 1parsec");
    scratch.refused("lab positions --json --csv");
}
