//! `deltaloom shrink` as its user sees it.
#![cfg(all(feature = "shrink", feature = "demo"))]
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use common::Scratch;

/// The bundled model, a text for it in two files, and a recipe.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.ok("demo --write speaker");
    let text = std::fs::read_to_string(scratch.path().join("speaker/text.txt")).unwrap();
    let middle = (text.len() / 2..text.len()).find(|at| text.is_char_boundary(*at)).unwrap();
    std::fs::write(scratch.path().join("fit.txt"), &text[..middle]).unwrap();
    std::fs::write(scratch.path().join("held-out.txt"), &text[middle..]).unwrap();
    std::fs::write(scratch.path().join("recipe.yaml"), RECIPE).unwrap();
    scratch
}

const RECIPE: &str = "\
version: 1
data: {calibrate: {path: fit.txt}, evaluate: {path: held-out.txt}, seq_len: 64}
targets: {kl: {limit: 0.5}}
planner: {mode: fixed}
branches: {quantise: {bits: 4}}
";

#[test]
fn a_student_is_made_measured_run_and_packed() {
    let scratch = scratch();
    let run = "shrink run recipe.yaml --teacher speaker/base -o student";
    let report = scratch.ok(&format!("{run} --json")).json();
    assert_eq!(report["verdict"], "feasible");
    assert_eq!(report["texts"][0]["name"], "held-out.txt");
    let kl = report["texts"][0]["kl"].as_f64().unwrap();
    assert!(kl > 0.0 && kl < 0.5, "{kl}");
    // A student is a model.
    assert!(scratch.ok("generate student Once --max-tokens 4").text().len() > 3);
    let divergence = scratch.ok("eval divergence speaker/base student --tokens held-out.txt --json").json();
    assert!(divergence["mean_kl"].as_f64().unwrap() < 2.0 * kl + 0.1);
    // Packed, it says what it is.
    scratch.ok("pack student -o student.loom");
    let label = scratch.ok("inspect student.loom").text().to_owned();
    assert!(label.starts_with("LOSSY student of ") && label.contains("KL 0."), "{label}");
    assert_eq!(scratch.ok("inspect student.loom --json").json()["lossy_student"]["lossy"], true);
    scratch.ok("unpack student.loom -o again");
    scratch.ok("shrink materialise again -o dense");
    let dense = scratch.ok("eval divergence student dense --tokens held-out.txt --json").json();
    assert_eq!(dense["mean_kl"].as_f64(), Some(0.0));
}

#[test]
fn what_exists_stays_and_misses_are_answers() {
    let scratch = scratch();
    let run = "shrink run recipe.yaml --teacher speaker/base";
    let refused = scratch.fails(2, &format!("{run} -o speaker/base"));
    assert!(refused.contains("speaker/base"), "{refused}");
    scratch.fails(2, &format!("{run} -o speaker/base --overwrite"));
    assert!(scratch.path().join("speaker/base/config.json").is_file());
    scratch.fails(2, "shrink run recipe.yaml -o student");
    scratch.fails(3, "shrink run none.yaml --teacher speaker/base -o student");
    scratch.fails(2, "shrink materialise speaker/base -o dense");
    let missed = scratch.run(&format!("{run} --ratio 1000 -o student"));
    assert_eq!(missed.code, Some(1));
    assert!(missed.text().contains("infeasible"), "{}", missed.text());
    scratch.fails(2, &format!("{run} -o student"));
    scratch.ok(&format!("{run} -o student --overwrite"));
}

#[test]
fn a_student_of_a_fine_tune_needs_its_base() {
    let scratch = scratch();
    scratch.ok("unpack speaker/pirate.loom --base speaker/base -o pirate");
    std::fs::write(scratch.path().join("delta.yaml"), DELTA).unwrap();
    let run = "shrink run delta.yaml --teacher pirate --base speaker/base";
    let report = scratch.ok(&format!("{run} -o student --json")).json();
    let bytes = report["student_bytes"].as_u64().unwrap();
    assert!(bytes * 4 < report["teacher_bytes"].as_u64().unwrap(), "{bytes}");
    let with_base = "--base speaker/base";
    assert!(scratch.ok(&format!("generate student Once --max-tokens 4 {with_base}")).text().len() > 3);
    // A tenant of its base has the same bits.
    let perplexity = |model: &str| {
        scratch.ok(&format!("eval perplexity {model} held-out.txt --limit 200 --json")).json()["loss"].clone()
    };
    let alone = perplexity(&format!("student {with_base}"));
    assert_eq!(perplexity("speaker/base --tenant student"), alone);
    assert_ne!(perplexity("speaker/base"), alone);
    assert!(scratch.run("generate pirate Once --tenant student").err.contains("expected BLAKE3"));
    scratch.ok(&format!("shrink materialise student {with_base} -o dense"));
    let same = format!("eval divergence student dense {with_base} --tokens held-out.txt --limit 200 --json");
    assert_eq!(scratch.ok(&same).json()["mean_kl"].as_f64(), Some(0.0));
    let near = format!("eval divergence pirate student {with_base} --tokens held-out.txt --limit 200 --json");
    let far = "eval divergence pirate speaker/base --tokens held-out.txt --limit 200 --json";
    let kl = |command: &str| scratch.ok(command).json()["mean_kl"].as_f64().unwrap();
    assert!(kl(&near) < kl(far), "{}", kl(&near));
    scratch.ok("pack student -o student.loom");
    assert!(scratch.ok("inspect student.loom").text().contains(", needs base "));
    // Without its base, with another one, and with one that nothing needs.
    for command in
        ["generate student Once", "shrink materialise student -o d", "eval perplexity student held-out.txt"]
    {
        let refused = scratch.fails(2, command);
        assert!(refused.contains("needs the base") && refused.contains("--base FOLDER"), "{refused}");
        let other = scratch.run(&format!("{command} --base pirate"));
        assert!(other.code != Some(0) && other.err.contains("expected BLAKE3"), "{}", other.err);
    }
    let refused = scratch.fails(2, "shrink materialise dense --base speaker/base -o d");
    assert!(refused.contains("no student"), "{refused}");
    scratch.ok("shrink run recipe.yaml --teacher speaker/base -o whole");
    for command in ["generate whole Once", "shrink materialise whole -o d", "generate dense Once"] {
        let refused = scratch.fails(2, &format!("{command} {with_base}"));
        assert!(refused.contains("this is neither"), "{refused}");
    }
    // The base is no output, and must be there.
    scratch.fails(2, &format!("{run} -o speaker/base --overwrite"));
    assert!(scratch.path().join("speaker/base/config.json").is_file());
    scratch.fails(3, "shrink run delta.yaml --teacher pirate --base none -o d");
}

const DELTA: &str = "\
version: 1
data: {calibrate: {path: fit.txt}, evaluate: {path: held-out.txt}, seq_len: 64}
targets: {kl: {limit: null}}
planner: {mode: fixed}
branches: {quantise: {method: waterfill, rate: 1.0}, blt: {method: layers}}
";
