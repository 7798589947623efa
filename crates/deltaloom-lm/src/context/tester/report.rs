//! What a test found. Field names are keys of JSON.

use serde::Serialize;

use super::retrieval::Retrieval;
use crate::context::statistics::{Estimate, Word};

/// All that was measured. Losses are in nats per token.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TestReport {
    /// Number of tokens that the model was trained for.
    pub trained_tokens: usize,
    /// Seed of intervals and of passages.
    pub seed: u64,
    /// One entry per length, shortest first.
    pub lengths: Vec<Length>,
    /// What each method costs in texts of the trained length, or shorter if all lengths are.
    pub price: Vec<Price>,
    /// Choices of layers beside random ones, as many, within the trained length.
    pub controls: Vec<Controlled>,
    /// What an earlier copy of a passage gains.
    pub copies: Vec<Copies>,
    /// Why there are no copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_copies: Option<String>,
    /// How often planted facts were found; empty if none were planted.
    pub retrieval: Vec<Retrieval>,
    /// Bytes of keys and values.
    pub memory: Vec<KvBytes>,
    /// Tokens per second; empty without rounds.
    pub speed: Vec<Speed>,
    /// How far each method goes.
    pub effective_length: Vec<EffectiveLength>,
}

/// The losses in sequences of one length.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Length {
    /// Number of targets of a sequence.
    pub tokens: usize,
    /// Where the sequences begin in the text.
    pub starts: Vec<usize>,
    /// Positions that are reported together: first, and behind the last.
    pub buckets: Vec<[usize; 2]>,
    /// The model as it is.
    pub unchanged: Losses,
    /// The model as it is, with only the last tokens before each target: windows of the trained
    /// length, moved by half of it. The baseline.
    pub truncation: Losses,
    /// The same with windows that do not overlap.
    pub trained_length: Losses,
    /// The methods.
    pub methods: Vec<MethodLosses>,
}

/// Mean losses.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Losses {
    /// Of all positions.
    pub loss: f64,
    /// By bucket.
    pub buckets: Vec<f64>,
}

/// The losses of a method.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MethodLosses {
    /// Its name; `unchanged` is the first.
    pub name: String,
    /// Its losses.
    #[serde(flatten)]
    pub losses: Losses,
    /// The loss less that of truncation, by bucket.
    pub differences: Vec<Estimate>,
    /// The loss of truncation less that of the method, behind the trained length. `None` if there
    /// is nothing behind it.
    pub gain: Option<Estimate>,
    /// What it means.
    pub word: Option<Word>,
    /// Its perplexity on tokens that need far ones; `None` if there is no such token.
    pub key_tokens: Option<KeyTokens>,
}

/// Tokens that the unchanged model predicts much better with all of the text: they are found once
/// and are the same for all methods.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KeyTokens {
    /// How many.
    pub tokens: usize,
    /// Perplexity of the method.
    pub perplexity: f64,
    /// Perplexity with truncation.
    pub truncation_perplexity: f64,
}

/// What a method costs inside the trained length.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Price {
    /// The method.
    pub name: String,
    /// Number of targets of a sequence.
    pub tokens: usize,
    /// Its loss.
    pub loss: f64,
    /// Its loss less that of the unchanged model.
    pub difference: Estimate,
}

/// A choice of layers beside random ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Controlled {
    /// The method.
    pub name: String,
    /// Its loss within the trained length.
    pub loss: f64,
    /// The losses of the random choices.
    pub controls: Vec<f64>,
    /// Its place among them: 1 is the best.
    pub rank: usize,
    /// How probable so good a place is by chance. Depth may explain it as well as the choice does.
    pub p_value: f64,
}

/// What an earlier copy of a passage gains: the loss with another passage there, less the loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Copies {
    /// The method.
    pub name: String,
    /// Tokens between the copies.
    pub gap_tokens: usize,
    /// Tokens of a passage.
    pub passage_tokens: usize,
    /// Number of passages.
    pub passages: usize,
    /// The gain.
    pub gain: Estimate,
}

/// Bytes of keys and values of one sequence.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KvBytes {
    /// The method.
    pub name: String,
    /// Number of tokens.
    pub tokens: usize,
    /// What the tokens need that are still seen, by arithmetic.
    pub formula_bytes: u64,
    /// Pages that were in memory at the end.
    pub counted_bytes: u64,
}

/// Medians over rounds that take turns.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Speed {
    /// The method.
    pub name: String,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens per second while the text is read.
    pub prefill_tokens_per_second: f64,
    /// The same over that of the unchanged model.
    pub prefill_ratio: f64,
    /// Tokens per second behind it, one at a time.
    pub decode_tokens_per_second: f64,
    /// The same over that of the unchanged model.
    pub decode_ratio: f64,
}

/// How far a method goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EffectiveLength {
    /// The method.
    pub name: String,
    /// The largest length of the test at which the loss is not worse than with truncation; `None`
    /// if there is none.
    pub tokens: Option<usize>,
    /// Why it ends there.
    pub reason: String,
}
