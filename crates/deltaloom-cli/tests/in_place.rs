//! Unpacking in place with the real program: the same bytes as plain unpacking, or nothing written,
//! or a journal from which the next run resumes.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::fs;
use std::process::Child;
#[cfg(unix)]
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Scratch, asset, finish, safetensors};

const JOURNAL: &str = ".model.safetensors.loom-journal";
const IN_PLACE: &str = "unpack tuned.loom --in-place model.safetensors";

/// With a copy of the base to be changed.
fn small_pair() -> Scratch {
    let scratch = Scratch::with_small_pair();
    scratch.write("model.safetensors", &scratch.read("base.safetensors"));
    scratch
}

#[test]
fn every_bundled_model_becomes_every_other() {
    let names = ["base", "ft_bf16", "ft_master", "ft_lora_merged"];
    let scratch = Scratch::with_assets(&names);
    for from in names {
        for to in names {
            scratch.ok(&format!("pack {to}.safetensors -b {from}.safetensors -o tuned.loom --overwrite"));
            for mode in ["", "--check-all", "--trust-base"] {
                scratch.write("model.safetensors", &asset(from));
                let report = scratch.ok(&format!("{IN_PLACE} {mode} --json")).json();
                assert!(scratch.read("model.safetensors") == asset(to), "{from} {to} {mode}");
                assert_eq!(report["already_applied"], from == to);
                assert_eq!(report["written_bytes"] == 0, from == to);
                let again = scratch.ok(&format!("{IN_PLACE} {mode}"));
                assert!(again.err.contains("already is the fine-tune"), "{}", again.err);
            }
            assert!(scratch.read("model.safetensors") == asset(to));
        }
    }
    assert!(scratch.tree().keys().all(|path| !path.to_string_lossy().contains("loom-journal")));
}

#[test]
fn only_chunks_that_change_are_written() {
    let scratch = Scratch::new();
    // Four chunks, of which the third changes.
    let weights: Vec<u8> = (0..1u32 << 19).flat_map(|i| (0x3c00 + (i % 700) as u16).to_le_bytes()).collect();
    let mut changed = weights.clone();
    changed[600_000] ^= 1;
    scratch.write("base.safetensors", &safetensors(&[("w", "BF16", &[1024, 512], weights)]));
    scratch.write("model.safetensors", &scratch.read("base.safetensors"));
    scratch.write("tuned.safetensors", &safetensors(&[("w", "BF16", &[1024, 512], changed)]));
    scratch.ok("pack tuned.safetensors --base base.safetensors -o tuned.loom");
    let report = scratch.ok(&format!("{IN_PLACE} --json --threads 2")).json();
    assert_eq!((&report["written_bytes"], &report["threads"]), (&(1 << 18).into(), &2.into()));
    assert_eq!((&report["checked_tensors"], &report["resumed"]), (&1.into(), &false.into()));
    assert_eq!(report["original_bytes"], scratch.read("tuned.safetensors").len());
    assert_eq!(report["packed_bytes"], scratch.read("tuned.loom").len());
    assert!(scratch.read("model.safetensors") == scratch.read("tuned.safetensors"));
}

#[test]
fn a_wrong_base_is_left_as_it_is() {
    let scratch = small_pair();
    let mut wrong = scratch.read("base.safetensors");
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    scratch.write("model.safetensors", &wrong);
    for mode in ["", "--check-all", "--trust-base"] {
        let error = scratch.refused(&format!("{IN_PLACE} {mode}"));
        assert!(error.contains("no base has the reference of tensor \"weight\""), "{error}");
    }
    // --check-all also checks tensors that do not change.
    let mut other_norm = scratch.read("base.safetensors");
    let at = other_norm.windows(16).position(|w| w == [0x3f; 16]).unwrap();
    other_norm[at] ^= 1;
    scratch.write("model.safetensors", &other_norm);
    let error = scratch.refused(&format!("{IN_PLACE} --check-all"));
    assert!(error.contains("no base has the reference of tensor \"norm\""), "{error}");
}

