//! Computes answers again on dense fine-tunes, one after another, and compares every id and every
//! bit of every probability.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::{Answer, Planned};
use deltaloom::__internals::check_cancelled;
use deltaloom::{Error, Progress, Result};
use deltaloom_lm::engine::{Engine, EngineOptions, Event, Flow, Request, Sink, Want};
use deltaloom_lm::model::Model;
use deltaloom_lm::tenancy::FamilyOptions;

/// How many answers were compared.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Checked {
    /// Answers.
    pub answers: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Answers that differ in an id or in a bit of a probability.
    pub different: usize,
    /// The first that differs.
    pub first: Option<String>,
}

/// Compares answers with those of dense models, which are folders by the name of their model.
///
/// # Errors
/// Those of opening a model; [`Error::InvalidArgument`] for an answer of another model;
/// [`Error::Cancelled`].
pub fn check(
    dense: &BTreeMap<String, std::path::PathBuf>,
    answers: &[Answer],
    progress: &dyn Progress,
) -> Result<Checked> {
    let mut checked = Checked::default();
    let mut by_model: BTreeMap<&str, Vec<&Answer>> = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.status == 200) {
        by_model.entry(&answer.planned.model).or_default().push(answer);
    }
    for (model, answers) in by_model {
        let missing = || Error::InvalidArgument(format!("no dense model of {model:?}"));
        let mut engine = dense_engine(dense.get(model).ok_or_else(missing)?)?;
        for answer in answers {
            check_cancelled(progress)?;
            let expected = alone(&mut engine, &answer.planned)?;
            let bits = |tokens: &[(u32, f64)]| -> Vec<(u32, u64)> {
                tokens.iter().map(|(id, log_prob)| (*id, log_prob.to_bits())).collect()
            };
            checked.answers += 1;
            checked.tokens += expected.len();
            if bits(&expected) != bits(&answer.tokens) {
                checked.different += 1;
                checked.first.get_or_insert_with(|| {
                    format!("{:?}: {:?}, dense {expected:?}", answer.planned, answer.tokens)
                });
            }
            progress.advance(1);
        }
    }
    Ok(checked)
}

fn dense_engine(folder: &Path) -> Result<Engine> {
    Engine::new(
        deltaloom_lm::context::open(folder, FamilyOptions::default())?,
        EngineOptions::default().with_sequences(1),
    )
}

/// Ids with the logarithms of their probabilities, and why there are no more.
#[derive(Default)]
struct Text {
    tokens: Vec<(u32, f64)>,
    failure: Option<Error>,
}

/// Keeps a text.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Text>>);

impl Sink for Kept {
    fn push(&mut self, event: Event) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Token { scored: Some(scored), .. } => kept.tokens.push((scored.id, scored.log_prob)),
            Event::Failed(error) => kept.failure = Some(error),
            _ => {}
        }
    }

    fn flow(&self) -> Flow {
        Flow::Go
    }
}

fn alone(engine: &mut Engine, planned: &Planned) -> Result<Vec<(u32, f64)>> {
    let mut request = Request::new(Model::BASE, planned.prompt.clone(), planned.max_tokens);
    request.sampling.temperature = planned.temperature;
    request.sampling.seed = planned.seed;
    request.want = Want { prompt: None, tokens: Some(0) };
    let kept = Kept::default();
    engine
        .submit(request, Box::new(kept.clone()))
        .map_err(|refused| Error::InvalidArgument(refused.to_string()))?;
    while !engine.is_idle() {
        engine.step();
    }
    let mut kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
    match kept.failure.take() {
        Some(error) => Err(error),
        None => Ok(std::mem::take(&mut kept.tokens)),
    }
}
