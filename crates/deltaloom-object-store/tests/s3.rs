//! The store on a real S3 server, which `tools/s3.sh` starts on loopback; the environment says
//! where it is.
//!
//! Lost requests are tested here again, because the HTTP client repeats some of them itself.

#[path = "layer/log.rs"]
mod log;
#[path = "layer/proxy.rs"]
mod proxy;
#[path = "layer/steps.rs"]
mod steps;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use deltaloom::Error;
use deltaloom::series::Store;
use deltaloom_object_store::{Cause, Fault, RemoteStore, fault, open, open_with};
use log::Dice;
use proxy::Proxy;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tools/s3.sh"))
}

fn url(path: &str) -> String {
    format!("{}/{path}", variable("DELTALOOM_TEST_BUCKET"))
}

fn server() -> SocketAddr {
    let endpoint = variable("AWS_ENDPOINT");
    endpoint.strip_prefix("http://").and_then(|address| address.parse().ok()).expect("an address on loopback")
}

/// The store from the environment with some settings changed.
fn open_changed(url: &str, changed: &[(&str, &str)]) -> RemoteStore {
    let mut settings: Vec<(String, String)> =
        std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect();
    settings.retain(|(name, _)| changed.iter().all(|(other, _)| other != name));
    settings.extend(changed.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())));
    open_with(url, &settings).expect("a store")
}

fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..len.div_ceil(4)).flat_map(|_| dice.below(1 << 30).to_le_bytes()[..4].to_vec()).take(len).collect()
}

fn file_of(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(content).expect("written");
    file
}

/// Why a request failed.
fn cause<T>(result: deltaloom::Result<T>) -> (Cause, Error) {
    let Err(error) = result else { panic!("it did not fail") };
    let Error::Io { source, .. } = &error else { panic!("another error: {error}") };
    let fault = source.get_ref().and_then(|inner| inner.downcast_ref::<Fault>());
    (fault.unwrap_or_else(|| panic!("no fault: {error}")).cause(), error)
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn the_manifest_is_replaced_only_where_it_was_left() {
    let store = open(&url("replace")).unwrap();
    assert!(store.read_manifest().unwrap().is_none());
    assert!(store.replace_manifest(b"one", None).unwrap());
    assert!(!store.replace_manifest(b"two", None).unwrap());
    let (bytes, first) = store.read_manifest().unwrap().unwrap();
    assert_eq!(bytes, b"one");
    assert!(store.replace_manifest(b"two", Some(&first)).unwrap());
    assert!(!store.replace_manifest(b"three", Some(&first)).unwrap());
    assert!(!store.replace_manifest(b"two", Some(&first)).unwrap(), "the same bytes are not the same write");
    let (bytes, second) = store.read_manifest().unwrap().unwrap();
    assert_eq!(bytes, b"two");
    assert_ne!(first, second);
    assert!(
        store.list("").unwrap().is_empty(),
        "the proof that conditions are honoured leaves nothing behind"
    );
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn writers_lose_no_record() {
    const WRITERS: usize = 4;
    const RECORDS: usize = 25;
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || log::append(&*open(&url("log")).unwrap(), writer, RECORDS));
        }
    });
    log::check_log(&*open(&url("log")).unwrap(), WRITERS, RECORDS);
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn no_step_of_a_series_is_lost() {
    const WRITERS: usize = 2;
    const STEPS: usize = 8;
    let place = url("steps");
    steps::init(open(&place).unwrap());
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let place = &place;
            scope.spawn(move || {
                let proxy = Proxy::start(server(), 500 + writer as u64);
                let open = || -> Box<dyn Store> {
                    Box::new(open_changed(place, &[("AWS_ENDPOINT", &proxy.endpoint())]))
                };
                steps::add(&open, writer, STEPS);
            });
        }
    });
    steps::check(open(&place).unwrap(), WRITERS, STEPS);
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn writers_lose_no_record_where_requests_get_lost() {
    const WRITERS: usize = 3;
    const RECORDS: usize = 10;
    for seed in 0..3 {
        let place = url(&format!("lossy-{seed}"));
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let place = &place;
                scope.spawn(move || {
                    let proxy = Proxy::start(server(), seed * 10 + writer as u64);
                    let store = open_changed(place, &[("AWS_ENDPOINT", &proxy.endpoint())]);
                    log::append(&store, writer, RECORDS);
                });
            }
        });
        log::check_log(&*open(&place).unwrap(), WRITERS, RECORDS);
    }
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn files_small_and_large_come_back_the_same() {
    let store = open(&url("files")).unwrap();
    for len in [0, 1, (1 << 20) + 1, 8 << 20, (8 << 20) + 1, 30_000_001] {
        let content = random_bytes(len, len as u64);
        let key = format!("objects/{len}");
        for _ in 0..2 {
            store.put_file(&key, file_of(&content).path()).unwrap();
        }
        assert_eq!(store.len_bytes(&key).unwrap(), Some(len as u64));
        let source = store.open(&key).unwrap();
        assert_eq!(source.len_bytes(), len as u64);
        let mut buffer = vec![0; len];
        source.read_at(0, &mut buffer).unwrap();
        assert!(buffer == content);
        assert!(source.read_at(len as u64, &mut [0]).is_err());
        thread::scope(|scope| {
            for reader in 0..4 {
                let (source, content) = (&source, &content);
                scope.spawn(move || {
                    let mut dice = Dice::new(reader);
                    for _ in 0..if len == 0 { 0 } else { 20 } {
                        let at = usize::try_from(dice.below(len as u64)).unwrap();
                        let mut buffer = vec![0; (len - at).min(200_000)];
                        source.read_at(at as u64, &mut buffer).unwrap();
                        assert!(buffer == content[at..at + buffer.len()]);
                    }
                });
            }
        });
    }
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn files_arrive_whole_where_requests_get_lost() {
    let content = random_bytes(20_000_000, 9);
    let file = file_of(&content);
    let clean = open(&url("lossy-files")).unwrap();
    for seed in 0..4 {
        let proxy = Proxy::start(server(), 100 + seed);
        let store = open_changed(&url("lossy-files"), &[("AWS_ENDPOINT", &proxy.endpoint())]);
        let key = format!("objects/{seed}");
        for _ in 0..100 {
            let sent = store.put_file(&key, file.path());
            let there = clean.len_bytes(&key).unwrap();
            assert!(there.is_none_or(|len| len == content.len() as u64), "whole or not at all");
            if sent.is_ok() {
                break;
            }
        }
        let source = (0..100).find_map(|_| store.open(&key).ok()).expect("opened at last");
        let mut buffer = vec![0; content.len()];
        assert!((0..100).any(|_| source.read_at(0, &mut buffer).is_ok()));
        assert!(buffer == content);
    }
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn all_of_many_objects_are_listed_and_deleted() {
    const OBJECTS: usize = 1100;
    let store = open(&url("many")).unwrap();
    thread::scope(|scope| {
        for part in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for object in (part..OBJECTS).step_by(8) {
                    store.put(&format!("objects/{:02x}/{object}", object % 16), b"x").unwrap();
                }
            });
        }
    });
    let listed = store.list("objects/").unwrap();
    assert_eq!(listed.len(), OBJECTS);
    assert!(listed.iter().all(|object| object.len_bytes == 1 && object.age.as_secs() < 600));
    assert_eq!(store.list("objects/0").unwrap().len(), OBJECTS);
    assert_eq!(store.list("objects/0f").unwrap().len(), OBJECTS / 16);
    for object in store.list("objects/0f/").unwrap() {
        store.delete(&object.key).unwrap();
        store.delete(&object.key).unwrap();
    }
    assert!(store.list("objects/0f/").unwrap().is_empty());
    assert!(matches!(store.open("objects/0f/15"), Err(Error::NotFound { .. })));
}

