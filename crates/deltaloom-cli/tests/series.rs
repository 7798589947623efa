//! A series from its user's point of view: commands, bad input, a trainer that is still writing,
//! killed writers.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, finish, safetensors, wait, with_header};

/// Weights of a step: some elements move by one ULP from each to the next.
fn model(step: u32) -> Vec<u8> {
    let word = |i: u32| {
        let moved = (0..=step).filter(|s| (i * 7 + s * 13).is_multiple_of(40)).count();
        u16::try_from(0x3c00 + i % 700 + u32::try_from(moved).unwrap()).unwrap().to_le_bytes()
    };
    safetensors(&[("weight", "BF16", &[60, 50], (0..3000).flat_map(word).collect())])
}

/// A folder with `step-N.safetensors` for N from 0 and a series of them.
fn with_steps(count: u32) -> Scratch {
    let scratch = Scratch::new();
    scratch.ok("series init runs --keyframe-every 6 --max-chain 3");
    for step in 0..count {
        scratch.write(&format!("step-{step}.safetensors"), &model(step));
        scratch
            .ok(&format!("series add runs step-{step}.safetensors --step {step} --meta loss={}", 10 - step));
    }
    scratch
}

fn check_steps(scratch: &Scratch, steps: impl Iterator<Item = u32>) {
    for step in steps {
        scratch.ok(&format!("series get runs --step {step} -o out.safetensors --overwrite"));
        assert!(scratch.read("out.safetensors") == model(step), "step {step}");
    }
}

#[test]
fn steps_are_listed_shown_restored_and_pruned() {
    let scratch = with_steps(9);
    check_steps(&scratch, 0..9);
    let listed = scratch.ok("series ls runs --json").json();
    assert_eq!(listed["totals"]["steps"], 9);
    let references: Vec<Option<u64>> =
        listed["steps"].as_array().unwrap().iter().map(|step| step["reference"].as_u64()).collect();
    // Three hops are used up at step 3; a skip to the keyframe leaves room for those that follow.
    assert_eq!(references, [None, Some(0), Some(1), Some(2), Some(0), Some(4), None, Some(6), Some(7)]);
    let csv = scratch.ok("series ls runs --csv --last 2");
    assert_eq!(csv.text().lines().count(), 3);
    assert!(csv.text().starts_with("step,reference,hops,"));
    let log = scratch.ok("series log runs");
    assert!(log.text().starts_with("step 8\n") && log.text().contains("loss  2\n"), "{}", log.text());
    let shown = scratch.ok("series show runs --step newest --tensors");
    assert!(shown.text().contains("weight"), "{}", shown.text());
    assert!(scratch.ok("series show runs").text().contains("9 steps, 2 keyframes"));
    let tensors = scratch.ok("series show runs --step 8 --csv");
    assert!(tensors.text().lines().nth(1).unwrap().starts_with("weight,BF16,60x50,"), "{}", tensors.text());
    let health = scratch.ok("series health runs --csv");
    assert!(health.text().starts_with("step,reference,ratio,") && health.text().lines().count() == 10);

    scratch.ok("series get runs --step newest --only weight -o weight.bin");
    assert!(model(8).ends_with(&scratch.read("weight.bin")));
    let mut prune = scratch.command("series prune runs --json");
    let report = finish(prune.args(["--keep", "last 2, best loss 3"]).spawn().unwrap()).json();
    assert_eq!((&report["kept"], report["dropped"].as_array().unwrap().len()), (&3.into(), 6));
    scratch.ok("series gc runs --grace 0s");
    check_steps(&scratch, 6..9);
    assert_eq!(scratch.ok("series verify runs --deep").text(), "ok: 3 steps, every tensor decoded\n");
    scratch.ok("series repack runs --keyframe-every 100 --preset fast");
    assert_eq!(scratch.ok("series ls runs --json").json()["totals"]["keyframes"], 1);
    check_steps(&scratch, 6..9);
}

