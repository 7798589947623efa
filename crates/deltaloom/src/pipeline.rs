//! Runs a long operation in windows: while one window is computed, the one before it is hashed and
//! written, in order.
//! Memory is bounded by two windows, and nothing depends on the number of threads.

use crate::error::{Error, Result};

/// Chunks of a window, where the size of windows affects the result.
pub(crate) const WINDOW_CHUNKS: usize = 32;

/// Runs `work`, and everything of this library that it calls, on a rayon pool with this many
/// threads. 0 means one per core. If called on a thread of such a pool, it stays there.
///
/// # Errors
/// [`Error::InvalidArgument`] if the system cannot start that many threads; the errors of `work`.
pub fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let is_in_pool = rayon::current_thread_index().is_some();
    if is_in_pool && (threads == 0 || threads == rayon::current_num_threads()) {
        return work();
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::InvalidArgument(format!("{threads} threads: {e}")))?;
    pool.install(work)
}

/// Passes every window through `produce` and its result through `consume`, in order. `consume`
/// overlaps with `produce` of the next window.
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

/// Passes every window through three stages, each in order. The stages work on three windows at a
/// time.
pub(crate) fn staged<W: Send, A: Send, B: Send>(
    windows: impl IntoIterator<Item = W>,
    mut first: impl FnMut(W) -> Result<A> + Send,
    mut second: impl FnMut(A) -> Result<B> + Send,
    mut third: impl FnMut(B) -> Result<()> + Send,
) -> Result<()> {
    let (mut after_first, mut after_second): (Option<A>, Option<B>) = (None, None);
    for window in windows.into_iter().map(Some).chain([None, None]) {
        let (from_first, from_second) = (after_first.take(), after_second.take());
        let (next_first, (next_second, done)) = rayon::join(
            || window.map(&mut first).transpose(),
            || {
                rayon::join(
                    || from_first.map(&mut second).transpose(),
                    || from_second.map_or(Ok(()), &mut third),
                )
            },
        );
        // The error of the earliest window is reported.
        done?;
        (after_second, after_first) = (next_second?, next_first?);
    }
    Ok(())
}

/// Groups runs of chunks, whose lengths `chunks_of` gives, into windows of at most `window_chunks`.
/// A run is never cut, so a longer one has a window of its own.
pub(crate) fn windows<T>(runs: Vec<T>, window_chunks: usize, chunks_of: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut windows: Vec<Vec<T>> = Vec::new();
    let mut filled = window_chunks;
    for run in runs {
        let chunks = chunks_of(&run);
        if filled + chunks > window_chunks {
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
    fn stages_keep_order_and_tell_of_the_earliest_fault() {
        let mut seen = Vec::new();
        let keep = |x| {
            seen.push(x);
            Ok(())
        };
        staged(0..10, |i| Ok(i * 2), |x| Ok(x + 1), keep).unwrap();
        assert_eq!(seen, (0..10).map(|i| i * 2 + 1).collect::<Vec<_>>());
        let fault = |what: &str| Error::InvalidArgument(what.to_owned());
        let failed = staged(
            0..10,
            |i| if i == 5 { Err(fault("first")) } else { Ok(i) },
            |i| if i == 4 { Err(fault("second")) } else { Ok(i) },
            |_| Ok(()),
        );
        assert_eq!(failed.unwrap_err().to_string(), fault("second").to_string());
    }

    #[test]
    fn windows_hold_whole_runs() {
        let cut = windows(vec![20, 12, 1, 32, 40], 32, |n| *n);
        assert_eq!(cut, [vec![20, 12], vec![1], vec![32], vec![40]]);
    }
}
