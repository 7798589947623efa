//! The thread of the engine: it owns the engine, takes commands between steps, and sleeps when
//! there is nothing to compute. The engine survives a panic in a step. After a second one within a
//! minute the thread ends, everybody who waits is told, and the server ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deltaloom_lm::engine::{Engine, Refused, Request, RequestId, Sink, Status};
use deltaloom_lm::layer::TenantId;
use deltaloom_lm::tenancy::{PreparedTenant, TenantResidency};
use tokio::sync::{oneshot, watch};

use crate::error::{Failure, Result};
use crate::metrics::Metrics;

/// Submissions that wait for the end of a step.
const MOST_SUBMISSIONS: usize = 1024;

/// How often requests are looked at whose receivers take nothing: one of them may have left.
const PARKED: Duration = Duration::from_millis(500);

/// How often the memory of fine-tunes is looked at while steps follow each other.
const LOOK: Duration = Duration::from_millis(500);

/// Two panics of steps within this time end the server.
const BETWEEN_PANICS: Duration = Duration::from_secs(60);

/// What each fine-tune has in memory.
pub(crate) type Residents = BTreeMap<TenantId, TenantResidency>;

/// A request with where its events go.
pub(crate) type Submission = (Request, Box<dyn Sink>);

/// What the thread does between steps.
enum Command {
    Submit(Vec<Submission>, oneshot::Sender<Result<(), Refused>>),
    /// A fine-tune, and whether its matrices are pinned.
    Admit(PreparedTenant, bool, SyncSender<deltaloom::Result<TenantId>>),
    Retire(TenantId),
    /// A receiver takes more.
    Wake,
}

/// What is known about the engine without asking it.
#[derive(Debug, Default)]
struct Seen {
    status: Mutex<Status>,
    residents: Mutex<Arc<Residents>>,
    /// Tokens per second while it computes, as bits of an `f64`.
    speed: AtomicU64,
    submissions: AtomicUsize,
}

