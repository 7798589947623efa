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
/// Two measurements of one student on one text: they add up in another order.
fn assert_same(found: &serde_json::Value, made: &serde_json::Value) {
    assert_eq!(found["name"], made["name"]);
    assert_eq!(found["divergence"]["tokens"], made["divergence"]["tokens"]);
    for key in ["kl", "kl_error"] {
        let [found, made] = [found, made].map(|report| report[key].as_f64().unwrap());
        assert!((found / made - 1.0).abs() < 1e-5, "{key}: {found} {made}");
    }
}

#[test]
fn a_student_is_measured_as_when_it_was_made() {
    let scratch = scratch();
    let made = scratch.ok("shrink run recipe.yaml --teacher speaker/base -o student --json").json();
    let eval = "shrink eval speaker/base student --tokens held-out.txt --window 64";
    let report = scratch.ok(&format!("{eval} --json")).json();
    let on = &report["texts"][0];
    assert_eq!((&on["name"], &report["window_tokens"]), (&"held-out.txt".into(), &64.into()));
    assert_same(on, &made["texts"][0]);
    let last = scratch.ok(&format!("{eval} --last 3 --json")).json();
    assert_eq!(
        (&last["texts"][0]["windows"], &last["texts"][0]["divergence"]["tokens"]),
        (&3.into(), &189.into())
    );
    assert!(on["divergence"]["reverse_kl"].as_f64().unwrap() > 0.0);
    assert!(report["seen_tokens"].is_null() && on["by_frequency"].is_null());
    // Bytes are split twice, and each split is all of them.
    let sizes = &report["sizes"];
    assert_eq!(sizes, &made["sizes"]);
    assert_eq!(sizes["bytes"], made["student_bytes"]);
    assert_eq!(report["ratio"], made["ratio"]);
    for split in ["by_place", "by_kind"] {
        let sum: u64 = sizes[split].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(Some(sum), sizes["bytes"].as_u64(), "{split}");
    }
    assert!(sizes["by_place"]["mlp"].as_u64() > sizes["by_place"]["index"].as_u64());
    assert!(sizes["by_kind"]["codes"].as_u64() > sizes["by_kind"]["steps"].as_u64());
    // By how often tokens were seen.
    let split = scratch.ok(&format!("{eval} --seen fit.txt --json")).json();
    let groups = &split["texts"][0]["by_frequency"];
    let tokens = |group: &serde_json::Value| group["tokens"].as_u64().unwrap();
    let sum: u64 = groups.as_object().unwrap().values().map(tokens).sum();
    assert_eq!(Some(sum), on["divergence"]["tokens"].as_u64());
    assert!(tokens(&groups["common"]) > sum / 2 && tokens(&groups["unseen"]) > 0, "{groups}");
    let text = scratch.ok(&format!("{eval} --seen fit.txt"));
    assert!(
        text.text().starts_with("LOSSY student: ") && text.text().contains("\n  unseen "),
        "{}",
        text.text()
    );
    // A model is not far from itself.
    let itself = scratch.ok("shrink eval speaker/base speaker/base --tokens held-out.txt --json").json();
    let divergence = &itself["texts"][0]["divergence"];
    assert_eq!((divergence["mean_kl"].as_f64(), divergence["reverse_kl"].as_f64()), (Some(0.0), Some(0.0)));
    assert_eq!((divergence["top5_overlap"].as_f64(), itself["sizes"].is_null()), (Some(1.0), true));
    // There are no texts beside this teacher.
    assert!(scratch.refused("shrink eval speaker/base student").contains("--tokens"));
    assert!(scratch.refused(&format!("{eval}00")).contains("positions"));
}

#[test]
fn texts_beside_a_teacher_are_measured_as_when_its_student_was_made() {
    let scratch = Scratch::new();
    deltaloom_shrink::synthetic::write(&scratch.path().join("model")).unwrap();
    scratch.write("recipe.yaml", b"version: 1\nplanner: {mode: fixed}\nbranches: {quantise: {bits: 4}}\n");
    let made = scratch.run("shrink run recipe.yaml --teacher model -o student --json").json();
    let report = scratch.ok("shrink eval model student --json").json();
    for number in 0..2 {
        assert_same(&report["texts"][number], &made["texts"][number]);
    }
    let groups = report["texts"][0]["by_frequency"].as_object().unwrap();
    assert!(groups.len() > 1 && report["seen_tokens"].as_u64().unwrap() > 1000);
    let last = scratch.ok("shrink eval model student --last 3 --json").json();
    assert_eq!((&last["texts"][0]["windows"], &last["texts"][1]["windows"]), (&3.into(), &3.into()));
}

