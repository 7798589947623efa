//! One step: whose turn it is, the products, and what comes of them.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use blake3::Hash;
use rayon::prelude::*;

use super::plan::plan;
use super::{Active, Candidate, Engine, Event, Finish, Flow, RequestId, Scored, StepLimits, StepReport};
use crate::layer::{KvType, SequenceId, TenantId};
use crate::model::Chunk;
use crate::sample::LogProbs;
use deltaloom::{Error, Result};
use deltaloom_compute::{Mode, Run};

/// Tokens for which a sequence that generates must find room, so that it is not preempted at once.
const HEADROOM: usize = 32;

/// Tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
struct Part {
    request: RequestId,
    sequence: SequenceId,
    /// Of the first token, in the prompt and text.
    start: usize,
    end: usize,
    /// Of the first token, in the step.
    place: usize,
}

impl Engine {
    /// Computes the next tokens of the requests whose turn it is, and tells their receivers.
    /// Failures reach the receivers, too: one tenant's do not touch the others.
    pub fn step(&mut self) -> StepReport {
        match self.threads.clone() {
            Some(threads) => threads.install(|| self.step_here()),
            None => self.step_here(),
        }
    }

    fn step_here(&mut self) -> StepReport {
        let mut report = StepReport::default();
        self.model.take_expected();
        self.sweep();
        self.drop_changed(&mut report);
        self.start_waiting();
        let planned = self.planned(&mut report);
        report.tenants = planned.chunk_by(|a, b| a.0.tenant == b.0.tenant).count();
        for (candidate, tokens) in &planned {
            let count =
                if candidate.left > 1 { &mut report.prefill_tokens } else { &mut report.decode_tokens };
            *count += tokens;
        }
        self.compute(&planned, &mut report);
        report.phases = self.timers.take();
        report
    }

    /// Ends requests whose receivers are gone, and notes who takes nothing now.
    fn sweep(&mut self) {
        let now = Instant::now();
        let mut gone = Vec::new();
        for (id, active) in &mut self.requests {
            active.parked = match active.sink.flow() {
                Flow::Go => None,
                Flow::Full => active.parked.or(Some(now)),
                Flow::Gone => {
                    gone.push(*id);
                    None
                }
            };
            if active.parked.is_some_and(|since| now - since >= self.options.patience) {
                gone.push(*id);
            }
        }
        for id in gone {
            if let Some(active) = self.take(id) {
                active.finish(Finish::Cancelled);
            }
        }
    }

    /// Fails the requests of fine-tunes whose files have changed, before anything is computed with
    /// them. They are served no more.
    fn drop_changed(&mut self, report: &mut StepReport) {
        let tenants: BTreeSet<TenantId> =
            self.requests.values().map(|active| active.request.tenant).collect();
        for tenant in tenants {
            let Some(path) = self.model.changed_file(tenant) else { continue };
            report.failures.push(Error::Changed { path: path.clone() }.to_string());
            self.retiring.insert(tenant);
            let ids = self.requests.iter().filter(|(_, active)| active.request.tenant == tenant);
            let ids: Vec<RequestId> = ids.map(|(id, _)| *id).collect();
            ids.into_iter().for_each(|id| self.fail(id, Error::Changed { path: path.clone() }));
        }
    }

    /// Whether a request waits until its tenant was decoded in the background. It does only while
    /// others have work.
    fn is_held_back(&self, tenant: TenantId) -> bool {
        self.model.is_expected(tenant)
            && self.requests.values().any(|active| {
                let other = active.request.tenant;
                active.parked.is_none() && other != tenant && !self.model.is_expected(other)
            })
    }

    /// Gives sequences to waiting requests while there is room.
    fn start_waiting(&mut self) {
        self.served.keep(self.requests.values().map(|active| (active.request.tenant, active.request.owner)));
        let mut waiting: Vec<RequestId> =
            self.requests.iter().filter(|(_, it)| it.sequence.is_none()).map(|(id, _)| *id).collect();
        let rank = |id: &RequestId| {
            let rank = self.requests.get(id).map(|it| self.served.rank(it.request.tenant, it.request.owner));
            (rank, *id)
        };
        waiting.sort_by_key(rank);
        let running = self.requests.len() - waiting.len();
        waiting.retain(|id| self.requests.get(id).is_some_and(|it| !self.is_held_back(it.request.tenant)));
        for (running, id) in (running..self.options.sequences).zip(waiting) {
            if !self.start(id, running == 0) {
                return;
            }
        }
    }