#[test]
fn what_cannot_be_added_changes_nothing() {
    let scratch = with_steps(3);
    scratch.write("cut.safetensors", &model(3)[..500]);
    scratch.write("header.safetensors", &with_header("{", b""));
    let cases = [
        ("series add runs step-0.safetensors --step 2", "step 2 is in the series with other content"),
        ("series add runs step-0.safetensors --step 1 --background", "step 1 is before the newest step 2"),
        ("series add runs cut.safetensors --step 3", "cut.safetensors"),
        ("series add runs header.safetensors --step 3", "header.safetensors"),
        ("series init runs", "a series already exists here"),
        ("series get runs --step 7 -o out", "step 7"),
        ("series get runs --step 1 --only optimizer -o out", "the optimizer of step 1 not found"),
        ("series get runs --step 1 --only nothing -o out", "not found"),
        ("series get runs --step 1 -o step-0.safetensors", "hint: use --overwrite"),
    ];
    for (arguments, said) in cases {
        let error = scratch.refused(arguments);
        assert!(error.contains(said), "{arguments}: {error}");
    }
    for (arguments, said) in [
        ("series add runs missing --step 3", "missing"),
        ("series add . step-0.safetensors --step 3", "there is no series here"),
        ("series ls nowhere", "create one with `deltaloom series init`"),
    ] {
        let error = scratch.fails(3, arguments);
        assert!(error.contains(said), "{arguments}: {error}");
    }
    let again = scratch.ok("series add runs step-1.safetensors --step 1");
    assert!(again.err.contains("already exists with the same content"), "{}", again.err);

    let manifest = scratch.read("runs/series.json");
    let newer = String::from_utf8(manifest.clone()).unwrap().replace("\"version\":1", "\"version\":3");
    scratch.write("runs/series.json", newer.as_bytes());
    let error = scratch.refused("series add runs step-2.safetensors --step 5");
    assert!(error.contains("series version 3 is not supported"), "{error}");
    scratch.write("runs/series.json", &manifest[..100]);
    scratch.refused("series ls runs");
    scratch.write("runs/series.json", &manifest);
    let object = scratch.ok("series show runs --step 0 --json").json()["object"].as_str().unwrap().to_owned();
    fs::remove_file(scratch.path().join(format!("runs/objects/{}/{object}.loom", &object[..2]))).unwrap();
    let error = scratch.fails(3, "series get runs --step 2 -o out");
    assert!(error.contains("not found"), "{error}");
    let verified = scratch.run("series verify runs");
    assert_eq!(verified.code, Some(1));
    assert!(verified.text().contains("fault: step 0: object"), "{}", verified.text());
}

fn steps_of(scratch: &Scratch) -> u64 {
    scratch.ok("series show runs --json").json()["totals"]["steps"].as_u64().unwrap()
}

#[cfg(unix)]
#[test]
fn watch_waits_until_a_checkpoint_is_complete() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    fs::create_dir(scratch.path().join("out")).unwrap();
    let mut child = scratch.command("series watch runs out --interval 20ms").spawn().unwrap();
    let write = |name: &str, bytes: &[u8]| scratch.write(&format!("out/{name}"), bytes);
    write("checkpoint-1.safetensors", &model(1));
    wait(&mut child, || steps_of(&scratch) == 1);
    // Half a file, then a shard index whose shard comes later, beside a later step that is
    // complete.
    write("checkpoint-2.safetensors", &model(2)[..700]);
    let index = br#"{"weight_map": {"weight": "model-1-of-1.safetensors"}}"#;
    write("checkpoint-3/model.safetensors.index.json", index);
    write("checkpoint-4.safetensors", &model(4));
    write("tmp-checkpoint-5.safetensors", &model(5));
    write("notes.txt", b"7");
    let looks = Instant::now();
    wait(&mut child, || looks.elapsed() > Duration::from_millis(200));
    assert_eq!(steps_of(&scratch), 1);
    write("checkpoint-2.safetensors", &model(2));
    wait(&mut child, || steps_of(&scratch) == 2);
    write("checkpoint-3/model-1-of-1.safetensors", &model(3));
    wait(&mut child, || steps_of(&scratch) == 4);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = finish(child);
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert!(ended.err.contains("waiting for out/checkpoint-2.safetensors"), "{}", ended.err);
    check_steps(&scratch, [1, 2, 4].into_iter());
    // Again, with everything there.
    scratch.ok("series watch runs out --interval 20ms --once");
    assert_eq!(steps_of(&scratch), 4);
}