#[test]
fn what_cannot_be_done_in_place_is_refused() {
    let scratch = small_pair();
    let file = scratch.read("base.safetensors");
    scratch.write("folder/model.safetensors", &file);
    scratch.write("other.safetensors", &safetensors(&[("other", "U8", &[1], vec![1])]));
    scratch.ok("pack folder --base base.safetensors -o folder.loom");
    for (arguments, said) in [
        ("unpack folder.loom --in-place model.safetensors", "holds a directory"),
        ("unpack tuned.loom --in-place folder", "is a directory"),
        ("unpack tuned.loom --in-place tuned.loom", "is a container"),
        ("unpack tuned.loom --in-place other.safetensors", "header takes"),
        ("unpack tuned.loom --in-place model.safetensors --base model.safetensors", "another base too"),
        ("unpack tuned.loom --in-place folder/model.safetensors --base folder", "another base too"),
        ("unpack tuned.loom --in-place model.safetensors -o out", "cannot be used with"),
        ("unpack tuned.loom", "--output"),
        ("unpack tuned.loom --trust-base -o out", "cannot be used with"),
        ("unpack tuned.loom --in-place model.safetensors --trust-base --check-all", "cannot be used with"),
    ] {
        let error = scratch.refused(arguments);
        assert!(error.contains(said), "{arguments}: {error}");
        assert!(!error.contains("in place: ") || error.contains("hint: unpack to a new file"), "{error}");
    }
    let path = scratch.path().join("model.safetensors");
    let locked = fs::File::open(&path).unwrap();
    locked.lock().unwrap();
    assert!(scratch.refused(IN_PLACE).contains("another process"));
    drop(locked);
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    assert!(scratch.refused(IN_PLACE).contains("read-only"));
}

#[cfg(unix)]
#[test]
fn a_file_with_another_name_is_changed_only_with_overwrite() {
    let scratch = small_pair();
    scratch.write("cache/blob", &scratch.read("base.safetensors"));
    let blob = scratch.path().join("cache/blob");
    std::os::unix::fs::symlink("cache/blob", scratch.path().join("soft.safetensors")).unwrap();
    fs::hard_link(scratch.path().join("model.safetensors"), scratch.path().join("hard.safetensors")).unwrap();
    for name in ["soft", "hard", "model"] {
        let error = scratch.refused(&format!("unpack tuned.loom --in-place {name}.safetensors"));
        assert!(error.contains("link") && error.contains("--overwrite"), "{error}");
    }
    for name in ["soft", "hard"] {
        scratch.ok(&format!("unpack tuned.loom --in-place {name}.safetensors --overwrite"));
    }
    assert!(fs::read(&blob).unwrap() == scratch.read("tuned.safetensors"));
    assert!(scratch.read("model.safetensors") == scratch.read("tuned.safetensors"));
    assert!(fs::symlink_metadata(scratch.path().join("soft.safetensors")).unwrap().is_symlink());
}

#[test]
fn a_journal_that_is_none_is_not_followed() {
    let scratch = small_pair();
    for journal in [&b""[..], b"not a journal", &[0; 5000]] {
        scratch.write(JOURNAL, journal);
        let error = scratch.refused(IN_PLACE);
        assert!(
            error.contains(JOURNAL) && error.contains("hint: run the command that left the journal again"),
            "{error}"
        );
    }
}

/// Somebody who may write to the folder must not choose what is overwritten.
#[cfg(unix)]
#[test]
fn a_link_in_the_place_of_a_journal_is_not_written_through() {
    let scratch = small_pair();
    scratch.write("precious", b"precious");
    let draft = scratch.path().join(format!("{JOURNAL}.new"));
    std::os::unix::fs::symlink("precious", draft).unwrap();
    scratch.ok(IN_PLACE);
    assert!(scratch.read("model.safetensors") == scratch.read("tuned.safetensors"));
    assert_eq!(scratch.read("precious"), b"precious");
}

/// The largest file that a process may write stands for a disk that fills up.
#[cfg(target_os = "linux")]
#[test]
fn a_journal_that_does_not_fit_on_the_disk_leaves_everything_as_it_was() {
    let scratch = Scratch::with_assets(&["base", "ft_bf16"]);
    scratch.ok("pack ft_bf16.safetensors --base base.safetensors -o tuned.loom");
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -f 256; exec "$@""#, "sh", env!("CARGO_BIN_EXE_deltaloom")]);
    command.args("unpack tuned.loom --in-place base.safetensors".split_whitespace());
    scratch.prepare(&mut command);
    let error = scratch.fails_as(4, command, "in place");
    assert!(error.contains("File too large") && error.contains("loom-journal"), "{error}");
}

