//! A series is safe from slips of the hand, from steps that went wrong and from runs that go back.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use common::{Ended, Scratch, finish, safetensors};

/// A step of a small model whose weights move a little from each step to the next.
fn model(step: u32) -> Vec<u8> {
    safetensors(&[("norm", "BF16", &[50], vec![0x3f; 100]), ("weight", "BF16", &[120, 50], words(step))])
}

fn words(step: u32) -> Vec<u8> {
    let word = |i: u32| {
        let moved = (0..=step).filter(|s| (i * 7 + s * 13).is_multiple_of(40)).count();
        u16::try_from(0x3c00 + i * 37 % 700 + u32::try_from(moved).unwrap()).unwrap().to_le_bytes()
    };
    (0..6000).flat_map(word).collect()
}

/// A folder with `N.safetensors` for N from 0 and a series of them.
fn with_steps(count: u32) -> Scratch {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    for step in 0..count {
        scratch.write(&format!("{step}.safetensors"), &model(step));
        scratch.ok(&format!("series add runs {step}.safetensors --step {step} --meta loss={}", 10 - step));
    }
    scratch
}

fn prune(scratch: &Scratch, keep: &str, more: &str) -> Ended {
    let mut command = scratch.command(&format!("series prune runs {more}"));
    finish(command.args(["--keep", keep]).spawn().unwrap())
}

fn steps(scratch: &Scratch) -> Vec<u64> {
    let listed = scratch.ok("series ls runs --all --json").json();
    listed["steps"].as_array().unwrap().iter().map(|step| step["step"].as_u64().unwrap()).collect()
}

/// Every step is there byte for byte, and nothing is wrong.
fn check(scratch: &Scratch, expected: &[u32]) {
    assert_eq!(steps(scratch), expected.iter().map(|step| u64::from(*step)).collect::<Vec<_>>());
    for step in expected {
        scratch.ok(&format!("series get runs --step {step} -o out.safetensors --overwrite"));
        assert!(scratch.read("out.safetensors") == model(*step), "step {step}");
    }
    let verified = scratch.run("series verify runs --deep");
    assert_eq!(verified.code, Some(0), "{}", verified.text());
}

#[test]
fn prune_refuses_slips_and_names_what_goes() {
    let scratch = with_steps(5);
    let cases = [
        ("best los 3", "\"los\" in its --meta; there are: loss"),
        ("last 2, highest los", "there are: loss"),
        ("last 0", "\"last 0\" is no rule"),
        ("best loss 0", "is no rule"),
        ("every 1000, last 0", "is no rule"),
        ("step 77, last 2", "there is no step 77"),
    ];
    for (rules, said) in cases {
        for more in ["", "--dry-run"] {
            let mut command = scratch.command(&format!("series prune runs {more}"));
            command.args(["--keep", rules]);
            let error = scratch.refuses(command, rules);
            assert!(error.contains(said), "{rules}: {error}");
        }
    }
    // Step 0 is a multiple of everything; without it nothing is kept.
    scratch.ok("series rm runs --step 0");
    let mut command = scratch.command("series prune runs");
    command.args(["--keep", "every 1000"]);
    let error = scratch.refuses(command, "every 1000");
    assert!(error.contains("keeps none of the 4 steps") && error.matches("hint:").count() == 1, "{error}");
    assert!(error.contains("`last 1` keeps only the newest"), "{error}");

    let would = prune(&scratch, "last 1, step 2", "--dry-run");
    assert_eq!(would.text(), "would be left out, no rule keeps them: steps 1, 3\n");
    assert!(would.err.starts_with("2 steps would be kept, 2 left out, 1 packed again"), "{}", would.err);
    let report = prune(&scratch, "last 1, step 2", "--dry-run --json").json();
    assert_eq!(report["dropped"], serde_json::json!([1, 3]));
    let why = serde_json::json!([
        {"step": 2, "rules": ["step 2"]}, {"step": 4, "rules": ["last 1", "newest"]}
    ]);
    assert_eq!(report["kept_steps"], why);
    assert_eq!(steps(&scratch), [1, 2, 3, 4]);
    let did = prune(&scratch, "last 1, step 2", "");
    assert_eq!(did.text(), "left out, no rule keeps them: steps 1, 3\n");
    check(&scratch, &[2, 4]);
    let did = prune(&scratch, "last 1", "");
    assert_eq!(did.text(), "left out, no rule keeps them: step 2\n");
    assert!(did.err.starts_with("1 step kept, 1 left out, 1 packed again"), "{}", did.err);
    check(&scratch, &[4]);
    assert!(scratch.ok("series ls runs").err.contains("1 step, 1 keyframe:"));
}

