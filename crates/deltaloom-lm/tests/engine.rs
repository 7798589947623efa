//! The engine gives every request the tokens and probabilities of its dense model computed alone,
//! whatever else runs, and gives back all memory.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../../deltaloom/tests/common/mod.rs"]
mod common;
mod tiny;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use deltaloom::{Container, Limits, Result, with_threads};
use deltaloom_compute::{Form, Run};
use deltaloom_lm::engine::{
    Constraint, Engine, EngineOptions, Event, Finish, Flow, Refused, Request, RequestId, Scored, Sink, Usage,
    Want,
};
use deltaloom_lm::layer::{MemoryOptions, TenantId};
use deltaloom_lm::model::{Chunk, Model};
use deltaloom_lm::sample::{LogProbs, Sampler, Sampling};
use deltaloom_lm::tenancy::{FamilyOptions, Forms};
use tiny::*;

/// What a request gave.
#[derive(Debug, Clone, Default, PartialEq)]
struct Outcome {
    prompt: Vec<Scored>,
    ids: Vec<u32>,
    scored: Vec<Scored>,
    finish: Option<Finish>,
}

/// Keeps events.
#[derive(Clone, Default)]
struct Inbox {
    outcome: Arc<Mutex<Outcome>>,
    usage: Arc<Mutex<Option<Usage>>>,
    failure: Arc<Mutex<Option<String>>>,
    is_full: Arc<AtomicBool>,
    is_gone: Arc<AtomicBool>,
}

impl Inbox {
    fn outcome(&self) -> Outcome {
        self.outcome.lock().unwrap().clone()
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap().clone()
    }
}

impl Sink for Inbox {
    fn push(&mut self, event: Event) {
        let mut outcome = self.outcome.lock().unwrap();
        assert!(outcome.finish.is_none() && self.failure().is_none(), "an event after the end");
        match event {
            Event::Prompt(scored) => outcome.prompt.extend(scored),
            Event::Token { id, scored, .. } => {
                outcome.ids.push(id);
                outcome.scored.extend(scored);
            }
            Event::Done(finish, usage) => {
                outcome.finish = Some(finish);
                *self.usage.lock().unwrap() = Some(usage);
            }
            Event::Failed(error) => *self.failure.lock().unwrap() = Some(error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn flow(&self) -> Flow {
        if self.is_gone.load(Ordering::Relaxed) {
            Flow::Gone
        } else if self.is_full.load(Ordering::Relaxed) {
            Flow::Full
        } else {
            Flow::Go
        }
    }
}

/// The same request on a dense model: everything is computed again for each token.
fn alone(model: &mut Model, request: &Request, positions: usize) -> Outcome {
    let run = Run::default();
    let vocabulary = model.config().vocabulary;
    let scored = |logits: &[f32], id, most: u8| {
        let probs = LogProbs::new(logits).unwrap();
        Scored { id, log_prob: probs.of(id), top: probs.top(usize::from(most)) }
    };
    let mut sampler =
        Sampler::new(request.sampling.clone(), vocabulary, &request.prompt, request.choice).unwrap();
    let mut ids = request.prompt.clone();
    let mut outcome = Outcome::default();
    loop {
        let mut memory = model.memory(MemoryOptions::default());
        let sequence = memory.begin(Model::BASE);
        let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens: &ids }], &run).unwrap();
        if let (Some(most), true) = (request.want.prompt, outcome.prompt.is_empty()) {
            let all: Vec<usize> = (0..ids.len()).collect();
            let logits = hidden.logits(&all, &run).unwrap();
            let rows = logits.chunks_exact(vocabulary).zip(&ids[1..]);
            outcome.prompt = rows.map(|(logits, id)| scored(logits, *id, most)).collect();
        }
        let generated = ids.len() - request.prompt.len();
        if generated == request.max_tokens {
            outcome.finish = Some(Finish::Length);
            return outcome;
        }
        if ids.len() == positions {
            outcome.finish = Some(Finish::Context);
            return outcome;
        }
        let logits = hidden.logits(&[ids.len() - 1], &run).unwrap();
        let mut allowed = logits.clone();
        if generated < request.min_tokens {
            request.end_ids.iter().for_each(|id| allowed[*id as usize] = f32::NEG_INFINITY);
        }
        let id = sampler.next(&allowed).unwrap();
        outcome.ids.push(id);
        outcome.scored.extend(request.want.tokens.map(|most| scored(&logits, id, most)));
        if request.end_ids.contains(&id) {
            outcome.finish = Some(Finish::Stop);
            return outcome;
        }
        ids.push(id);
    }
}