#[test]
#[ignore = "needs the server of tools/s3.sh"]
fn errors_say_who_must_act() {
    let bucket = variable("DELTALOOM_TEST_BUCKET");
    let elsewhere = open(&format!("{bucket}-that-is-missing/a")).unwrap();
    assert_eq!(cause(elsewhere.read_manifest()).0, Cause::NoBucket);
    assert_eq!(cause(elsewhere.replace_manifest(b"x", None)).0, Cause::NoBucket);

    let stranger = open_changed(&url("errors"), &[("AWS_ACCESS_KEY_ID", "nobody")]);
    let (what, error) = cause(stranger.read_manifest());
    assert_eq!(what, Cause::Denied);
    assert!(fault(&error).and_then(Fault::hint).is_some_and(|hint| hint.contains("AWS_ACCESS_KEY_ID")));

    let reader = open_changed(
        &url("errors"),
        &[("AWS_ACCESS_KEY_ID", "reader"), ("AWS_SECRET_ACCESS_KEY", "reader-secret")],
    );
    assert!(reader.read_manifest().unwrap().is_none());
    assert_eq!(cause(reader.put("objects/a", b"a")).0, Cause::Denied);
    assert_eq!(cause(reader.replace_manifest(b"a", None)).0, Cause::Denied);

    // A port that was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
    let nowhere = open_changed(&url("errors"), &[("AWS_ENDPOINT", &format!("http://{closed}"))]);
    let (what, error) = cause(nowhere.read_manifest());
    assert_eq!(what, Cause::Unreachable);
    assert!(error.to_string().starts_with(&url("errors")), "{error}");

    let disabled = open_changed(&url("errors"), &[("AWS_CONDITIONAL_PUT", "disabled")]);
    assert_eq!(cause(disabled.replace_manifest(b"a", None)).0, Cause::NoConditions);

    let plain = open_changed(&url("errors"), &[("AWS_ALLOW_HTTP", "false")]);
    assert_eq!(cause(plain.read_manifest()).0, Cause::NotEncrypted);
}
