//! One text of each of many fine-tunes at a time: all in one engine on their common base, beside an
//! engine for each dense fine-tune. Both compute the same tokens.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::clock::Stopwatch;
use crate::rounds::Rounds;
use crate::tenants::fine_tune;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Error, Limits, PackOptions, Progress, Result, Silent, pack_to};
use deltaloom_compute::Mode;
use deltaloom_lm::engine::{Engine, EngineOptions, Event, Flow, Request, Sink};
use deltaloom_lm::layer::TenantId;
use deltaloom_lm::model::{Model, Parts};
use deltaloom_lm::tenancy::{FamilyOptions, Forms};
use deltaloom_report::median;

/// What to compute.
#[derive(Debug, Clone, Copy)]
pub struct MixedOptions {
    /// Fine-tunes, with a text each.
    pub tenants: usize,
    /// Part of the weights that each changes, by an ULP or a few.
    pub changed: f64,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens of a text.
    pub tokens: usize,
    /// How fine-tunes are in memory.
    pub forms: Forms,
    /// The numerical guarantee.
    pub mode: Mode,
    /// Timed rounds.
    pub rounds: usize,
    /// Selects the fine-tunes.
    pub seed: u64,
}

/// Results.
#[derive(Debug, Clone, Serialize)]
pub struct MixedReport {
    /// Instruction set.
    pub isa: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// Fine-tunes.
    pub tenants: usize,
    /// Bytes of the base.
    pub base_bytes: u64,
    /// Bytes of all fine-tunes in one engine, without the base.
    pub tenant_bytes: u64,
    /// Generated tokens per second of one engine, median of the rounds.
    pub tokens_per_second: f64,
    /// The same of an engine for each dense fine-tune.
    pub dense_tokens_per_second: f64,
    /// The same of one engine whose texts are all of the base.
    pub base_tokens_per_second: f64,
    /// Texts that differ from those of the dense fine-tunes. In exact modes there must be none.
    pub different_texts: usize,
}

/// Keeps ids.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u32>>>);

impl Sink for Kept {
    fn push(&mut self, event: Event) {
        if let Event::Token { id, .. } = event {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
    }

    fn flow(&self) -> Flow {
        Flow::Go
    }
}

/// Engines that take turns, and the tenants whose texts they compute.
struct Side {
    engines: Vec<Engine>,
    tenants: Vec<Vec<TenantId>>,
}

impl Side {
    /// Texts per tenant, and the seconds between the first and the last token of all.
    fn run(&mut self, options: &MixedOptions) -> Result<(Vec<Vec<u32>>, f64)> {
        let mut texts = Vec::new();
        for (engine, tenants) in self.engines.iter_mut().zip(&self.tenants) {
            for tenant in tenants {
                let vocabulary = engine.model().config().vocabulary;
                let id = |at: usize| u32::try_from((at * 31 + texts.len() * 7 + 1) % vocabulary).unwrap_or(0);
                let prompt = (0..options.prompt_tokens).map(id).collect();
                let kept = Kept::default();
                engine
                    .submit(Request::new(*tenant, prompt, options.tokens), Box::new(kept.clone()))
                    .map_err(|refused| Error::InvalidArgument(refused.to_string()))?;
                texts.push(kept);
            }
            // Prompts are not timed.
            while engine.step().prefill_tokens > 0 {}
        }
        let time = Stopwatch::start();
        while self.engines.iter().any(|engine| !engine.is_idle()) {
            self.engines.iter_mut().for_each(|engine| _ = engine.step());
        }
        let seconds = time.seconds();
        let text = |kept: Kept| kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((texts.into_iter().map(text).collect(), seconds))
    }
}

/// Generates fine-tunes of the model in `base`, a folder with BF16 or F32 weights, and times both.
///
/// # Errors
/// Those of opening the base; [`Error::InvalidArgument`] for fractions that are not from 0 to 1;
/// [`Error::Cancelled`].
pub fn run(base: &Path, options: &MixedOptions, progress: &dyn Progress) -> Result<MixedReport> {
    let Parts { checkpoint, config_text, .. } = Parts::open(base)?;
    let open = |checkpoint: Checkpoint, forms| {
        Model::of_checkpoint(base, checkpoint, &config_text, FamilyOptions::default().with_forms(forms))
    };
    let engine = |model: Model| Engine::new(model, EngineOptions::default().with_mode(options.mode));
    let rounds = Rounds::new(options.rounds)?;
    progress.start(options.tenants as u64 + rounds.turns(3));
    let mut model = open((*checkpoint).clone(), options.forms)?;
    let mut bases = Bases::default();
    bases.push_checkpoint(base, Arc::clone(model.base()));
    let mut dense = Side { engines: Vec::new(), tenants: Vec::new() };
    let mut tenants = Vec::new();
    for number in 0..options.tenants {
        let tuned = fine_tune(&checkpoint, number, options.changed, options.seed)?;
        let mut bytes = Vec::new();
        pack_to(&tuned, &bases, &mut bytes, &PackOptions::default(), &Silent)?;
        let container =
            Container::from_source(Path::new("a fine-tune"), Box::new(bytes), &Limits::default())?;
        let prepared = model.prepare(container)?;
        tenants.push(model.admit(prepared)?);
        dense.engines.push(engine(open(tuned, Forms::ByShare)?)?);
        dense.tenants.push(vec![Model::BASE]);
        progress.advance(1);
    }
    let base_bytes = checkpoint.weights().map(|(_, info)| info.len_bytes()).sum();
    let of_base = engine(open((*checkpoint).clone(), Forms::ByShare)?)?;
    let mut sides = [
        Side { engines: vec![engine(model)?], tenants: vec![tenants] },
        dense,
        Side { engines: vec![of_base], tenants: vec![vec![Model::BASE; options.tenants]] },
    ];
    let mut texts: BTreeMap<usize, Vec<Vec<u32>>> = BTreeMap::new();
    let seconds = rounds.run(&mut sides, progress, |side, turn| -> Result<f64> {
        let (found, seconds) = side.run(options)?;
        texts.insert(turn.variant, found);
        progress.advance(1);
        Ok(seconds)
    })?;
    // The first token of each comes from its prompt.
    let tokens = (options.tenants * options.tokens.saturating_sub(1)) as f64;
    let speed = |variant: usize| tokens / median(seconds[variant].clone()).unwrap_or(f64::NAN);
    let pairs = texts[&0].iter().zip(&texts[&1]);
    Ok(MixedReport {
        isa: deltaloom::isa_name(),
        threads: rayon::current_num_threads(),
        tenants: options.tenants,
        base_bytes,
        tenant_bytes: sides[0].engines[0].status().residency.matrix_bytes,
        tokens_per_second: speed(0),
        dense_tokens_per_second: speed(1),
        base_tokens_per_second: speed(2),
        different_texts: pairs.filter(|(a, b)| a != b).count(),
    })
}
