//! A disk in memory, for tests. It fails at any operation and forgets what was not synced.

use std::io;
use std::sync::Mutex;

use super::disk::Disk;
use crate::checkpoint::ReadAt;
use crate::error::{Error, Result};

/// How the operation during which the crash happens ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    NotBegun,
    Half,
    Done,
}

/// Which of the writes that were not synced survive a crash.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kept {
    /// The process was killed, but not the machine.
    All,
    Nothing,
    EveryOther,
    LastHalves,
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) durable: Vec<u8>,
    /// Written, but not synced.
    pub(super) pending: Vec<(usize, Vec<u8>)>,
    pub(super) journal: Option<Vec<u8>>,
    pub(super) draft: Option<Vec<u8>>,
    pub(super) operations: u64,
    pub(super) written_bytes: usize,
}

impl State {
    pub(super) fn new(file: &[u8]) -> Self {
        Self { durable: file.to_vec(), ..Self::default() }
    }

    pub(super) fn file(&self) -> Vec<u8> {
        let mut file = self.durable.clone();
        self.pending.iter().for_each(|(at, bytes)| put(&mut file, *at, bytes));
        file
    }

    pub(super) fn after_crash(mut self, kept: Kept) -> Self {
        let pending = std::mem::take(&mut self.pending);
        for (i, (at, bytes)) in pending.into_iter().enumerate() {
            let half = bytes.len() / 2;
            match kept {
                Kept::All => put(&mut self.durable, at, &bytes),
                Kept::EveryOther if i % 2 == 1 => put(&mut self.durable, at, &bytes),
                Kept::LastHalves => put(&mut self.durable, at + half, &bytes[half..]),
                Kept::Nothing | Kept::EveryOther => {}
            }
        }
        self.operations = 0;
        self
    }
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A disk that works for a number of operations.
pub(super) struct FakeDisk {
    pub(super) state: Mutex<State>,
    works_for: u64,
    fault: Fault,
}

impl FakeDisk {
    pub(super) fn new(state: State, works_for: u64, fault: Fault) -> Self {
        Self { state: Mutex::new(state), works_for, fault }
    }

    /// Does `whole` while the disk works, `half` or nothing at the moment of the crash, and nothing
    /// afterwards.
    fn operate(&self, whole: impl FnOnce(&mut State), half: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.operations += 1;
        match (state.operations.cmp(&self.works_for.saturating_add(1)), self.fault) {
            (std::cmp::Ordering::Less, _) => {
                whole(&mut state);
                return Ok(());
            }
            (std::cmp::Ordering::Equal, Fault::Half) => half(&mut state),
            (std::cmp::Ordering::Equal, Fault::Done) => whole(&mut state),
            _ => {}
        }
        Err(io::Error::other("crash"))
    }
}

impl ReadAt for FakeDisk {
    fn len_bytes(&self) -> u64 {
        self.state.lock().unwrap().durable.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        state.durable.as_slice().read_at(offset, buffer)?;
        let start = usize::try_from(offset).unwrap();
        for (at, bytes) in &state.pending {
            let (from, to) = (start.max(*at), (start + buffer.len()).min(at + bytes.len()));
            if from < to {
                buffer[from - start..to - start].copy_from_slice(&bytes[from - at..to - at]);
            }
        }
        Ok(())
    }
}

impl Disk for FakeDisk {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let write = |state: &mut State, bytes: &[u8]| {
            state.pending.push((at, bytes.to_vec()));
            state.written_bytes += bytes.len();
        };
        self.operate(|state| write(state, bytes), |state| write(state, &bytes[..bytes.len() / 2]))
    }

    fn sync(&self) -> io::Result<()> {
        let sync = |state: &mut State, count: usize| {
            for (at, bytes) in state.pending.drain(..count).collect::<Vec<_>>() {
                put(&mut state.durable, at, &bytes);
            }
        };
        self.operate(|s| sync(s, s.pending.len()), |s| sync(s, s.pending.len() / 2))
    }

    fn read_journal(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.state.lock().unwrap().journal.clone())
    }

    fn draft_journal(&self, parts: &[&[u8]]) -> io::Result<()> {
        let draft = parts.concat();
        let half = draft[..draft.len() / 2].to_vec();
        self.operate(|s| s.draft = Some(draft), |s| s.draft = Some(half))
    }

    fn publish_journal(&self) -> Result<()> {
        // A name changes completely or not at all.
        let publish = |s: &mut State| s.journal = s.draft.take();
        self.operate(publish, publish).map_err(Error::writing("journal"))
    }

    fn remove_journal(&self) -> Result<()> {
        let whole = |s: &mut State| (s.journal, s.draft) = (None, None);
        self.operate(whole, |s| s.journal = None).map_err(Error::writing("journal"))
    }
}
