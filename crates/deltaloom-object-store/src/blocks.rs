//! Reads an object at offsets in blocks. A few blocks are cached, so that neighbouring reads cost
//! one request. The source of the blocks is not known here.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use deltaloom::checkpoint::ReadAt;

/// Size of a block. A chunk of a container is smaller.
pub(crate) const BLOCK_BYTES: u64 = 1 << 20;
/// Number of cached blocks per object.
const HELD: usize = 16;
/// Most blocks of one request. Fewer than are cached, so that none is dropped before it is read.
const MAX_RUN: u64 = 8;
/// Blocks that a read may skip and still count as sequential, because threads do not read in order.
const MAX_SKIP: u64 = 2;

/// An object that any thread reads in blocks.
pub(crate) struct Blocks<F> {
    fetch: F,
    len_bytes: u64,
    state: Mutex<State>,
    /// Blocks have arrived, or will not arrive.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Most recently used at the end.
    held: VecDeque<(u64, Bytes)>,
    /// Blocks that some thread is fetching.
    loading: HashSet<u64>,
    /// The block after the last run.
    next: u64,
    /// Blocks of the last run, doubled while reads continue where it ended.
    run: u64,
}

impl<F: Fn(Range<u64>) -> io::Result<Bytes>> Blocks<F> {
    /// An object of `len_bytes` whose first bytes are known. `fetch` returns the bytes of a range.
    pub(crate) fn new(len_bytes: u64, first: Bytes, fetch: F) -> Self {
        let mut state = State { next: 1, run: 1, ..State::default() };
        if first.len() as u64 == len_bytes.min(BLOCK_BYTES) {
            state.hold(0, first);
        }
        Self { fetch, len_bytes, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Byte range of the blocks of a run.
    fn bytes_of(&self, run: &Range<u64>) -> Range<u64> {
        run.start * BLOCK_BYTES..run.end.saturating_mul(BLOCK_BYTES).min(self.len_bytes)
    }

    /// Returns a block and fetches those up to `last` with it, as far as one request goes.
    fn block(&self, index: u64, last: u64) -> io::Result<Bytes> {
        let mut state = self.state();
        loop {
            if let Some(block) = state.held(index) {
                return Ok(block);
            }
            if !state.loading.contains(&index) {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let run = state.begin(index, last, self.len_bytes.div_ceil(BLOCK_BYTES));
        drop(state);

        let range = self.bytes_of(&run);
        let fetched = (self.fetch)(range.clone());

        let mut state = self.state();
        for block in run.clone() {
            state.loading.remove(&block);
        }
        self.changed.notify_all();
        let bytes = fetched?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = bytes;
        let mut first = None;
        for block in run {
            let len = rest.len().min(usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX));
            // Copied, because a part of a run would keep all of it in memory.
            let piece = Bytes::copy_from_slice(&rest.split_to(len));
            first.get_or_insert_with(|| piece.clone());
            state.hold(block, piece);
        }
        first.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl State {
    fn held(&mut self, index: u64) -> Option<Bytes> {
        let place = self.held.iter().position(|(held, _)| *held == index)?;
        let entry = self.held.remove(place)?;
        let block = entry.1.clone();
        self.held.push_back(entry);
        Some(block)
    }

    fn hold(&mut self, index: u64, block: Bytes) {
        self.held.push_back((index, block));
        if self.held.len() > HELD {
            self.held.pop_front();
        }
    }

    /// Which blocks to fetch in one request for a missing one. Marks them as loading.
    fn begin(&mut self, index: u64, last: u64, count: u64) -> Range<u64> {
        let goes_on = index.checked_sub(self.next).is_some_and(|skipped| skipped <= MAX_SKIP);
        self.run = if goes_on { (self.run * 2).min(MAX_RUN) } else { 1 };
        let wanted = (last - index + 1).max(self.run).min(MAX_RUN);
        let is_there =
            |block: &u64| self.loading.contains(block) || self.held.iter().any(|(held, _)| held == block);
        let end = (index + 1..count.min(index + wanted)).find(is_there).unwrap_or(count.min(index + wanted));
        self.loading.extend(index..end);
        self.next = end;
        index..end
    }
}

impl<F: Fn(Range<u64>) -> io::Result<Bytes> + Send + Sync> ReadAt for Blocks<F> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.len_bytes);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let index = at / BLOCK_BYTES;
            let block = self.block(index, (end - 1) / BLOCK_BYTES)?;
            let skipped = usize::try_from(at % BLOCK_BYTES).map_err(io::Error::other)?;
            let piece = block.get(skipped..).ok_or(io::ErrorKind::UnexpectedEof)?;
            let len = piece.len().min(rest.len());
            let (filled, left) = rest.split_at_mut(len);
            filled.copy_from_slice(&piece[..len]);
            rest = left;
            at += len as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    const BLOCK: usize = 1 << 20;

    fn content(len: usize) -> Bytes {
        (0..len).map(|at| u8::try_from((at / 7 + at / BLOCK) % 251).unwrap()).collect()
    }

    /// An object, and how often bytes were requested from it.
    fn object(
        whole: &Bytes,
        asked: &AtomicUsize,
    ) -> Blocks<impl Fn(Range<u64>) -> io::Result<Bytes> + Send + Sync> {
        let slice = |range: Range<u64>| {
            whole.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap())
        };
        Blocks::new(whole.len() as u64, whole.slice(..whole.len().min(BLOCK)), move |range| {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(slice(range))
        })
    }

    fn check(object: &impl ReadAt, whole: &[u8], at: usize, len: usize) {
        let mut buffer = vec![0; len];
        object.read_at(at as u64, &mut buffer).unwrap();
        assert!(buffer == whole[at..at + len]);
    }

    #[test]
    fn reading_in_order_costs_few_requests_and_a_chunk_one() {
        let (whole, asked) = (content(40 * BLOCK + 17), AtomicUsize::new(0));
        let object = object(&whole, &asked);
        for at in (0..40 * BLOCK).step_by(200_000) {
            check(&object, &whole, at, 200_000.min(whole.len() - at));
        }
        // Runs of 2, 4 and then 8 blocks.
        assert_eq!(asked.swap(0, Ordering::SeqCst), 7);
        check(&object, &whole, 3 * BLOCK + 5, 200_000);
        check(&object, &whole, 3 * BLOCK + 205_005, 200_000);
        assert_eq!(asked.swap(0, Ordering::SeqCst), 1);
        check(&object, &whole, 10 * BLOCK - 1, 6 * BLOCK);
        assert_eq!(asked.swap(0, Ordering::SeqCst), 1);
        check(&object, &whole, 0, whole.len());
        assert!(object.read_at(whole.len() as u64 - 1, &mut [0; 2]).is_err());
        assert!(object.read_at(u64::MAX, &mut [0; 2]).is_err());
        object.read_at(whole.len() as u64, &mut []).unwrap();
    }

    #[test]
    fn threads_that_need_the_same_block_fetch_it_once() {
        let (whole, asked) = (content(12 * BLOCK), AtomicUsize::new(0));
        let object = object(&whole, &asked);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| check(&object, &whole, BLOCK, 4 * BLOCK));
            }
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(object.state().loading.is_empty());
    }

    #[test]
    fn a_request_that_fails_is_made_again_by_the_next_reader() {
        let (whole, asked) = (content(4 * BLOCK), AtomicUsize::new(0));
        let object = Blocks::new(whole.len() as u64, whole.slice(..BLOCK), |range: Range<u64>| {
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            match asked.fetch_add(1, Ordering::SeqCst) {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                1 => Ok(whole.slice(range.start..range.end - 1)),
                _ => Ok(whole.slice(range)),
            }
        });
        let mut buffer = vec![0; BLOCK];
        let mut read = || object.read_at(BLOCK as u64 + 3, &mut buffer).map_err(|error| error.kind());
        assert_eq!(read(), Err(io::ErrorKind::ConnectionReset));
        assert_eq!(read(), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read(), Ok(()));
        assert!(buffer == whole[BLOCK + 3..2 * BLOCK + 3]);
    }
}
