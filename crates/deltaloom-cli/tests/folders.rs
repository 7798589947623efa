//! Folders with more than weights in them: what is packed, what is left out, and what is said.
#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{Scratch, safetensors};
use serde_json::json;

/// Words with their numbers, as vocabularies have them.
fn vocabulary(count: u64) -> String {
    let mut state = 7u64;
    let mut word = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        format!("{:x}", state >> 24)
    };
    let lines: Vec<String> = (0..count).map(|i| format!("  \"{}\": {i}", word())).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn scratch() -> Scratch {
    let scratch = Scratch::with_small_pair();
    scratch.write("base/model.safetensors", &scratch.read("base.safetensors"));
    scratch.write("model/model.safetensors", &scratch.read("tuned.safetensors"));
    scratch
}

const PACK: &str = "pack model --base base -o out.loom --overwrite";

#[test]
fn a_vocabulary_that_grew_costs_what_it_grew_by() {
    let scratch = scratch();
    let old = vocabulary(5000);
    scratch.write("base/tokenizer.json", old.as_bytes());
    let without = scratch.ok(&format!("{PACK} --json")).json()["packed_bytes"].as_u64().unwrap();
    for new in [old.replace(": 2500,", ": 2500,\n  \"<|im_start|>\": 5000,"), old.replace("\": 1", "\":  1")]
    {
        scratch.write("model/tokenizer.json", new.as_bytes());
        let report = scratch.ok(&format!("{PACK} --json")).json();
        let bytes = report["packed_bytes"].as_u64().unwrap() - without;
        assert!(bytes < 3000, "{bytes} of {}", new.len());
        assert!(report["stored_alone"].is_null() && report["unread"].is_null());
        scratch.ok("unpack out.loom --base base -o back --overwrite");
        assert!(scratch.read("back/tokenizer.json") == new.as_bytes());
        scratch.ok("verify out.loom --base base");
        let cat = scratch.ok("cat out.loom tokenizer.json --base base --rows 40000..40100");
        assert!(cat.out == new.as_bytes()[40_000..40_100]);
    }
}

#[test]
fn what_no_base_helps_with_is_named() {
    let scratch = scratch();
    scratch.write("model/notes.txt", b"nothing like it is in the base");
    scratch.write("model/empty", b"");
    let told = scratch.ok(PACK).err;
    assert!(told.contains("1 file (19 B) without help of a base: notes.txt"), "{told}");
    let report = scratch.ok(&format!("{PACK} --json")).json();
    assert_eq!(report["stored_alone"], json!(["notes.txt"]));
    assert!(scratch.ok("pack model -o alone.loom --json").json()["stored_alone"].is_null());
}

#[test]
fn what_a_pattern_fits_is_left_out() {
    let scratch = scratch();
    for name in ["a.log", "runs/b.log", "runs/c/d.txt", "runs.txt"] {
        scratch.write(&format!("model/{name}"), name.as_bytes());
    }
    scratch.write("model/bad.safetensors", b"no model");
    scratch.refused(PACK);
    let files = |exclude: &str| {
        let packed = scratch.ok(&format!("{PACK} --exclude bad.safetensors {exclude} --json"));
        packed.json()["files"].clone()
    };
    assert_eq!(files("--exclude *.log --exclude runs/c"), json!(["model.safetensors", "runs.txt"]));
    assert_eq!(files("--exclude runs/**"), json!(["a.log", "model.safetensors", "runs.txt"]));
    let all = scratch.refused(&format!("{PACK} --exclude *"));
    assert!(all.contains("there is no file in this directory that is not excluded"), "{all}");
    let odd = scratch.refused(&format!("{PACK} --exclude /tmp"));
    assert!(odd.contains("relative to the folder"), "{odd}");
    let file = scratch.refused("pack tuned.safetensors --exclude *.log -o out.loom --overwrite");
    assert!(file.contains("--exclude *.log is for folders"), "{file}");

    // In a series, and in copies that wait for being added.
    let exclude = "--exclude bad.safetensors --exclude *.log";
    scratch.ok("series init runs");
    scratch.ok(&format!("series add runs model --step 1 {exclude}"));
    scratch.ok("series get runs --step 1 -o back");
    assert!(!scratch.path().join("back/a.log").exists() && scratch.path().join("back/runs.txt").exists());
    fs::create_dir(scratch.path().join("out")).unwrap();
    fs::rename(scratch.path().join("model"), scratch.path().join("out/checkpoint-2")).unwrap();
    scratch.ok(&format!("series watch runs out --once --interval 10ms {exclude}"));
    scratch.ok("series get runs --step 2 -o back2");
    assert!(!scratch.path().join("back2/a.log").exists() && scratch.path().join("back2/runs.txt").exists());
}

