//! A series is safe from typos, from bad steps and from runs that go back.
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

/// Every step is restored byte for byte, and verification finds no fault.
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
        ("best los 3", "\"los\" in its text; there are: loss"),
        ("last 2, highest los", "there are: loss"),
        ("last 0", "\"last 0\" is not a rule"),
        ("best loss 0", "is not a rule"),
        ("every 1000, last 0", "is not a rule"),
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
    assert_eq!(would.text(), "would be removed, no rule keeps them: steps 1, 3\n");
    assert!(would.err.starts_with("2 steps would be kept, 2 removed, 2 repacked"), "{}", would.err);
    let report = prune(&scratch, "last 1, step 2", "--dry-run --json").json();
    assert_eq!(report["dropped"], serde_json::json!([1, 3]));
    let why = serde_json::json!([
        {"step": 2, "rules": ["step 2"]}, {"step": 4, "rules": ["last 1", "newest"]}
    ]);
    assert_eq!(report["kept_steps"], why);
    assert_eq!(steps(&scratch), [1, 2, 3, 4]);
    let did = prune(&scratch, "last 1, step 2", "");
    assert_eq!(did.text(), "removed, no rule keeps them: steps 1, 3\n");
    check(&scratch, &[2, 4]);
    let did = prune(&scratch, "last 1", "");
    assert_eq!(did.text(), "removed, no rule keeps them: step 2\n");
    assert!(did.err.starts_with("1 step kept, 1 removed, 1 repacked"), "{}", did.err);
    check(&scratch, &[4]);
    assert!(scratch.ok("series ls runs").err.contains("1 step, 1 keyframe:"));
}

#[test]
fn a_step_is_removed_and_what_rests_on_it_packed_again() {
    let scratch = with_steps(5);
    let error = scratch.refused("series rm runs --step 2 --step 9");
    assert!(error.contains("step 9"), "{error}");
    let would = scratch.ok("series rm runs --step 2 --step 0 --dry-run");
    assert!(would.text().contains("would be removed, as requested: steps 0, 2"), "{}", would.text());
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
    assert!(again.err.contains("already exists with the same content"), "{}", again.err);
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
        "ok: 70 steps, every container checked (--deep decodes them)\n"
    );
    let gone = prune(&scratch, "last 2, best loss 1", "--dry-run");
    let expected = "would be removed, no rule keeps them: steps 0 to 2 (3 steps), 4 to 67 (64 steps)\n";
    assert_eq!(gone.text(), expected);
}

