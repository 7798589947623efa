//! Feeds models: two for their divergence, one for multiple choice.

use std::ops::Range;

use super::choices::Item;
use super::divergence::Divergence;
use crate::layer::{MemoryOptions, TenantId};
use crate::model::{Chunk, Model};
use crate::text::{Special, Tokenizer};
use deltaloom::{Error, Result};
use deltaloom_compute::Run;

/// Bytes of logits of both models that are computed at a time.
const LOGIT_BYTES: usize = 16 << 20;

/// What is compared with a base.
pub enum Student<'a> {
    /// A fine-tune of it, computed in the same batch; or [`Model::BASE`], the base itself.
    Tenant(TenantId),
    /// A tenant of another model with the same ids.
    Other(&'a mut Model, TenantId),
}

/// Compares a base with a student on windows of `ids` that do not overlap. Every id of a window but
/// the first is scored. `progress` gets the number of ids.
///
/// # Errors
/// [`Error::InvalidArgument`] for fewer than two ids, a window below 2, models of other numbers of
/// ids, and models that compute NaN; errors of [`Model::forward`] and of `progress`.
pub fn compare(
    base: &mut Model,
    mut student: Student<'_>,
    ids: &[u32],
    window: usize,
    memory: MemoryOptions,
    run: &Run<'_>,
    mut progress: impl FnMut(usize) -> Result<()>,
) -> Result<Divergence> {
    if ids.len() < 2 || window < 2 {
        let what = format!("{} ids in windows of {window}: at least 2 are needed", ids.len());
        return Err(Error::InvalidArgument(what));
    }
    let vocabulary = base.config().vocabulary;
    if let Student::Other(model, _) = &student
        && model.config().vocabulary != vocabulary
    {
        return Err(Error::InvalidArgument(format!(
            "the base has {vocabulary} ids and the student {}: both must have the same",
            model.config().vocabulary
        )));
    }
    let at_a_time = (LOGIT_BYTES / size_of::<f32>() / 2 / vocabulary).max(1);
    let mut divergence = Divergence::default();
    for tokens in ids.chunks(window) {
        let positions: Vec<usize> = (0..tokens.len() - 1).collect();
        let mut add = |some: &[usize], of_base: &[f32], of_student: &[f32]| {
            let next: Vec<u32> = some.iter().map(|at| tokens[at + 1]).collect();
            divergence.add_all(of_base, of_student, &next)
        };
        let mut of_base = base.memory(memory);
        let sequence = of_base.begin(Model::BASE);
        let chunk = Chunk { sequence, tokens };
        match &mut student {
            Student::Tenant(tenant) => {
                let other = Chunk { sequence: of_base.begin(*tenant), tokens };
                let hidden = base.forward(&mut of_base, &[chunk, other], run)?;
                for some in positions.chunks(at_a_time) {
                    let behind = some.iter().map(|at| tokens.len() + at);
                    let both: Vec<usize> = some.iter().copied().chain(behind).collect();
                    let logits = hidden.logits(&both, run)?;
                    let (of_base, of_student) = logits.split_at(logits.len() / 2);
                    add(some, of_base, of_student)?;
                }
            }
            Student::Other(model, tenant) => {
                let mut of_student = model.memory(memory);
                let other = Chunk { sequence: of_student.begin(*tenant), tokens };
                let base = base.forward(&mut of_base, &[chunk], run)?;
                let student = model.forward(&mut of_student, &[other], run)?;
                for some in positions.chunks(at_a_time) {
                    add(some, &base.logits(some, run)?, &student.logits(some, run)?)?;
                }
            }
        }
        divergence.end_window();
        progress(tokens.len())?;
    }
    Ok(divergence)
}

/// Logarithms of the probabilities of an item's choices, each the sum over its tokens.
///
/// # Errors
/// [`Error::InvalidArgument`] for an item that is longer than the model's context, or whose choice
/// adds no token; errors of [`Model::forward`].
pub fn score_choices(
    model: &mut Model,
    tenant: TenantId,
    tokenizer: &Tokenizer,
    item: &Item,
    memory: MemoryOptions,
    run: &Run<'_>,
) -> Result<Vec<f64>> {
    let positions = model.config().longest().unwrap_or(usize::MAX);
    let before = tokenizer.encode(&item.context, Special::Add)?.len();
    let mut sequences = Vec::with_capacity(item.choices.len());
    for choice in &item.choices {
        let ids = tokenizer.encode(&format!("{}{choice}", item.context), Special::Add)?;
        // A first token has nothing before it.
        let scored = before.max(1)..ids.len();
        if scored.is_empty() || ids.len() > positions + 1 {
            return Err(Error::InvalidArgument(format!(
                "a choice has {} tokens after {before}: one or more are needed, and {positions} positions are \
                 all that the model has",
                ids.len().saturating_sub(before)
            )));
        }
        sequences.push((ids, scored));
    }
    let mut memory = model.memory(memory);
    let mut chunks = Vec::with_capacity(sequences.len());
    let mut next = Vec::new();
    let mut fed = 0;
    for (ids, scored) in &sequences {
        let tokens = &ids[..ids.len() - 1];
        chunks.push(Chunk { sequence: memory.begin(tenant), tokens });
        next.extend(scored.clone().map(|at| (fed + at - 1, ids[at])));
        fed += tokens.len();
    }
    let hidden = model.forward(&mut memory, &chunks, run)?;
    let log_probs = hidden.log_probs(&next, run)?;
    let mut rest = log_probs.as_slice();
    let sum = |(_, scored): &(Vec<u32>, Range<usize>)| {
        let (own, after) = rest.split_at(scored.len());
        rest = after;
        own.iter().sum()
    };
    Ok(sequences.iter().map(sum).collect())
}
