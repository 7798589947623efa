//! The examples run and do what they say.

mod common;

#[expect(dead_code, reason = "its main is for the command line")]
#[path = "../examples/pack.rs"]
mod pack_example;
#[expect(dead_code, reason = "its main is for the command line")]
#[path = "../examples/series.rs"]
mod series_example;
#[expect(dead_code, reason = "its main is for the command line")]
#[path = "../examples/unpack.rs"]
mod unpack_example;

use std::path::{Path, PathBuf};

use common::*;

/// A run of checkpoints, each a little further from the first.
#[expect(clippy::unwrap_used, reason = "a helper that fails should fail the test")]
fn write_steps(folder: &Path, count: i64) -> Vec<PathBuf> {
    let first = bf16_bytes(&Random::new(1).weights(20_000));
    let write = |step: i64| {
        let mut rng = Random::new(2);
        let bytes = stepped(&first, 2, |_| if rng.below(20) == 0 { step } else { 0 });
        let path = folder.join(format!("step-{step}.safetensors"));
        std::fs::write(&path, safetensors(&[tensor("w", "BF16", &[100, 200], bytes)])).unwrap();
        path
    };
    (0..count).map(write).collect()
}

#[test]
fn a_fine_tune_is_packed_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let steps = write_steps(folder.path(), 2);
    let [base, tuned] = &steps[..] else { panic!("two steps") };
    let path = |name: &str| folder.path().join(name);
    pack_example::run(&[base.clone(), tuned.clone(), path("tuned.loom")]).unwrap();
    let packed = std::fs::metadata(path("tuned.loom")).unwrap().len();
    assert!(packed * 8 < std::fs::metadata(tuned).unwrap().len(), "{packed} bytes");
    unpack_example::run(&[path("tuned.loom"), base.clone(), path("restored.safetensors")]).unwrap();
    assert!(std::fs::read(path("restored.safetensors")).unwrap() == std::fs::read(tuned).unwrap());
    let wrong = unpack_example::run(&[path("tuned.loom"), tuned.clone(), path("wrong.safetensors")]);
    assert!(wrong.is_err() && !path("wrong.safetensors").exists());
    assert!(pack_example::run(&[]).unwrap_err().to_string().starts_with("usage:"));
}

#[test]
fn the_steps_of_a_run_are_kept_and_the_newest_restored() {
    let folder = tempfile::tempdir().unwrap();
    let steps = write_steps(folder.path(), 3);
    let target = folder.path().join("restored.safetensors");
    let arguments = [vec![folder.path().join("run"), target.clone()], steps.clone()].concat();
    series_example::run(&arguments).unwrap();
    assert!(std::fs::read(target).unwrap() == std::fs::read(&steps[2]).unwrap());
    let store = Box::new(deltaloom::series::Directory::new(&folder.path().join("run")));
    let series = deltaloom::series::Series::open(store).unwrap();
    let entries = series.last(9).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.is_keyframe()).collect::<Vec<_>>(), [true, false, false]);
}
