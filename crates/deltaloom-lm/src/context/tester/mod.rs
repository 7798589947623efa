//! Measures what plans of attention gain over cutting the text to the trained length.
//!
//! All methods see the same targets. The model as it is, truncation and windows that do not overlap
//! are measured with them, whatever is asked for.

mod copies;
mod gains;
mod report;
mod retrieval;
mod speed;

use deltaloom::{Error, Result};

pub use report::{
    Controlled, Copies, EffectiveLength, KeyTokens, KvBytes, Length, Losses, MethodLosses, Price, Speed,
    TestReport,
};

use super::losses::{Measuring, losses, readable, truncated, whole, work};
use crate::layer::AttentionPlan;
use crate::model::{Extension, Model};
use crate::text::Tokenizer;
pub use retrieval::{Retrieval, Task};
pub use speed::kv_bytes;

use copies::Passages;
use gains::Found;

/// The name of the model as it is.
pub const UNCHANGED: &str = "unchanged";
/// The name of the model as it is, with only the last tokens of the trained length.
pub const TRUNCATION: &str = "truncation";

/// Plans of attention with a name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Method {
    /// What reports call it.
    pub name: String,
    /// One plan per layer.
    pub plans: Vec<AttentionPlan>,
    /// How the table of positions goes on, if the model has one.
    pub positions: Option<Extension>,
    /// Plans with other layers, as many: what a choice of layers is compared with.
    pub controls: Vec<Vec<AttentionPlan>>,
}

impl Method {
    /// A method.
    #[must_use]
    pub fn new(name: String, plans: Vec<AttentionPlan>) -> Self {
        Self { name, plans, positions: None, controls: Vec::new() }
    }

    /// Sets how the table of positions goes on.
    #[must_use]
    pub fn with_positions(self, positions: Option<Extension>) -> Self {
        Self { positions, ..self }
    }

    /// Sets what it is compared with.
    #[must_use]
    pub fn with_controls(self, controls: Vec<Vec<AttentionPlan>>) -> Self {
        Self { controls, ..self }
    }

    /// The model with some of its plans.
    fn on(&self, model: Model, plans: &[AttentionPlan]) -> Result<Model> {
        model.with_attention(plans.to_vec())?.with_extension(self.positions)
    }
}

/// What is measured.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TestOptions {
    /// Number of tokens that the model was trained for.
    pub trained: usize,
    /// Numbers of targets of a sequence.
    pub lengths: Vec<usize>,
    /// Number of sequences of each length, evenly spaced in the text.
    pub sequences: usize,
    /// Passages of the probe of copies; 0 leaves it out.
    pub passages: usize,
    /// Rounds of the timing; 0 leaves it out.
    pub rounds: usize,
    /// Facts to plant and ask for, in as many texts of each length as there are sequences.
    pub retrieval: Option<Task>,
    /// Seed of intervals and passages.
    pub seed: u64,
}

/// A text for a test.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// Its ids.
    pub ids: &'a [u32],
    /// What makes ids of planted facts.
    pub tokenizer: Option<&'a Tokenizer>,
}

impl TestOptions {
    /// With 24 passages and no timing.
    #[must_use]
    pub fn new(trained: usize, lengths: &[usize], sequences: usize) -> Self {
        let mut lengths = lengths.to_vec();
        lengths.sort_unstable();
        lengths.dedup();
        Self { trained, lengths, sequences, passages: 24, rounds: 0, retrieval: None, seed: 0 }
    }

    /// Sets the passages of the probe of copies.
    #[must_use]
    pub fn with_passages(self, passages: usize) -> Self {
        Self { passages, ..self }
    }

    /// Sets the rounds of the timing.
    #[must_use]
    pub fn with_rounds(self, rounds: usize) -> Self {
        Self { rounds, ..self }
    }

    /// Sets what is planted and asked for.
    #[must_use]
    pub fn with_retrieval(self, retrieval: Option<Task>) -> Self {
        Self { retrieval, ..self }
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    fn longest(&self) -> usize {
        self.lengths.last().copied().unwrap_or(0)
    }

    /// The length at which the price of a method is measured.
    fn inside(&self) -> usize {
        self.trained.min(self.longest())
    }

    /// Lengths of texts with facts: half the trained length is what others are compared with.
    fn asked(&self) -> impl Iterator<Item = usize> {
        let half = self.trained / 2;
        let half = (!self.lengths.contains(&half)).then_some(half);
        half.into_iter().chain(self.lengths.iter().copied())
    }

    fn check(&self, ids: usize) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if self.lengths.is_empty() || self.lengths[0] < 2 || self.sequences == 0 || self.trained < 2 {
            return wrong(
                "lengths and the trained length are 2 tokens or more, and there is a sequence".to_owned(),
            );
        }
        let longest = self.longest();
        if ids < longest.saturating_add(1 + self.sequences) {
            return wrong(format!(
                "a text of {ids} token ids is too short for {} sequences of {longest} tokens and the one behind each",
                self.sequences
            ));
        }
        Ok(())
    }

    /// Number of tokens that [`test`] computes, for its progress.
    #[must_use]
    pub fn work(&self, methods: &[Method]) -> usize {
        let runs = methods.len() + 1;
        let controls: usize = methods.iter().map(|method| method.controls.len()).sum();
        let stride = (self.trained / 2).max(1);
        let length = |tokens: &usize| {
            runs * tokens
                + work(&truncated(*tokens, self.trained, stride))
                + work(&truncated(*tokens, self.trained, self.trained))
        };
        let inside = if self.lengths.contains(&self.inside()) { 0 } else { runs };
        let losses = self.sequences
            * (self.lengths.iter().map(length).sum::<usize>() + (inside + controls) * self.inside());
        let asked: usize = match self.retrieval {
            Some(_) => self.asked().map(|tokens| retrieval::work(tokens, self.sequences)).sum(),
            None => 0,
        };
        losses + copies::work(self, runs) + speed::work(self, runs) + (runs + 1) * asked
    }
}

