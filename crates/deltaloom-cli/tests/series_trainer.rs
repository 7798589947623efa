//! Checkpoint folders as a trainer writes them: what counts as weights, the numbers of its log, and
//! watching its folder.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Ended, Scratch, finish, safetensors, wait};
use serde_json::Value;

/// Two steps that a real Trainer wrote.
fn trainer(step: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../assets/trainer/step-{step}"))
}

fn copy_step(scratch: &Scratch, step: u32, to: &str) {
    for entry in fs::read_dir(trainer(step)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        scratch.write(&format!("{to}/{name}"), &fs::read(&path).unwrap());
    }
}

/// The series `runs` with both steps.
fn with_steps() -> Scratch {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    for step in [11, 12] {
        copy_step(&scratch, step, &format!("out/checkpoint-{step}"));
        scratch.ok(&format!("series add runs out/checkpoint-{step} --step {step}"));
    }
    scratch
}

/// A small model that is a little different at each step.
fn model(step: u32) -> Vec<u8> {
    let word = |i: u32| u16::try_from(0x3c00 + i * 37 % 700 + u32::from(i % 40 < step)).unwrap();
    safetensors(&[("weight", "BF16", &[60, 50], (0..3000).flat_map(|i| word(i).to_le_bytes()).collect())])
}

fn listed(scratch: &Scratch) -> Vec<Value> {
    scratch.ok("series ls runs --json").json()["steps"].as_array().unwrap().clone()
}

fn steps(scratch: &Scratch) -> Vec<u64> {
    listed(scratch).iter().map(|step| step["step"].as_u64().unwrap()).collect()
}

fn watch(scratch: &Scratch, more: &str) -> Ended {
    scratch.run(&format!("series watch runs out --interval 20ms {more}"))
}

#[test]
fn counts_are_those_of_the_weights() {
    let scratch = with_steps();
    let model = "model.safetensors";
    let alone =
        scratch.run(&format!("diff out/checkpoint-11/{model} out/checkpoint-12/{model} --json")).json();
    let folders = scratch.run("diff out/checkpoint-11 out/checkpoint-12 --json").json();
    assert_eq!(folders["total"], alone["total"]);
    assert!(folders["states"]["weights"].as_u64() > folders["total"]["weights"].as_u64());
    assert!(alone["states"].is_null());
    let text = scratch.run("diff out/checkpoint-11 out/checkpoint-12");
    assert!(text.text().contains("\nstates of the training: "), "{}", text.text());

    let step = &listed(&scratch)[1];
    let share = |value: &Value| value.as_f64().unwrap();
    assert_eq!(share(&step["changed_fraction"]), share(&alone["total"]["changed_fraction"]));
    let health = scratch.ok("series health runs --json").json();
    assert_eq!(share(&health["steps"][1]["changed_fraction"]), share(&step["changed_fraction"]));
    assert_eq!(health["steps"][1]["weights"], alone["total"]["weights"]);
    // These weights are predicted from the moments, which does not hide their changes.
    for layer in health["layers"].as_array().unwrap() {
        assert!(layer["name"].as_str().unwrap().starts_with("model."), "{layer}");
        assert!(share(&layer["changed_fractions"][1]) > 0.5, "{layer}");
    }

    let pack = "pack out/checkpoint-12 --base out/checkpoint-11 -o 12.loom";
    let packed = scratch.ok(&format!("{pack} --json")).json();
    assert_eq!(packed["weights"]["elems"], alone["total"]["weights"]);
    assert_eq!(packed["states"]["elems"], folders["states"]["weights"]);
    let sizes = ["weights", "states", "other"].map(|part| packed[part]["tensors"].as_u64().unwrap());
    assert_eq!(sizes.iter().sum::<u64>(), packed["tensors"].as_array().unwrap().len() as u64);
    let said = scratch.ok(&format!("{pack} --overwrite")).err;
    assert!(said.contains("weights: 45.4 kB -> ") && said.contains("states of the training: "), "{said}");
    let lineage = scratch.ok("lineage out/checkpoint-12 out/checkpoint-11 --json").json();
    assert_eq!(lineage["tensors"].as_array().unwrap().len() as u64, sizes[0]);
    assert_eq!(lineage["left_out"]["count"].as_u64(), Some(sizes[1]));
}

