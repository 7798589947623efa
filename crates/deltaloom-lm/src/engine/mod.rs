//! Continuous batches of many tenants: requests come and go between steps, and a step computes the
//! next tokens of all of them together, whether of their prompts or of their texts.
//!
//! In [`Mode::Exact`] a request gets the same tokens and probabilities whatever else runs: chunks,
//! shared pages and preemption change no bit.
//!
//! It knows token ids, not text, and is synchronous: the caller submits, cancels and calls
//! [`Engine::step`] on one thread.

mod budget;
mod plan;
mod request;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Serialize;

pub use crate::generate::Finish;
pub use budget::MemoryBudget;
pub use request::{Constraint, Event, Flow, Refused, Request, Salt, Scored, Sink, Usage, Want};

use crate::layer::{Memory, MemoryOptions, SequenceId, TenantId};
use crate::model::Model;
use crate::sample::Sampler;
use crate::tenancy::{PreparedTenant, Residency};
use deltaloom::{Error, Result};
use deltaloom_compute::{Mode, Timers, Times};
use plan::{Candidate, Served, StepLimits};

/// What an engine may use.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Most tokens of a step.
    pub step_tokens: usize,
    /// Most tenants of a step. Others wait, at most eight steps.
    pub step_tenants: usize,
    /// Most sequences that have keys and values.
    pub sequences: usize,
    /// Most requests that wait for their first step.
    pub waiting: usize,
    /// Most tokens of their prompts.
    pub waiting_tokens: usize,
    /// Keys and values, with their budget.
    pub memory: MemoryOptions,
    /// The numerical guarantee.
    pub mode: Mode,
    /// How long a request stays whose receiver takes nothing.
    pub patience: Duration,
    /// Threads of its own; with 0 those of whoever calls it.
    pub threads: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            step_tokens: 256,
            step_tenants: 16,
            sequences: 64,
            waiting: 256,
            waiting_tokens: 65_536,
            memory: MemoryOptions::default().with_budget(Some(256 << 20)),
            mode: Mode::Exact,
            patience: Duration::from_secs(30),
            threads: 0,
        }
    }
}

impl EngineOptions {
    /// Sets the most tokens and tenants of a step.
    #[must_use]
    pub fn with_step(self, step_tokens: usize, step_tenants: usize) -> Self {
        Self { step_tokens, step_tenants, ..self }
    }

    /// Sets the most sequences that have keys and values.
    #[must_use]
    pub fn with_sequences(self, sequences: usize) -> Self {
        Self { sequences, ..self }
    }

    /// Sets how many requests may wait, with how many tokens.
    #[must_use]
    pub fn with_waiting(self, waiting: usize, waiting_tokens: usize) -> Self {
        Self { waiting, waiting_tokens, ..self }
    }

    /// Sets how keys and values are stored, and their budget.
    #[must_use]
    pub fn with_memory(self, memory: MemoryOptions) -> Self {
        Self { memory, ..self }
    }

    /// Sets the numerical guarantee.
    #[must_use]
    pub fn with_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Sets how long a request stays whose receiver takes nothing.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sets how many threads it has of its own.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }
}

/// A request of an engine, which never gives its number to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What a step did.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// Tokens of prompts, or computed again after preemption.
    pub prefill_tokens: usize,
    /// Tokens of texts.
    pub decode_tokens: usize,
    /// Tenants.
    pub tenants: usize,
    /// Sequences whose pages were given to others.
    pub preempted: usize,
    /// What failed for all requests of a step, or of a tenant.
    pub failures: Vec<String>,
    /// Whether code panicked, which is a defect of the engine.
    pub has_panicked: bool,
    /// Where the time of products went, summed over threads.
    pub phases: Times,
}

/// The state of an engine.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Requests that have keys and values.
    pub running: usize,
    /// Requests that wait for them.
    pub waiting: usize,
    /// Tokens of the waiting requests.
    pub waiting_tokens: usize,
    /// Running requests whose receivers take nothing.
    pub parked: usize,
    /// Bytes of keys and values, with those that are kept for later requests.
    pub memory_bytes: u64,
    /// Most bytes of keys and values.
    pub memory_budget_bytes: Option<u64>,
    /// Tokens of prompts that were looked for in memory, since the start.
    pub prefix_tokens: u64,
    /// Those that were found.
    pub prefix_hit_tokens: u64,
    /// Preemptions since the start.
    pub preemptions: u64,
    /// Memory of the tenants.
    pub residency: Residency,
}