/// A request with many settings, some of whose prompts begin alike.
fn request(random: &mut Random, tenant: TenantId, vocabulary: u64) -> Request {
    let mut below = |limit: u64| u32::try_from(random.below(limit)).unwrap();
    let shared: Vec<u32> = (0..below(80)).map(|i| (i * 7 + 3) % 90).collect();
    let own = 1 + below(30);
    let prompt = shared.into_iter().chain((0..own).map(|_| below(vocabulary))).collect();
    let mut request = Request::new(tenant, prompt, [below(12), below(70)][below(2) as usize] as usize);
    request.sampling = Sampling {
        temperature: [0.0, 0.7, 1.5][below(3) as usize],
        top_k: below(20),
        repetition_penalty: [1.0, 1.2][below(2) as usize],
        seed: u64::from(below(9)),
        ..Sampling::default()
    };
    request.choice = u64::from(below(3));
    request.owner = u64::from(below(3));
    request.end_ids = Arc::from([5, 17, 60]);
    request.min_tokens = below(4) as usize;
    request.want = Want {
        prompt: [None, Some(0), Some(2)][below(3) as usize],
        tokens: [None, Some(0), Some(5)][below(3) as usize],
    };
    request.salt = [None, Some([1; 32])][below(2) as usize];
    request
}

/// Runs until nothing is left.
fn run(engine: &mut Engine) {
    for _ in 0..100_000 {
        if engine.status().running + engine.status().waiting == 0 {
            return;
        }
        let report = engine.step();
        assert!(report.failures.is_empty(), "{report:?}");
    }
    panic!("the requests do not end: {:?}", engine.status());
}

/// A model with its fine-tunes as tenants, and each of them as a dense model.
fn family(name: &str, options: FamilyOptions, count: u64) -> (Model, Vec<TenantId>, Vec<Model>) {
    let (base, config) = (weights(name), config_text(name));
    let mut model = of_bytes(&base, &config, options).unwrap();
    let dense = |weights: &[u8]| of_bytes(weights, &config, FamilyOptions::default()).unwrap();
    let (mut tenants, mut denses) = (vec![Model::BASE], vec![dense(&base)]);
    for seed in 1..=count {
        let tuned = tuned(name, seed);
        let prepared = model.prepare(container(&tuned, &base)).unwrap();
        tenants.push(model.admit(prepared).unwrap());
        denses.push(dense(&tuned));
    }
    (model, tenants, denses)
}

#[test]
fn every_request_has_the_tokens_and_probabilities_of_its_dense_model() {
    let (mut preempted, mut hits) = (0, 0);
    for name in ["gemma3", "gpt2", "opt", "qwen2"] {
        for (round, step_tokens, step_tenants, pages, threads) in
            [(0, 256, 16, 1000, 1), (1, 1, 1, 5, 2), (2, 33, 2, 6, 1), (3, 7, 16, 8, 2), (4, 256, 2, 12, 2)]
        {
            let family_options = FamilyOptions::default().with_forms(Forms::All(Form::Bitmap));
            let family_options = family_options.with_budget(if round % 2 == 0 { u64::MAX } else { 20_000 });
            let (model, tenants, mut denses) = family(name, family_options, 3);
            let vocabulary = model.config().vocabulary as u64;
            let positions = model.config().max_positions.unwrap_or(usize::MAX);
            let page = model.memory(MemoryOptions::default()).bytes_of(1).unwrap();
            let options = EngineOptions::default()
                .with_step(step_tokens, step_tenants)
                .with_sequences(6)
                .with_memory(MemoryOptions::default().with_budget(Some(page * pages)));
            let mut engine = Engine::new(model, options).unwrap();
            let positions = positions.min(engine.context());
            let mut random = Random::new(round + 10);
            let mut sent: BTreeMap<RequestId, (Request, usize, Inbox)> = BTreeMap::new();
            let work = || {
                for _ in 0..25 {
                    let tenant = usize::try_from(random.below(tenants.len() as u64)).unwrap();
                    let mut request = request(&mut random, tenants[tenant], vocabulary);
                    request.prompt.truncate(positions - 1);
                    let inbox = Inbox::default();
                    let id = engine.submit(request.clone(), Box::new(inbox.clone())).unwrap();
                    sent.insert(id, (request, tenant, inbox));
                    // Others come while it runs.
                    (0..random.below(4)).for_each(|_| assert!(engine.step().failures.is_empty()));
                }
                run(&mut engine);
                Result::Ok(())
            };
            with_threads(threads, work).unwrap();
            preempted += engine.status().preemptions;
            hits += engine.status().prefix_hit_tokens;
            for (id, (request, tenant, inbox)) in sent {
                assert_eq!(inbox.failure(), None);
                let expected = alone(&mut denses[tenant], &request, positions);
                assert_eq!(inbox.outcome(), expected, "{name} {round} {id:?} {request:?}");
            }
        }
    }
    assert!(preempted > 5 && hits > 200, "{preempted} preemptions, {hits} tokens found");
}

