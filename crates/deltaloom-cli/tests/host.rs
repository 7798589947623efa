//! The program may be run by another one, several times.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};

use deltaloom_cli::{Host, run_from};

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

#[test]
fn each_run_has_its_own_exit_code_and_look() {
    static IS_ASKED: AtomicBool = AtomicBool::new(false);
    let host = || Host::new(vec!["deltaloom".into()], Some(|| IS_ASKED.load(Ordering::SeqCst)));
    assert_eq!(run_from(words("deltaloom inspect /nowhere.loom --json"), host()), 3);
    assert_eq!(run_from(words("deltaloom --version"), host()), 0);
    assert_eq!(run_from(words("deltaloom unknown"), host()), 2);
    assert_eq!(run_from(Vec::new(), host()), 2);
    let folder = tempfile::tempdir().expect("a folder");
    let (model, packed) = (folder.path().join("model.safetensors"), folder.path().join("model.loom"));
    let header = br#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[1, 2, 3, 4]].concat();
    std::fs::write(&model, file).expect("a file");
    let pack = || words(&format!("deltaloom pack {} -o {}", model.display(), packed.display()));
    IS_ASKED.store(true, Ordering::SeqCst);
    assert_eq!(run_from(pack(), host()), 130, "interrupted");
    assert!(!packed.exists());
    IS_ASKED.store(false, Ordering::SeqCst);
    assert_eq!(run_from(pack(), host()), 0);
    assert_eq!(run_from(pack(), host()), 2, "the target exists");
}
