//! Ctrl-C during work: no partial output, no temporary files, and existing files stay.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]

mod common;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Ended, Scratch, finish, many, with_header};

/// Copies of the bundled weights in one file: on one thread, a second of work.
const COPIES: usize = 40;

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

/// Starts a command and interrupts it as soon as its temporary file is there.
fn interrupted_at_work(scratch: &Scratch, arguments: &str) -> Ended {
    let mut child = scratch.command(arguments).spawn().unwrap();
    while !scratch.has_temporary() {
        assert!(child.try_wait().unwrap().is_none(), "{arguments}: ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(1));
    }
    interrupt(&child);
    finish(child)
}

#[test]
fn an_interrupted_pack_or_unpack_leaves_everything_as_it_was() {
    let scratch = Scratch::new();
    scratch.write("base.safetensors", &many("base", COPIES));
    scratch.write("tuned.safetensors", &many("ft_master", COPIES));
    scratch.ok("pack tuned.safetensors --base base.safetensors -o tuned.loom --preset fast");
    scratch.write("there", b"precious");
    let before = scratch.tree();
    for arguments in [
        "pack tuned.safetensors --base base.safetensors --preset max -o new",
        "pack tuned.safetensors --base base.safetensors --preset max --overwrite -o there",
        "unpack tuned.loom --base base.safetensors -o new",
        "unpack tuned.loom --base base.safetensors --overwrite -o there",
    ] {
        let ended = interrupted_at_work(&scratch, &format!("{arguments} --threads 1"));
        assert_eq!(
            (ended.code, ended.err.as_str(), ended.text()),
            (Some(130), "error: interrupted\n", ""),
            "{arguments}"
        );
        assert!(before == scratch.tree(), "{arguments}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_bench_ends_without_a_table() {
    let scratch = Scratch::with_assets(&["base", "ft_master"]);
    for row in ["", "--only deltaloom", "--only pco"] {
        let arguments = format!("bench ft_master.safetensors --base base.safetensors --rounds 1000 {row}");
        let child = scratch.command(&arguments).spawn().unwrap();
        wait_until_at_work(&child);
        let start = Instant::now();
        interrupt(&child);
        let ended = finish(child);
        assert_eq!((ended.code, ended.err.as_str(), ended.text()), (Some(130), "error: interrupted\n", ""));
        assert!(start.elapsed() < Duration::from_secs(2), "{row}: {:?}", start.elapsed());
    }
}

/// Hashing references does not check for interrupts, but there is nothing to clean up yet.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_before_the_first_chunk_ends_at_once() {
    let scratch = Scratch::new();
    let sparse = |name: &str, first: u8| {
        let header = r#"{"a":{"dtype":"U8","shape":[512,1000000],"data_offsets":[0,512000000]}}"#;
        let start = with_header(header, &[first]);
        scratch.write(name, &start);
        let file = std::fs::File::options().write(true).open(scratch.path().join(name)).unwrap();
        file.set_len(start.len() as u64 - 1 + 512_000_000).unwrap();
    };
    sparse("base.safetensors", 0);
    sparse("wrong.safetensors", 1);
    scratch.ok("pack base.safetensors --base base.safetensors -o same.loom");
    // Twenty gigabytes to read.
    let bases = "--base wrong.safetensors ".repeat(40);
    for command in ["unpack same.loom -o out", "verify same.loom", "cat same.loom a"] {
        let child = scratch.command(&format!("{command} {bases}")).spawn().unwrap();
        wait_until_at_work(&child);
        let start = Instant::now();
        interrupt(&child);
        let ended = finish(child);
        assert_eq!((ended.code, ended.err.as_str()), (Some(130), "error: interrupted\n"), "{command}");
        assert!(start.elapsed() < Duration::from_secs(2), "{command}: {:?}", start.elapsed());
    }
}

/// Waits until the child catches SIGINT and, beside its first thread and the one that waits for
/// signals, has one that works.
#[cfg(target_os = "linux")]
fn wait_until_at_work(child: &Child) {
    let threads = || std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().count();
    while !catches_interrupts(child) || threads() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process has its handler for SIGINT, the second signal, in place.
#[cfg(target_os = "linux")]
fn catches_interrupts(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 0b10 != 0
}