fn engine(options: EngineOptions) -> Engine {
    let (model, _, _) = family("qwen2", FamilyOptions::default(), 2);
    Engine::new(model, options).unwrap()
}

fn submit(engine: &mut Engine, request: Request) -> (RequestId, Inbox) {
    let inbox = Inbox::default();
    (engine.submit(request, Box::new(inbox.clone())).unwrap(), inbox)
}

#[test]
fn cancelling_gives_the_pages_back_at_once() {
    let mut engine = engine(EngineOptions::default());
    let (first, inbox) = submit(&mut engine, Request::new(Model::BASE, vec![1; 20], 1000));
    let (second, gone) = submit(&mut engine, Request::new(TenantId::new(1), vec![2; 20], 1000));
    engine.step();
    assert!(engine.status().memory_bytes > 0);
    assert!(engine.cancel(first) && !engine.cancel(first));
    gone.is_gone.store(true, Ordering::Relaxed);
    engine.step();
    let status = engine.status();
    assert_eq!((status.running, status.waiting, status.memory_bytes), (0, 0, 0));
    assert_eq!(inbox.outcome().finish, None);
    assert_eq!(gone.outcome().finish, Some(Finish::Cancelled));
    assert!(!engine.cancel(second) && engine.is_idle());
}

#[test]
fn a_slow_receiver_holds_up_nobody_and_loses_patience() {
    let mut engine = engine(EngineOptions::default().with_patience(Duration::ZERO));
    let (_, slow) = submit(&mut engine, Request::new(Model::BASE, vec![1, 2], 40));
    slow.is_full.store(true, Ordering::Relaxed);
    assert!(engine.is_idle());
    engine.step();
    assert_eq!(slow.outcome().finish, Some(Finish::Cancelled));

    let mut engine = self::engine(EngineOptions::default());
    let (_, slow) = submit(&mut engine, Request::new(Model::BASE, vec![1, 2], 40));
    let (_, other) = submit(&mut engine, Request::new(Model::BASE, vec![1, 2], 40));
    (0..3).for_each(|_| _ = engine.step());
    slow.is_full.store(true, Ordering::Relaxed);
    (0..10).for_each(|_| _ = engine.step());
    assert_eq!((slow.outcome().ids.len(), other.outcome().ids.len()), (3, 13));
    assert_eq!((engine.status().parked, engine.status().running), (1, 2));
    slow.is_full.store(false, Ordering::Relaxed);
    run(&mut engine);
    assert_eq!(slow.outcome(), other.outcome());
}