/// Where sequences of `tokens` targets begin in a text of `ids`: evenly spaced, the first at 0 and
/// the last as late as possible but for one token.
#[must_use]
pub fn starts(ids: usize, tokens: usize, count: usize) -> Vec<usize> {
    let room = ids.saturating_sub(tokens + 2);
    (0..count).map(|number| room * number / count.saturating_sub(1).max(1)).collect()
}

/// Measures methods on a text. `progress` gets the number of tokens that a step has computed, and
/// may stop the work.
///
/// # Errors
/// [`Error::InvalidArgument`] for a text that is too short, ids that are not in the vocabulary,
/// lengths that a table of positions does not have, plans that do not fit, and NaN; errors of
/// [`Model::forward`].
pub fn test(
    mut model: Model,
    text: Text<'_>,
    methods: &[Method],
    options: &TestOptions,
    how: &Measuring<'_>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<TestReport> {
    let ids = text.ids;
    options.check(ids.len())?;
    let table = model.config().position_table;
    let unchanged = Method::new(UNCHANGED.to_owned(), model.attention().cloned().collect())
        .with_positions(table.and_then(|table| table.extension));
    let methods: Vec<&Method> = std::iter::once(&unchanged).chain(methods).collect();
    // Beyond its table, the model as it is can only be truncated: it needs another one beside it.
    for method in methods.iter().skip(usize::from(methods.len() > 1)) {
        let end = table.map(|table| method.positions.map_or(table.positions, |it| it.target));
        if let Some(end) = end.filter(|end| options.longest() > *end) {
            return Err(Error::InvalidArgument(format!(
                "{}: the table of positions ends at {end}, and {} tokens are to be tested",
                method.name,
                options.longest()
            )));
        }
    }
    let timed = model.config().table_end().min(options.longest());
    let (passages, no_copies) = match Passages::find(ids, options) {
        Ok(passages) => (passages, None),
        Err(reason) => (Passages::default(), Some(reason)),
    };
    let sequences = |tokens: usize| -> Vec<&[u32]> {
        let starts = starts(ids.len(), tokens, options.sequences);
        starts.into_iter().map(|start| &ids[start..=start + tokens]).collect()
    };
    let mut base = Vec::new();
    for tokens in &options.lengths {
        let sequences = sequences(*tokens);
        let mut of = |stride: usize| {
            losses(&mut model, &sequences, &truncated(*tokens, options.trained, stride.max(1)), how, progress)
        };
        base.push([of(options.trained / 2)?, of(options.trained)?]);
    }
    let mut planted = Vec::new();
    if let Some(task) = options.retrieval {
        let tokenizer = text.tokenizer.ok_or_else(|| {
            Error::InvalidArgument("planting facts in a text needs the tokenizer of the model".to_owned())
        })?;
        for tokens in options.asked() {
            match retrieval::plant(task, tokenizer, ids, tokens, options.sequences, options.seed) {
                Ok(texts) => planted.push((tokens, texts)),
                // Nobody asked for so short a text.
                Err(_) if !options.lengths.contains(&tokens) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let mut asked = Vec::new();
    for (tokens, texts) in &planted {
        asked.push(retrieval::ask(&mut model, TRUNCATION, *tokens, texts, options.trained, how, progress)?);
    }
    let by_truncation = asked.clone();
    let mut found: Vec<Found> = Vec::new();
    for method in &methods {
        model = method.on(model, &method.plans)?;
        let mut of = |tokens: usize| {
            let windows = readable(&model, tokens, options.trained);
            losses(&mut model, &sequences(tokens), &windows, how, progress)
        };
        let by_length = options.lengths.iter().map(|tokens| of(*tokens)).collect::<Result<Vec<_>>>()?;
        let inside = match options.lengths.iter().position(|tokens| *tokens == options.inside()) {
            Some(at) => by_length[at].clone(),
            None => of(options.inside())?,
        };
        let copies = passages.measure(&mut model, options.trained, how, progress)?;
        let mut others = Vec::with_capacity(method.controls.len());
        for plans in &method.controls {
            model = method.on(model, plans)?;
            let tokens = options.inside();
            others.push(losses(&mut model, &sequences(tokens), &whole(tokens), how, progress)?);
        }
        model = method.on(model, &method.plans)?;
        for ((tokens, texts), truncation) in planted.iter().zip(&by_truncation) {
            let found = retrieval::ask(&mut model, &method.name, *tokens, texts, usize::MAX, how, progress)?;
            asked.push(found.compared(truncation, options.seed));
        }
        let read = options.longest().min(model.config().table_end());
        let kv = speed::bytes(&mut model, &ids[..read], how)?;
        found.push(Found { name: method.name.clone(), by_length, inside, copies, kv, others });
    }
    let speed = speed::measure(model, &methods, &ids[..timed], options.rounds, how, progress)?;
    let lengths = gains::lengths(&base, &found, options, ids.len());
    Ok(TestReport {
        trained_tokens: options.trained,
        seed: options.seed,
        effective_length: gains::effective(&lengths, &asked, options.trained),
        retrieval: asked,
        lengths,
        price: gains::prices(&found, options),
        controls: found.iter().filter_map(|found| gains::controlled(found, options)).collect(),
        copies: passages.report(&found, options),
        no_copies,
        memory: found.iter().map(|found| found.kv.clone().named(&found.name)).collect(),
        speed,
    })
}
