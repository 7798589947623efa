//! Clocks: the processor time of a thread, which other work on the machine hardly affects, and wall
//! time.

use std::time::Instant;

/// Processor time of the thread that started it, or wall time if the system has no such clock.
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

/// Processor time if the current rayon pool has one thread, otherwise wall time.
pub(super) enum Stopwatch {
    Thread(Clock),
    Wall(Instant),
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        match rayon::current_num_threads() {
            1 => Self::Thread(Clock::start()),
            _ => Self::Wall(Instant::now()),
        }
    }

    pub(super) fn seconds(&self) -> f64 {
        match self {
            Self::Thread(clock) => clock.seconds(),
            Self::Wall(start) => start.elapsed().as_secs_f64(),
        }
    }
}
