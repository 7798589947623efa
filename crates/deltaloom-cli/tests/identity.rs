//! What a container records: names, digests and texts. Errors that name the base, folders and
//! caches in which it is found, and files with tails.

mod common;

use common::*;
use serde_json::json;

/// With a folder `base` and a fine-tune of it beside it.
fn with_folders() -> Scratch {
    let scratch = Scratch::with_small_pair();
    scratch.write("base/model.safetensors", &scratch.read("base.safetensors"));
    scratch
}

#[test]
fn a_container_names_its_base_as_it_was_given() {
    let scratch = with_folders();
    let named = |arguments: &str| {
        let pack = format!("pack tuned.safetensors {arguments} -o named.loom --overwrite --json");
        let packed = scratch.ok(&pack).json();
        let inspected = scratch.ok("inspect named.loom --json").json();
        for key in ["bases", "texts", "format_version", "needs_base"] {
            assert_eq!(packed[key], inspected[key], "{key}");
        }
        inspected
    };
    let absolute = scratch.path().join("base/model.safetensors");
    let absolute = absolute.to_str().unwrap();
    for (arguments, name) in [
        ("--base base.safetensors".to_owned(), "base.safetensors"),
        ("--base base/model.safetensors".to_owned(), "base/model.safetensors"),
        ("--base ./base".to_owned(), "base"),
        (format!("--base {absolute}"), "model.safetensors"),
        ("--base base --base-name org/model@5f0b02c".to_owned(), "org/model@5f0b02c"),
        ("--base-dir base --base-name org/found@1".to_owned(), "org/found@1"),
    ] {
        let said = named(&arguments);
        assert_eq!(said["bases"][0]["name"], name, "{arguments}");
        assert_eq!(said["bases"][0]["digest"].as_str().unwrap().len(), 32);
        assert_eq!((&said["format_version"], &said["needs_base"]), (&json!(4), &json!(true)));
    }
    let text = scratch.ok("inspect named.loom");
    let digest = named("--base-dir base --base-name org/found@1")["bases"][0]["digest"].clone();
    for line in [
        "format version: 4",
        "needs a base: yes",
        &format!("base: org/found@1 (digest {})", digest.as_str().unwrap()),
    ] {
        assert!(text.text().lines().any(|told| told == line), "{line}: {}", text.text());
    }
    let path = scratch.path().to_str().unwrap().as_bytes().to_vec();
    named(&format!("--base {absolute}"));
    assert!(!scratch.read("named.loom").windows(path.len()).any(|window| window == path));
}