/// 64 MB in which 3 % of the weights change.
fn large_pair() -> Scratch {
    let scratch = Scratch::new();
    let mut seed = 1u32;
    let mut random = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 16
    };
    let count = 8 << 20;
    let words = |words: &[u16]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut files = [Vec::new(), Vec::new()];
    let names: Vec<String> = (0..4).map(|i| format!("layers.{i}.weight")).collect();
    for name in &names {
        let weights: Vec<u16> = (0..count).map(|_| 0x3c00 + u16::try_from(random() % 700).unwrap()).collect();
        let moved = |weight: &u16| weight + u16::from(random() % 100 < 3);
        let tuned: Vec<u16> = weights.iter().map(moved).collect();
        files[0].push((name.as_str(), "BF16", &[4096, 2048][..], words(&weights)));
        files[1].push((name.as_str(), "BF16", &[4096, 2048][..], words(&tuned)));
    }
    scratch.write("base.safetensors", &safetensors(&files[0]));
    scratch.write("tuned.safetensors", &safetensors(&files[1]));
    scratch.ok("pack tuned.safetensors --base base.safetensors -o tuned.loom --preset fast");
    scratch.ok("pack base.safetensors --base tuned.safetensors -o back.loom --preset fast");
    scratch.write("model.safetensors", &scratch.read("base.safetensors"));
    scratch
}

fn has_journal(scratch: &Scratch) -> bool {
    scratch.path().join(JOURNAL).exists()
}

/// Waits until something holds or the child has ended.
fn wait(child: &mut Child, mut until: impl FnMut() -> bool) {
    while child.try_wait().unwrap().is_none() && !until() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_that_is_killed_again_and_again_gets_done() {
    let scratch = large_pair();
    let (base, tuned) = (scratch.read("base.safetensors"), scratch.read("tuned.safetensors"));
    let start = Instant::now();
    scratch.ok(IN_PLACE);
    let usual = start.elapsed();
    assert!(scratch.read("model.safetensors") == tuned);

    scratch.write("model.safetensors", &base);
    let (mut kills, mut with_journal, mut seed) = (0u32, 0, 7u32);
    while kills < 20 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mode = if seed >> 30 == 0 { "--trust-base" } else { "" };
        let mut child = scratch.command(&format!("{IN_PLACE} {mode}")).spawn().unwrap();
        // At any time, or some time after the journal is there.
        if kills % 2 == 1 {
            wait(&mut child, || has_journal(&scratch));
        }
        let (start, patience) = (Instant::now(), usual / 256 * (seed >> 16 & 0xff) / (1 + kills % 2 * 3));
        wait(&mut child, || start.elapsed() > patience);
        child.kill().unwrap();
        let ended = finish(child);
        if ended.code == Some(0) {
            assert!(scratch.read("model.safetensors") == tuned && !has_journal(&scratch));
            scratch.write("model.safetensors", &base);
            continue;
        }
        assert_eq!(ended.code, None, "{}", ended.err);
        kills += 1;
        if has_journal(&scratch) {
            with_journal += 1;
            let error = scratch.run("unpack back.loom --in-place model.safetensors");
            assert!(error.code == Some(2) && error.err.contains("another container"), "{}", error.err);
        }
    }
    assert!(with_journal > 0);
    scratch.ok(IN_PLACE);
    assert!(scratch.read("model.safetensors") == tuned);
    assert!(scratch.tree().keys().all(|path| !path.to_string_lossy().contains("loom-journal")));
}

#[cfg(unix)]
#[test]
fn an_interrupt_says_how_to_go_on() {
    let scratch = large_pair();
    let (base, tuned) = (scratch.read("base.safetensors"), scratch.read("tuned.safetensors"));
    let interrupted = |until: &dyn Fn() -> bool| {
        let mut child = scratch.command(&format!("{IN_PLACE} --threads 1")).spawn().unwrap();
        wait(&mut child, until);
        let _may_have_ended = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        finish(child)
    };
    // Until one comes in time.
    let error = loop {
        let ended = interrupted(&|| has_journal(&scratch));
        if ended.code == Some(130) {
            break ended.err;
        }
        assert!(scratch.read("model.safetensors") == tuned);
        scratch.write("model.safetensors", &base);
    };
    assert!(error.contains("model.safetensors is changed in part: interrupted"), "{error}");
    assert!(error.contains("hint: run the same command again"), "{error}");
    // Its contents may be private.
    let journal = fs::metadata(scratch.path().join(JOURNAL)).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&journal.permissions()) & 0o777, 0o600);
    let again = scratch.ok(IN_PLACE);
    assert!(again.err.contains("resumed an interrupted run"), "{}", again.err);
    assert!(scratch.read("model.safetensors") == tuned && !has_journal(&scratch));

    // The same before anything is written.
    loop {
        scratch.write("model.safetensors", &base);
        let ended = interrupted(&|| true);
        if has_journal(&scratch) {
            scratch.ok(IN_PLACE);
            continue;
        }
        if ended.code == Some(0) {
            assert!(scratch.read("model.safetensors") == tuned);
            continue;
        }
        assert!(!ended.err.contains("in part"), "{}", ended.err);
        assert!(scratch.read("model.safetensors") == base);
        break;
    }
}
