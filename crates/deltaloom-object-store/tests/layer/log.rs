//! A log to which several writers append, and the dice that decide what happens to their requests.
//! It knows nothing of how requests fail.

use deltaloom::series::{Revision, Store};

/// Numbers that depend on a seed (xorshift64*).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// Appends `count` lines to the manifest, which has a line per record, by reading, adding and
/// replacing. Each line is in the manifest when this returns.
pub(crate) fn append(store: &dyn Store, writer: usize, count: usize) {
    for record in 0..count {
        let line = format!("writer {writer} record {record}\n");
        let mut is_unknown = false;
        for attempt in 0.. {
            assert!(attempt < 1_000, "{line:?} does not get in");
            let Some((bytes, revision)) = read(store) else { continue };
            let text = String::from_utf8(bytes).expect("text");
            if text.contains(&line) {
                assert!(is_unknown, "{line:?} got in, but it was said that it did not");
                break;
            }
            match store.replace_manifest(format!("{text}{line}").as_bytes(), revision.as_ref()) {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => is_unknown = true,
            }
        }
    }
}

/// The manifest and its revision, empty if there is none; `None` if the request fails.
pub(crate) fn read(store: &dyn Store) -> Option<(Vec<u8>, Option<Revision>)> {
    let found = store.read_manifest().ok()?;
    Some(found.map_or((Vec::new(), None), |(bytes, revision)| (bytes, Some(revision))))
}

/// Checks that every record of every writer is there once, in the writer's order.
pub(crate) fn check_log(store: &dyn Store, writers: usize, count: usize) {
    let (bytes, _) = store.read_manifest().expect("readable").expect("a manifest");
    let text = String::from_utf8(bytes).expect("text");
    assert_eq!(text.lines().count(), writers * count);
    for writer in 0..writers {
        let start = format!("writer {writer} ");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(&start)).collect();
        let expected: Vec<String> =
            (0..count).map(|record| format!("writer {writer} record {record}")).collect();
        assert_eq!(lines, expected);
    }
}
