//! A writer whose replacement of the manifest gets no answer adds its step once, whenever the
//! replacement takes effect.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::*;
use deltaloom::checkpoint::ReadAt;
use deltaloom::series::{
    AddOptions, Added, Directory, NewStep, ObjectInfo, Revision, Series, SeriesOptions, Store,
};
use deltaloom::{Error, Result, Silent};

/// When a replacement without an answer takes effect.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Arrival {
    /// Before the manifest is read again.
    BeforeRead,
    /// After it was read, before the next replacement.
    BeforeReplacement,
    /// Before it is read again, and another writer has added a step since.
    BeforeAnotherStep,
    /// Another writer adds a step first, so it is refused.
    AfterAnotherStep,
    /// Never.
    Never,
}

type Replacement = (Vec<u8>, Option<Revision>);

/// A store whose first `lost` replacements get no answer.
struct Silenced {
    inner: Directory,
    arrival: Arrival,
    lost: Mutex<usize>,
    waiting: Mutex<Option<Replacement>>,
    /// Adds a step of another writer.
    other: Box<dyn Fn() + Send + Sync>,
}

impl Silenced {
    fn arrive(&self) {
        if let Some((bytes, expected)) = self.waiting.lock().unwrap().take() {
            let _is_first = self.inner.replace_manifest(&bytes, expected.as_ref()).unwrap();
        }
    }
}

impl Store for Silenced {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn scratch_folder(&self) -> Option<&Path> {
        self.inner.scratch_folder()
    }
    fn read_manifest(&self) -> Result<Option<(Vec<u8>, Revision)>> {
        let is_waiting = self.waiting.lock().unwrap().is_some();
        match self.arrival {
            Arrival::BeforeRead => self.arrive(),
            Arrival::BeforeAnotherStep if is_waiting => {
                self.arrive();
                (self.other)();
            }
            Arrival::AfterAnotherStep if is_waiting => {
                (self.other)();
                self.arrive();
            }
            _ => {}
        }
        self.inner.read_manifest()
    }
    fn replace_manifest(&self, bytes: &[u8], expected: Option<&Revision>) -> Result<bool> {
        if self.arrival == Arrival::BeforeReplacement {
            self.arrive();
        }
        let mut lost = self.lost.lock().unwrap();
        if *lost == 0 {
            return self.inner.replace_manifest(bytes, expected);
        }
        *lost -= 1;
        *self.waiting.lock().unwrap() = Some((bytes.to_vec(), expected.cloned()));
        Err(Error::Io {
            path: PathBuf::from("series.json"),
            access: deltaloom::Access::Write,
            source: std::io::Error::other("no answer"),
        })
    }
    fn open(&self, key: &str) -> Result<Box<dyn ReadAt>> {
        self.inner.open(key)
    }
    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        self.inner.len_bytes(key)
    }
    fn put_file(&self, key: &str, file: &Path) -> Result<()> {
        self.inner.put_file(key, file)
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.inner.put(key, bytes)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key)
    }
}

/// Adds a file of its own content.
fn add(series: &Series, folder: &Path, by: u8, step: Option<u64>) -> Result<Added> {
    let path = folder.join(format!("{by}.safetensors"));
    let weights = bf16_bytes(&Random::new(by.into()).weights(600));
    std::fs::write(&path, safetensors(&[tensor("w", "BF16", &[20, 30], weights)])).unwrap();
    let meta = BTreeMap::from([("by".to_owned(), by.to_string())]);
    let new = NewStep::new(path).with_step(step).with_meta(meta);
    series.add(&new, &AddOptions::default().with_pack(options()), &Silent)
}

/// Adds steps 0 and, through a store with `lost` answers, the next one. Returns its result and what
/// is in the series then.
fn run(arrival: Arrival, lost: usize, step: Option<u64>) -> (Result<Added>, Vec<(u64, String)>) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let open = |store: Box<dyn Store>| Series::open(store).unwrap();
    Series::init(Box::new(Directory::new(&root)), &SeriesOptions::default()).unwrap();
    let clean = open(Box::new(Directory::new(&root)));
    add(&clean, folder.path(), 1, None).unwrap();
    let other = {
        let (root, folder) = (root.clone(), folder.path().to_path_buf());
        move || _ = add(&Series::open(Box::new(Directory::new(&root))).unwrap(), &folder, 2, None).unwrap()
    };
    let store = Silenced {
        inner: Directory::new(&root),
        arrival,
        lost: Mutex::new(lost),
        waiting: Mutex::default(),
        other: Box::new(other),
    };
    let added = add(&open(Box::new(store)), folder.path(), 3, step);
    let entries = clean.last(usize::MAX).unwrap();
    (added, entries.into_iter().map(|entry| (entry.step, entry.meta["by"].clone())).collect())
}

fn steps(by: &[&str]) -> Vec<(u64, String)> {
    (0..).zip(by).map(|(step, by)| (step, (*by).to_owned())).collect()
}

#[test]
fn a_step_is_added_once_whenever_its_replacement_takes_effect() {
    for (arrival, expected) in [
        (Arrival::BeforeRead, &["1", "3"][..]),
        (Arrival::BeforeReplacement, &["1", "3"]),
        (Arrival::BeforeAnotherStep, &["1", "3", "2"]),
        (Arrival::AfterAnotherStep, &["1", "2", "3"]),
        (Arrival::Never, &["1", "3"]),
    ] {
        for lost in [1, 2] {
            if lost == 2 && arrival == Arrival::AfterAnotherStep {
                continue;
            }
            let (added, found) = run(arrival, lost, None);
            let added = added.unwrap_or_else(|why| panic!("{arrival:?}: {why}"));
            assert!(added.is_new && added.container.is_some(), "{arrival:?}");
            assert_eq!(found, steps(expected), "{arrival:?}, {lost} lost");
            assert_eq!(found[usize::try_from(added.entry.step).unwrap()].1, "3", "{arrival:?}");
        }
    }
}

#[test]
fn what_stays_unknown_has_its_number() {
    let (added, found) = run(Arrival::Never, 9, None);
    let why = added.unwrap_err();
    assert!(matches!(why, Error::StepUnknown { step: 1, .. }), "{why}");
    assert_eq!(why.to_string(), "it is unknown whether step 1 was added: series.json: no answer");
    assert_eq!(found, steps(&["1"]));
    // Who named the number repeats with it.
    assert!(matches!(run(Arrival::Never, 9, Some(1)).0, Err(Error::Io { .. })));
}
