//! A thread that decodes matrices ahead of their use, a few at a time, while others are multiplied.
//!
//! [`super::running`] decides what it decodes and what is kept. Results do not depend on its
//! progress.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::cache::Key;
use super::tenant::{Loaded, Tenant};
use deltaloom::Result;
use deltaloom_compute::Choice;

/// A matrix to decode.
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) tenant: Arc<Tenant>,
    pub(super) wanted: Choice,
}

impl Job {
    /// Runs the job. `None` for a matrix that the tenant does not have.
    pub(super) fn run(&self) -> Option<Result<Loaded>> {
        let slot = self.tenant.slot(self.key.place)?;
        Some(self.tenant.load(slot, self.wanted))
    }
}

/// The thread, which ends when this value is dropped.
pub(super) struct Prefetcher {
    desk: Arc<Desk>,
    worker: Option<JoinHandle<()>>,
}

struct Desk {
    state: Mutex<State>,
    changed: Condvar,
    /// Most results that wait to be taken.
    ahead: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    working_on: Option<Key>,
    results: BTreeMap<Key, Result<Loaded>>,
    /// Incremented when everything is forgotten.
    generation: u64,
    prefetched: u64,
    is_closed: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.is_closed {
            if state.results.len() >= self.ahead {
                state = self.wait(state);
                continue;
            }
            let Some(job) = state.jobs.pop_front() else {
                state = self.wait(state);
                continue;
            };
            let generation = state.generation;
            state.working_on = Some(job.key);
            drop(state);
            let result = job.run();
            state = self.lock();
            state.working_on = None;
            if let Some(result) = result.filter(|_| state.generation == generation) {
                state.prefetched += 1;
                state.results.insert(job.key, result);
            }
            self.changed.notify_all();
        }
    }
}

impl Prefetcher {
    /// Starts the thread. If that fails, nothing is prefetched.
    pub(super) fn new(ahead: usize) -> Self {
        let desk = Arc::new(Desk { state: Mutex::default(), changed: Condvar::new(), ahead });
        let own = Arc::clone(&desk);
        let worker = std::thread::Builder::new().name("prefetch".into()).spawn(move || own.work()).ok();
        Self { desk, worker }
    }

    /// Replaces the waiting jobs; the current one continues.
    pub(super) fn ask(&self, jobs: Vec<Job>) {
        if self.worker.is_none() {
            return;
        }
        let mut state = self.desk.lock();
        let State { results, working_on, .. } = &*state;
        let is_new = |job: &Job| !results.contains_key(&job.key) && *working_on != Some(job.key);
        let jobs: VecDeque<Job> = jobs.into_iter().filter(is_new).collect();
        let has_jobs = !jobs.is_empty();
        state.jobs = jobs;
        // Waking the thread for nothing takes as long as a small product.
        if has_jobs {
            self.desk.changed.notify_all();
        }
    }

    /// Takes the result of a job, and waits for it if it is being decoded. A job that has not begun
    /// is dropped and gives `None`.
    pub(super) fn take(&self, key: &Key) -> Option<Result<Loaded>> {
        let mut state = self.desk.lock();
        state.jobs.retain(|job| job.key != *key);
        while state.working_on == Some(*key) {
            state = self.desk.wait(state);
        }
        let result = state.results.remove(key);
        self.desk.changed.notify_all();
        result
    }

    /// Forgets everything; the current result will be dropped.
    pub(super) fn cancel(&self) {
        let mut state = self.desk.lock();
        state.jobs.clear();
        state.results.clear();
        state.generation += 1;
    }

    /// Number of matrices decoded so far.
    pub(super) fn prefetched(&self) -> u64 {
        self.desk.lock().prefetched
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.cancel();
        self.desk.lock().is_closed = true;
        self.desk.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            // Decoding does not panic. Even if it did, everything here would be unchanged.
            let _ended = worker.join();
        }
    }
}
