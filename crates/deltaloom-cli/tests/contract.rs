//! What scripts and servers rely on: exit codes, JSON errors, standard streams, default names, and
//! the options that every command has.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use common::{Scratch, finish};
use serde_json::Value;

#[test]
fn exit_codes_say_whose_fault_it_is() {
    let scratch = Scratch::with_small_pair();
    scratch.write("not.safetensors", b"hello, world");
    for (code, arguments) in [
        (0, "verify tuned.loom --base base.safetensors"),
        (1, "diff base.safetensors tuned.safetensors"),
        (2, "pack tuned.safetensors --no-such-option"),
        (2, "no-such-command"),
        (2, "unpack tuned.loom -o out"),
        (2, "unpack tuned.loom --base tuned.safetensors -o out"),
        (2, "pack tuned.safetensors -o base.safetensors"),
        (2, "pack not.safetensors -o out"),
        (2, "cat tuned.loom no-such-tensor --base base.safetensors"),
        (2, "cat tuned.loom weight --rows 7..99 --base base.safetensors"),
        (3, "pack nowhere.safetensors -o out"),
        (3, "pack tuned.safetensors --base nowhere.safetensors -o out"),
        (3, "pack tuned.safetensors --base base.safetensors --adapter nowhere -o out"),
        (3, "pack tuned.safetensors --base-dir nowhere -o out"),
        (3, "unpack nowhere.loom -o out"),
        (3, "unpack tuned.loom --base nowhere.safetensors -o out"),
        (3, "unpack tuned.loom --in-place nowhere.safetensors"),
        (3, "inspect nowhere.loom"),
        (3, "verify nowhere.loom"),
        (3, "diff base.safetensors nowhere.safetensors"),
        (3, "lineage base.safetensors nowhere.safetensors"),
        (3, "bench nowhere.safetensors"),
        (3, "estimate nowhere.safetensors --tenants 2"),
        (3, "series ls nowhere"),
        (3, "series watch nowhere folder --once"),
        (3, "lab matmul --base nowhere.safetensors --tuned tuned.safetensors"),
        (4, "pack tuned.safetensors -o nowhere/out.loom"),
        (4, "unpack tuned.loom --base base.safetensors -o nowhere/out"),
        (4, "cat tuned.loom weight --base base.safetensors -o nowhere/out"),
        (
            4,
            "lab matmul --base base.safetensors --tuned tuned.safetensors --tensor weight --html nowhere/page.html",
        ),
    ] {
        let before = scratch.tree();
        let ended = scratch.run(arguments);
        assert_eq!(ended.code, Some(code), "{arguments}: {}", ended.err);
        assert!(before == scratch.tree(), "{arguments}");
        assert_eq!(
            code < 2,
            ended.err.is_empty() || !ended.err.contains("error:"),
            "{arguments}: {}",
            ended.err
        );
    }
}

#[test]
fn every_command_says_how_many_threads_are_allowed() {
    let scratch = Scratch::with_small_pair();
    for command in [
        "pack",
        "unpack",
        "verify",
        "diff",
        "lineage",
        "bench",
        "estimate",
        "generate",
        "eval perplexity",
        "series add",
        "lab layer",
        "lab matmul",
        "lab tenants",
    ] {
        for number in ["=-1", " -1", "=1025", "=99999999999999999999", "=abc", "=1.5", "="] {
            let ended = scratch.run(&format!("{command} --threads{number}"));
            let message = "expected a number of threads from 1 to 1024, or 0 for one per core";
            assert_eq!(ended.code, Some(2), "{command} {number}: {}", ended.err);
            assert!(ended.err.contains(message), "{command} {number}: {}", ended.err);
        }
    }
    scratch.ok("verify tuned.loom --base base.safetensors --threads 0");
}

/// A store that nobody serves, at a port of this machine that was free a moment ago.
#[cfg(feature = "object-store")]
#[test]
fn an_unreachable_store_has_a_code_of_its_own() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let scratch = Scratch::with_small_pair();
    let run = |arguments: &str| {
        let mut command = scratch.command(arguments);
        command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_ACCESS_KEY_ID", "dummy").env("AWS_SECRET_ACCESS_KEY", "dummy");
        command.env("AWS_REGION", "us-east-1");
        finish(command.spawn().unwrap())
    };
    for arguments in ["series ls s3://bucket/run", "series add s3://bucket/run tuned.safetensors --step 1"] {
        let ended = run(arguments);
        assert_eq!(ended.code, Some(5), "{}", ended.err);
        let ended = run(&format!("{arguments} --json"));
        assert_eq!(ended.json()["error"]["kind"], "store_unreachable");
    }
}

