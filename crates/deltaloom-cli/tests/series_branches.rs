//! Runs that go back: later steps become a branch, and no step changes.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::process::Command;

use common::{Scratch, finish, safetensors, wait};

/// A step of a run: some weights move from each step to the next, from `fork` on other ones than in
/// run 0.
fn model(run: u32, fork: u32, step: u32) -> Vec<u8> {
    let word = |i: u32| {
        let moves = |s: &u32| (i * 7 + s * 13 + if *s >= fork { run * 5 } else { 0 }).is_multiple_of(40);
        let moved = (0..=step).filter(moves).count();
        u16::try_from(0x3c00 + i * 37 % 700 + u32::try_from(moved).unwrap()).unwrap().to_le_bytes()
    };
    safetensors(&[("weight", "BF16", &[60, 50], (0..3000).flat_map(word).collect())])
}

fn add(scratch: &Scratch, bytes: &[u8], step: u32, more: &str) -> common::Ended {
    scratch.write("m.safetensors", bytes);
    scratch.ok(&format!("series add runs m.safetensors --step {step} {more}"))
}

/// Steps 0 to 9 of run 0.
fn with_steps() -> Scratch {
    let scratch = Scratch::new();
    scratch.ok("series init runs --keyframe-every 6 --max-chain 3");
    (0..10).for_each(|step| drop(add(&scratch, &model(0, 0, step), step, "")));
    scratch
}

fn steps(scratch: &Scratch, on: &str) -> Vec<u32> {
    let listed = scratch.ok(&format!("series ls runs --all --json {on}")).json();
    let step = |step: &serde_json::Value| u32::try_from(step["step"].as_u64().unwrap()).unwrap();
    listed["steps"].as_array().unwrap().iter().map(step).collect()
}

fn branches(scratch: &Scratch) -> Vec<String> {
    let listed = scratch.ok("series ls runs --branches --json").json();
    listed.as_array().unwrap().iter().map(|branch| branch["name"].as_str().unwrap().to_owned()).collect()
}

fn has(scratch: &Scratch, on: &str, step: u32, expected: &[u8]) {
    scratch.ok(&format!("series get runs --step {step} -o out.safetensors --overwrite {on}"));
    assert!(scratch.read("out.safetensors") == expected, "step {step} {on}");
}

fn version(scratch: &Scratch) -> u64 {
    let manifest: serde_json::Value = serde_json::from_slice(&scratch.read("runs/series.json")).unwrap();
    manifest["version"].as_u64().unwrap()
}

fn verify(scratch: &Scratch) {
    scratch.ok("series gc runs --grace 0s");
    let verified = scratch.run("series verify runs --deep");
    assert_eq!(verified.code, Some(0), "{}", verified.text());
}

