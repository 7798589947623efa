//! Runs the work of a call while the interpreter is free, and keeps the calling thread for Python:
//! it answers signals and reports progress, ten times a second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use deltaloom::{Error, Progress, Result};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::errors;

/// Time between two looks at signals.
const POLL: Duration = Duration::from_millis(100);

/// What the work tells the calling thread, and the other way round.
#[derive(Default)]
struct Watch {
    total: AtomicU64,
    done: AtomicU64,
    is_cancelled: AtomicBool,
}

impl Progress for Watch {
    fn start(&self, total_bytes: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total_bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

impl Watch {
    /// Lets Python handle its signals, and calls `report` with the bytes that are done and their
    /// total.
    fn look(&self, py: Python<'_>, report: Option<&Py<PyAny>>) -> PyResult<()> {
        py.check_signals()?;
        let Some(report) = report else { return Ok(()) };
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        if total > 0 { report.call1(py, (done.min(total), total)).map(drop) } else { Ok(()) }
    }
}

/// Runs `work` on `threads` threads of its own, which end with the call; 0 means one per core.
/// Calls `report` with the bytes that are done and their total.
///
/// # Errors
/// What `work` gives, as an exception; an exception of a signal handler or of `report`, which
/// cancels the work first.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    report: Option<&Bound<'_, PyAny>>,
    threads: usize,
    work: impl FnOnce(&dyn Progress) -> Result<T> + Send,
) -> PyResult<T> {
    let watch = Watch::default();
    let report = report.map(|report| report.clone().unbind());
    let work = || deltaloom::with_threads(threads, || work(&watch));
    let look = |py: Python<'_>| watch.look(py, report.as_ref());
    let cancel = || watch.is_cancelled.store(true, Ordering::Relaxed);
    let done = attend(py, work, look, cancel)?.map_err(|e: Error| errors::exception(py, &e))?;
    watch.look(py, report.as_ref())?;
    Ok(done)
}

/// Runs `work` in another thread. Meanwhile the calling thread calls `look`, ten times a second,
/// and `cancel` once if that fails.
///
/// # Errors
/// The error of `look`.
pub(crate) fn attend<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send,
    look: impl Fn(Python<'_>) -> PyResult<()> + Send,
    cancel: impl Fn() + Send,
) -> PyResult<T> {
    py.detach(move || {
        thread::scope(|scope| {
            // Dropped when the work ends, however it ends.
            let (ended, end) = mpsc::channel::<()>();
            let work = move || {
                let _ended = ended;
                work()
            };
            let worker = thread::Builder::new().name("deltaloom".to_owned()).spawn_scoped(scope, work);
            let worker = worker.map_err(|e| PyRuntimeError::new_err(format!("a thread: {e}")))?;
            let mut looked = Ok(());
            while end.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                if looked.is_ok() {
                    looked = Python::attach(&look);
                    if looked.is_err() {
                        cancel();
                    }
                }
            }
            match worker.join() {
                Ok(done) => looked.map(|()| done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    })
}
