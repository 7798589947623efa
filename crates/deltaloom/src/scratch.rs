//! Buffers that the thread that drops them uses again. The system clears the pages of fresh memory,
//! which costs as much as coding does.
//! Buffers carry no content from one use to the next. Their memory ends with the thread.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Most bytes that one thread keeps, and that all threads of a pool keep together.
const KEPT_BYTES: usize = 48 << 20;
const KEPT_BYTES_OF_POOL: usize = 96 << 20;

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

#[derive(Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer for work in progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    /// At least `len` bytes. They are not cleared again.
    bytes: Vec<u8>,
    len: usize,
}

impl Scratch {
    /// A buffer of `len` bytes that may hold anything.
    pub(crate) fn of_len(len: usize) -> Self {
        let mut bytes = take(len);
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Self { bytes, len }
    }

    /// An empty vector with room for `capacity` bytes. Turned back into a buffer, its memory is
    /// reused.
    pub(crate) fn vec(capacity: usize) -> Vec<u8> {
        let mut bytes = take(capacity);
        bytes.clear();
        bytes
    }
}

/// The smallest free buffer that has room, or a new one.
fn take(capacity: usize) -> Vec<u8> {
    let reused = FREE.try_with(|free| {
        let free = &mut *free.borrow_mut();
        let fitting = (0..free.buffers.len()).filter(|i| free.buffers[*i].capacity() >= capacity);
        let best = fitting.min_by_key(|i| free.buffers[*i].capacity())?;
        free.bytes -= free.buffers[best].capacity();
        Some(free.buffers.swap_remove(best))
    });
    // While a thread ends, its buffers are already gone.
    reused.ok().flatten().unwrap_or_else(|| Vec::with_capacity(capacity))
}

impl From<Vec<u8>> for Scratch {
    fn from(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len(), bytes }
    }
}

impl PartialEq for Scratch {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Scratch {}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.bytes);
        // Small buffers are cheap to allocate.
        if buffer.capacity() < 4096 {
            return;
        }
        // Threads of a pool end with their operation, or there are many. A program's own threads
        // keep nothing.
        let limit = match rayon::current_thread_index() {
            Some(_) => KEPT_BYTES.min(KEPT_BYTES_OF_POOL / rayon::current_num_threads()),
            None => 0,
        };
        let keep = |free: &RefCell<Free>| {
            let free = &mut *free.borrow_mut();
            if free.bytes + buffer.capacity() <= limit {
                free.bytes += buffer.capacity();
                free.buffers.push(buffer);
            }
        };
        // An error means that the thread is ending, and the buffer with it.
        FREE.try_with(keep).unwrap_or_default();
    }
}

/// Bytes that are in memory anyway, or that were read into a buffer.
#[derive(Debug)]
pub(crate) enum Bytes<'a> {
    Held(&'a [u8]),
    Read(Scratch),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Held(bytes) => bytes,
            Self::Read(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_where_it_fits() {
        let address = |buffer: &Scratch| buffer.as_ptr();
        crate::pipeline::with_threads(1, || {
            let (small, large) = (Scratch::of_len(10_000), Scratch::of_len(100_000));
            let (small_at, large_at) = (address(&small), address(&large));
            drop(large);
            drop(small);
            let (first, second) = (Scratch::of_len(9_000), Scratch::of_len(9_000));
            assert_eq!((address(&first), address(&second)), (small_at, large_at));
            assert_eq!((first.len(), Scratch::vec(50).len()), (9_000, 0));
            Ok(())
        })
        .unwrap();
    }
}
