//! Checkpoints that are made of tensors in the memory of Python. Nothing is copied: bytes are read
//! where they are, or fetched part by part.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use deltaloom::Limits;
use deltaloom::checkpoint::{Checkpoint, NewTensor, ReadAt};
use deltaloom::tensor::{DType, TensorInfo};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffer::Input;
use crate::errors;

/// Bytes that a Python function gives: `fetch(start, stop)` returns those of a range. For tensors
/// that are not in the memory of this process, or do not lie together there.
struct Fetched {
    fetch: Py<PyAny>,
    len_bytes: u64,
}

impl ReadAt for Fetched {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let fetch = |py: Python<'_>| {
            let stop = offset + buffer.len() as u64;
            let fetched = Input::of(&self.fetch.call1(py, (offset, stop))?.into_bound(py))?;
            let bytes = fetched.bytes();
            if bytes.len() != buffer.len() {
                let (found, needed) = (bytes.len(), buffer.len());
                return Err(PyValueError::new_err(format!("{found} bytes were given instead of {needed}")));
            }
            buffer.copy_from_slice(bytes);
            Ok(())
        };
        Python::attach(fetch).map_err(io::Error::other)
    }
}

/// A checkpoint of one safetensors file that is not written anywhere: its tensors stay where they
/// are.
#[pyclass(frozen, module = "deltaloom._lib")]
pub(crate) struct Tensors {
    checkpoint: Arc<Checkpoint>,
}

impl Tensors {
    pub(crate) fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }
}

#[pymethods]
impl Tensors {
    /// A file `name` with tensors of name, dtype, shape and source, which is an object of bytes or
    /// a function that gives the bytes of a range.
    #[new]
    fn new(
        py: Python<'_>,
        name: &str,
        tensors: Vec<(String, String, Vec<u64>, Bound<'_, PyAny>)>,
        metadata: BTreeMap<String, String>,
    ) -> PyResult<Self> {
        let tensor = |(name, dtype, shape, source): (String, String, Vec<u64>, Bound<'_, PyAny>)| {
            let dtype = DType::from_name(&dtype);
            let source: Arc<dyn ReadAt> = if source.is_callable() {
                let len_bytes = TensorInfo::sized(name.clone(), dtype.clone(), shape.clone()).len_bytes();
                Arc::new(Fetched { fetch: source.unbind(), len_bytes })
            } else {
                Arc::new(Input::of(&source)?)
            };
            PyResult::Ok(NewTensor { name, dtype, shape, source })
        };
        let tensors = tensors.into_iter().map(tensor).collect::<PyResult<Vec<_>>>()?;
        let made = Checkpoint::from_tensors(name, tensors, &metadata, &Limits::default());
        let checkpoint = Arc::new(made.map_err(|e| errors::exception(py, &e))?);
        Ok(Self { checkpoint })
    }
}