    /// Begins the sequence of a request, if there is room for it beside the others or if it must
    /// run.
    fn start(&mut self, id: RequestId, must: bool) -> bool {
        let mut more: Vec<(SequenceId, usize)> =
            self.requests.values().filter_map(|active| Some((active.sequence?, HEADROOM))).collect();
        let key = self.requests.get(&id).map(|active| self.key(active));
        let (Some(active), Some(key)) = (self.requests.get_mut(&id), key) else { return false };
        // Tokens whose probabilities are wanted must be computed.
        let shared = if active.scored < active.request.prompt.len() { &[][..] } else { &active.tokens };
        let sequence = self.memory.begin_shared(active.request.tenant, key, shared);
        let found = self.memory.tokens(sequence).unwrap_or(0);
        more.push((sequence, active.tokens.len() - found + HEADROOM));
        if !must && !self.memory.has_room(&more).unwrap_or(false) {
            let _ended = self.memory.end(sequence);
            return false;
        }
        active.sequence = Some(sequence);
        if active.first_step.is_none() {
            active.usage.cached_tokens = found;
            self.prefix_tokens += shared.len() as u64;
            self.prefix_hit_tokens += found as u64;
        }
        true
    }

    /// What keys and values depend on besides the ids, and who may share them.
    fn key(&self, active: &Active) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("deltaloom 2026-11 keys and values of a prefix");
        match self.model.digest(active.request.tenant) {
            Ok(weights) => hasher.update(weights.as_bytes()),
            // Nobody else has this number.
            Err(_) => hasher.update(&active.request.tenant.number().to_le_bytes()),
        };
        hasher.update(self.model.plans().as_bytes());
        hasher.update(match self.options.memory.kv {
            KvType::Bf16 => b"bf16",
            KvType::F32 => b"f32 ",
        });
        hasher.update(match self.options.mode {
            Mode::Exact => b"exact   ",
            Mode::Exact16 => b"exact16 ",
            _ => b"fast    ",
        });
        if let Some(salt) = &active.request.salt {
            hasher.update(salt);
        }
        hasher.finalize()
    }

    /// The tokens of the next step, for which there is room.
    fn planned(&mut self, report: &mut StepReport) -> Vec<(Candidate, usize)> {
        let limits = StepLimits { tokens: self.options.step_tokens, tenants: self.options.step_tenants };
        loop {
            let candidates: Vec<Candidate> =
                self.requests.iter().filter_map(|it| self.candidate(it)).collect();
            let mut served = self.served.clone();
            let planned = plan(&candidates, &mut served, limits);
            let sequence = |id: &RequestId| self.requests.get(id).and_then(|active| active.sequence);
            let more: Vec<(SequenceId, usize)> =
                planned.iter().filter_map(|(it, tokens)| Some((sequence(&it.request)?, *tokens))).collect();
            if self.memory.has_room(&more).unwrap_or(true) {
                self.served = served;
                return planned;
            }
            // Whoever came last waits again. One alone has room for all its tokens.
            let last =
                self.requests.iter().filter(|(_, active)| active.sequence.is_some()).map(|(id, _)| *id);
            let Some(last) = last.max() else { return planned };
            self.preempt(last);
            report.preempted += 1;
        }
    }

    fn candidate(&self, (id, active): (&RequestId, &Active)) -> Option<Candidate> {
        let computed = self.memory.tokens(active.sequence?).ok()?;
        if active.parked.is_some() || self.is_held_back(active.request.tenant) {
            return None;
        }
        let request = &active.request;
        Some(Candidate {
            request: *id,
            tenant: request.tenant,
            owner: request.owner,
            left: active.tokens.len() - computed,
        })
    }

    fn preempt(&mut self, id: RequestId) {
        let Some(active) = self.requests.get_mut(&id) else { return };
        if let Some(sequence) = active.sequence.take() {
            let _ended = self.memory.end(sequence);
            active.usage.preemptions += 1;
            self.preemptions += 1;
        }
    }

    /// Computes what is planned. If a tenant's weights cannot be decoded, the tenants are tried one
    /// by one, so that one's failure is not another's. A panic fails all of them.
    fn compute(&mut self, planned: &[(Candidate, usize)], report: &mut StepReport) {
        if planned.is_empty() {
            return;
        }
        let failure = match catch_unwind(AssertUnwindSafe(|| self.forward(planned))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                let tenants = planned.chunk_by(|a, b| a.0.tenant == b.0.tenant);
                if tenants.clone().count() > 1 {
                    for of_one in tenants {
                        let again = self.again(of_one);
                        self.compute(&again, report);
                    }
                    return;
                }
                error.to_string()
            }
            Err(panic) => {
                report.has_panicked = true;
                let what = panic.downcast_ref::<String>().map(String::as_str);
                let what = what.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason was given");
                format!("a step panicked: {what}")
            }
        };
        for (candidate, _) in planned {
            self.fail(candidate.request, Error::InvalidArgument(failure.clone()));
        }
        report.failures.push(failure);
    }

    /// The same requests after a failed step, which may have stored keys and values without
    /// drawing.
    fn again(&mut self, planned: &[(Candidate, usize)]) -> Vec<(Candidate, usize)> {
        let mut again = Vec::with_capacity(planned.len());
        for (candidate, _) in planned {
            let id = candidate.request;
            self.preempt(id);
            if self.start(id, false)
                && let Some(candidate) =
                    self.requests.get(&id).and_then(|active| self.candidate((&id, active)))
            {
                again.push((candidate, candidate.left.min(self.options.step_tokens)));
            }
        }
        again
    }

    fn fail(&mut self, id: RequestId, error: Error) {
        if let Some(mut active) = self.take(id) {
            active.sink.push(Event::Failed(error));
        }
    }

    fn forward(&mut self, planned: &[(Candidate, usize)]) -> Result<()> {
        let run = Run::new(self.options.mode).timed_by(&self.timers);
        let now = Instant::now();
        let (mut parts, mut place) = (Vec::with_capacity(planned.len()), 0);
        for (candidate, tokens) in planned {
            let Some(active) = self.requests.get_mut(&candidate.request) else { continue };
            let Some(sequence) = active.sequence else { continue };
            let start = self.memory.tokens(sequence)?;
            active.first_step.get_or_insert(now);
            parts.push(Part { request: candidate.request, sequence, start, end: start + tokens, place });
            place += tokens;
        }
        let requests = &self.requests;
        let chunk = |part: &Part| {
            let active = requests.get(&part.request)?;
            Some(Chunk { sequence: part.sequence, tokens: &active.tokens[part.start..part.end] })
        };
        let chunks: Vec<Chunk<'_>> = parts.iter().filter_map(chunk).collect();
        let hidden = self.model.forward(&mut self.memory, &chunks, &run)?;

        // Token i gives the probabilities of token i + 1.
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for part in &parts {
            let Some(active) = self.requests.get(&part.request) else { continue };
            let end = (part.end + 1).min(active.request.prompt.len());
            for target in active.scored.max(part.start + 1)..end {
                places.push(part.place + target - 1 - part.start);
                let most = active.request.want.prompt.unwrap_or(0);
                targets.push((part.request, active.tokens[target], most));
            }
        }
        let mut scores: Vec<(RequestId, Result<Scored>)> = Vec::with_capacity(targets.len());
        let mut rest = &targets[..];
        let vocabulary = hidden.vocabulary();
        hidden.for_logits(&places, &run, |some, logits| {
            let (now, after) = rest.split_at(some.len());
            rest = after;
            let rows = logits.par_chunks_exact(vocabulary).zip(now);
            scores.par_extend(rows.map(|(logits, (id, token, most))| (*id, scored(logits, *token, *most))));
            Ok(())
        })?;

        // The next token comes after the last one that is known.
        let is_last = |part: &&Part| {
            self.requests.get(&part.request).is_some_and(|active| active.tokens.len() == part.end)
        };
        let drawing: Vec<Part> = parts.iter().filter(is_last).copied().collect();
        let places: Vec<usize> = drawing.iter().map(|part| part.place + part.end - 1 - part.start).collect();
        let mut drawn: Vec<(RequestId, Result<Drawn>)> = Vec::with_capacity(drawing.len());
        let mut rest = &drawing[..];
        let requests = &mut self.requests;
        hidden.for_logits(&places, &run, |some, logits| {
            let (now, after) = rest.split_at(some.len());
            rest = after;
            let active = requests.iter_mut().filter_map(|(id, active)| {
                let place = now.iter().position(|part| part.request == *id)?;
                Some((*id, active, &logits[place * vocabulary..][..vocabulary]))
            });
            let active: Vec<_> = active.collect();
            drawn.par_extend(active.into_par_iter().map(|(id, active, logits)| (id, draw(active, logits))));
            Ok(())
        })?;
        drop(hidden);
        self.tell(scores, drawn);
        Ok(())
    }

    /// Gives the results of a step to the receivers, and ends what has ended.
    fn tell(&mut self, scores: Vec<(RequestId, Result<Scored>)>, drawn: Vec<(RequestId, Result<Drawn>)>) {
        for of_one in scores.chunk_by(|a, b| a.0 == b.0) {
            let (id, _) = of_one[0];
            let mut known = Vec::with_capacity(of_one.len());
            let mut failure = None;
            for (_, score) in of_one {
                match score {
                    Ok(score) => known.push(score.clone()),
                    Err(error) => failure = Some(error.to_string()),
                }
            }
            if let Some(failure) = failure {
                self.fail(id, Error::InvalidArgument(failure));
            } else if let Some(active) = self.requests.get_mut(&id) {
                active.scored += known.len();
                active.sink.push(Event::Prompt(known));
            }
        }
        for (id, drawn) in drawn {
            let limit = self.limit.tokens;
            let Some(active) = self.requests.get_mut(&id) else { continue };
            let finish = match drawn {
                Ok(drawn) => active.add(drawn, limit),
                Err(error) => {
                    self.fail(id, error);
                    continue;
                }
            };
            if let Some(finish) = finish
                && let Some(active) = self.take(id)
            {
                active.finish(finish);
            }
        }
    }
}