#[test]
fn impossible_requests_are_refused_before_they_wait() {
    let options = EngineOptions::default().with_waiting(2, 50);
    let mut engine = engine(options);
    let mut refused =
        |request: Request| engine.submit(request, Box::new(Inbox::default())).unwrap_err().to_string();
    assert!(refused(Request::new(Model::BASE, vec![], 5)).contains("the prompt is empty"));
    assert!(refused(Request::new(Model::BASE, vec![96], 5)).contains("id 96 is not in a vocabulary of 96"));
    assert!(refused(Request::new(Model::BASE, vec![1; 1000], 5)).contains("a text of 1000 tokens"));
    assert!(refused(Request::new(TenantId::new(9), vec![1], 5)).contains("tenant 9 is not served"));
    let mut hot = Request::new(Model::BASE, vec![1], 5);
    hot.sampling.temperature = f32::NAN;
    assert!(refused(hot).contains("temperature is NaN"));

    submit(&mut engine, Request::new(Model::BASE, vec![1; 40], 5));
    let too_many = engine.submit(Request::new(Model::BASE, vec![1; 20], 5), Box::new(Inbox::default()));
    assert!(matches!(too_many, Err(Refused::Full { waiting: 1, tokens: 40 })));
    submit(&mut engine, Request::new(Model::BASE, vec![1; 10], 5));
    let too_many = engine.submit(Request::new(Model::BASE, vec![1], 5), Box::new(Inbox::default()));
    assert!(matches!(too_many, Err(Refused::Full { waiting: 2, tokens: 50 })));
    run(&mut engine);
    assert!(Engine::new(engine_model(), EngineOptions::default().with_step(0, 1)).is_err());
    let no_page = MemoryOptions::default().with_budget(Some(10));
    assert!(Engine::new(engine_model(), EngineOptions::default().with_memory(no_page)).is_err());
}

fn engine_model() -> Model {
    family("qwen2", FamilyOptions::default(), 0).0
}

#[test]
fn a_tenant_goes_when_its_requests_have_ended() {
    let mut engine = engine(EngineOptions::default());
    let tenant = TenantId::new(1);
    let (_, inbox) = submit(&mut engine, Request::new(tenant, vec![1, 2, 3], 4));
    engine.step();
    engine.retire(tenant).unwrap();
    assert_eq!(engine.in_flight(tenant), 1);
    let late = engine.submit(Request::new(tenant, vec![1], 1), Box::new(Inbox::default()));
    assert!(matches!(late, Err(Refused::UnknownTenant(_))));
    run(&mut engine);
    assert_eq!(inbox.outcome().finish, Some(Finish::Length));
    assert!(!engine.model().has_tenant(tenant));
    assert!(engine.retire(tenant).is_err() && engine.retire(Model::BASE).is_err());
}

/// A fine-tune whose last norm is NaN.
fn broken(base: &[u8]) -> Vec<u8> {
    let file = safetensors::SafeTensors::deserialize(base).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let tensors = names.into_iter().map(|name| {
        let of_base = file.tensor(name).unwrap();
        let mut bytes = of_base.data().to_vec();
        if name == "model.norm.weight" {
            bytes.as_chunks_mut().0.iter_mut().for_each(|weight: &mut [u8; 2]| *weight = [0xc0, 0x7f]);
        }
        let shape: Vec<u64> = of_base.shape().iter().map(|size| *size as u64).collect();
        tensor(name, "BF16", &shape, bytes)
    });
    safetensors(&tensors.collect::<Vec<_>>())
}

#[test]
fn what_is_not_a_number_in_one_tenant_leaves_the_others_alone() {
    let base = weights("qwen2");
    let mut engine = engine(EngineOptions::default());
    let prepared = engine.model().prepare(container(&broken(&base), &base)).unwrap();
    let tenant = engine.admit(prepared).unwrap();
    let good = Request::new(TenantId::new(1), vec![3, 4, 5], 8);
    let (_, expected) = submit(&mut engine, good.clone());
    run(&mut engine);
    let (_, inbox) = submit(&mut engine, good);
    let (_, bad) = submit(&mut engine, Request::new(tenant, vec![3, 4, 5], 8));
    run(&mut engine);
    assert_eq!(inbox.outcome(), expected.outcome());
    assert!(bad.failure().unwrap().contains("NaN"));
}

#[test]
fn a_damaged_tenant_fails_alone() {
    let base = weights("qwen2");
    let (mut bytes, _) = pack(&tuned("qwen2", 3), &[&base]);
    let middle = bytes.len() / 3;
    bytes[middle] ^= 0x10;
    let damaged = Container::from_source(Path::new("damaged"), Box::new(bytes), &Limits::default()).unwrap();
    let mut engine = engine(EngineOptions::default());
    let prepared = engine.model().prepare(damaged).unwrap();
    let tenant = engine.admit(prepared).unwrap();
    let good = Request::new(TenantId::new(1), (0..40).collect(), 8);
    let (_, expected) = submit(&mut engine, good.clone());
    run(&mut engine);
    let (_, inbox) = submit(&mut engine, good.clone());
    let (_, bad) = submit(&mut engine, Request::new(tenant, vec![3, 4, 5], 8));
    // It may wait for its weights at first, while the others go on.
    let mut failures = Vec::new();
    while bad.failure().is_none() {
        assert!(engine.status().running + engine.status().waiting > 0);
        failures.extend(engine.step().failures);
    }
    assert_eq!(failures.len(), 1, "{failures:?}");
    run(&mut engine);
    assert_eq!(inbox.outcome(), expected.outcome());
}

