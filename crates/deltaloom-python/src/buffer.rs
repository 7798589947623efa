//! Memory of Python objects as slices: the only place of this crate with `unsafe`.
//! It knows bytes and no tensors.

use std::io;
use std::ops::Range;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};

use deltaloom::checkpoint::ReadAt;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Bytes of an object that are read while the interpreter is free. The object cannot be resized
/// or freed until this is dropped.
pub(crate) struct Input(PyBuffer<u8>);

impl Input {
    /// Takes the memory of an object of contiguous bytes.
    ///
    /// # Errors
    /// `TypeError` or `BufferError` for an object without such memory.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        contiguous(object).map(Self)
    }

    /// All its bytes.
    #[expect(unsafe_code, reason = "the buffer protocol gives a pointer and a length")]
    pub(crate) fn bytes(&self) -> &[u8] {
        if self.0.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps `len_bytes` contiguous bytes at `buf_ptr` until the buffer is
        // released, which `self` does when it is dropped. The documentation of every call that
        // takes a buffer requires that no thread writes to it until the call ends, as numpy does.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast::<u8>(), self.0.len_bytes()) }
    }
}

impl ReadAt for Input {
    fn len_bytes(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.bytes().read_at(offset, buffer)
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.bytes().slice(range)
    }
}

/// Bytes of an object that are written while the interpreter is free. No other call can write to
/// them meanwhile.
pub(crate) struct Output {
    buffer: PyBuffer<u8>,
    _held: Held,
}

impl Output {
    /// Takes the memory of an object of contiguous bytes.
    ///
    /// # Errors
    /// `TypeError` or `BufferError` for an object without such memory, `ValueError` for one that is
    /// read-only, `RuntimeError` for memory that another call is writing to.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = contiguous(object)?;
        if buffer.readonly() {
            return Err(PyValueError::new_err("the buffer is read-only"));
        }
        let held = Held::take(&buffer)?;
        Ok(Self { buffer, _held: held })
    }

    /// All its bytes.
    #[expect(unsafe_code, reason = "the buffer protocol gives a pointer and a length")]
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        if self.buffer.len_bytes() == 0 {
            return &mut [];
        }
        // SAFETY: as in `Input::bytes`; the memory is writable, and `_held` shows that no other
        // slice of this process was made of it.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.buf_ptr().cast::<u8>(), self.buffer.len_bytes()) }
    }
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<u8>> {
    let buffer = PyBuffer::<u8>::get(object).map_err(|e| {
        let kind = object.get_type().name().map_or_else(|_| "object".to_owned(), |name| name.to_string());
        let error = PyTypeError::new_err(format!("bytes are needed, and this {kind} does not give any"));
        error.set_cause(object.py(), Some(e));
        error
    })?;
    if buffer.is_c_contiguous() {
        return Ok(buffer);
    }
    Err(PyValueError::new_err("the bytes do not lie together"))
}

/// Memory that calls are writing to, with the process that made the call: in a forked one, those
/// calls do not exist.
static IN_USE: Mutex<Vec<(u32, Range<usize>)>> = Mutex::new(Vec::new());

/// An entry of [`IN_USE`].
struct Held(Range<usize>);

impl Held {
    fn take(buffer: &PyBuffer<u8>) -> PyResult<Self> {
        let start = buffer.buf_ptr() as usize;
        let range = start..start.saturating_add(buffer.len_bytes());
        let mut in_use = in_use();
        let meets = |(process, other): &(u32, Range<usize>)| {
            *process == process::id() && other.start < range.end && range.start < other.end
        };
        if in_use.iter().any(meets) {
            return Err(PyRuntimeError::new_err("buffer is in use"));
        }
        in_use.push((process::id(), range.clone()));
        Ok(Self(range))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut in_use = in_use();
        let own = (process::id(), self.0.clone());
        if let Some(at) = in_use.iter().position(|other| *other == own) {
            in_use.swap_remove(at);
        }
    }
}

fn in_use() -> MutexGuard<'static, Vec<(u32, Range<usize>)>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner)
}