#[test]
fn states_alone_count() {
    let scratch = with_steps();
    let [old, new] = [11, 12].map(|step| format!("out/checkpoint-{step}/optimizer.pt"));
    let diff = scratch.run(&format!("diff {old} {new} --json")).json();
    assert!(
        diff["total"]["weights"].as_u64().unwrap() > 20_000 && diff["states"].is_null(),
        "{}",
        diff["total"]
    );
    // A step without its states is the same model.
    scratch.write("13.safetensors", &fs::read(trainer(12).join("model.safetensors")).unwrap());
    fs::create_dir(scratch.path().join("13")).unwrap();
    fs::rename(scratch.path().join("13.safetensors"), scratch.path().join("13/model.safetensors")).unwrap();
    scratch.ok("series add runs 13 --step 13");
    assert_eq!(listed(&scratch)[2]["changed_fraction"], 0.0);
}

#[test]
fn the_log_of_the_trainer_becomes_texts_of_the_step() {
    let scratch = with_steps();
    let steps = listed(&scratch);
    // Step 11 was saved after the log of step 8.
    assert_eq!((&steps[0]["meta"]["loss"], &steps[0]["metrics"]["loss"]), (&"3.9053".into(), &3.9053.into()));
    assert_eq!(
        (&steps[1]["meta"]["loss"], &steps[1]["metrics"]["learning_rate"]),
        (&"3.8978".into(), &0.0.into())
    );
    let table = scratch.ok("series ls runs").text().to_owned();
    assert!(table.lines().next().unwrap().ends_with("loss  learning_rate  grad_norm"), "{table}");
    assert!(table.contains("3.905") && table.contains("3.333e-4"), "{table}");
    let csv = scratch.ok("series ls runs --csv").text().to_owned();
    assert!(
        csv.lines().next().unwrap().ends_with("meta.loss,meta.learning_rate,meta.grad_norm,meta.epoch"),
        "{csv}"
    );

    // What is given comes first; the same step again says nothing of texts that nobody gave.
    copy_step(&scratch, 12, "next");
    scratch.write("next/config.json", b"{}");
    scratch.ok("series add runs next --step 13 --meta loss=7 --meta note=x");
    let meta = &listed(&scratch)[2]["meta"];
    assert_eq!((&meta["loss"], &meta["note"], &meta["epoch"]), (&"7".into(), &"x".into(), &"0.75".into()));
    let again = scratch.ok("series add runs next --step 13 --meta loss=7");
    assert!(!again.err.contains("not changed"), "{}", again.err);

    // A log that is none is a warning. Beside a file, its step decides.
    scratch.write("next/trainer_state.json", b"{\"log_history\": [");
    scratch.write("next/config.json", b"{ }");
    let added = scratch.ok("series add runs next --step 14");
    assert!(added.err.contains("warning: next/trainer_state.json"), "{}", added.err);
    scratch.write("next/config.json", b"{  }");
    fs::copy(trainer(12).join("trainer_state.json"), scratch.path().join("next/trainer_state.json")).unwrap();
    scratch.ok("series init alone");
    scratch.ok("series add alone next/model.safetensors --step 9");
    let alone = scratch.ok("series ls alone --json").json();
    assert_eq!(alone["steps"][0]["meta"]["loss"], "3.9053");
}

#[test]
fn the_page_has_curves_of_the_training() {
    let scratch = with_steps();
    scratch.ok("series plot runs -o page.html --tensorboard events");
    let page = String::from_utf8(scratch.read("page.html")).unwrap();
    for heading in ["Loss", "Learning rate", "grad_norm", "Bytes saved"] {
        assert!(page.contains(&format!(">{heading}</h2>")), "{heading}");
    }
    let events = fs::read_dir(scratch.path().join("events")).unwrap().next().unwrap().unwrap().path();
    assert!(fs::read(events).unwrap().windows(10).any(|bytes| bytes == b"train/loss"));
}

