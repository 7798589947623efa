//! How far a student is from its teacher, and how far a table is that knows only how often tokens
//! occur: a student that is no nearer is useless.

use std::ops::Range;

use deltaloom::{Error, Result};
use deltaloom_lm::evaluate::{Divergence, DivergenceReport};

use crate::network::{Network, batch};

/// Tokens whose logits are computed at a time.
const TOKENS_AT_ONCE: usize = 256;
/// Windows that run through the layers together.
const WINDOWS_AT_ONCE: usize = 8;

/// Logits of a teacher that are kept at most: 256 MB of them.
const MOST_LOGITS: usize = 1 << 26;

/// A text, cut into windows.
pub type Windows = Vec<Vec<u32>>;

/// What a teacher computes for a text. Students are compared with it again and again.
pub struct Reference {
    teacher: Network,
    windows: Windows,
    /// The head's input for each window.
    hidden: Vec<Vec<f32>>,
    /// What enters each layer, if that is kept: for each layer, for windows that run together.
    layers: Vec<Vec<Vec<f32>>>,
    /// Logits of the teacher in their order, if they are kept.
    logits: Vec<Vec<f32>>,
}

impl Reference {
    /// Runs the teacher. `progress` gets numbers of tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no window of two tokens or more, and for unknown ids.
    pub fn new(teacher: Network, windows: Windows, progress: &dyn Fn(usize) -> Result<()>) -> Result<Self> {
        if windows.is_empty() || windows.iter().any(|window| window.len() < 2) {
            return Err(Error::InvalidArgument("a window needs two tokens or more to measure".to_owned()));
        }
        let hidden = hidden(&windows, |_, sequences| teacher.hidden(sequences), progress)?;
        Ok(Self { teacher, windows, hidden, layers: Vec::new(), logits: Vec::new() })
    }

    /// Keeps what enters each layer of the teacher, so that students that differ from some layer on
    /// need not be run from the start, and its logits if they are not too many.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_layers(mut self) -> Result<Self> {
        self.layers = vec![Vec::new(); self.teacher.parts().config.layers.len()];
        for some in self.windows.chunks(WINDOWS_AT_ONCE) {
            let sequences: Vec<&[u32]> = some.iter().map(Vec::as_slice).collect();
            let batch = batch(&sequences)?;
            let mut x = self.teacher.embed(&sequences)?;
            for (number, kept) in self.layers.iter_mut().enumerate() {
                kept.push(x.clone());
                x = self.teacher.layer(number, &batch, &x, &self.teacher.weights(number))?;
            }
        }
        let config = &self.teacher.parts().config;
        if self.tokens().saturating_mul(config.vocabulary) <= MOST_LOGITS {
            let places =
                self.places().map(|(window, place, _)| self.teacher.logits(&self.hidden[window][place]));
            self.logits = places.collect::<Result<_>>()?;
        }
        Ok(self)
    }

    /// Number of tokens that a run of a student computes.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    /// Compares a student. Every token of a window but the first is scored.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a student that computes NaN, or has another vocabulary.
    pub fn compare(&self, student: &Network, progress: &dyn Fn(usize) -> Result<()>) -> Result<Measured> {
        let hidden = hidden(&self.windows, |_, sequences| student.hidden(sequences), progress)?;
        self.score(|window, place| student.logits(&hidden[window][place]))
    }

    /// Compares a student whose layers before this one are those of the teacher, and its embedding.
    ///
    /// # Errors
    /// As [`Self::compare`].
    pub(crate) fn compare_from(
        &self,
        student: &Network,
        layer: usize,
        progress: &dyn Fn(usize) -> Result<()>,
    ) -> Result<Measured> {
        let Some(inputs) = self.layers.get(layer) else { return self.compare(student, progress) };
        let run = |some: usize, sequences: &[&[u32]]| {
            student.finish(layer, &batch(sequences)?, inputs[some].clone())
        };
        let hidden = hidden(&self.windows, run, progress)?;
        self.score(|window, place| student.logits(&hidden[window][place]))
    }

    /// Compares a table of the frequencies of tokens, with natural logarithms of probabilities.
    ///
    /// # Errors
    /// As [`Self::compare`].
    pub fn compare_table(&self, log_probs: &[f32]) -> Result<Measured> {
        let width = self.teacher.parts().config.width;
        self.score(|_, place| Ok(log_probs.repeat(place.len() / width)))
    }

    /// Tokens that are scored together: the number of their window, their place in the head's input
    /// of it, and the tokens that follow them.
    fn places(&self) -> impl Iterator<Item = (usize, Range<usize>, &[u32])> {
        let width = self.teacher.parts().config.width;
        self.windows.iter().enumerate().flat_map(move |(number, window)| {
            window[1..].chunks(TOKENS_AT_ONCE).enumerate().map(move |(part, next)| {
                let start = part * TOKENS_AT_ONCE * width;
                (number, start..start + next.len() * width, next)
            })
        })
    }

    /// Scores logits of a window, given by its number, for a place in the head's input of it.
    fn score(&self, logits: impl Fn(usize, Range<usize>) -> Result<Vec<f32>>) -> Result<Measured> {
        let mut divergence = Divergence::default();
        let mut of_window = 0;
        for (part, (number, place, next)) in self.places().enumerate() {
            if number != of_window {
                divergence.end_window();
                of_window = number;
            }
            let student = logits(number, place.clone())?;
            match self.logits.get(part) {
                Some(base) => divergence.add_all(base, &student, next)?,
                None => {
                    divergence.add_all(&self.teacher.logits(&self.hidden[number][place])?, &student, next)?
                }
            }
        }
        divergence.end_window();
        Measured::new(&divergence)
    }
}

