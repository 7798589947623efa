//! Where requests wait, so that callers need no runtime of their own. It knows nothing of the
//! requests.

use std::future::Future;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Threads that move bytes: one is enough for waiting, and the second sends while the first reads a
/// file.
const THREADS: usize = 2;

/// A request that takes longer is told of.
const PATIENCE: Duration = Duration::from_secs(8);

/// What is called when a request takes long.
static TELL: OnceLock<fn()> = OnceLock::new();

/// Has `tell` called if a request takes more than some seconds, at most once in a process. Only the
/// first call has an effect.
pub fn when_slow(tell: fn()) {
    // Whoever was first has set it.
    let _ = TELL.set(tell);
}

fn tell_once() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        if let Some(tell) = TELL.get() {
            tell();
        }
    });
}

/// Runs a future on the shared runtime and blocks this thread until its result.
///
/// The future must not run on this thread: if the caller is itself on a runtime, blocking on
/// another one panics.
pub(crate) fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    shared()?.spawn(async move {
        // If the receiver is gone, nobody waits for the result.
        let _ = sender.send(future.await);
    });
    let answer = match receiver.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Timeout) => {
            tell_once();
            receiver.recv().ok()
        }
        answer => answer.ok(),
    };
    answer.ok_or_else(|| io::Error::other("a request ended without an answer"))
}

fn shared() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("deltaloom-store")
        .enable_all()
        .build()?;
    if let Err(late) = RUNTIME.set(runtime) {
        // Another thread was faster. A plain drop would block, which panics on a runtime.
        late.shutdown_background();
    }
    RUNTIME.get().ok_or_else(|| io::Error::other("no runtime"))
}
