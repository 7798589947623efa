//! One sequence of some length, to see whether a process can compute it, and the search for the
//! longest.

use std::ops::ControlFlow;

use deltaloom::Result;
use serde::{Deserialize, Serialize};

use super::losses::{Measuring, STEP};
use crate::model::{Chunk, Model};

/// Where the search begins.
const FIRST: usize = 512;

/// A sequence that was computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Its tokens.
    pub tokens: usize,
    /// Bytes of its keys and values.
    pub kv_bytes: u64,
    /// The first step with logits that are not finite ended before this token.
    pub not_finite_at: Option<usize>,
    /// The most memory of the process, if the caller tells.
    pub peak_bytes: Option<u64>,
}

/// Computes ids from all over the vocabulary, up to the first logits that are not finite. `peak`
/// is called after each step; it tells the most memory of this process and may stop the work.
///
/// # Errors
/// Those of [`Model::forward`], and of `peak`.
pub fn probe(
    model: &mut Model,
    tokens: usize,
    how: &Measuring<'_>,
    mut peak: impl FnMut() -> Result<Option<u64>>,
) -> Result<Probed> {
    let vocabulary = model.config().vocabulary;
    let id = |at: usize| u32::try_from(at.wrapping_mul(7919) % vocabulary).unwrap_or(0);
    let mut memory = model.memory(how.memory);
    let sequence = memory.begin(how.tenant);
    let mut probed = Probed { tokens: 0, kv_bytes: 0, not_finite_at: None, peak_bytes: None };
    while probed.tokens < tokens && probed.not_finite_at.is_none() {
        let end = (probed.tokens + STEP).min(tokens);
        let ids: Vec<u32> = (probed.tokens..end).map(id).collect();
        let hidden = model.forward(&mut memory, &[Chunk { sequence, tokens: &ids }], how.run)?;
        let logits = hidden.logits(&[ids.len() - 1], how.run)?;
        probed.not_finite_at = logits.iter().any(|logit| !logit.is_finite()).then_some(end);
        (probed.tokens, probed.kv_bytes) = (end, memory.used_bytes());
        probed.peak_bytes = peak()?;
    }
    Ok(probed)
}

/// What became of a length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
#[non_exhaustive]
pub enum Outcome {
    /// It was computed.
    Worked(Probed),
    /// There was not enough memory.
    NoMemory,
    /// Logits were not finite.
    NotFinite(Probed),
    /// Something else went wrong.
    Failed {
        /// What it was.
        reason: String,
    },
}

/// Finds the longest sequence, of at most `most` tokens: lengths double until one has no memory,
/// then the range is halved down to a sixteenth of the length, or 32 tokens. Anything else that
/// goes wrong ends the search, because it says nothing about other lengths. It returns the last
/// length that worked; `each` has seen all of them.
///
/// # Errors
/// Those of `each`.
pub fn longest(most: usize, mut each: impl FnMut(usize) -> Result<Outcome>) -> Result<Option<Probed>> {
    let (mut worked, mut low, mut high) = (None, 0, None);
    let mut next = ControlFlow::Continue(FIRST.min(most));
    while let ControlFlow::Continue(tokens) = next {
        if tokens == 0 {
            break;
        }
        match each(tokens)? {
            Outcome::Worked(probed) => (low, worked) = (tokens, Some(probed)),
            Outcome::NoMemory => high = Some(tokens),
            Outcome::NotFinite(_) | Outcome::Failed { .. } => break,
        }
        next = match high {
            None if low == most => ControlFlow::Break(()),
            None => ControlFlow::Continue(low.saturating_mul(2).min(most)),
            Some(high) if high - low <= (low / 16).max(32) => ControlFlow::Break(()),
            Some(high) => ControlFlow::Continue(low + (high - low) / 2),
        };
    }
    Ok(worked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worked(tokens: usize) -> Outcome {
        Outcome::Worked(Probed { tokens, kv_bytes: 1, not_finite_at: None, peak_bytes: None })
    }

    /// The lengths that were tried, and the one that was found.
    fn searched(most: usize, outcome: impl Fn(usize) -> Outcome) -> (Vec<usize>, Option<usize>) {
        let mut tried = Vec::new();
        let found = longest(most, |tokens| {
            tried.push(tokens);
            Ok(outcome(tokens))
        });
        (tried, found.unwrap().map(|probed| probed.tokens))
    }

    #[test]
    fn lengths_double_and_then_close_in() {
        let fits =
            |room: usize| move |tokens| if tokens <= room { worked(tokens) } else { Outcome::NoMemory };
        assert_eq!(searched(3000, fits(5000)), (vec![512, 1024, 2048, 3000], Some(3000)));
        assert_eq!(searched(9000, fits(1200)), (vec![512, 1024, 2048, 1536, 1280, 1152, 1216], Some(1152)));
        assert_eq!(searched(9000, fits(40)), (vec![512, 256, 128, 64, 32], Some(32)));
        assert_eq!(searched(9000, fits(0)).1, None);
        assert_eq!(searched(0, fits(9)), (vec![], None));
        assert_eq!(searched(7, fits(9)), (vec![7], Some(7)));
    }

    #[test]
    fn only_memory_is_searched() {
        let failed = |tokens| match tokens {
            0..=1024 => worked(tokens),
            _ => Outcome::Failed { reason: "no".to_owned() },
        };
        assert_eq!(searched(9000, failed), (vec![512, 1024, 2048], Some(1024)));
    }
}
