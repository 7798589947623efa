//! Several writers and readers on one store in memory, while requests and answers get lost.

#[path = "layer/faulty.rs"]
mod faulty;
#[path = "layer/log.rs"]
mod log;
#[path = "layer/steps.rs"]
mod steps;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use deltaloom::series::Store;
use deltaloom_object_store::{RemoteStore, Service};
use faulty::Faulty;
use log::Dice;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;

fn remote(store: Arc<dyn ObjectStore>) -> RemoteStore {
    RemoteStore::new(store, Service::S3, "memory://series", Path::from("runs/a"))
}

/// Writers whose requests suffer mishaps, and the store without them.
struct Setting {
    clean: RemoteStore,
    memory: Arc<InMemory>,
    late: Arc<AtomicUsize>,
}

impl Setting {
    fn new() -> Self {
        let memory = Arc::new(InMemory::new());
        Self { clean: remote(memory.clone()), memory, late: Arc::default() }
    }

    fn writer(&self, seed: u64) -> RemoteStore {
        remote(Arc::new(Faulty::new(self.memory.clone(), seed, &self.late)))
    }

    fn wait_for_late_requests(&self) {
        while self.late.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
    }
}

#[test]
fn writers_lose_no_record_and_write_none_twice() {
    const WRITERS: usize = 4;
    const RECORDS: usize = 8;
    for seed in 0..25 {
        let setting = Setting::new();
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let store = setting.writer(seed * 100 + writer as u64);
                scope.spawn(move || log::append(&store, writer, RECORDS));
            }
        });
        setting.wait_for_late_requests();
        log::check_log(&setting.clean, WRITERS, RECORDS);
    }
}

#[test]
fn of_equal_replacements_one_is_said_to_have_happened() {
    // Each writer adds 1 to the same number, so they often write the same bytes.
    const WRITERS: usize = 4;
    const TIMES: u64 = 12;
    for seed in 0..25 {
        let setting = Setting::new();
        assert!(setting.clean.replace_manifest(b"0", None).unwrap());
        let add = |writer: usize| {
            let store = setting.writer(seed * 100 + 50 + writer as u64);
            let (mut done, mut unknown) = (0u64, 0u64);
            while done < TIMES {
                let Some((bytes, revision)) = log::read(&store) else { continue };
                let number: u64 = String::from_utf8(bytes).unwrap().parse().unwrap();
                match store.replace_manifest((number + 1).to_string().as_bytes(), revision.as_ref()) {
                    Ok(true) => done += 1,
                    Ok(false) => {}
                    Err(_) => unknown += 1,
                }
            }
            (done, unknown)
        };
        let tallies: Vec<(u64, u64)> = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || add(writer))).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        setting.wait_for_late_requests();
        let (bytes, _) = setting.clean.read_manifest().unwrap().unwrap();
        let number: u64 = String::from_utf8(bytes).unwrap().parse().unwrap();
        let (done, unknown) = tallies.iter().fold((0, 0), |sum, tally| (sum.0 + tally.0, sum.1 + tally.1));
        assert!((done..=done + unknown).contains(&number), "{done} done, {unknown} unknown, number {number}");
    }
}

#[test]
fn files_arrive_whole_through_mishaps_and_are_read_by_many_threads() {
    let mut dice = Dice::new(7);
    let content: Vec<u8> = (0..(20usize << 20) / 8).flat_map(|_| dice.below(1 << 31).to_le_bytes()).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&content).unwrap();
    let setting = Setting::new();
    for seed in 0..6 {
        let store = setting.writer(seed);
        let key = format!("objects/{seed}");
        while store.put_file(&key, file.path()).is_err() {
            let there = setting.clean.len_bytes(&key).unwrap();
            assert!(there.is_none_or(|len_bytes| len_bytes == content.len() as u64), "whole or not at all");
        }
        let source = (0..1000).find_map(|_| store.open(&key).ok()).expect("opened at last");
        assert_eq!(source.len_bytes(), content.len() as u64);
        thread::scope(|scope| {
            for reader in 0..4 {
                let (source, content) = (&source, &content);
                scope.spawn(move || {
                    let mut dice = Dice::new(seed * 10 + reader);
                    for _ in 0..50 {
                        let len = usize::try_from(dice.below(3 << 20)).unwrap();
                        let at = usize::try_from(dice.below((content.len() - len) as u64)).unwrap();
                        let mut buffer = vec![0; len];
                        let got = (0..1000).any(|_| source.read_at(at as u64, &mut buffer).is_ok());
                        assert!(got && buffer == content[at..at + len]);
                    }
                });
            }
        });
    }
}

#[test]
fn objects_are_listed_measured_and_deleted() {
    let store = Setting::new().clean;
    for key in ["objects/ab/abc.loom", "objects/ac/acd.loom", "pages/0"] {
        store.put(key, key.as_bytes()).unwrap();
    }
    store.put("objects/empty", b"").unwrap();
    let keys = |prefix: &str| {
        let mut keys: Vec<String> =
            store.list(prefix).unwrap().into_iter().map(|object| object.key).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("objects/a"), ["objects/ab/abc.loom", "objects/ac/acd.loom"]);
    assert_eq!(keys("objects/ab/"), ["objects/ab/abc.loom"]);
    assert!(store.replace_manifest(b"manifest", None).unwrap());
    assert_eq!(keys("").len(), 4, "the manifest is no object");
    assert_eq!(store.len_bytes("pages/0").unwrap(), Some(7));
    assert_eq!(store.open("objects/empty").unwrap().len_bytes(), 0);
    store.delete("pages/0").unwrap();
    store.delete("pages/0").unwrap();
    assert_eq!(store.len_bytes("pages/0").unwrap(), None);
    assert!(matches!(store.open("pages/0"), Err(deltaloom::Error::NotFound { .. })));
}

#[test]
fn no_step_of_a_series_is_lost() {
    const WRITERS: usize = 2;
    const STEPS: usize = 6;
    for seed in 0..4 {
        let setting = Setting::new();
        steps::init(Box::new(remote(setting.memory.clone())));
        let attempts = AtomicUsize::new(0);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (setting, attempts) = (&setting, &attempts);
                scope.spawn(move || {
                    let open = || -> Box<dyn Store> {
                        let attempt = attempts.fetch_add(1, Ordering::SeqCst) as u64;
                        Box::new(setting.writer(seed * 10_000 + attempt))
                    };
                    steps::add(&open, writer, STEPS);
                });
            }
        });
        setting.wait_for_late_requests();
        steps::check(Box::new(remote(setting.memory.clone())), WRITERS, STEPS);
    }
}