/// Sends commands to the thread. Clones share it; it ends after the last one.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    commands: Sender<Command>,
    seen: Arc<Seen>,
    /// Closed when the thread has ended.
    is_alive: watch::Receiver<()>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(engine: Engine, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (commands, receiver) = channel();
        let seen = Arc::new(Seen::default());
        let (alive, is_alive) = watch::channel(());
        let worker = Self { commands, seen: Arc::clone(&seen), is_alive };
        let thread = Thread { engine, tenants: Vec::new(), seen, looked: Instant::now(), panicked: None };
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
            // Tells when it is dropped, however the thread ends.
            let _alive = alive;
            thread.run(&receiver, &metrics);
        })?;
        Ok(worker)
    }

    /// Submits requests: all or none.
    pub(crate) async fn submit(&self, requests: Vec<Submission>) -> Result<()> {
        if self.seen.submissions.fetch_add(1, Ordering::Relaxed) >= MOST_SUBMISSIONS {
            self.seen.submissions.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::full("too many requests arrive", 1));
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Submit(requests, reply));
        if sent.is_err() {
            return Err(Failure::engine_gone());
        }
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => Err(self.explain(refused)),
            Err(_) => Err(Failure::engine_gone()),
        }
    }

    /// Adds a fine-tune. Blocks for up to a step.
    pub(crate) fn admit(&self, prepared: PreparedTenant, is_pinned: bool) -> Result<TenantId> {
        let (reply, answer) = sync_channel(1);
        let command = Command::Admit(prepared, is_pinned, reply);
        self.commands.send(command).map_err(|_| Failure::engine_gone())?;
        Ok(answer.recv().map_err(|_| Failure::engine_gone())??)
    }

    /// Removes a fine-tune.
    pub(crate) fn retire(&self, tenant: TenantId) {
        // Without a thread there is nothing to remove.
        let _ = self.commands.send(Command::Retire(tenant));
    }

    /// Whether the thread runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.is_alive.has_changed().is_ok()
    }

    /// Waits until the thread has ended.
    pub(crate) async fn ended(&self) {
        // Nothing is ever sent.
        let _ = self.is_alive.clone().changed().await;
    }

    /// Says that a receiver takes more, or nothing ever again.
    pub(crate) fn wake(&self) {
        let _ = self.commands.send(Command::Wake);
    }

    /// The engine's state after its last step.
    pub(crate) fn status(&self) -> Status {
        *self.seen.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What fine-tunes had in memory a moment ago.
    pub(crate) fn residents(&self) -> Arc<Residents> {
        Arc::clone(&self.seen.residents.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn explain(&self, refused: Refused) -> Failure {
        let message = refused.to_string();
        match refused {
            Refused::Full { tokens, .. } => {
                let speed = f64::from_bits(self.seen.speed.load(Ordering::Relaxed));
                Failure::full(message, seconds(tokens, speed))
            }
            Refused::TooLong { .. } => Failure::field("prompt", message).with_code("context_length_exceeded"),
            Refused::UnknownTenant(_) => Failure::model_gone(),
            Refused::Invalid(error) => Failure::from(error),
            _ => Failure::from(deltaloom::Error::InvalidArgument(message)),
        }
    }
}

/// Seconds until so many tokens are computed, rounded up.
fn seconds(tokens: usize, speed: f64) -> u64 {
    if speed <= 0.0 {
        return 1;
    }
    let seconds = (tokens as f64 / speed).ceil();
    #[expect(clippy::cast_possible_truncation, reason = "between 1 and 60")]
    let seconds = seconds.clamp(1.0, 60.0) as u64;
    seconds
}

impl Seen {
    fn note(&self, engine: &Engine) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = engine.status();
    }

    fn has_requests(&self) -> bool {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.running + status.waiting > 0
    }

    /// Mixes a step into the speed: half of it is that of the last ten steps.
    fn measure(&self, tokens: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        if tokens == 0 || seconds <= 0.0 {
            return;
        }
        let (now, before) = (tokens as f64 / seconds, f64::from_bits(self.speed.load(Ordering::Relaxed)));
        let mixed = if before > 0.0 { 0.93 * before + 0.07 * now } else { now };
        self.speed.store(mixed.to_bits(), Ordering::Relaxed);
    }
}

/// The engine with what is noted about it.
struct Thread {
    engine: Engine,
    tenants: Vec<TenantId>,
    seen: Arc<Seen>,
    /// When the memory of fine-tunes was last looked at.
    looked: Instant,
    panicked: Option<Instant>,
}

impl Thread {
    fn run(mut self, commands: &Receiver<Command>, metrics: &Metrics) {
        loop {
            if self.engine.is_idle() {
                self.look();
                let next = if self.seen.has_requests() {
                    commands.recv_timeout(PARKED)
                } else {
                    commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
                };
                match next {
                    Ok(command) => self.obey(command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if !self.step(metrics) {
                tracing::error!("the engine has panicked twice within a minute");
                return;
            }
        }
    }

    /// Whether it may go on after a step.
    fn step(&mut self, metrics: &Metrics) -> bool {
        let start = Instant::now();
        let report = self.engine.step();
        let took = start.elapsed();
        metrics.step(&report, took);
        for failure in &report.failures {
            tracing::error!(%failure, "a step failed");
        }
        self.seen.measure(report.prefill_tokens + report.decode_tokens, took);
        self.seen.note(&self.engine);
        if self.looked.elapsed() >= LOOK {
            self.look();
        }
        let before = if report.has_panicked { self.panicked.replace(start) } else { None };
        before.is_none_or(|before| start.duration_since(before) >= BETWEEN_PANICS)
    }

    /// Notes all that is known about the engine.
    fn look(&mut self) {
        let one = |tenant: &TenantId| Some((*tenant, self.engine.model().tenant_residency(*tenant).ok()?));
        let residents = Arc::new(self.tenants.iter().filter_map(one).collect());
        *self.seen.residents.lock().unwrap_or_else(PoisonError::into_inner) = residents;
        self.seen.note(&self.engine);
        self.looked = Instant::now();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(requests, reply) => {
                self.seen.submissions.fetch_sub(1, Ordering::Relaxed);
                let result = submit(&mut self.engine, requests);
                self.seen.note(&self.engine);
                // Who has gone needs no answer, and the sinks tell the engine.
                let _ = reply.send(result);
            }
            Command::Admit(prepared, is_pinned, reply) => {
                let admitted = self.admit(prepared, is_pinned);
                self.look();
                let _ = reply.send(admitted);
            }
            Command::Retire(tenant) => {
                self.tenants.retain(|other| *other != tenant);
                if let Err(error) = self.engine.retire(tenant) {
                    tracing::warn!(%tenant, %error, "a fine-tune cannot be removed");
                }
            }
            Command::Wake => {}
        }
    }

    fn admit(&mut self, prepared: PreparedTenant, is_pinned: bool) -> deltaloom::Result<TenantId> {
        let tenant = self.engine.admit(prepared)?;
        if is_pinned {
            self.engine.pin(tenant, true)?;
        }
        self.tenants.push(tenant);
        Ok(tenant)
    }
}

fn submit(engine: &mut Engine, requests: Vec<Submission>) -> Result<(), Refused> {
    let mut accepted: Vec<RequestId> = Vec::new();
    for (request, sink) in requests {
        match engine.submit(request, sink) {
            Ok(id) => accepted.push(id),
            Err(refused) => {
                for id in accepted {
                    engine.cancel(id);
                }
                return Err(refused);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_takes_from_a_second_to_a_minute() {
        assert_eq!(seconds(100, 0.0), 1);
        assert_eq!(seconds(100, 30.0), 4);
        assert_eq!(seconds(usize::MAX, 1.0), 60);
        assert_eq!(seconds(0, 10.0), 1);
    }
}