#[test]
fn what_is_added_in_the_background_is_a_copy() {
    let scratch = with_steps(1);
    for step in 1..4 {
        scratch.write("model.safetensors", &model(step));
        scratch.ok(&format!("series add runs model.safetensors --step {step} --background"));
    }
    scratch.write("model.safetensors", b"the trainer goes on");
    scratch.ok("series flush runs");
    assert_eq!(steps_of(&scratch), 4);
    check_steps(&scratch, 0..4);
}

/// Writers are killed at any time, even while another one writes: every reported step exists, and
/// none exists in part.
#[cfg(unix)]
#[test]
fn killed_writers_lose_nothing() {
    let scratch = with_steps(1);
    let usual = {
        let start = Instant::now();
        scratch.write("a.safetensors", &model(1));
        scratch.ok("series add runs a.safetensors --step next --threads 1");
        start.elapsed()
    };
    let (mut kills, mut seed, mut reported) = (0u32, 11u32, 2u64);
    while kills < 12 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let spawn = |writer: &str| {
            scratch.write(&format!("{writer}.safetensors"), &model(seed >> 20));
            let mut command =
                scratch.command(&format!("series add runs {writer}.safetensors --step next --threads 1"));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let (mut killed, mut other) = (spawn("a"), spawn("b"));
        let (start, patience) = (Instant::now(), usual / 256 * (seed >> 8 & 0xff) * 2);
        while start.elapsed() < patience && killed.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        killed.kill().unwrap();
        reported += u64::from(killed.wait().unwrap().success());
        kills += u32::from(killed.wait().unwrap().code().is_none());
        assert!(other.wait().unwrap().success());
        reported += 1;
        let found = steps_of(&scratch);
        assert!(found >= reported, "{found} of {reported}");
        // A writer killed after it had named its step has added it.
        reported = found;
    }
    scratch.ok("series gc runs --grace 0s");
    scratch.ok("series verify runs --deep");
    let objects = fs::read_dir(scratch.path().join("runs/objects")).unwrap();
    let count: usize = objects.map(|folder| fs::read_dir(folder.unwrap().path()).unwrap().count()).sum();
    // Steps of equal content and references share an object.
    assert!(count as u64 <= reported);
}

/// A file system of its own in a new user namespace; skipped where the system does not allow that.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_series_as_it_was() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    let script = r#"
        "$0" series init disk/runs && "$0" series add disk/runs base.safetensors --step 1 || exit
        head -c 20m /dev/zero > disk/ballast 2>&-
        "$0" series add disk/runs ft_bf16.safetensors --step 2; echo "exit $?"
        "$0" series add disk/runs ft_bf16.safetensors --step 2 --background; echo "exit $?"
        rm disk/ballast
        "$0" series verify disk/runs --deep
        "$0" series add disk/runs ft_bf16.safetensors --step 2; echo "exit $?""#;
    let Some(ended) = scratch.with_disk("8m", script) else { return };
    let expected = "exit 4\nexit 4\nok: 1 step, every tensor decoded\nexit 0\n";
    assert_eq!(ended.text(), expected, "{}", ended.err);
    assert_eq!(ended.err.matches("hint: the disk is full").count(), 2, "{}", ended.err);
}