#[test]
fn errors_are_json_too() {
    let scratch = Scratch::with_small_pair();
    scratch.write("cut.loom", &scratch.read("tuned.loom")[..100]);
    let expected = [
        (
            "unpack tuned.loom --json --base nowhere.safetensors -o out",
            3,
            "not_found",
            "nowhere.safetensors",
            None,
        ),
        ("unpack tuned.loom --json -o out", 2, "wrong_base", "tuned.loom", Some("norm")),
        ("inspect cut.loom --json", 2, "corrupt", "cut.loom", None),
        ("pack tuned.safetensors --json -o base.safetensors", 2, "exists", "base.safetensors", None),
        (
            "pack tuned.safetensors --json -o tuned.safetensors --overwrite",
            2,
            "protected",
            "tuned.safetensors",
            None,
        ),
        ("pack tuned.safetensors --json -o nowhere/out.loom", 4, "cannot_write", "nowhere", None),
        ("series ls nowhere --json", 3, "not_found", "", None),
        ("pack tuned.safetensors --json --no-such-option", 2, "usage", "", None),
        ("diff base.safetensors --json", 2, "usage", "", None),
    ];
    for (arguments, code, kind, path, tensor) in expected {
        let ended = scratch.run(arguments);
        assert_eq!(ended.code, Some(code), "{arguments}: {}", ended.err);
        let printed = ended.json();
        let error = printed["error"].as_object().unwrap();
        let keys: BTreeSet<&str> = error.keys().map(String::as_str).collect();
        let expected = BTreeSet::from(["hint", "kind", "message", "path", "tensor"]);
        assert_eq!(keys, expected, "{arguments}");
        assert_eq!(error["kind"], kind, "{arguments}");
        let text = |name: &str| error[name].as_str().unwrap_or_default();
        assert!(ended.err.contains(text("message").lines().next().unwrap()), "{arguments}: {}", ended.err);
        assert!(!text("hint").is_empty(), "{arguments}: no hint");
        assert_eq!(text("path"), path, "{arguments}");
        assert_eq!(error["tensor"].as_str(), tensor, "{arguments}");
    }
    // Without --json, standard output has nothing.
    assert_eq!(scratch.run("inspect cut.loom").text(), "");
}

/// Runs a shell script in which `$0` is the program.
fn shell(scratch: &Scratch, script: &str) -> common::Ended {
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(env!("CARGO_BIN_EXE_deltaloom"));
    scratch.prepare(&mut command);
    finish(command.spawn().unwrap())
}

#[cfg(unix)]
#[test]
fn a_dash_is_standard_output() {
    let scratch = Scratch::with_small_pair();
    scratch.ok("series init series");
    scratch.ok("series add series tuned.safetensors --step 1");
    let script = r#"set -e
        "$0" pack tuned.safetensors --base base.safetensors -o - > piped.loom
        "$0" unpack tuned.loom --base base.safetensors -o - | cat > piped.safetensors
        "$0" series get series --step 1 -o - | cat > from-series.safetensors
        "$0" cat tuned.loom weight --base base.safetensors -o - > one
        "$0" cat tuned.loom weight --base base.safetensors > two
        "$0" series get series --step 1 --only weight -o - > three
        "$0" series plot series -o - > page.html"#;
    let ended = shell(&scratch, script);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(scratch.read("piped.loom") == scratch.read("tuned.loom"));
    assert!(scratch.read("piped.safetensors") == scratch.read("tuned.safetensors"));
    assert!(scratch.read("from-series.safetensors") == scratch.read("tuned.safetensors"));
    assert_eq!(scratch.read("one").len(), 6000);
    assert!(scratch.read("one") == scratch.read("two") && scratch.read("one") == scratch.read("three"));
    assert!(scratch.read("page.html").starts_with(b"<!DOCTYPE html>"));
    assert!(!scratch.path().join("-").exists());
    // The report of what went to standard output goes to standard error.
    let ended = scratch.ok("pack tuned.safetensors --base base.safetensors -o - --json");
    assert!(ended.out == scratch.read("tuned.loom"));
    let report: Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(report["packed_bytes"], ended.out.len());
    // A folder is no stream.
    scratch.write("model/a", b"1");
    scratch.ok("pack model");
    assert!(scratch.refused("unpack model.loom -o -").contains("a folder is restored as files"));
}

