//! A cancelled operation says so and leaves nothing behind, at whatever point it is cancelled.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Error, Limits, Progress, ResolvedContainer, UnpackOptions, Verifiable};

/// Asks to stop from the `after`-th question on, and adds up the reported progress.
struct Stop {
    after: u64,
    asked: AtomicU64,
    total: AtomicU64,
    done: AtomicU64,
}

impl Stop {
    fn after(after: u64) -> Self {
        Self { after, asked: AtomicU64::new(0), total: AtomicU64::new(0), done: AtomicU64::new(0) }
    }
}

impl Progress for Stop {
    fn start(&self, total_bytes: u64) {
        self.total.fetch_add(total_bytes, Ordering::Relaxed);
    }
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
    fn is_cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.after
    }
}

/// Cancels `work` after 0, 1, 2, ... questions until it completes. `check` inspects the files after
/// each cancelled run. Returns the number of cancelled runs.
fn cancel_everywhere(mut work: impl FnMut(&Stop) -> deltaloom::Result<()>, check: impl Fn()) -> u64 {
    for after in 0.. {
        let stop = Stop::after(after);
        match work(&stop) {
            Err(Error::Cancelled) => check(),
            Err(e) => panic!("after {after}: {e}"),
            Ok(()) => {
                let (done, total) = (stop.done.into_inner(), stop.total.into_inner());
                // Headers count in the total but are not reported.
                assert!(done <= total && total - done < total / 50, "{done} of {total}");
                return after;
            }
        }
    }
    0
}

/// Four tensors of several windows each, as one file, or as shards and a small file.
fn write_models(folder: &Path, is_directory: bool) -> (PathBuf, PathBuf) {
    let mut rng = Random::new(1);
    let base: Vec<Tensor> = (0..4)
        .map(|i| tensor(&format!("t{i}"), "BF16", &[500, 100], bf16_bytes(&rng.weights(50_000))))
        .collect();
    let mut tuned: Vec<Tensor> = base
        .iter()
        .map(|t| Tensor { bytes: stepped(&t.bytes, 2, |_| rng.around_zero(2)), ..t.clone() })
        .collect();
    tuned[3] = base[3].clone();
    let files = |tensors: &[Tensor]| {
        if is_directory {
            let shard = |part: &[Tensor]| safetensors(part);
            vec![
                ("a.safetensors", shard(&tensors[..2])),
                ("b/c.safetensors", shard(&tensors[2..])),
                ("d.json", b"{}".to_vec()),
            ]
        } else {
            vec![("model.safetensors", safetensors(tensors))]
        }
    };
    let path = |name: &str| {
        let path = folder.join(name);
        if is_directory { path } else { path.join("model.safetensors") }
    };
    write_tree(&folder.join("base"), &files(&base));
    write_tree(&folder.join("tuned"), &files(&tuned));
    (path("base"), path("tuned"))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn nothing_is_left_of_a_cancelled_operation() {
    for is_directory in [false, true] {
        let inputs = tempfile::tempdir().unwrap();
        let (base, tuned) = write_models(inputs.path(), is_directory);
        let limits = Limits::default();
        let checkpoint = Checkpoint::open(&tuned, &limits).unwrap();
        let bases = Bases::open(&[base], &limits).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let nothing = || assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));

        let packed = folder.path().join("packed.loom");
        let pack = |stop: &Stop| deltaloom::pack(&checkpoint, &bases, &packed, &options(), stop).map(drop);
        assert!(cancel_everywhere(pack, nothing) > 4);
        assert_eq!(names(folder.path()), ["packed.loom"]);

        let resolved = ResolvedContainer::new(Container::open(&packed, &limits).unwrap(), &bases).unwrap();
        let out = folder.path().join("out");
        let unpack = |stop: &Stop| deltaloom::unpack(&resolved, &out, &one_thread(), stop).map(drop);
        assert!(cancel_everywhere(unpack, || assert_eq!(names(folder.path()), ["packed.loom"])) > 4);
        let restored = if out.is_dir() { tree(&out) } else { tree(&inputs.path().join("tuned")) };
        assert!(restored == tree(&inputs.path().join("tuned")));

        // The old target stays until the new one is complete.
        let kept = || assert_eq!(names(folder.path()), ["out", "packed.loom"]);
        let before = tree(folder.path());
        let overwrite = UnpackOptions::default().with_threads(1).with_overwrite(true);
        let unpack = |stop: &Stop| deltaloom::unpack(&resolved, &out, &overwrite, stop).map(drop);
        assert!(cancel_everywhere(unpack, kept) > 4);
        assert!(tree(folder.path()) == before);
        let again = deltaloom::unpack(&resolved, &out, &one_thread(), &deltaloom::Silent);
        assert!(matches!(again, Err(Error::AlreadyExists { .. })));

        let verify = |stop: &Stop| deltaloom::verify(&Verifiable::Resolved(&resolved), 1, stop).map(drop);
        assert!(cancel_everywhere(verify, kept) > 4);
        let diff = |stop: &Stop| deltaloom::diff(&bases, &bases, 1, stop).map(drop);
        assert!(cancel_everywhere(diff, kept) >= 4);
    }
}
