//! Buffers that are used again on the thread that drops them: fresh memory has its pages cleared, which costs as much as coding does.
//! They hold no meaning; their memory ends with the thread.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Most bytes that a thread keeps.
const KEPT_BYTES: usize = 48 << 20;

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

#[derive(Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer for work in progress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    /// A buffer of `len` bytes that may hold anything.
    pub(crate) fn of_len(len: usize) -> Self {
        let mut buffer = Self::with_capacity(len);
        buffer.0.resize(len, 0);
        buffer
    }

    /// An empty buffer with room for `capacity` bytes.
    pub(crate) fn empty(capacity: usize) -> Self {
        let mut buffer = Self::with_capacity(capacity);
        buffer.0.clear();
        buffer
    }

    /// The bytes as a vector, for who fills or keeps them.
    pub(crate) fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// The smallest free buffer that has room, or a new one.
    fn with_capacity(capacity: usize) -> Self {
        let reused = FREE.try_with(|free| {
            let free = &mut *free.borrow_mut();
            let fitting = (0..free.buffers.len()).filter(|i| free.buffers[*i].capacity() >= capacity);
            let best = fitting.min_by_key(|i| free.buffers[*i].capacity())?;
            free.bytes -= free.buffers[best].capacity();
            Some(free.buffers.swap_remove(best))
        });
        // While a thread ends, its buffers are gone already.
        Self(reused.ok().flatten().unwrap_or_else(|| Vec::with_capacity(capacity)))
    }
}

impl From<Vec<u8>> for Scratch {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // Small ones are cheap to make.
        if buffer.capacity() < 4096 {
            return;
        }
        let keep = |free: &RefCell<Free>| {
            let free = &mut *free.borrow_mut();
            if free.bytes + buffer.capacity() <= KEPT_BYTES {
                free.bytes += buffer.capacity();
                free.buffers.push(buffer);
            }
        };
        // An error means that the thread ends, and the buffer with it.
        FREE.try_with(keep).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_where_it_fits() {
        let address = |buffer: &Scratch| buffer.as_ptr();
        let (small, large) = (Scratch::of_len(10_000), Scratch::of_len(100_000));
        let (small_at, large_at) = (address(&small), address(&large));
        drop(large);
        drop(small);
        let (first, second) = (Scratch::of_len(9_000), Scratch::of_len(9_000));
        assert_eq!((address(&first), address(&second)), (small_at, large_at));
        assert_eq!((first.len(), Scratch::empty(50).len()), (9_000, 0));
    }
}
