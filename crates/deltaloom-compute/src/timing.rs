//! Where the time of a product goes, phase by phase. It only adds up; callers that repeat compute
//! their own means.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::mode::Mode;

/// A part of the work of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Rearranging activations for a kernel.
    Load,
    /// Decoding entropy-coded tiles.
    Decode,
    /// Building rows from the base and the differences, and widening them.
    Patch,
    /// Multiplying.
    Multiply,
    /// Rearranging results for the caller.
    Finish,
}

const PHASES: usize = 5;

/// Time spent in each phase, summed over all threads.
#[derive(Debug, Default)]
pub struct Timers([AtomicU64; PHASES]);

/// Seconds in each phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
#[non_exhaustive]
pub struct Times {
    /// See [`Phase::Load`].
    pub load: f64,
    /// See [`Phase::Decode`].
    pub decode: f64,
    /// See [`Phase::Patch`].
    pub patch: f64,
    /// See [`Phase::Multiply`].
    pub multiply: f64,
    /// See [`Phase::Finish`].
    pub finish: f64,
}

impl Times {
    /// Seconds in all phases.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.load + self.decode + self.patch + self.multiply + self.finish
    }
}

impl std::ops::Add for Times {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            load: self.load + other.load,
            decode: self.decode + other.decode,
            patch: self.patch + other.patch,
            multiply: self.multiply + other.multiply,
            finish: self.finish + other.finish,
        }
    }
}

impl Timers {
    /// The time since the last call; then restarts at 0.
    pub fn take(&self) -> Times {
        let seconds = |phase: Phase| {
            let nanos = self.0[phase as usize].swap(0, Ordering::Relaxed);
            Duration::from_nanos(nanos).as_secs_f64()
        };
        Times {
            load: seconds(Phase::Load),
            decode: seconds(Phase::Decode),
            patch: seconds(Phase::Patch),
            multiply: seconds(Phase::Multiply),
            finish: seconds(Phase::Finish),
        }
    }

    fn add(&self, phase: Phase, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0[phase as usize].fetch_add(nanos, Ordering::Relaxed);
    }
}

/// How a product is computed, and where its time is recorded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run<'a> {
    /// The numerical guarantee.
    pub mode: Mode,
    /// Timers to record time, which itself takes some time.
    pub timers: Option<&'a Timers>,
}

impl<'a> Run<'a> {
    /// A run that records nothing.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self { mode, timers: None }
    }

    /// The same run, with its time recorded in `timers`.
    #[must_use]
    pub fn timed_by(self, timers: &'a Timers) -> Self {
        Self { timers: Some(timers), ..self }
    }

    /// Runs work that belongs to a phase.
    pub fn time<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let Some(timers) = self.timers else { return work() };
        let start = Instant::now();
        let result = work();
        timers.add(phase, start.elapsed());
        result
    }
}