#[test]
fn a_checkpoint_of_another_model_needs_force() {
    let scratch = with_steps(3);
    let adapter = safetensors(&[("lora.A", "BF16", &[8, 50], words(1)[..800].to_vec())]);
    scratch.write("adapter.safetensors", &adapter);
    let error = scratch.refused("series add runs adapter.safetensors --step 3");
    assert!(error.contains("not like step 2") && error.contains("--force"), "{error}");
    assert!(error.contains("missing: 2, new: 1,") && error.contains("100.0 % of the bytes"), "{error}");
    scratch.refused("series add runs adapter.safetensors --step 3 --background");
    let wide =
        safetensors(&[("norm", "BF16", &[50], vec![0x3f; 100]), ("weight", "BF16", &[60, 100], words(3))]);
    scratch.write("wide.safetensors", &wide);
    let error = scratch.refused("series add runs wide.safetensors --step 3");
    assert!(error.contains("of another dtype or shape: 1") && error.contains("99.2 %"), "{error}");
    // Small files and a few new tensors do not count.
    let more =
        safetensors(&[("bias", "BF16", &[50], vec![0; 100]), ("weight", "BF16", &[120, 50], words(3))]);
    scratch.write("more/model.safetensors", &more);
    scratch.write("more/optimizer.pt", &vec![7; 50_000]);
    scratch.ok("series add runs more --step 3");
    let forced = scratch.ok("series add runs adapter.safetensors --step 4 --force");
    assert!(forced.err.contains("a keyframe"), "{}", forced.err);
    scratch.ok("series get runs --step 4 -o out.safetensors");
    assert!(scratch.read("out.safetensors") == adapter);
    // The next full step rests on the last full one, not on the adapter.
    scratch.write("5.safetensors", &model(5));
    let error = scratch.refused("series add runs 5.safetensors --step 5");
    assert!(error.contains("not like step 4"), "{error}");
    let next = scratch.ok("series add runs 5.safetensors --step 5 --force --json").json();
    assert_eq!(next["reference"], 3);
    scratch.write("6.safetensors", &model(6));
    scratch.ok("series add runs 6.safetensors --step 6 --background --force");
    scratch.ok("series flush runs");
    assert_eq!(steps(&scratch), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(scratch.run("series verify runs --deep").code, Some(0));
}

#[test]
fn watch_skips_another_model_and_goes_on() {
    let scratch = with_steps(1);
    scratch.write("out/checkpoint-1.safetensors", &model(1));
    let other = safetensors(&[("other", "BF16", &[120, 50], words(2))]);
    scratch.write("out/checkpoint-2.safetensors", &other);
    scratch.write("out/checkpoint-3.safetensors", &model(3));
    let ended = scratch.ok("series watch runs out --interval 20ms --once");
    assert_eq!(ended.err.matches("checkpoint-2.safetensors").count(), 1, "{}", ended.err);
    assert!(ended.err.contains("skipped") && ended.err.contains("not like step 1"), "{}", ended.err);
    check(&scratch, &[0, 1, 3]);
}

/// A step whose words are all this one.
fn flat(word: u16) -> Vec<u8> {
    let all: Vec<u8> = std::iter::repeat_n(word.to_le_bytes(), 6000).flatten().collect();
    safetensors(&[("norm", "BF16", &[50], vec![0x3f; 100]), ("weight", "BF16", &[120, 50], all)])
}

#[test]
fn steps_of_nan_are_counted_warned_of_and_passed_over() {
    let scratch = with_steps(2);
    let usual = scratch.ok("series ls runs --json").json()["steps"][1]["ratio"].as_f64().unwrap();
    scratch.write("nan.safetensors", &flat(0x7fc0));
    let added = scratch.ok("series add runs nan.safetensors --step 2");
    assert!(added.err.contains("warning: step 2: 6000 weights are NaN or infinite"), "{}", added.err);
    assert!(added.err.contains("1 matrix has become constant"), "{}", added.err);
    // The norm did not change.
    assert!(added.err.contains("99.17 % changed") && added.err.contains("ratio "), "{}", added.err);
    let shown = scratch.ok("series show runs --step 2 --json").json();
    assert_eq!((&shown["nonfinite_weights"], &shown["constant_matrices"]), (&6000.into(), &1.into()));

    // The run is resumed from step 1, and step 3 rests on that.
    scratch.write("3.safetensors", &model(3));
    let next = scratch.ok("series add runs 3.safetensors --step 3 --json").json();
    assert_eq!(
        (&next["reference"], &next["hops"], &next["since_keyframe"]),
        (&1.into(), &2.into(), &3.into())
    );
    assert!(next["nonfinite_weights"].is_null() && next["constant_matrices"].is_null());
    let ratio = scratch.ok("series ls runs --json").json()["steps"][3]["ratio"].as_f64().unwrap();
    assert!(ratio > 0.6 * usual, "{ratio} after {usual}");
    let health = scratch.run("series health runs");
    assert_eq!(health.code, Some(1));
    assert!(health.text().contains("warning: step 2: 6000 weights are NaN or infinite"), "{}", health.text());
    let json = scratch.run("series health runs --json").json();
    assert_eq!(
        (&json["warnings"][0]["kind"], &json["warnings"][0]["count"]),
        (&"non_finite".into(), &6000.into())
    );
    assert!(json["steps"][2]["changed_fraction"].as_f64().unwrap() > 0.99);
    scratch.ok("series plot runs -o page.html");
    let page = String::from_utf8(scratch.read("page.html")).unwrap();
    assert!(page.contains("6000 weights are NaN or infinite"));
    // Packed again, it is still so.
    scratch.ok("series repack runs");
    let listed = scratch.ok("series ls runs --json").json();
    assert_eq!(
        (&listed["steps"][3]["reference"], &listed["steps"][2]["nonfinite_weights"]),
        (&1.into(), &6000.into())
    );
    assert_eq!(scratch.run("series verify runs --deep").code, Some(0));
}

#[test]
fn matrices_that_become_constant_are_named_once() {
    let scratch = Scratch::new();
    scratch.ok("series init runs --keyframe-every 3");
    // A new matrix of zeros, as adapters begin with, is no fault.
    let with = |a: Vec<u8>, b: Vec<u8>| {
        safetensors(&[
            ("a", "F32", &[50, 20], a),
            ("b", "F32", &[2000], words(0)[..8000].to_vec()),
            ("c", "BF16", &[10, 20], b),
        ])
    };
    let numbers = |salt: u32| {
        (0..1000u32).flat_map(|i| (0x3f00_0000 + i * 1000 + salt).to_le_bytes()).collect::<Vec<u8>>()
    };
    let zeros = || vec![0; 4000];
    let steps = [numbers(0), numbers(1), zeros(), zeros(), numbers(2), zeros()];
    for (i, a) in steps.into_iter().enumerate() {
        scratch.write("m.safetensors", &with(a, vec![0; 400]));
        let added = scratch.ok(&format!("series add runs m.safetensors --step {i}"));
        let is_warned = added.err.contains("1 matrix has become constant");
        // Steps 3 and 6 are keyframes, which are compared with the step before.
        assert_eq!(is_warned, matches!(i, 2 | 5), "step {i}: {}", added.err);
    }
    let health = scratch.run("series health runs");
    assert_eq!(health.code, Some(1));
    assert!(health.text().contains("warning: step 5: 1 matrix has become constant"), "{}", health.text());
}

#[test]
fn only_weights_count_as_changed() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    for step in 0..3u8 {
        scratch.write("run/model.safetensors", &model(u32::from(step)));
        scratch.write(
            "run/optimizer.pt",
            &(0..9_000u32).map(|i| u8::try_from(i * i * 31 % 251).unwrap() ^ step).collect::<Vec<u8>>(),
        );
        scratch.write("run/config.json", b"{}");
        scratch.ok(&format!("series add runs run --step {step}"));
        scratch.write("bare.safetensors", &model(u32::from(step)));
    }
    scratch.ok("series init bare");
    for step in 0..3 {
        scratch.write("bare.safetensors", &model(step));
        scratch.ok(&format!("series add bare bare.safetensors --step {step}"));
    }
    let of = |name: &str| {
        let listed = scratch.ok(&format!("series ls {name} --json")).json();
        let health = scratch.run(&format!("series health {name} --json")).json();
        let layers: Vec<String> = health["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l["name"].as_str().unwrap().to_owned())
            .collect();
        (
            listed["steps"][2]["changed_fraction"].clone(),
            health["steps"][2]["changed_fraction"].clone(),
            layers,
        )
    };
    assert_eq!(of("runs"), of("bare"));
    assert!(of("runs").2.iter().all(|layer| !layer.contains("config") && !layer.contains("optimizer")));
}

#[test]
fn an_empty_series_says_so() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    let listed = scratch.ok("series ls runs");
    assert!(listed.text().is_empty() && listed.err.contains("no steps yet"), "{}", listed.err);
    let health = scratch.ok("series health runs");
    assert_eq!(health.text(), "the series has no steps yet\n");
    assert_eq!(scratch.ok("series ls runs --branches").err, "no branches\n");
}
