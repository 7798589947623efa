//! Where requests wait, so that callers need no runtime of their own.
//! It knows nothing of what is asked.

use std::future::Future;
use std::io;
use std::sync::{OnceLock, mpsc};

use tokio::runtime::{Builder, Runtime};

/// Threads that move bytes: one is enough for waiting, the second sends while the first reads a file.
const THREADS: usize = 2;

/// The result of a future, run by the shared runtime while this thread waits.
///
/// The future is handed over rather than run here: a caller may itself be on a runtime, where waiting for another one is refused with a panic.
pub(crate) fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    shared()?.spawn(async move {
        // A receiver that is gone has nobody waiting behind it.
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
        // Another thread was faster. Not dropped, which waits and must not be done on a runtime.
        late.shutdown_background();
    }
    RUNTIME.get().ok_or_else(|| io::Error::other("no runtime"))
}