/// Names of the files in a folder, sorted.
fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_report_lies_beside_a_student() {
    let scratch = scratch();
    let run = "shrink run recipe.yaml --teacher speaker/base -o student";
    scratch.ok(run);
    let folder = scratch.path().join("student/report");
    let files = [
        "events.out.tfevents.0000000000.deltaloom",
        "history.jsonl",
        "summary.html",
        "summary.json",
        "summary.md",
    ];
    assert_eq!(names(&folder), files);
    let read = |name: &str| String::from_utf8(scratch.read(&format!("student/report/{name}"))).unwrap();
    let json: serde_json::Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!((&json["report"]["verdict"], &json["compliance"]["kl"]), (&"feasible".into(), &true.into()));
    // Both speak, after the same words of the text.
    let words = json["samples"]["prompt"].as_str().unwrap();
    let text = std::fs::read_to_string(scratch.path().join("held-out.txt")).unwrap();
    assert!(text.contains(words.trim()), "{words}");
    assert!(
        json["samples"]["teacher"].as_str().unwrap().len() > 40 && json["samples"]["student"].is_string()
    );
    let matrices = json["report"]["sizes"]["matrices"].as_object().unwrap();
    let lines: Vec<serde_json::Value> =
        read("history.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), matrices.len() + 2);
    assert!(lines.iter().enumerate().all(|(step, line)| line["step"] == step));
    for page in [read("summary.html"), read("summary.md")] {
        for word in ["LOSSY student of base", "top-5 overlap", "quantised", "attention", "feasible"] {
            assert!(page.contains(word), "{word}");
        }
    }
    assert!(read("summary.md").rfind("Verdict") > read("summary.md").rfind("student"));
    let events = scratch.read(&format!("student/report/{}", files[0]));
    let has = |tag: &str| events.windows(tag.len()).any(|part| part == tag.as_bytes());
    for tag in
        ["compression/ratio/disk", "compression/branch/mlp/bytes", "compression/compliance/kl", "eval/top1"]
    {
        assert!(has(tag), "{tag}");
    }
    // The student works as without it, and is the same.
    scratch.ok("pack student -o student.loom");
    scratch.ok("unpack student.loom -o again");
    scratch.ok("shrink materialise student -o dense");
    scratch.ok("shrink eval student again --tokens held-out.txt");
    let weights = scratch.read("student/student.json");
    // Only these files are replaced, and with the same bytes.
    scratch.write("student/report/mine.txt", b"mine");
    scratch.write("student/report/summary.md", b"old");
    let before = scratch.tree();
    scratch.fails(2, run);
    scratch.ok(&format!("{run} --overwrite"));
    assert!(read("mine.txt") == "mine" && scratch.read("student/student.json") == weights);
    assert!(read("summary.md").len() > 100);
    let changed: Vec<_> = scratch.tree().into_iter().filter(|(path, bytes)| before[path] != *bytes).collect();
    assert_eq!(changed.len(), 1, "{:?}", changed[0].0);
    // Logs are for those who want them.
    let recipe = format!("{RECIPE}logging: {{tensorboard: false, jsonl: false}}\n");
    scratch.write("recipe.yaml", recipe.as_bytes());
    scratch.ok("shrink run recipe.yaml --teacher speaker/base -o other");
    assert_eq!(names(&scratch.path().join("other/report")), files[2..]);
}

#[test]
fn branches_are_told_apart() {
    let scratch = Scratch::new();
    deltaloom_shrink::synthetic::write(&scratch.path().join("model")).unwrap();
    let recipe = "version: 1\nplanner: {mode: fixed}\nbranches: {lra: {ratio: 1.3}, quantise: {bits: 4}}\n";
    scratch.write("recipe.yaml", recipe.as_bytes());
    let run = "shrink ablate recipe.yaml --teacher model --state results";
    let ended = scratch.ok(&format!("{run} --json"));
    let found = ended.json();
    assert_eq!(found["branches"], serde_json::json!(["lra", "quantise"]));
    assert!(ended.err.contains("4 of 4: lra, quantise: ratio "), "{}", ended.err);
    assert_eq!(scratch.path().join("results").read_dir().unwrap().count(), 4);
    // The second time, nothing is computed.
    let again = scratch.ok(&format!("{run} --json --progress json"));
    assert!(again.json() == found && again.err.contains("\"total_bytes\":0"), "{}", again.err);
    let text = scratch.ok(run).text().to_owned();
    assert!(text.contains("packing alone") && text.contains("off"), "{text}");
    scratch.write("search.yaml", b"version: 1\ntargets: {compression_ratio: 4}\n");
    assert!(scratch.refused("shrink ablate search.yaml --teacher model").contains("planner.mode"));
}

#[test]
fn everything_works_on_a_model_that_is_made_up() {
    let scratch = Scratch::new();
    let text = scratch.ok("shrink quick-test").text().to_owned();
    assert!(text.lines().count() == 8 && text.lines().all(|line| line.ends_with("  ok")), "{text}");
    assert_eq!(scratch.tree().len(), 0);
}