/// A model that serves requests.
pub struct Engine {
    model: Model,
    memory: Memory,
    options: EngineOptions,
    threads: Option<Arc<ThreadPool>>,
    /// Most tokens of a sequence.
    limit: TokenLimit,
    requests: BTreeMap<RequestId, Active>,
    /// Tenants that go when their requests have ended.
    retiring: BTreeSet<TenantId>,
    served: Served,
    next: u64,
    prefix_tokens: u64,
    prefix_hit_tokens: u64,
    preemptions: u64,
    timers: Timers,
}

#[derive(Debug, Clone, Copy)]
struct TokenLimit {
    tokens: usize,
    by: &'static str,
}

/// A request that has not ended.
struct Active {
    request: Request,
    sink: Box<dyn Sink>,
    sampler: Sampler,
    /// The prompt and the text.
    tokens: Vec<u32>,
    /// Its keys and values; `None` while it waits.
    sequence: Option<SequenceId>,
    /// Tokens of the prompt whose probabilities are known or not wanted.
    scored: usize,
    usage: Usage,
    submitted: Instant,
    first_step: Option<Instant>,
    first_token: Option<Instant>,
    parked: Option<Instant>,
}

impl Active {
    fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Tells the end to the receiver.
    fn finish(mut self, finish: Finish) {
        let now = Instant::now();
        let first_step = self.first_step.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        self.usage.queued = first_step - self.submitted;
        self.usage.prefill = first_token.saturating_duration_since(first_step);
        self.usage.decode = now.saturating_duration_since(first_token);
        self.sink.push(Event::Done(finish, self.usage));
    }
}

impl Engine {
    /// Serves a model.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a limit of 0, if there are no threads, and for a budget in
    /// which keys and values of not even one page fit.
    pub fn new(model: Model, options: EngineOptions) -> Result<Self> {
        let EngineOptions { step_tokens, step_tenants, sequences, .. } = options;
        if [step_tokens, step_tenants, sequences].contains(&0) {
            return Err(Error::InvalidArgument(
                "an engine needs a token, a tenant and a sequence".to_owned(),
            ));
        }
        let memory = model.memory(options.memory);
        let positions = model.config().longest().unwrap_or(usize::MAX);
        let limit = TokenLimit::of(&memory, positions)?;
        let pool = || {
            let named = |number| format!("engine {number}");
            ThreadPoolBuilder::new().num_threads(options.threads).thread_name(named).build()
        };
        let threads = (options.threads > 0).then(pool).transpose();
        let threads = threads.map_err(|e| Error::InvalidArgument(format!("threads of the engine: {e}")))?;
        Ok(Self {
            model,
            memory,
            options,
            threads: threads.map(Arc::new),
            limit,
            requests: BTreeMap::new(),
            retiring: BTreeSet::new(),
            served: Served::default(),
            next: 0,
            prefix_tokens: 0,
            prefix_hit_tokens: 0,
            preemptions: 0,
            timers: Timers::default(),
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Most tokens of a prompt and its text.
    #[must_use]
    pub fn context(&self) -> usize {
        self.limit.tokens
    }

    /// Adds a prepared fine-tune.
    ///
    /// # Errors
    /// As [`Model::admit`].
    pub fn admit(&mut self, prepared: PreparedTenant) -> Result<TenantId> {
        self.model.admit(prepared)
    }

    /// Takes no more requests for a fine-tune, and removes it when those that run have ended.
    ///
    /// # Errors
    /// As [`Model::retire`].
    pub fn retire(&mut self, tenant: TenantId) -> Result<()> {
        if self.in_flight(tenant) > 0 && tenant != Model::BASE {
            self.retiring.insert(tenant);
            return Ok(());
        }
        self.model.retire(tenant)
    }

    /// Keeps a fine-tune in memory, as [`Model::pin`].
    ///
    /// # Errors
    /// As [`Model::pin`].
    pub fn pin(&mut self, tenant: TenantId, is_pinned: bool) -> Result<()> {
        self.model.pin(tenant, is_pinned)
    }

    /// Requests of a tenant that have not ended.
    #[must_use]
    pub fn in_flight(&self, tenant: TenantId) -> usize {
        self.requests.values().filter(|active| active.request.tenant == tenant).count()
    }

    /// Accepts a request. Its receiver gets events in later steps.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn submit(&mut self, request: Request, sink: Box<dyn Sink>) -> Result<RequestId, Refused> {
        let tenant = request.tenant;
        if !self.model.has_tenant(tenant) || self.retiring.contains(&tenant) {
            return Err(Refused::UnknownTenant(tenant));
        }
        let config = self.model.config();
        if request.prompt.is_empty() {
            return Err(Refused::Invalid(Error::InvalidArgument("the prompt is empty".to_owned())));
        }
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= config.vocabulary) {
            let what = format!("id {id} is not in a vocabulary of {}", config.vocabulary);
            return Err(Refused::Invalid(Error::InvalidArgument(what)));
        }
        let tokens = request.prompt.len();
        if tokens > self.limit.tokens || (tokens == self.limit.tokens && request.max_tokens > 0) {
            return Err(Refused::TooLong { tokens, limit: self.limit.tokens, limited_by: self.limit.by });
        }
        let (waiting, waiting_tokens) = self.waiting();
        let most = self.options.waiting_tokens;
        // A long prompt may come if nothing else waits.
        let is_full = waiting > 0 && waiting_tokens.saturating_add(tokens) > most;
        if waiting >= self.options.waiting || is_full {
            return Err(Refused::Full { waiting, tokens: waiting_tokens });
        }
        let sampler =
            Sampler::new(request.sampling.clone(), config.vocabulary, &request.prompt, request.choice);
        let sampler = sampler.map_err(Refused::Invalid)?;
        self.model.expect(tenant).map_err(Refused::Invalid)?;
        let id = RequestId(self.next);
        self.next += 1;
        let active = Active {
            sampler,
            tokens: request.prompt.clone(),
            sequence: None,
            scored: if request.want.prompt.is_some() { 1 } else { tokens },
            usage: Usage { prompt_tokens: tokens, ..Usage::default() },
            submitted: Instant::now(),
            first_step: None,
            first_token: None,
            parked: None,
            request,
            sink,
        };
        self.requests.insert(id, active);
        Ok(id)
    }

    /// Ends a request without a further event. Returns whether it was there.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        self.take(request).is_some()
    }

