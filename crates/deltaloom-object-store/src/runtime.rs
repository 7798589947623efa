//! Where requests wait, so that callers need no runtime of their own. It knows nothing of the
//! requests.

use std::future::Future;
use std::io;
use std::sync::{OnceLock, mpsc};

use tokio::runtime::{Builder, Runtime};

/// Threads that move bytes: one is enough for waiting, and the second sends while the first reads a
/// file.
const THREADS: usize = 2;

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
    receiver.recv().map_err(|_| io::Error::other("a request ended without an answer"))
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