#[test]
fn links_that_lead_nowhere_and_git_are_left_out_with_a_warning() {
    let scratch = scratch();
    scratch.write("model/.git/HEAD", b"ref: refs/heads/main");
    let link = |to: &str, name: &str| symlink(to, scratch.path().join("model").join(name)).unwrap();
    link("nowhere", "lost.txt");
    link("..", "up");
    link("../tuned.safetensors", "linked.safetensors");
    let packed = scratch.ok(&format!("{PACK} --json"));
    for (why, path) in [("folders of git", ".git"), ("nowhere", "lost.txt"), ("that they are in", "up")] {
        assert!(packed.err.contains(&format!("{why} are left out: {path}")), "{}", packed.err);
    }
    let report = packed.json();
    assert_eq!(report["files"], json!(["linked.safetensors", "model.safetensors"]));
    let whys: Vec<_> = report["warnings"].as_array().unwrap().iter().map(|w| w["why"].clone()).collect();
    assert_eq!(whys, [json!("dangling_link"), json!("loop"), json!("git")]);
}

#[test]
fn a_hub_cache_has_every_blob_once() {
    let scratch = scratch();
    scratch.write("cache/blobs/1f", &scratch.read("tuned.safetensors"));
    scratch.write("cache/refs/main", b"abc");
    fs::create_dir_all(scratch.path().join("cache/snapshots/abc")).unwrap();
    symlink("../../blobs/1f", scratch.path().join("cache/snapshots/abc/model.safetensors")).unwrap();
    let packed = scratch.ok("pack cache --base base -o out.loom --json");
    assert_eq!(packed.json()["files"], json!(["refs/main", "snapshots/abc/model.safetensors"]));
    assert!(packed.err.contains("blobs that the snapshots have under their names"), "{}", packed.err);
    scratch.ok("unpack out.loom --base base -o back");
    assert!(scratch.read("back/snapshots/abc/model.safetensors") == scratch.read("tuned.safetensors"));
}

#[test]
fn files_of_other_formats_are_candidates_for_a_base() {
    let scratch = Scratch::new();
    let words =
        |salt: u32| (0..60_000u32).flat_map(move |i| (i * i % 977 + salt).to_le_bytes()[..2].to_vec());
    let model = |salt| safetensors(&[("w", "BF16", &[300, 200], words(salt).collect())]);
    scratch.write("tuned.safetensors", &model(1));
    scratch.write("models/a/base.safetensors", &model(0));
    scratch.write("models/b/settings.bin", &[1; 100]);
    scratch.write("models/c/noise.bin", &[1; 100_000]);
    let report = scratch.ok("pack tuned.safetensors --base-dir models --dry-run --json").json();
    let paths: Vec<_> =
        report["candidates"].as_array().unwrap().iter().map(|one| one["path"].clone()).collect();
    assert_eq!(paths, [json!("models/a/base.safetensors")]);
    assert_eq!(report["skipped"], json!([]));
}

#[test]
fn a_container_in_the_folder_that_is_packed_again_is_left_out() {
    let scratch = scratch();
    let pack = "pack model --base base -o model/out.loom --overwrite";
    scratch.ok(pack);
    let first = scratch.read("model/out.loom");
    let again = scratch.ok(pack);
    assert!(again.err.contains("out.loom is left out of the folder that it is in"), "{}", again.err);
    assert!(scratch.read("model/out.loom") == first);
}

#[test]
fn a_file_whose_name_is_not_supported_is_named() {
    let scratch = scratch();
    scratch.write("model/a\\b.txt", b"text");
    let refused = scratch.refused(PACK);
    for words in ["a\\b.txt: file names with a backslash are not supported", "--exclude"] {
        assert!(refused.contains(words), "{refused}");
    }
    scratch.ok(&format!("{PACK} --exclude a*b.txt"));
}