#[test]
fn standard_input_is_refused_with_the_reason() {
    let scratch = Scratch::with_small_pair();
    for arguments in [
        "pack - -o out.loom",
        "pack tuned.safetensors --base - -o out.loom",
        "unpack - -o out",
        "unpack tuned.loom --base - -o out",
        "unpack tuned.loom --in-place -",
        "inspect -",
        "verify -",
        "cat - weight",
        "diff - tuned.safetensors",
        "lineage - tuned.safetensors",
        "bench -",
        "series add series - --step 1",
    ] {
        let error = scratch.refused(arguments);
        assert!(
            error.contains("cannot read standard input") && error.contains("at arbitrary positions"),
            "{error}"
        );
    }
}

/// `script` gives a command a terminal.
#[cfg(target_os = "linux")]
#[test]
fn raw_bytes_do_not_go_to_a_terminal() {
    let scratch = Scratch::with_small_pair();
    for command in [
        "cat tuned.loom weight --base base.safetensors",
        "pack tuned.safetensors -o -",
        "unpack tuned.loom --base base.safetensors -o -",
    ] {
        let program = env!("CARGO_BIN_EXE_deltaloom");
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{program} {command}"), "/dev/null"]);
        scratch.prepare(&mut script);
        // Where there is no such program, there is nothing to see.
        let Ok(child) = script.spawn() else { return };
        let ended = finish(child);
        assert_eq!(ended.code, Some(2), "{command}");
        assert!(ended.text().contains("standard output is a terminal"), "{command}: {}", ended.text());
    }
}

#[test]
fn outputs_have_names_beside_their_inputs() {
    let scratch = Scratch::with_small_pair();
    scratch.write("in/deep/tuned.safetensors", &scratch.read("tuned.safetensors"));
    scratch.ok("pack in/deep/tuned.safetensors --base base.safetensors");
    assert!(scratch.read("in/deep/tuned.loom") == scratch.read("tuned.loom"));
    assert!(scratch.refused("unpack in/deep/tuned.loom --base base.safetensors").contains("exists"));
    fs::remove_file(scratch.path().join("in/deep/tuned.safetensors")).unwrap();
    scratch.ok("unpack in/deep/tuned.loom --base base.safetensors");
    assert!(scratch.read("in/deep/tuned.safetensors") == scratch.read("tuned.safetensors"));
    // A folder, also by the name `.`.
    scratch.write("model-v1.5/weights.bin", b"1234");
    scratch.ok("pack model-v1.5/");
    let mut command = scratch.command("pack . --overwrite");
    command.current_dir(scratch.path().join("model-v1.5"));
    assert_eq!(finish(command.spawn().unwrap()).code, Some(0));
    assert_eq!(fs::read_dir(scratch.path().join("model-v1.5")).unwrap().count(), 1);
    fs::rename(scratch.path().join("model-v1.5.loom"), scratch.path().join("copy-v1.5.loom")).unwrap();
    scratch.ok("unpack copy-v1.5.loom");
    assert_eq!(scratch.read("copy-v1.5/weights.bin"), b"1234");
}