#[test]
fn a_tenant_whose_file_changes_is_served_no_more() {
    let base = weights("qwen2");
    let (bytes, _) = pack(&tuned("qwen2", 3), &[&base]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let mut engine = engine(EngineOptions::default());
    let container = Container::open(file.path(), &Limits::default()).unwrap();
    let prepared = engine.model().prepare(container).unwrap();
    let tenant = engine.admit(prepared).unwrap();
    let (_, good) = submit(&mut engine, Request::new(TenantId::new(1), vec![1, 2], 6));
    let (_, bad) = submit(&mut engine, Request::new(tenant, vec![1, 2], 6));
    engine.step();
    assert_eq!(bad.failure(), None);
    std::fs::write(file.path(), [&bytes[..], &[0]].concat()).unwrap();
    let report = engine.step();
    assert!(report.failures[0].contains("changed"), "{report:?}");
    assert!(bad.failure().unwrap().contains("changed"));
    assert!(!engine.model().has_tenant(tenant));
    run(&mut engine);
    assert_eq!(good.outcome().finish, Some(Finish::Length));
}

/// Allows a few ids, ends after a count, and panics if it is told to.
#[derive(Debug, Clone)]
struct Few {
    ids: Vec<u32>,
    left: usize,
    panics: bool,
}

impl Constraint for Few {
    fn apply(&mut self, logits: &mut [f32]) -> Result<()> {
        assert!(!self.panics, "out of order");
        let ids = &self.ids;
        (0..)
            .zip(logits)
            .filter(|(id, _)| !ids.contains(id))
            .for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<bool> {
        assert!(self.ids.contains(&id));
        self.left -= 1;
        Ok(self.left == 0)
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn a_constraint_chooses_and_a_panic_ends_only_its_step() {
    let mut engine = engine(EngineOptions::default());
    let constrained = |panics| {
        let mut request = Request::new(Model::BASE, vec![1, 2, 3], 9);
        request.constraint = Some(Box::new(Few { ids: vec![7, 8], left: 4, panics }));
        request
    };
    let (_, inbox) = submit(&mut engine, constrained(false));
    run(&mut engine);
    let outcome = inbox.outcome();
    assert_eq!((outcome.ids.len(), outcome.finish), (4, Some(Finish::Stop)));
    assert!(outcome.ids.iter().all(|id| [7, 8].contains(id)));

    let (_, inbox) = submit(&mut engine, constrained(true));
    let report = engine.step();
    assert!(report.has_panicked && report.failures[0].contains("out of order"), "{report:?}");
    assert!(inbox.failure().unwrap().contains("out of order"));
    assert_eq!((engine.status().running, engine.status().waiting), (0, 0));
    let (_, inbox) = submit(&mut engine, constrained(false));
    run(&mut engine);
    assert_eq!(inbox.outcome(), outcome);
}

#[test]
fn prefixes_are_shared_by_tenant_and_salt_alone() {
    let mut engine = engine(EngineOptions::default());
    let prompt: Vec<u32> = (0..50).map(|i| i % 90).collect();
    let mut cached = |tenant: usize, salt: Option<[u8; 32]>, end: usize| {
        let mut request = Request::new(TenantId::new(tenant), prompt[..end].to_vec(), 1);
        request.salt = salt;
        let (_, inbox) = submit(&mut engine, request);
        run(&mut engine);
        inbox.usage.lock().unwrap().unwrap().cached_tokens
    };
    assert_eq!(cached(0, None, 50), 0);
    assert_eq!(cached(0, None, 50), 32);
    assert_eq!(cached(0, None, 33), 32);
    // One token must be computed.
    assert_eq!(cached(0, None, 32), 0);
    assert_eq!(cached(1, None, 50), 0);
    assert_eq!(cached(0, Some([1; 32]), 50), 0);
    assert_eq!(cached(0, Some([1; 32]), 50), 32);
    assert_eq!(cached(0, Some([2; 32]), 50), 0);
}
