//! The extension module `deltaloom._lib`: buffers in and out, handles of open files, and errors.
//! The Python files beside it make it a library: they know numpy, torch, and what users write.
//!
//! Every call that reads or writes runs on threads of its own while the interpreter is free
//! ([`progress::run`]), so signals are answered and a forked process may call everything.

mod buffer;
mod checkpoint;
mod container;
mod errors;
mod lm;
mod operations;
mod program;
mod progress;
mod report;
mod series;
mod waiting;

use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

/// The module `sys` of the interpreter that this module was loaded in first.
static INTERPRETER: AtomicUsize = AtomicUsize::new(0);

/// Refuses a second interpreter of the process: classes and threads belong to the first.
fn check_interpreter(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let own = module.py().import("sys")?.as_ptr() as usize;
    match INTERPRETER.compare_exchange(0, own, Ordering::SeqCst, Ordering::SeqCst) {
        Err(first) if first != own => {
            Err(PyImportError::new_err("deltaloom does not support subinterpreters"))
        }
        _ => Ok(()),
    }
}

/// What Python sees.
#[pyo3::pymodule(gil_used = false)]
mod _lib {
    use super::{Bound, PyModule, PyResult, check_interpreter};

    #[pymodule_export]
    use super::checkpoint::Tensors;
    #[pymodule_export]
    use super::container::Reader;
    #[pymodule_export]
    use super::lm::Model;
    #[pymodule_export]
    use super::operations::{
        diff, find_base, inspect, lineage, pack, pack_tensors, pack_tensors_to_bytes, unpack,
        unpack_in_place, verify,
    };
    #[pymodule_export]
    use super::program::{run, version};
    #[pymodule_export]
    use super::series::Series;
    #[pymodule_export]
    use super::waiting::{drain, snapshot};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        check_interpreter(module)
    }
}