fn scored(logits: &[f32], id: u32, most: u8) -> Result<Scored> {
    let probs = LogProbs::new(logits)?;
    Ok(Scored { id, log_prob: probs.of(id), top: probs.top(usize::from(most)) })
}

/// What came after the last token; `None` if only the prompt was wanted.
type Drawn = Option<Next>;

struct Next {
    id: u32,
    is_end: bool,
    scored: Option<Scored>,
    /// Whether the constraint allows nothing more.
    is_complete: bool,
}

fn draw(active: &mut Active, logits: &[f32]) -> Result<Drawn> {
    let generated = active.generated();
    let request = &mut active.request;
    if request.max_tokens == 0 {
        return Ok(None);
    }
    let id = if request.constraint.is_none() && generated >= request.min_tokens {
        active.sampler.next(logits)?
    } else {
        let mut allowed = logits.to_vec();
        if let Some(constraint) = &mut request.constraint {
            constraint.apply(&mut allowed)?;
        }
        if generated < request.min_tokens {
            for id in request.end_ids.iter() {
                if let Some(logit) = allowed.get_mut(*id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        active.sampler.next(&allowed)?
    };
    let is_end = request.end_ids.binary_search(&id).is_ok();
    let is_complete = match &mut request.constraint {
        Some(constraint) => constraint.accept(id)?,
        None => false,
    };
    let scored = request.want.tokens.map(|most| scored(logits, id, most)).transpose()?;
    Ok(Some(Next { id, is_end, scored, is_complete }))
}

impl Active {
    /// Adds a token, tells the receiver, and says whether the text has ended.
    fn add(&mut self, drawn: Drawn, limit: usize) -> Option<Finish> {
        let Some(Next { id, is_end, scored, is_complete }) = drawn else { return Some(Finish::Length) };
        self.first_token.get_or_insert_with(Instant::now);
        self.usage.tokens += 1;
        self.sink.push(Event::Token { id, is_end, scored });
        if is_end || is_complete {
            return Some(Finish::Stop);
        }
        self.tokens.push(id);
        if self.usage.tokens >= self.request.max_tokens {
            return Some(Finish::Length);
        }
        (self.tokens.len() >= limit).then_some(Finish::Context)
    }
}