#[test]
fn a_step_is_removed_and_what_rests_on_it_packed_again() {
    let scratch = with_steps(5);
    let error = scratch.refused("series rm runs --step 2 --step 9");
    assert!(error.contains("step 9"), "{error}");
    let would = scratch.ok("series rm runs --step 2 --step 0 --dry-run");
    assert!(would.text().contains("would be left out, as asked: steps 0, 2"), "{}", would.text());
    check(&scratch, &[0, 1, 2, 3, 4]);
    let report = scratch.ok("series rm runs --step 2 --step 0 --json").json();
    assert_eq!(report["dropped"], serde_json::json!([0, 2]));
    assert_eq!(report["repacked"], serde_json::json!([1, 3, 4]));
    check(&scratch, &[1, 3, 4]);
    // The newest too: the right checkpoint then takes its number.
    scratch.write("other.safetensors", &model(9));
    scratch.ok("series add runs other.safetensors --step 5");
    scratch.ok("series rm runs --step newest");
    scratch.write("5.safetensors", &model(5));
    scratch.ok("series add runs 5.safetensors --step 5");
    scratch.ok("series gc runs --grace 0s");
    check(&scratch, &[1, 3, 4, 5]);
    scratch.ok("series rm runs --step 1 --step 3 --step 4 --step 5");
    assert_eq!(steps(&scratch), Vec::<u64>::new());
    scratch.ok("series add runs 1.safetensors --step 1");
    check(&scratch, &[1]);
}

#[test]
fn text_of_a_step_is_changed_and_never_dropped_in_silence() {
    let scratch = with_steps(3);
    let set = scratch.ok("series set runs --step 1 --meta loss=2.5 --meta note=good --json").json();
    assert_eq!(set["meta"], serde_json::json!({"loss": "2.5", "note": "good"}));
    let set = scratch.ok("series set runs --step 1 --meta note=");
    assert!(set.text().contains("loss  2.5") && !set.text().contains("note"), "{}", set.text());
    for wrong in ["--step 9 --meta loss=1", "--step 1 --meta nota=", "--step 1 --meta loss", "--step 1"] {
        scratch.refused(&format!("series set runs {wrong}"));
    }
    let before = scratch.tree();
    scratch.ok("series set runs --step 1 --meta loss=2.5");
    let again = scratch.ok("series add runs 1.safetensors --step 1 --meta loss=7 --meta lr=1");
    assert!(again.err.contains("there already with the same content"), "{}", again.err);
    assert!(
        again.err.contains("`deltaloom series set runs --step 1 --meta loss=7 --meta lr=1`"),
        "{}",
        again.err
    );
    let json = scratch.ok("series add runs 1.safetensors --step 1 --meta lr=1 --meta loss=2.5 --json").json();
    assert_eq!(json["meta_not_stored"], serde_json::json!({"lr": "1"}));
    let quiet = scratch.ok("series add runs 1.safetensors --step 1 --meta loss=2.5");
    assert!(!quiet.err.contains("series set"), "{}", quiet.err);
    assert!(before == scratch.tree(), "nothing has changed");
    check(&scratch, &[0, 1, 2]);
}

#[test]
fn text_is_changed_in_an_old_page_too() {
    let scratch = with_steps(1);
    for step in 1..70 {
        scratch.ok(&format!("series add runs 0.safetensors --step {step}"));
    }
    scratch.ok("series set runs --step 3 --meta loss=0.25");
    assert_eq!(scratch.ok("series show runs --step 3 --json").json()["meta"]["loss"], "0.25");
    scratch.ok("series gc runs --grace 0s");
    assert_eq!(
        scratch.ok("series verify runs").text(),
        "ok: 70 steps, every container (--deep decodes them)\n"
    );
    let gone = prune(&scratch, "last 2, best loss 1", "--dry-run");
    let expected = "would be left out, no rule keeps them: steps 0 to 2 (3 steps), 4 to 67 (64 steps)\n";
    assert_eq!(gone.text(), expected);
}