    /// Whether a step would compute nothing, because there are no requests or their receivers take
    /// nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.requests.values().all(|active| active.sink.flow() == Flow::Full)
    }

    /// Its state.
    #[must_use]
    pub fn status(&self) -> Status {
        let (waiting, waiting_tokens) = self.waiting();
        Status {
            running: self.requests.len() - waiting,
            waiting,
            waiting_tokens,
            parked: self.requests.values().filter(|active| active.parked.is_some()).count(),
            memory_bytes: self.memory.used_bytes(),
            memory_budget_bytes: self.memory.budget_bytes(),
            prefix_tokens: self.prefix_tokens,
            prefix_hit_tokens: self.prefix_hit_tokens,
            preemptions: self.preemptions,
            residency: self.model.residency(),
        }
    }

    /// Waiting requests, and their tokens.
    fn waiting(&self) -> (usize, usize) {
        let waiting = self.requests.values().filter(|active| active.sequence.is_none());
        waiting.fold((0, 0), |(count, tokens), active| (count + 1, tokens + active.tokens.len()))
    }

    /// Removes a request and gives its pages back.
    fn take(&mut self, request: RequestId) -> Option<Active> {
        let active = self.requests.remove(&request)?;
        if let Some(sequence) = active.sequence {
            // The memory has every sequence of a request.
            let _ended = self.memory.end(sequence);
        }
        let tenant = active.request.tenant;
        if self.retiring.contains(&tenant) && self.in_flight(tenant) == 0 {
            self.retiring.remove(&tenant);
            let _removed = self.model.retire(tenant);
        }
        Some(active)
    }
}

impl TokenLimit {
    fn of(memory: &Memory, positions: usize) -> Result<Self> {
        let fits = |tokens: usize| match (memory.bytes_of(tokens), memory.budget_bytes()) {
            (Some(bytes), Some(budget)) => bytes <= budget,
            (bytes, _) => bytes.is_some(),
        };
        if fits(positions) {
            return Ok(Self { tokens: positions, by: "into the context of the model" });
        }
        let (mut fit, mut too_many) = (0, positions);
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if fits(middle) { fit = middle } else { too_many = middle }
        }
        if fit == 0 {
            let (one, budget) = (memory.bytes_of(1).unwrap_or(u64::MAX), memory.budget_bytes().unwrap_or(0));
            let what = format!("{budget} bytes for keys and values: one page needs {one}");
            return Err(Error::InvalidArgument(what));
        }
        Ok(Self { tokens: fit, by: "into the memory for keys and values" })
    }
}