#[test]
fn help_completions_and_manual_pages_come_from_the_program() {
    let scratch = Scratch::new();
    assert!(scratch.ok("help").text().contains("Usage: deltaloom"));
    assert!(scratch.ok("help series add").text().contains("--step"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(scratch.ok(&format!("completions {shell}")).text().contains("in-place"), "{shell}");
    }
    assert!(scratch.ok("man").text().contains(".TH deltaloom"));
    assert!(scratch.ok("man series add").text().contains(".TH deltaloom-series-add"));
    assert!(scratch.refused("man nothing").contains("unknown command"));
    for command in ["", "pack", "unpack", "series", "series get", "lab matmul"] {
        let help = scratch.ok(&format!("{command} --help"));
        assert!(help.text().contains("Exit codes: 0 success"), "{command}");
    }
}

#[test]
fn quiet_and_verbose_change_standard_error_only() {
    let scratch = Scratch::with_small_pair();
    let pack = "pack tuned.safetensors --base base.safetensors -o out.loom --overwrite";
    assert!(scratch.ok(pack).err.contains("ratio"));
    assert_eq!(scratch.ok(&format!("{pack} -q")).err, "");
    assert_eq!(scratch.ok(&format!("-q {pack}")).err, "");
    let quiet = scratch.run("-q pack nowhere -o out2.loom");
    assert_eq!((quiet.code, quiet.err.starts_with("error: ")), (Some(3), true));
    let verbose = scratch.ok(&format!("{pack} -v")).err;
    assert!(verbose.contains("INFO") && verbose.contains("base.safetensors"), "{verbose}");
    let chatty = scratch.ok(&format!("{pack} -vv")).err;
    assert!(chatty.contains("DEBUG") && chatty.contains("norm"), "{chatty}");
    scratch.refused(&format!("{pack} -q -v"));
}

#[test]
fn colours_are_a_choice() {
    let scratch = Scratch::new();
    let escape = '\u{1b}';
    for arguments in ["inspect nowhere", "inspect --no-such-option"] {
        let error = |color: &str, no_color: bool| {
            let mut command = scratch.command(&format!("{arguments} {color}"));
            if no_color {
                command.env("NO_COLOR", "1");
            }
            finish(command.spawn().unwrap()).err
        };
        assert!(!error("", false).contains(escape) && !error("--color never", false).contains(escape));
        assert!(error("--color always", false).contains(escape), "{arguments}");
        assert!(error("--color=always", true).contains(escape), "{arguments}");
    }
}

#[test]
fn progress_is_json_where_asked_for() {
    let scratch = Scratch::with_small_pair();
    let pack = "pack tuned.safetensors --base base.safetensors -o out.loom --overwrite";
    let ended = scratch.ok(&format!("{pack} --progress json -q"));
    let lines: Vec<Value> = ended.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 2);
    for line in &lines {
        let state = line["progress"].as_object().unwrap();
        let keys: BTreeSet<&str> = state.keys().map(String::as_str).collect();
        assert_eq!(keys, BTreeSet::from(["done_bytes", "seconds", "total_bytes", "verb"]));
    }
    let last = &lines[lines.len() - 1]["progress"];
    assert_eq!((&last["verb"], &last["done_bytes"]), (&"packing".into(), &last["total_bytes"]));
    assert_eq!(scratch.ok(&format!("{pack} --progress never -q")).err, "");
}

#[test]
fn the_store_of_a_series_may_come_from_the_environment() {
    let scratch = Scratch::with_small_pair();
    let run = |arguments: &str| {
        let mut command = scratch.command(arguments);
        command.env("DELTALOOM_SERIES", "runs/one");
        finish(command.spawn().unwrap())
    };
    fs::create_dir(scratch.path().join("runs")).unwrap();
    fs::create_dir(scratch.path().join("out")).unwrap();
    for arguments in [
        "series init",
        "series add tuned.safetensors --step 1",
        "series ls",
        "series show --step newest",
        "series watch out --once",
        "series get --step 1 -o restored.safetensors",
        "series verify",
        "series plot -o page.html",
    ] {
        let ended = run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments}: {}", ended.err);
    }
    assert!(scratch.read("restored.safetensors") == scratch.read("tuned.safetensors"));
    // The command line takes precedence.
    scratch.ok("series init runs/two");
    let ended = run("series ls runs/two --json");
    assert_eq!(ended.json()["steps"], serde_json::json!([]));
    let error = scratch.refused("series add tuned.safetensors --step 2");
    assert!(error.contains("DELTALOOM_SERIES"), "{error}");
    assert!(scratch.ok("series ls --help").text().contains("[env: DELTALOOM_SERIES]"));
    scratch.refused("series ls");
    // Options may stand between the two.
    scratch.ok("series add runs/two --step 1 tuned.safetensors");
}

/// Both signals, in the middle of work; and twice in a row.
#[cfg(target_os = "linux")]
#[test]
fn signals_have_the_codes_of_shells() {
    let scratch = Scratch::new();
    scratch.write("big.safetensors", &common::many("ft_master", 40));
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let mut command = scratch.command("pack big.safetensors --preset max --threads 1 -o out.loom --json");
        command.stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        while !scratch.has_temporary() {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::yield_now();
        }
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ended = finish(child);
        assert_eq!(ended.code, Some(code), "{signal}: {}", ended.err);
        assert_eq!(ended.json()["error"]["kind"], "interrupted");
        assert!(!scratch.has_temporary() && !scratch.path().join("out.loom").exists());
    }
}