#[test]
fn watch_reads_the_log_and_ends_when_nothing_is_new() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    fs::create_dir(scratch.path().join("out")).unwrap();
    let ended = watch(&scratch, "--once");
    assert_eq!(ended.code, Some(0));
    assert!(ended.err.contains("nothing to add: there is no checkpoint in out"), "{}", ended.err);
    copy_step(&scratch, 11, "out/checkpoint-11");
    copy_step(&scratch, 12, "out/checkpoint-12");
    scratch.write("out/checkpoint-12/trainer_state.json", b"no log");
    fs::create_dir(scratch.path().join("out/runs-20240501")).unwrap();
    let ended = watch(&scratch, "--timeout 150ms");
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("warning: out/checkpoint-12/trainer_state.json"), "{}", ended.err);
    assert!(ended.err.ends_with("nothing new for 150ms\n2 steps added\n"), "{}", ended.err);
    let found = listed(&scratch);
    assert_eq!((&found[0]["meta"]["loss"], found[1]["meta"].get("loss")), (&"3.9053".into(), None));
    let ended = watch(&scratch, "--once");
    assert!(
        ended.code == Some(0) && ended.err.starts_with("nothing to add: the checkpoints"),
        "{}",
        ended.err
    );
}

#[test]
fn watch_skips_oddities_and_goes_on() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    let write = |name: &str, bytes: &[u8]| scratch.write(&format!("out/{name}"), bytes);
    write("checkpoint-1/model.safetensors", &model(1));
    write("checkpoint-2/model.safetensors", &model(2)[..900]);
    write("checkpoint-3/model.safetensors", &model(3));
    write("pt-3/notes.bin", b"no weights");
    write("step-2.5/model.safetensors", &model(9));
    write("final/model.safetensors", &model(9));
    write("model-00001-of-00002.safetensors", &model(9));
    write("optimizer-7.safetensors", &model(9));
    write("logs-4/events", b"");
    let ended = watch(&scratch, "--once --timeout 200ms");
    assert_eq!((ended.code, steps(&scratch)), (Some(1), vec![1, 3]), "{}", ended.err);
    for said in [
        "out/pt-3: skipped, out/checkpoint-3 is step 3 too",
        "out/step-2.5: skipped, there is no step in its name",
        "out/final: skipped, there is no step",
        "out/model-00001-of-00002.safetensors: skipped, there is no step",
        "waiting for out/checkpoint-2: out/checkpoint-2/model.safetensors: ",
        "out/checkpoint-2: left out: ",
        "warning: out/checkpoint-2 was not added: ",
    ] {
        assert_eq!(ended.err.matches(said).count(), 1, "{said}: {}", ended.err);
    }
    assert!(!ended.err.contains("optimizer-7") && !ended.err.contains("logs-4"), "{}", ended.err);
    assert!(ended.err.contains("2 steps added"), "{}", ended.err);
}

#[cfg(unix)]
#[test]
fn watch_survives_what_is_removed_or_comes_late() {
    let scratch = Scratch::new();
    scratch.ok("series init runs");
    let write = |name: &str, bytes: &[u8]| scratch.write(&format!("out/{name}"), bytes);
    write("checkpoint-1/model.safetensors", &model(1));
    write("checkpoint-2/model.safetensors", &model(2)[..900]);
    write("checkpoint-3/model.safetensors", &model(3));
    let mut child = scratch.command("series watch runs out --interval 20ms --timeout 400ms").spawn().unwrap();
    wait(&mut child, || steps(&scratch) == [1, 3]);
    // One that was passed over and is finished later is no reason to go back.
    write("checkpoint-2/model.safetensors", &model(2));
    fs::remove_dir_all(scratch.path().join("out/checkpoint-1")).unwrap();
    let aside = scratch.path().join("aside");
    write("checkpoint-4/model.safetensors", &model(4));
    wait(&mut child, || steps(&scratch) == [1, 3, 4]);
    fs::rename(scratch.path().join("out"), &aside).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    fs::rename(&aside, scratch.path().join("out")).unwrap();
    write("checkpoint-5/model.safetensors", &model(5));
    wait(&mut child, || steps(&scratch) == [1, 3, 4, 5]);
    let ended = finish(child);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(
        ended.err.contains("checkpoint-2: skipped, the series already has a later step"),
        "{}",
        ended.err
    );
    assert!(scratch.ok("series ls runs --branches").err.contains("no branches"));
}
