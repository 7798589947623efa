//! Processor time of a thread, which other work on the machine does not lengthen as it does the time on the wall.
//! Where the system has no such clock it is the time on the wall.

#[cfg(not(unix))]
use std::time::Instant;

/// Measures from when it was started, on the thread that did so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    #[cfg(unix)]
    nanoseconds: i128,
    #[cfg(not(unix))]
    start: Instant,
}

#[cfg(unix)]
impl Clock {
    pub(super) fn start() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Self { nanoseconds: i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec) }
    }

    pub(super) fn seconds(self) -> f64 {
        let passed = (Self::start().nanoseconds - self.nanoseconds) as f64;
        passed / 1e9
    }
}

#[cfg(not(unix))]
impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(super) fn seconds(self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
