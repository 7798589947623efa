//! A thread that decodes matrices while others are multiplied: the next ones of a running batch, or
//! those of a tenant whose request waits.
//!
//! [`super::running`] and [`super::expected`] decide what it decodes and what is kept. Results do
//! not depend on its progress.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::cache::Key;
use super::tenant::{Loaded, Tenant};
use crate::layer::TenantId;
use deltaloom::Result;
use deltaloom_compute::{Choice, Form};

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

/// How much may wait to be taken. The last result may go beyond.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ahead {
    /// A number of matrices.
    Matrices(usize),
    /// Bytes of their forms.
    Bytes(u64),
}

/// The thread, which ends when this value is dropped.
pub(super) struct Background {
    desk: Arc<Desk>,
    worker: Option<JoinHandle<()>>,
}

struct Desk {
    state: Mutex<State>,
    changed: Condvar,
    ahead: Ahead,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// `None` if nobody wants the current result any more.
    working_on: Option<Key>,
    results: BTreeMap<Key, Result<Loaded>>,
    /// Number of matrices decoded so far.
    decoded: u64,
    is_closed: bool,
}

impl State {
    fn knows(&self, key: &Key) -> bool {
        self.results.contains_key(key)
            || self.working_on == Some(*key)
            || self.jobs.iter().any(|job| job.key == *key)
    }

    fn is_full(&self, ahead: Ahead) -> bool {
        let bytes = |result: &Result<Loaded>| match result {
            Ok(loaded) if loaded.matrix.form() != Form::Tiles => loaded.matrix.resident_bytes(),
            _ => 0,
        };
        match ahead {
            Ahead::Matrices(count) => self.results.len() >= count,
            Ahead::Bytes(limit) => {
                !self.results.is_empty() && self.results.values().map(bytes).sum::<u64>() >= limit
            }
        }
    }

    /// Forgets what belongs to these keys. A result that is being computed will be dropped.
    fn forget(&mut self, is_meant: impl Fn(&Key) -> bool) {
        self.jobs.retain(|job| !is_meant(&job.key));
        self.results.retain(|key, _| !is_meant(key));
        self.working_on = self.working_on.filter(|key| !is_meant(key));
    }
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
            if state.is_full(self.ahead) {
                state = self.wait(state);
                continue;
            }
            let Some(job) = state.jobs.pop_front() else {
                state = self.wait(state);
                continue;
            };
            state.working_on = Some(job.key);
            drop(state);
            let result = job.run();
            state = self.lock();
            let is_wanted = state.working_on.take() == Some(job.key);
            if let Some(result) = result.filter(|_| is_wanted) {
                state.decoded += 1;
                state.results.insert(job.key, result);
            }
            self.changed.notify_all();
        }
    }
}

impl Background {
    /// Starts the thread. If that fails, nothing is decoded ahead.
    pub(super) fn new(name: &str, ahead: Ahead) -> Self {
        let desk = Arc::new(Desk { state: Mutex::default(), changed: Condvar::new(), ahead });
        let own = Arc::clone(&desk);
        let worker = std::thread::Builder::new().name(name.into()).spawn(move || own.work()).ok();
        Self { desk, worker }
    }

    /// Replaces the waiting jobs; the current one continues.
    pub(super) fn replace(&self, jobs: Vec<Job>) {
        self.desk.lock().jobs.clear();
        self.add(jobs);
    }

    /// Adds jobs after those that wait, unless they are known.
    pub(super) fn add(&self, jobs: Vec<Job>) {
        if self.worker.is_none() {
            return;
        }
        let mut state = self.desk.lock();
        let before = state.jobs.len();
        for job in jobs {
            if !state.knows(&job.key) {
                state.jobs.push_back(job);
            }
        }
        // Waking the thread for nothing takes as long as a small product.
        if state.jobs.len() > before {
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

    /// Takes all results.
    pub(super) fn take_all(&self) -> BTreeMap<Key, Result<Loaded>> {
        let results = std::mem::take(&mut self.desk.lock().results);
        if !results.is_empty() {
            self.desk.changed.notify_all();
        }
        results
    }

    /// Whether a matrix waits to be decoded or taken, or is being decoded.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.desk.lock().knows(key)
    }

    /// Whether something of a tenant waits to be decoded or taken.
    pub(super) fn has(&self, tenant: TenantId) -> bool {
        let state = self.desk.lock();
        let mut keys = state.jobs.iter().map(|job| &job.key).chain(state.results.keys());
        keys.any(|key| key.tenant == tenant) || state.working_on.is_some_and(|key| key.tenant == tenant)
    }

    /// Forgets everything of a tenant.
    pub(super) fn forget(&self, tenant: TenantId) {
        self.desk.lock().forget(|key| key.tenant == tenant);
        self.desk.changed.notify_all();
    }

    /// Forgets everything.
    pub(super) fn cancel(&self) {
        self.desk.lock().forget(|_| true);
    }

    /// Number of matrices decoded so far.
    pub(super) fn decoded(&self) -> u64 {
        self.desk.lock().decoded
    }
}

impl Drop for Background {
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