/// The head's input for each window. `run` gives it for some that run together, of this number.
fn hidden(
    windows: &Windows,
    run: impl Fn(usize, &[&[u32]]) -> Result<Vec<f32>>,
    progress: &dyn Fn(usize) -> Result<()>,
) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(windows.len());
    for (number, some) in windows.chunks(WINDOWS_AT_ONCE).enumerate() {
        let sequences: Vec<&[u32]> = some.iter().map(Vec::as_slice).collect();
        let hidden = run(number, &sequences)?;
        let width = hidden.len() / some.iter().map(Vec::len).sum::<usize>().max(1);
        let mut rest = &hidden[..];
        for window in some {
            let (own, more) = rest.split_at(window.len() * width);
            all.push(own.to_vec());
            rest = more;
        }
        progress(some.iter().map(Vec::len).sum())?;
    }
    Ok(all)
}

/// A comparison.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measured {
    /// All of it.
    #[serde(flatten)]
    pub report: DivergenceReport,
}

impl Measured {
    fn new(divergence: &Divergence) -> Result<Self> {
        let nothing = || Error::InvalidArgument("no token was scored".to_owned());
        Ok(Self { report: divergence.report().ok_or_else(nothing)? })
    }

    /// Mean divergence in nats per token.
    #[must_use]
    pub fn kl(&self) -> f64 {
        self.report.mean_kl
    }

    /// The larger of its two standard errors: by tokens, and by windows.
    #[must_use]
    pub fn standard_error(&self) -> f64 {
        self.report.kl.standard_error.max(self.report.kl_window_error.unwrap_or(0.0))
    }
}

/// Natural logarithms of how often ids occur, each counted once more than it is seen times
/// `smoothing`.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "logits are FP32")]
pub fn frequency_table(windows: &Windows, vocabulary: usize, smoothing: f64) -> Vec<f32> {
    let counts = frequencies(windows, vocabulary, smoothing);
    counts.iter().map(|share| libm::log(*share) as f32).collect()
}

/// How often ids occur, as shares of 1.
#[must_use]
pub fn frequencies(windows: &Windows, vocabulary: usize, smoothing: f64) -> Vec<f64> {
    let mut counts = vec![smoothing; vocabulary];
    for id in windows.iter().flatten() {
        if let Some(count) = counts.get_mut(*id as usize) {
            *count += 1.0;
        }
    }
    let total: f64 = counts.iter().sum();
    counts.iter().map(|count| count / total).collect()
}