#[test]
fn a_run_that_goes_back_leaves_a_branch() {
    let scratch = with_steps();
    scratch.write("m.safetensors", &model(1, 4, 4));
    let error = scratch.refused("series add runs m.safetensors --step 4");
    assert!(error.contains("other content") && error.contains("--rewind"), "{error}");
    let plain = scratch.read("runs/series.json");
    assert!(version(&scratch) == 1 && !String::from_utf8(plain).unwrap().contains("branches"));
    // The same content is no reason to go back.
    assert!(!add(&scratch, &model(0, 0, 4), 4, "--rewind --json").json()["is_new"].as_bool().unwrap());
    scratch.write("m.safetensors", &model(1, 4, 4));
    scratch.refused("series add runs m.safetensors --step 4 --rewind --branch a/b");
    let added = add(&scratch, &model(1, 4, 4), 4, "--rewind");
    assert!(added.err.contains("6 steps, 4 to 9, moved to branch after-3"), "{}", added.err);
    assert_eq!((version(&scratch), steps(&scratch, "")), (2, vec![0, 1, 2, 3, 4]));
    assert_eq!(steps(&scratch, "--branch after-3"), [4, 5, 6, 7, 8, 9]);
    add(&scratch, &model(1, 4, 5), 5, "");
    add(&scratch, &model(1, 4, 6), 6, "");
    verify(&scratch);
    (0..4).for_each(|step| has(&scratch, "", step, &model(0, 0, step)));
    (4..7).for_each(|step| has(&scratch, "", step, &model(1, 4, step)));
    (4..10).for_each(|step| has(&scratch, "--branch after-3", step, &model(0, 0, step)));
    has(&scratch, "--branch after-3", 9, &model(0, 0, 9));
    let shown = scratch.ok("series show runs --branch after-3 --step newest --json").json();
    assert_eq!(shown["step"], 9);
    assert!(scratch.ok("series ls runs --branches").text().contains("after-3"));
    assert!(scratch.ok("series ls runs").err.contains("1 branch"));
    for wrong in
        ["ls runs --branch other", "get runs --branch after-3 --step 3 -o x", "prune runs --branch other"]
    {
        scratch.refused(&format!("series {wrong}"));
    }

    // Back to before the fork: the first branch leaves the second one then.
    let added = add(&scratch, &model(2, 2, 2), 2, "--rewind --branch second --json").json();
    assert_eq!((&added["closed"]["name"], &added["closed"]["fork"]), (&"second".into(), &1.into()));
    scratch.write("m.safetensors", &model(3, 2, 2));
    let error = scratch.refused("series add runs m.safetensors --step 2 --rewind --branch second");
    assert!(error.contains("already"), "{error}");
    let listed = scratch.ok("series ls runs --branches --json").json();
    assert_eq!((&listed[0]["parent"], &listed[1]["parent"].is_null()), (&"second".into(), &true));
    verify(&scratch);
    let check_all = || {
        (4..10).for_each(|step| has(&scratch, "--branch after-3", step, &model(0, 0, step)));
        (4..7).for_each(|step| has(&scratch, "--branch second", step, &model(1, 4, step)));
        has(&scratch, "", 2, &model(2, 2, 2));
    };
    check_all();
    // What branches rest on goes: their steps are packed again.
    let report = scratch.ok("series rm runs --step 0 --step 1 --json").json();
    assert!(report["repacked_on_branches"].as_array().unwrap().iter().any(|on| on["branch"] == "second"));
    assert_eq!(steps(&scratch, ""), [2]);
    verify(&scratch);
    check_all();
    scratch.ok("series repack runs --keyframe-every 4 --max-chain 2");
    verify(&scratch);
    check_all();
    // A branch goes, and the one that leaves it stays.
    let would = scratch.ok("series prune runs --branch second --dry-run");
    assert!(would.text().contains("steps 2, 3, 4, 5, 6"), "{}", would.text());
    assert_eq!(branches(&scratch), ["after-3", "second"]);
    scratch.ok("series prune runs --branch second");
    assert_eq!(branches(&scratch), ["after-3"]);
    verify(&scratch);
    (4..10).for_each(|step| has(&scratch, "--branch after-3", step, &model(0, 0, step)));
    scratch.ok("series prune runs --branch after-3");
    assert_eq!((branches(&scratch).len(), version(&scratch)), (0, 1));
    verify(&scratch);
    has(&scratch, "", 2, &model(2, 2, 2));
}

#[test]
fn going_back_over_pages_and_to_the_start() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    let bytes = |step: u32| model(0, 0, step % 5);
    (0..70).for_each(|step| drop(add(&scratch, &bytes(step), step, "")));
    let closed = add(&scratch, &model(1, 0, 1), 10, "--rewind --json").json()["closed"].clone();
    assert_eq!((&closed["name"], &closed["totals"]["steps"]), (&"after-9".into(), &60.into()));
    // The name is made unique.
    add(&scratch, &model(2, 0, 1), 10, "--rewind");
    assert_eq!(branches(&scratch), ["after-9", "after-9-2"]);
    add(&scratch, &model(3, 0, 1), 0, "--rewind");
    assert_eq!(branches(&scratch), ["after-9", "after-9-2", "from-start"]);
    assert_eq!(steps(&scratch, ""), [0]);
    verify(&scratch);
    for step in [10, 31, 32, 69] {
        has(&scratch, "--branch after-9", step, &bytes(step));
    }
    has(&scratch, "--branch from-start", 9, &bytes(9));
    has(&scratch, "--branch from-start", 10, &model(2, 0, 1));
    assert_eq!(steps(&scratch, "--branch after-9"), (10..70).collect::<Vec<_>>());
    // A checkpoint that goes back can be added in the background too.
    scratch.write("m.safetensors", &model(4, 0, 1));
    scratch.ok("series add runs m.safetensors --step 0 --rewind --background");
    scratch.ok("series flush runs");
    has(&scratch, "", 0, &model(4, 0, 1));
    verify(&scratch);
    for name in ["from-start", "after-9", "from-start-2", "after-9-2"] {
        scratch.ok(&format!("series prune runs --branch {name}"));
        verify(&scratch);
    }
}

