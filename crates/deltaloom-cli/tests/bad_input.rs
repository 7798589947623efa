//! Bad inputs, bad outputs and full disks: a clear error, nothing written or lost.

mod common;

use std::fs;
#[cfg(unix)]
use std::process::Command;

use common::{Scratch, asset, safetensors, with_header};

#[test]
fn a_container_with_any_damage_restores_nothing() {
    let scratch = Scratch::with_small_pair();
    let whole = scratch.read("tuned.loom");
    let unpack = "unpack damaged.loom --base base.safetensors -o out.safetensors";
    for cut in (0..whole.len()).step_by(whole.len() / 12) {
        scratch.write("damaged.loom", &whole[..cut]);
        scratch.refused(unpack);
    }
    let flips = (0..whole.len()).step_by(whole.len() / 40).chain([8, 15, whole.len() - 1, whole.len() - 16]);
    for at in flips {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        scratch.write("damaged.loom", &damaged);
        scratch.refused(unpack);
    }
    scratch.write("damaged.loom", &[&whole[..], b"\n"].concat());
    scratch.refused(unpack);
    scratch.write("damaged.loom", &[&whole[..8], &[9], &whole[9..]].concat());
    assert!(scratch.refused(unpack).contains("version 9 is not supported"));
}

#[test]
fn a_safetensors_file_with_any_damage_is_neither_packed_nor_used_as_base() {
    let scratch = Scratch::with_small_pair();
    let whole = scratch.read("tuned.safetensors");
    let entry =
        |name: &str, range: &str| format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":{range}}}"#);
    let two = |a: String, b: String| with_header(&format!("{{{a},{b}}}"), &[1; 8]);
    let one = |range: &str| with_header(&format!("{{{}}}", entry("a", range)), &[1; 8]);
    for (bytes, said) in [
        (whole[..5].to_vec(), "truncated"),
        (whole[..50].to_vec(), "truncated"),
        (whole[..whole.len() - 1].to_vec(), "truncated"),
        (vec![0xff; 100], "the limit is"),
        (with_header("[]", b""), "expected an object"),
        (with_header(r#"{"a":1}"#, b""), "header"),
        (two(entry("a", "[0,4]"), entry("a", "[4,8]")), "two tensors are named"),
        (two(entry("a", "[0,4]"), entry("b", "[2,6]")), "overlaps"),
        (one("[4,8]"), "hole"),
        (one("[0,8]"), "does not take"),
        (one("[4,0]"), "before its begin"),
        (one("[18446744073709551612,18446744073709551615]"), "does not take"),
    ] {
        scratch.write("bad.safetensors", &bytes);
        for arguments in [
            "pack bad.safetensors -o out.loom",
            "pack tuned.safetensors --base bad.safetensors -o out.loom",
            "unpack tuned.loom --base bad.safetensors -o out.safetensors",
        ] {
            let error = scratch.refused(arguments);
            assert!(error.contains("bad.safetensors") && error.contains(said), "{said}: {error}");
        }
    }
}

#[test]
fn only_the_very_base_restores() {
    let scratch = Scratch::with_small_pair();
    let mut changed = scratch.read("base.safetensors");
    let last = changed.len() - 1;
    changed[last] ^= 1;
    scratch.write("changed.safetensors", &changed);
    scratch.write("other.safetensors", &safetensors(&[("other", "U8", &[1], vec![1])]));
    for base in ["changed.safetensors", "tuned.safetensors", "other.safetensors", "tuned.loom"] {
        for command in ["unpack tuned.loom -o out", "verify tuned.loom", "cat tuned.loom weight"] {
            let error = scratch.refused(&format!("{command} --base {base}"));
            assert!(
                error.contains("no base has the reference of tensor") && error.contains("hint: "),
                "{error}"
            );
        }
    }
    scratch.refused("unpack tuned.loom -o out");
    scratch.ok("unpack tuned.loom --base changed.safetensors --base base.safetensors -o out");
}

#[test]
fn an_output_that_exists_is_refused_and_stays() {
    let scratch = Scratch::with_small_pair();
    scratch.write("there", b"precious");
    scratch.write("folder/there", b"precious");
    scratch.write("checkpoint/weights.bin", b"1234");
    scratch.ok("pack checkpoint -o folder.loom");
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", scratch.path().join("dangling")).unwrap();
    let targets = if cfg!(unix) { &["there", "folder", "dangling"][..] } else { &["there", "folder"] };
    for target in targets {
        for command in [
            "pack tuned.safetensors -o",
            "unpack tuned.loom --base base.safetensors -o",
            "unpack folder.loom -o",
        ] {
            let error = scratch.refused(&format!("{command} {target}"));
            assert!(error.contains("exists") && error.contains("--overwrite"), "{error}");
        }
    }
    scratch.refused("demo --keep folder");
}

#[test]
fn overwrite_replaces_a_file_by_a_file_and_files_in_a_folder() {
    let scratch = Scratch::with_small_pair();
    scratch.write("file", b"old");
    scratch.write("folder/old", b"old");
    scratch.write("checkpoint/sub/weights.bin", b"1234");
    scratch.ok("pack checkpoint -o folder.loom");
    let unpack = "unpack tuned.loom --base base.safetensors --overwrite -o";
    scratch.refused(&format!("{unpack} folder"));
    scratch.refused("pack tuned.safetensors --overwrite -o folder");
    scratch.refused("unpack folder.loom --overwrite -o file");
    scratch.ok(&format!("{unpack} file"));
    assert!(scratch.read("file") == scratch.read("tuned.safetensors"));
    scratch.ok("unpack folder.loom --overwrite -o folder");
    assert_eq!(scratch.read("folder/sub/weights.bin"), b"1234");
    assert_eq!(scratch.read("folder/old"), b"old");
    assert!(!scratch.has_temporary());
}

#[test]
fn a_target_without_a_writable_folder_is_refused() {
    let scratch = Scratch::with_small_pair();
    let refuse = |folder: &str, said: &str| {
        for command in ["pack tuned.safetensors", "unpack tuned.loom --base base.safetensors"] {
            let error = scratch.fails(4, &format!("{command} -o {folder}/out"));
            assert!(error.contains(folder) && error.contains(said) && error.contains("hint: "), "{error}");
        }
    };
    refuse("nowhere/near", "");
    refuse("tuned.loom", "");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = scratch.path().join("locked");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
        // Root may write everywhere.
        if fs::write(folder.join("probe"), b"").is_err() {
            refuse("locked", "ermission denied");
        }
    }
}

#[test]
fn a_directory_without_files_is_no_checkpoint() {
    let scratch = Scratch::with_small_pair();
    fs::create_dir_all(scratch.path().join("empty/inner")).unwrap();
    for command in
        ["pack empty -o out.loom", "pack tuned.safetensors --base empty -o out.loom", "diff empty empty"]
    {
        assert!(scratch.refused(command).contains("no file"), "{command}");
    }
    scratch.refused("inspect empty");
}

#[test]
fn a_short_text_is_no_container_and_a_slash_names_no_file() {
    let scratch = Scratch::with_small_pair();
    scratch.write("short", b"hello");
    for command in ["inspect short", "verify short", "unpack short -o out"] {
        assert!(scratch.refused(command).contains("not a deltaloom container"), "{command}");
    }
    for command in ["unpack tuned.loom --base base.safetensors", "pack tuned.safetensors"] {
        let error = scratch.refused(&format!("{command} -o new/"));
        assert!(error.contains("new/ ends like a folder") && error.contains("hint: "), "{error}");
    }
}

/// Opening a pipe without a writer would block for ever, and renaming over a device would delete
/// it.
#[cfg(unix)]
#[test]
fn pipes_and_devices_are_neither_read_nor_replaced() {
    let scratch = Scratch::with_small_pair();
    fs::create_dir(scratch.path().join("folder")).unwrap();
    for pipe in ["pipe", "folder/pipe.safetensors"] {
        let made = Command::new("mkfifo").arg(scratch.path().join(pipe)).status().unwrap();
        assert!(made.success());
    }
    for input in ["pipe", "folder", "/dev/null"] {
        for command in ["pack", "pack tuned.safetensors --base", "unpack tuned.loom --base"] {
            let error = scratch.refused(&format!("{command} {input} -o out"));
            // A pipe in a folder is left out, and nothing else is there.
            let why = if input == "folder" { "there is no file in" } else { "not a regular file" };
            assert!(error.contains(why), "{error}");
        }
        scratch.refused(&format!("inspect {input}"));
        scratch.refused(&format!("diff base.safetensors {input}"));
    }
    for command in ["pack tuned.safetensors", "unpack tuned.loom --base base.safetensors"] {
        let error = scratch.refused(&format!("{command} -o pipe --overwrite"));
        assert!(error.contains("not a regular file"), "{error}");
    }
}

/// The largest file that a process may write stands for a disk that fills up in the middle.
#[cfg(target_os = "linux")]
#[test]
fn a_write_that_fails_in_the_middle_leaves_no_trace() {
    let scratch = Scratch::with_assets(&["base"]);
    for (name, bytes) in [("a.safetensors", asset("ft_bf16")), ("b.txt", vec![b'x'; 1000])] {
        scratch.write(&format!("folder/{name}"), &bytes);
    }
    scratch.ok("pack base.safetensors -o base.loom");
    scratch.ok("pack folder -o folder.loom");
    scratch.write("old.safetensors", b"old");
    scratch.write("old/old", b"old");
    for arguments in [
        "pack base.safetensors -o out.loom",
        "pack base.safetensors -o old.safetensors --overwrite",
        "unpack base.loom -o out.safetensors",
        "unpack base.loom -o old.safetensors --overwrite",
        "unpack folder.loom -o out",
        "unpack folder.loom -o old --overwrite",
    ] {
        let mut command = Command::new("sh");
        // Half a megabyte at most, in blocks of 512 or 1024 bytes. The signal for it ends a program
        // that does not catch it.
        command.args(["-c", r#"ulimit -f 256; exec "$@""#, "sh", env!("CARGO_BIN_EXE_deltaloom")]);
        command.args(arguments.split_whitespace());
        scratch.prepare(&mut command);
        let error = scratch.fails_as(4, command, arguments);
        assert!(error.contains("File too large") && error.contains("ulimit"), "{error}");
    }
}

/// A file system of its own in a new user namespace; skipped where the system does not allow that.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_left_as_it_was() {
    let scratch = Scratch::with_assets(&["base"]);
    scratch.ok("pack base.safetensors -o base.loom");
    let script = r#"
        "$0" pack base.safetensors -o disk/out.loom; echo "exit $?"
        "$0" unpack base.loom -o disk/out.safetensors; echo "exit $?"
        ls -A disk"#;
    let Some(ended) = scratch.with_disk("512k", script) else { return };
    assert_eq!(ended.text(), "exit 4\nexit 4\n");
    assert_eq!(ended.err.matches("hint: the disk is full").count(), 2, "{}", ended.err);
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_on_a_full_disk_is_an_error() {
    let scratch = Scratch::with_small_pair();
    for arguments in ["cat tuned.loom weight --base base.safetensors", "inspect tuned.loom"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = scratch.command(arguments);
        command.stdout(full);
        let error = scratch.fails_as(4, command, arguments);
        assert!(error.contains("standard output: No space left on device"), "{error}");
    }
}
