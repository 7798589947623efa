//! Lets an operation report its progress and learn that it should stop.
//! It draws nothing: programs do that.

use crate::error::{Error, Result};

/// Receives the progress of one operation. Called from several threads.
pub trait Progress: Sync {
    /// Work of `total_bytes` begins.
    fn start(&self, total_bytes: u64);
    /// `bytes` more are done.
    fn advance(&self, bytes: u64);
    /// Before the work, it is found out how tensors of `total_bytes` were made. That can take as
    /// long as the work.
    fn search(&self, _total_bytes: u64) {}
    /// It is known of `bytes` more.
    fn searched(&self, _bytes: u64) {}
    /// Whether to stop; asked between chunks.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// For callers that want no progress reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}

/// Fails once the work should stop.
pub fn check_cancelled(progress: &dyn Progress) -> Result<()> {
    if progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