#[test]
fn several_bases_and_adapters_are_named_in_order() {
    let scratch = with_folders();
    let weights: Vec<u8> = (0..3000u16).flat_map(|i| (0x4000 + i % 500).to_le_bytes()).collect();
    let second = safetensors(&[("other", "BF16", &[60, 50], weights.clone())]);
    scratch.write("second.safetensors", &second);
    let mut tensors = vec![("other", "BF16", &[60u64, 50][..], weights)];
    tensors.extend([("norm", "BF16", &[8u64][..], vec![0x3f; 16])]);
    scratch.write("both.safetensors", &safetensors(&tensors));
    let pack = "pack both.safetensors --base base.safetensors --base second.safetensors -o both.loom --overwrite --json";
    let names = |arguments: &str| {
        let said = scratch.ok(&format!("{pack} {arguments}")).json();
        said["bases"].as_array().unwrap().iter().map(|base| base["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(""), ["base.safetensors", "second.safetensors"]);
    assert_eq!(names("--base-name first"), ["first", "second.safetensors"]);
    assert_eq!(names("--base-name a --base-name b"), ["a", "b"]);
    let many = scratch.refused(&format!("{pack} --base-name a --base-name b --base-name c"));
    assert!(many.contains("3 names") && many.contains("2 bases"), "{many}");
    scratch.refused(&format!("{pack} --base-name="));
    // An unused base is not recorded.
    scratch.ok("pack tuned.safetensors --base base.safetensors --base second.safetensors -o one.loom");
    let one = scratch.ok("inspect one.loom --json").json();
    assert_eq!(one["bases"].as_array().unwrap().len(), 1);
    // Unless no base is used.
    scratch.write("alone.safetensors", &safetensors(&[("x", "F64", &[2], (0..16).collect())]));
    scratch.ok("pack alone.safetensors --base base.safetensors -o alone.loom");
    let alone = scratch.ok("inspect alone.loom");
    assert!(alone.text().contains("needs a base: no") && alone.text().contains("base: base.safetensors"));
    scratch.ok("unpack alone.loom -o again.safetensors");
}

#[test]
fn texts_are_kept_and_shown() {
    let scratch = Scratch::with_small_pair();
    let pack = "pack tuned.safetensors --base base.safetensors -o said.loom --overwrite";
    let mut command = scratch.command(pack);
    command.args(["--meta", "licence=CC-BY 4.0", "--meta", "equation=a=b", "--meta", "steering=\u{1b}[31m"]);
    assert_eq!(finish(command.spawn().unwrap()).code, Some(0));
    let said = scratch.ok("inspect said.loom --json").json();
    let texts = json!({"licence": "CC-BY 4.0", "equation": "a=b", "steering": "\u{1b}[31m"});
    assert_eq!(said["texts"], texts);
    let shown = scratch.ok("inspect said.loom");
    assert!(shown.text().contains("licence: CC-BY 4.0\n") && !shown.text().contains('\u{1b}'));
    scratch.ok("unpack said.loom --base base.safetensors -o again.safetensors");
    assert!(scratch.read("again.safetensors") == scratch.read("tuned.safetensors"));
    for bad in ["--meta licence", "--meta =x", "--meta a=1 --meta a=2", "--meta a=1 --no-identity"] {
        scratch.refused(&format!("{pack} {bad}"));
    }
    // Also without a base.
    scratch.ok("pack tuned.safetensors --meta run=7 -o alone.loom");
    let alone = scratch.ok("inspect alone.loom --json").json();
    assert_eq!((&alone["texts"], &alone["bases"]), (&json!({"run": "7"}), &json!([])));
}

#[test]
fn without_identity_the_container_is_as_it_always_was() {
    let scratch = Scratch::with_small_pair();
    scratch.ok("pack tuned.safetensors --base base.safetensors --no-identity -o plain.loom");
    let plain = scratch.read("plain.loom");
    assert_eq!(plain[8], 3);
    assert!(!plain.windows(5).any(|window| window == b"base."));
    let named = scratch.read("tuned.loom");
    assert_eq!(named[8], 4);
    let name = "base.safetensors".len();
    assert!(named.len() <= plain.len() + name + 48, "{} {}", named.len(), plain.len());
    scratch.ok("unpack plain.loom --base base.safetensors -o again.safetensors");
    let shown = scratch.ok("inspect plain.loom");
    assert!(shown.text().contains("needs a base: yes (not recorded)"), "{}", shown.text());
    // Nothing is needed and nothing said.
    scratch.ok("pack base.safetensors -o alone.loom");
    assert_eq!(scratch.read("alone.loom")[8], 3);
}

#[test]
fn errors_name_the_base_that_is_needed() {
    let scratch = Scratch::with_small_pair();
    scratch.ok("pack tuned.safetensors --base base.safetensors --base-name org/model@5f0b -o named.loom");
    scratch.write("ckpt_11.safetensors", &safetensors(&[("other", "U8", &[1], vec![1])]));
    for command in ["unpack named.loom -o out.safetensors", "cat named.loom weight"] {
        let without = scratch.refused(command);
        assert!(without.contains("this container needs org/model@5f0b (digest "), "{without}");
        assert!(without.contains("no base was given"), "{without}");
        assert!(without.contains("hint: ") && without.contains("--base-dir"), "{without}");
        let wrong = scratch.refused(&format!("{command} --base ckpt_11.safetensors"));
        assert!(wrong.contains("needs org/model@5f0b") && wrong.contains("ckpt_11.safetensors"), "{wrong}");
    }
    let verify = scratch.refused("verify named.loom --base ckpt_11.safetensors");
    assert!(verify.contains("needs org/model@5f0b"), "{verify}");
    scratch.write("copy.safetensors", &scratch.read("tuned.safetensors"));
    let mut bytes = scratch.read("base.safetensors");
    *bytes.last_mut().unwrap() ^= 1;
    scratch.write("copy.safetensors", &bytes);
    let in_place = scratch.refused("unpack named.loom --in-place copy.safetensors");
    assert!(in_place.contains("needs org/model@5f0b"), "{in_place}");
    assert!(scratch.read("copy.safetensors") == bytes);
}

#[test]
fn the_base_is_found_in_a_folder() {
    let scratch = Scratch::with_small_pair();
    scratch.write("models/deep/er/base.safetensors", &scratch.read("base.safetensors"));
    scratch.write("models/broken.safetensors", b"nothing");
    scratch.write("models/tuned.safetensors", &scratch.read("tuned.safetensors"));
    let tuned = scratch.read("tuned.safetensors");
    std::fs::remove_file(scratch.path().join("base.safetensors")).unwrap();

    let unpacked = scratch.ok("unpack tuned.loom --base-dir models -o out.safetensors");
    assert!(unpacked.err.contains("base: models/deep/er/base.safetensors"), "{}", unpacked.err);
    assert!(!unpacked.err.contains("broken"), "{}", unpacked.err);
    assert!(scratch.read("out.safetensors") == tuned);
    let verified = scratch.ok("verify tuned.loom --base-dir models");
    assert!(verified.text().contains("every digest"), "{}", verified.text());
    let norm = scratch.ok("cat tuned.loom norm --base-dir models");
    assert_eq!(norm.out, [0x3f; 16]);
    let json = scratch.ok("unpack tuned.loom --base-dir models -o json.safetensors --json").json();
    assert_eq!(json["original_bytes"], tuned.len());
    // Not beside a file that is the base.
    scratch.refused("unpack tuned.loom --base-dir models --in-place models/tuned.safetensors");

    std::fs::remove_dir_all(scratch.path().join("models/deep")).unwrap();
    let before = scratch.tree();
    for command in ["unpack tuned.loom -o none.safetensors", "verify tuned.loom", "cat tuned.loom weight"] {
        let missing = scratch.run(&format!("{command} --base-dir models"));
        assert_eq!(missing.code, Some(NOT_FOUND), "{command}: {}", missing.err);
        assert!(missing.err.contains("base.safetensors (digest "), "{}", missing.err);
        assert!(missing.err.contains("models/broken.safetensors"), "{}", missing.err);
    }
    assert!(scratch.tree() == before);
    let nowhere = scratch.run("unpack tuned.loom --base-dir nowhere -o none.safetensors");
    assert!(nowhere.code == Some(NOT_FOUND) && nowhere.err.contains("nowhere"), "{}", nowhere.err);
}

#[test]
fn containers_that_are_given_or_found_may_rest_on_what_is_in_the_folder() {
    let scratch = Scratch::with_small_pair();
    let last = scratch
        .read("tuned.safetensors")
        .iter()
        .map(|byte| byte ^ u8::from(*byte == 0x3d))
        .collect::<Vec<_>>();
    scratch.write("last.safetensors", &last);
    scratch.ok("pack last.safetensors --base base.safetensors --base tuned.loom -o last.loom");
    let said = scratch.ok("inspect last.loom --json").json();
    let names: Vec<_> = said["bases"].as_array().unwrap().iter().map(|base| base["name"].clone()).collect();
    assert!(names.contains(&json!("tuned.loom")), "{names:?}");
    scratch.write("models/base.safetensors", &scratch.read("base.safetensors"));
    std::fs::remove_file(scratch.path().join("base.safetensors")).unwrap();
    std::fs::remove_file(scratch.path().join("tuned.safetensors")).unwrap();
    let alone = scratch.refused("unpack last.loom --base tuned.loom -o out.safetensors");
    assert!(alone.contains("tuned.loom") && alone.contains("needs base.safetensors"), "{alone}");
    scratch.ok("unpack last.loom --base tuned.loom --base-dir models -o out.safetensors");
    assert!(scratch.read("out.safetensors") == last);
    // Found, with what it rests on.
    scratch.write("models/steps/tuned.loom", &scratch.read("tuned.loom"));
    scratch.ok("unpack last.loom --base-dir models -o again.safetensors");
    assert!(scratch.read("again.safetensors") == last);
}

/// Exit code for what is not there.
const NOT_FOUND: i32 = 3;

#[cfg(unix)]
#[test]
fn the_base_is_found_in_a_cache_of_a_hub() {
    let scratch = Scratch::with_small_pair();
    let repository = "cache/hub/models--org--model";
    scratch.write(&format!("{repository}/blobs/0a1b"), &scratch.read("base.safetensors"));
    scratch.write(&format!("{repository}/refs/main"), b"5f0b02c");
    let snapshot = scratch.path().join(repository).join("snapshots/5f0b02c");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::os::unix::fs::symlink("../../blobs/0a1b", snapshot.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("..", scratch.path().join("cache/hub/round")).unwrap();
    let file = format!("{repository}/snapshots/5f0b02c/model.safetensors");
    for base in [&file[..], file.trim_end_matches("/model.safetensors")] {
        scratch.ok(&format!("pack tuned.safetensors --base {base} -o tuned.loom --overwrite"));
        let said = scratch.ok("inspect tuned.loom --json").json();
        assert_eq!(said["bases"][0]["name"], "org/model@5f0b02c", "{base}");
    }
    std::fs::remove_file(scratch.path().join("base.safetensors")).unwrap();
    for (i, folder) in ["cache", "cache/hub", repository].into_iter().enumerate() {
        scratch.ok(&format!("unpack tuned.loom --base-dir {folder} -o out{i}.safetensors"));
        assert!(scratch.read(&format!("out{i}.safetensors")) == scratch.read("tuned.safetensors"));
    }
}

#[test]
fn series_say_nothing_of_themselves() {
    let scratch = Scratch::with_small_pair();
    scratch.ok("series init runs");
    scratch.ok("series add runs base.safetensors --step 1");
    scratch.ok("series add runs tuned.safetensors --step 2");
    let containers: Vec<Vec<u8>> = scratch
        .tree()
        .into_iter()
        .filter(|(path, bytes)| {
            path.starts_with(scratch.path().join("runs")) && bytes.starts_with(b"\x89LOOM\r\n\x1a")
        })
        .map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(containers.len(), 2);
    assert!(containers.iter().all(|container| container[8] == 3));
}

#[test]
fn files_with_bytes_behind_their_last_tensor_come_back() {
    let scratch = Scratch::with_small_pair();
    let with_tail = |name: &str, tail: &[u8]| [&scratch.read(name)[..], tail].concat();
    scratch.write("b/model.safetensors", &with_tail("base.safetensors", b"four"));
    scratch.write("t/model.safetensors", &with_tail("tuned.safetensors", b"for\n"));
    scratch.write("t/config.json", b"{}");
    // Alone, in a folder, against a base with a tail and one without.
    for (what, base) in [
        ("t/model.safetensors", ""),
        ("t/model.safetensors", "--base b/model.safetensors"),
        ("t/model.safetensors", "--base base.safetensors"),
        ("t", "--base b"),
        ("t", ""),
        ("tuned.safetensors", "--base b/model.safetensors"),
    ] {
        scratch.ok(&format!("pack {what} {base} -o packed.loom --overwrite"));
        scratch.ok(&format!("verify packed.loom {base}"));
        scratch.ok(&format!("unpack packed.loom {base} -o back"));
        let back = |name: &str| scratch.read(&format!("back{name}"));
        if what == "t" {
            assert!(back("/model.safetensors") == scratch.read("t/model.safetensors"), "{base}");
            assert_eq!(back("/config.json"), b"{}");
            std::fs::remove_dir_all(scratch.path().join("back")).unwrap();
        } else {
            assert!(back("") == scratch.read(what), "{what} {base}");
            std::fs::remove_file(scratch.path().join("back")).unwrap();
        }
    }
    scratch.ok("pack t/model.safetensors --base b/model.safetensors -o packed.loom --overwrite");
    assert!(scratch.ok("inspect packed.loom --tensors").text().contains("__tail__"));
    assert_eq!(scratch.ok("cat packed.loom __tail__ --base b/model.safetensors").out, b"for\n");
    let differs = scratch.run("diff b/model.safetensors t/model.safetensors");
    assert!(differs.code == Some(1) && differs.text().contains("__tail__"), "{}", differs.text());
    let row = scratch.ok("bench t/model.safetensors --only deltaloom --rounds 1 --json").json();
    assert!(!row.is_null());

    // In a series, whose steps have tails of other lengths, and found in a folder.
    scratch.ok("series init runs");
    for (step, name) in [(1, "base.safetensors"), (2, "b/model.safetensors"), (3, "t/model.safetensors")] {
        scratch.ok(&format!("series add runs {name} --step {step}"));
        scratch.ok(&format!("series get runs --step {step} -o step.safetensors --overwrite"));
        assert!(scratch.read("step.safetensors") == scratch.read(name), "{name}");
    }
    scratch.ok("unpack packed.loom --base-dir b -o found.safetensors");
    assert!(scratch.read("found.safetensors") == scratch.read("t/model.safetensors"));

    // In place: the same length is written, another one refused without a byte changed.
    scratch.write("place.safetensors", &scratch.read("b/model.safetensors"));
    scratch.ok("unpack packed.loom --in-place place.safetensors");
    assert!(scratch.read("place.safetensors") == scratch.read("t/model.safetensors"));
    scratch.write("place.safetensors", &scratch.read("base.safetensors"));
    let refused = scratch.refused("unpack packed.loom --in-place place.safetensors");
    assert!(refused.contains("cannot be changed in place"), "{refused}");
    assert!(scratch.read("place.safetensors") == scratch.read("base.safetensors"));
}
