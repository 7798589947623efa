//! The program `deltaloom` inside a Python process.

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use deltaloom_cli::{Host, run_from};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::progress::attend;

/// The exit code for what cannot be written.
const CANNOT_WRITE: u8 = 4;
/// Held while the program runs: it does so once at a time.
static RUNNING: Mutex<()> = Mutex::new(());
/// Whether the run should stop.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the program on a command line, whose first word is its name, and returns the exit code.
/// `start` are the words that start it again. With `signals`, it handles signals itself from now
/// on; without, Python does.
#[pyfunction]
pub(crate) fn run(py: Python<'_>, words: Vec<OsString>, start: Vec<OsString>, signals: bool) -> PyResult<u8> {
    let busy = || PyRuntimeError::new_err("the program runs in this process already");
    let _running = RUNNING.try_lock().map_err(|_| busy())?;
    if signals {
        return Ok(py.detach(|| flushed(run_from(words, Host::new(start, None)))));
    }
    IS_INTERRUPTED.store(false, Ordering::SeqCst);
    let host = Host::new(start, Some(|| IS_INTERRUPTED.load(Ordering::SeqCst)));
    let cancel = || IS_INTERRUPTED.store(true, Ordering::SeqCst);
    attend(py, || flushed(run_from(words, host)), |py| py.check_signals(), cancel)
}

/// What Rust does at the end of its own programs only. The code becomes that of a file that cannot
/// be written, if standard output has gone.
fn flushed(code: u8) -> u8 {
    match std::io::stdout().flush() {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => CANNOT_WRITE,
        _ => code,
    }
}

/// The version of the library.
#[pyfunction]
pub(crate) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
