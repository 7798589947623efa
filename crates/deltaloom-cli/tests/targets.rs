//! No command loses a file that it was not asked to replace. A refusal changes no file.
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::fs;
#[cfg(unix)]
use std::os::unix::fs::symlink;

use common::{Ended, Scratch, finish};

/// One clear error and one hint.
fn is_clear(error: &str) -> bool {
    error.lines().count() == 2 && error.starts_with("error: ") && error.contains("\nhint: ")
}

/// With a small pair packed as `tuned.loom`, folders of models, and a series.
fn model_folders() -> Scratch {
    let scratch = Scratch::with_small_pair();
    for (folder, name) in [("base", "base"), ("model", "tuned")] {
        scratch.write(&format!("{folder}/model.safetensors"), &scratch.read(&format!("{name}.safetensors")));
        scratch.write(&format!("{folder}/config.json"), b"{}");
    }
    scratch.ok("pack model --base base -o model.loom");
    scratch.ok("series init series");
    scratch.ok("series add series tuned.safetensors --step 1");
    scratch.ok("series add series model --step 2");
    scratch
}

#[test]
fn no_output_is_an_input_by_any_spelling() {
    let scratch = model_folders();
    fs::create_dir(scratch.path().join("sub")).unwrap();
    let mut spellings = vec!["sub/../".to_owned(), "./".to_owned(), String::new()];
    spellings.push(format!("{}/", scratch.path().display()));
    for spelling in spellings {
        for command in [
            format!("pack tuned.safetensors --base base.safetensors -o {spelling}base.safetensors"),
            format!("pack tuned.safetensors --base base.safetensors -o {spelling}tuned.safetensors"),
            format!("pack model --base base -o {spelling}base/model.safetensors"),
            format!("pack model --base base -o {spelling}model/config.json"),
            format!(
                "pack tuned.safetensors --base tuned.loom --base base.safetensors -o {spelling}tuned.loom"
            ),
            format!("unpack tuned.loom --base base.safetensors -o {spelling}base.safetensors"),
            format!("unpack tuned.loom --base base.safetensors -o {spelling}tuned.loom"),
            format!("unpack model.loom --base base -o {spelling}base"),
            format!("cat tuned.loom weight --base base.safetensors -o {spelling}base.safetensors"),
            format!("cat tuned.loom weight --base base.safetensors -o {spelling}tuned.loom"),
            format!("series get series --step 1 -o {spelling}series/series.json"),
            format!("series get series --step 1 -o {spelling}series/new"),
            format!("series get series --step 2 -o {spelling}series"),
            format!("series get series --step 1 --only weight -o {spelling}series/series.json"),
            format!("series plot series -o {spelling}series/series.json"),
            format!(
                "lab matmul --base base.safetensors --tuned tuned.safetensors --tensor weight --html {spelling}base.safetensors"
            ),
            format!("lab tpde base.safetensors tuned.safetensors --html {spelling}tuned.safetensors"),
            format!("lab tpde series --html {spelling}series/series.json"),
            format!("lab positions --pattern tuned.safetensors --html {spelling}tuned.safetensors"),
        ] {
            for overwrite in ["", " --overwrite"] {
                let error = scratch.refused(&format!("{command}{overwrite}"));
                // A folder with files is refused for that already.
                let is_said = error.contains("read") || (overwrite.is_empty() && error.contains("exists"));
                assert!(is_clear(&error) && is_said, "{command}{overwrite}: {error}");
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn links_to_inputs_are_inputs() {
    let scratch = Scratch::with_small_pair();
    symlink("base.safetensors", scratch.path().join("soft")).unwrap();
    fs::hard_link(scratch.path().join("base.safetensors"), scratch.path().join("hard")).unwrap();
    symlink(".", scratch.path().join("here")).unwrap();
    for output in ["soft", "hard", "here/base.safetensors"] {
        for command in ["pack tuned.safetensors", "unpack tuned.loom", "cat tuned.loom weight"] {
            let error =
                scratch.refused(&format!("{command} --base base.safetensors -o {output} --overwrite"));
            assert!(is_clear(&error) && error.contains("base.safetensors, which is read"), "{error}");
        }
        // The base is named by the link, and the output by its own name.
        let error = scratch
            .refused(&format!("pack tuned.safetensors --base {output} -o base.safetensors --overwrite"));
        assert!(is_clear(&error), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn standard_output_is_no_input_either() {
    let scratch = Scratch::with_small_pair();
    for command in [
        "cat tuned.loom weight --base base.safetensors",
        "unpack tuned.loom --base base.safetensors -o -",
        "pack tuned.safetensors --base base.safetensors -o -",
    ] {
        let mut child = scratch.command(command);
        let base = fs::File::options().append(true).open(scratch.path().join("base.safetensors")).unwrap();
        child.stdout(base);
        let error = scratch.fails_as(2, child, command);
        assert!(is_clear(&error) && error.contains("standard output is the same file as"), "{error}");
    }
}

#[test]
fn an_adapter_is_an_input() {
    let scratch = Scratch::with_small_pair();
    scratch.write("lora/adapter_model.safetensors", &scratch.read("base.safetensors"));
    scratch.write("lora/adapter_config.json", b"{}");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let error = scratch.refused(&format!(
            "pack tuned.safetensors --base base.safetensors --adapter lora -o lora/{file} --overwrite"
        ));
        assert!(is_clear(&error) && error.contains("read"), "{error}");
    }
}

#[test]
fn a_folder_keeps_every_other_file() {
    let scratch = model_folders();
    scratch.write("there/notes.txt", b"precious");
    scratch.write("there/eval/mmlu.json", b"precious");
    scratch.write("there/config.json", b"old");
    let restores = ["unpack model.loom --base base", "series get series --step 2"];
    for command in restores {
        let error = scratch.refused(&format!("{command} -o there"));
        assert!(is_clear(&error) && error.contains("--overwrite"), "{error}");
    }
    for command in restores {
        scratch.write("there/config.json", b"old");
        scratch.ok(&format!("{command} -o there --overwrite"));
        assert_eq!(scratch.read("there/notes.txt"), b"precious");
        assert_eq!(scratch.read("there/eval/mmlu.json"), b"precious");
        assert_eq!(scratch.read("there/config.json"), b"{}");
        assert!(scratch.read("there/model.safetensors") == scratch.read("tuned.safetensors"));
    }
    // The folder of everything: container, base and series stay, and so does all else.
    let before = scratch.tree();
    for command in ["unpack model.loom --base base", "series get series --step 2"] {
        scratch.ok(&format!("{command} -o . --overwrite"));
    }
    let after = scratch.tree();
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)));
    assert_eq!(after.len(), before.len() + 2);
    // An empty folder needs no permission.
    fs::create_dir(scratch.path().join("empty")).unwrap();
    scratch.ok("unpack model.loom --base base -o empty");
    assert_eq!(scratch.read("empty/config.json"), b"{}");
    assert!(!scratch.has_temporary());
}

#[test]
fn members_do_not_take_the_place_of_other_kinds() {
    let scratch = model_folders();
    scratch.write("there/model.safetensors/inside", b"precious");
    let error = scratch.refused("unpack model.loom --base base -o there --overwrite");
    assert!(is_clear(&error) && error.contains("is a folder"), "{error}");
    scratch.write("nested/sub/file", b"1");
    scratch.ok("pack nested -o nested.loom");
    scratch.write("other/sub", b"precious");
    let error = scratch.refused("unpack nested.loom -o other --overwrite");
    assert!(is_clear(&error) && error.contains("other/sub is a file"), "{error}");
}

#[cfg(unix)]
#[test]
fn overwrite_replaces_what_a_link_leads_to_or_refuses() {
    let scratch = Scratch::with_small_pair();
    scratch.write("real", b"old");
    scratch.write("folder/file", b"old");
    for (link, to) in
        [("to-file", "real"), ("to-folder", "folder"), ("to-null", "/dev/null"), ("to-nothing", "nothing")]
    {
        symlink(to, scratch.path().join(link)).unwrap();
    }
    symlink("/proc/self/fd/1", scratch.path().join("to-stdout")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(scratch.path().join("pipe")).status().unwrap();
    assert!(made.success());
    for command in ["pack tuned.safetensors", "unpack tuned.loom", "cat tuned.loom weight"] {
        let command = format!("{command} --base base.safetensors --overwrite");
        for target in ["to-folder", "to-null", "to-nothing", "to-stdout", "pipe", "folder"] {
            let error = scratch.refused(&format!("{command} -o {target}"));
            assert!(is_clear(&error) && error.contains("not replaced"), "{command} {target}: {error}");
        }
        scratch.ok(&format!("{command} -o to-file"));
        assert!(scratch.path().join("to-file").is_symlink());
        assert_ne!(scratch.read("real"), b"old");
        scratch.write("real", b"old");
    }
}

#[test]
fn a_base_that_is_changed_in_part_is_refused_by_every_reader() {
    let scratch = model_folders();
    let commands = |base: &str, folder: &str| {
        [
            format!("pack tuned.safetensors --base {base} -o new"),
            format!("pack {base} -o new"),
            format!("pack model --base {folder} -o new"),
            format!("unpack tuned.loom --base {base} -o new"),
            format!("verify tuned.loom --base {base}"),
            format!("cat tuned.loom weight --base {base}"),
            format!("diff {base} tuned.safetensors"),
            format!("diff tuned.safetensors {base}"),
            format!("lineage tuned.safetensors {base}"),
            format!("bench tuned.safetensors --base {base} --rounds 1"),
            format!("series add series {base} --step 3"),
            format!("lab matmul --base {base} --tuned tuned.safetensors --tensor weight"),
        ]
    };
    scratch.write(".base.safetensors.loom-journal", b"left by a change that was cut short");
    scratch.write("base/.model.safetensors.loom-journal", b"left by a change that was cut short");
    for command in commands("base.safetensors", "base") {
        let error = scratch.refused(&command);
        assert!(is_clear(&error) && error.contains("cut short"), "{command}: {error}");
        assert!(error.contains("deltaloom unpack FILE.loom --in-place"), "{command}: {error}");
    }
    #[cfg(unix)]
    {
        symlink("base.safetensors", scratch.path().join("link")).unwrap();
        symlink("base", scratch.path().join("folder-link")).unwrap();
        for command in commands("link", "folder-link") {
            assert!(scratch.refused(&command).contains("cut short"), "{command}");
        }
    }
}

/// Starts a command, holds it when its output has begun to grow, changes something, and lets it go
/// on. One that was done by then is started again.
#[cfg(target_os = "linux")]
fn changed_at_work(scratch: &Scratch, arguments: &str, change: impl Fn()) -> Ended {
    loop {
        let mut child = scratch.command(arguments).spawn().unwrap();
        let mut is_done = false;
        while !is_done && !scratch.has_temporary() {
            is_done = child.try_wait().unwrap().is_some();
        }
        let id = child.id().to_string();
        let signal = |name: &str| std::process::Command::new("kill").args([name, &id]).status().unwrap();
        if !is_done && signal("-STOP").success() && scratch.has_temporary() {
            change();
            assert!(signal("-CONT").success());
            return finish(child);
        }
        if !is_done {
            assert!(signal("-CONT").success());
        }
        finish(child);
        fs::remove_file(scratch.path().join("out.loom")).unwrap();
    }
}

/// A trainer that overwrites a checkpoint while it is packed: the change comes when the output has
/// begun to grow.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_changes_while_it_is_read_makes_no_container() {
    type Change = fn(&Scratch, &str);
    let changes: [(&str, Change); 3] = [
        ("time and bytes", |scratch, name| {
            let file = fs::File::options().write(true).open(scratch.path().join(name)).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", 3_000_000).unwrap();
            file.set_modified(std::time::SystemTime::now()).unwrap();
        }),
        ("length", |scratch, name| {
            let file = fs::File::options().append(true).open(scratch.path().join(name)).unwrap();
            std::io::Write::write_all(&mut &file, b"x").unwrap();
        }),
        ("inode", |scratch, name| {
            let (old, new) = (scratch.path().join(name), scratch.path().join("new"));
            fs::copy(&old, &new).unwrap();
            fs::rename(&new, &old).unwrap();
        }),
    ];
    for (what, change) in changes {
        for (arguments, changed) in [
            ("pack big.safetensors --preset max --threads 1 -o out.loom", "big.safetensors"),
            (
                "pack big.safetensors --base base.safetensors --preset max --threads 1 -o out.loom",
                "base.safetensors",
            ),
        ] {
            let scratch = Scratch::new();
            scratch.write("big.safetensors", &common::many("ft_master", 16));
            scratch.write("base.safetensors", &common::many("base", 16));
            let Ended { code, err, .. } = changed_at_work(&scratch, arguments, || change(&scratch, changed));
            assert_eq!(code, Some(2), "{what}: {err}");
            let said = format!("{changed} changed while it was read");
            assert!(is_clear(&err) && err.contains(&said), "{what}: {err}");
            assert!(!scratch.path().join("out.loom").exists() && !scratch.has_temporary());
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_killed_writer_left_goes_with_the_next_command() {
    let scratch = Scratch::new();
    scratch.write("big.safetensors", &common::many("ft_master", 16));
    scratch.write("small.safetensors", &common::many("ft_master", 1));
    let pack = "pack big.safetensors --preset max --threads 1 -o out.loom";
    let start = || {
        let mut child = scratch.command(pack).spawn().unwrap();
        while !scratch.has_temporary() {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::yield_now();
        }
        child
    };
    let names = || {
        let names = fs::read_dir(scratch.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".deltaloom-")).collect::<Vec<_>>()
    };
    let mut killed = start();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let left = names();
    assert_eq!(left.len(), 1);
    // The next writer removes it; and its own file stays while it lives.
    let mut living = scratch.command(pack).spawn().unwrap();
    while names() == left || names().is_empty() {
        assert!(living.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    scratch.ok("pack small.safetensors -o small.loom");
    assert_eq!(names().len(), 1, "the file of the writer that lives");
    assert_ne!(names(), left);
    living.kill().unwrap();
    living.wait().unwrap();
    scratch.ok("pack small.safetensors -o small.loom --overwrite");
    assert!(!scratch.has_temporary());
}
