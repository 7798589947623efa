//! Runs a long operation in windows: while one window is computed, the one before it is hashed and written, in order.
//! Memory is bounded by two windows, and nothing depends on the number of threads.

use crate::error::{Error, Result};

/// Chunks of a window.
pub(crate) const WINDOW_CHUNKS: usize = 32;

/// Runs `work`, and what of this library is called in it, on a rayon pool of as many threads as asked for; 0 means one per core. On a thread of such a pool
/// already, it stays there.
///
/// # Errors
/// [`Error::InvalidArgument`] where the system gives no such threads; those of `work`.
pub fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let is_in_pool = rayon::current_thread_index().is_some();
    if is_in_pool && (threads == 0 || threads == rayon::current_num_threads()) {
        return work();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::InvalidArgument(format!("{threads} threads: {e}")))?;
    pool.install(work)
}

/// Feeds every window through `produce` and its result through `consume`, in order; `consume` of one overlaps `produce` of the next.
pub(crate) fn overlapped<W: Send, T: Send>(
    windows: impl IntoIterator<Item = W>,
    mut produce: impl FnMut(W) -> Result<T> + Send,
    mut consume: impl FnMut(T) -> Result<()> + Send,
) -> Result<()> {
    let mut previous: Option<T> = None;
    for window in windows {
        let finish = || previous.take().map_or(Ok(()), &mut consume);
        let (next, finished) = rayon::join(|| produce(window), finish);
        finished?;
        previous = Some(next?);
    }
    previous.map_or(Ok(()), consume)
}

/// Cuts runs of chunks, given by their lengths, into windows of at most [`WINDOW_CHUNKS`]; a run is never cut.
pub(crate) fn windows<T>(runs: Vec<T>, chunks_of: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut windows: Vec<Vec<T>> = Vec::new();
    let mut filled = WINDOW_CHUNKS;
    for run in runs {
        let chunks = chunks_of(&run);
        if filled + chunks > WINDOW_CHUNKS {
            windows.push(Vec::new());
            filled = 0;
        }
        filled += chunks;
        if let Some(window) = windows.last_mut() {
            window.push(run);
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_the_first_error_stops() {
        let mut seen = Vec::new();
        overlapped(
            0..10,
            |i| Ok(i * 2),
            |x| {
                seen.push(x);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, (0..10).map(|i| i * 2).collect::<Vec<_>>());
        let mut produced = 0;
        let failed = overlapped(
            0..10,
            |i| {
                produced += 1;
                if i == 3 { Err(Error::Cancelled) } else { Ok(i) }
            },
            |_| Ok(()),
        );
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(produced, 4);
    }

    #[test]
    fn windows_hold_whole_runs() {
        let cut = windows(vec![20, 12, 1, 32, 40], |n| *n);
        assert_eq!(cut, [vec![20, 12], vec![1], vec![32], vec![40]]);
    }
}