#[test]
fn hostile_branches_are_refused() {
    let scratch = with_steps();
    add(&scratch, &model(1, 4, 4), 4, "--rewind");
    let manifest = String::from_utf8(scratch.read("runs/series.json")).unwrap();
    let cases = [
        ("\"version\":2", "\"version\":1"),
        ("\"name\":\"after-3\"", "\"name\":\"../x\""),
        ("\"fork\":3", "\"fork\":4"),
        ("\"fork\":3", "\"fork\":3,\"parent\":\"after-3\""),
        ("\"fork\":3", "\"fork\":3,\"parent\":\"other\""),
        ("\"level\":0", "\"level\":99"),
    ];
    for (from, to) in cases {
        assert!(manifest.contains(from), "{from}");
        let at = manifest.rfind(from).unwrap();
        let changed = format!("{}{to}{}", &manifest[..at], &manifest[at + from.len()..]);
        scratch.write("runs/series.json", changed.as_bytes());
        scratch.refused("series ls runs --branch after-3");
    }
    scratch.write("runs/series.json", manifest.as_bytes());
    verify(&scratch);
}

#[test]
fn two_writers_that_go_back_at_once_lose_nothing() {
    let scratch = with_steps();
    let spawn = |writer: u32| {
        let name = format!("w{writer}.safetensors");
        scratch.write(&name, &model(writer, 5, 5));
        let command = format!("series add runs {name} --step 5 --rewind --threads 1");
        scratch.command(&command).spawn().unwrap()
    };
    let ended: Vec<_> = [1, 2, 3].map(spawn).into_iter().map(finish).collect();
    ended.iter().for_each(|ended| assert_eq!(ended.code, Some(0), "{}", ended.err));
    assert_eq!(branches(&scratch), ["after-4", "after-4-2", "after-4-3"]);
    verify(&scratch);
    (5..10).for_each(|step| has(&scratch, "--branch after-4", step, &model(0, 0, step)));
    let mut left: Vec<Vec<u8>> = (1..4).map(|writer| model(writer, 5, 5)).collect();
    for on in ["", "--branch after-4-2", "--branch after-4-3"] {
        scratch.ok(&format!("series get runs --step 5 -o out.safetensors --overwrite {on}"));
        let found = scratch.read("out.safetensors");
        left.retain(|expected| *expected != found);
    }
    assert!(left.is_empty());
}

#[cfg(unix)]
#[test]
fn watch_goes_back_with_the_trainer() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    let write = |step: u32, bytes: &[u8]| scratch.write(&format!("out/checkpoint-{step}.safetensors"), bytes);
    (1..6).for_each(|step| write(step, &model(0, 0, step)));
    let mut child = scratch.command("series watch runs out --interval 20ms").spawn().unwrap();
    wait(&mut child, || steps(&scratch, "") == [1, 2, 3, 4, 5]);
    // Resumed from step 2; an unchanged checkpoint that is written again is ignored.
    write(2, &model(0, 0, 2));
    write(3, &model(1, 3, 3));
    wait(&mut child, || steps(&scratch, "") == [1, 2, 3]);
    write(4, &model(1, 3, 4));
    wait(&mut child, || steps(&scratch, "") == [1, 2, 3, 4]);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = finish(child);
    assert!(ended.err.contains("3 steps, 3 to 5, moved to branch after-2"), "{}", ended.err);
    assert_eq!(branches(&scratch), ["after-2"]);
    // Started again, it does not take step 5 of the old run, which lies there still, for a new one.
    let again = scratch.ok("series watch runs out --interval 20ms --once");
    assert!(
        again.err.contains("checkpoint-5.safetensors: skipped, already on branch after-2"),
        "{}",
        again.err
    );
    assert_eq!((steps(&scratch, ""), branches(&scratch).len()), (vec![1, 2, 3, 4], 1));
    (3..6).for_each(|step| has(&scratch, "--branch after-2", step, &model(0, 0, step)));
    (3..5).for_each(|step| has(&scratch, "", step, &model(1, 3, step)));
    verify(&scratch);
}
