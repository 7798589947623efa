//! From logits to the next token: parameters, the chain that applies them, random numbers, and
//! log-probabilities. No model is known here: logits are a slice, one number per id.
//!
//! The same seed, request and position give the same token on every machine: random numbers are
//! computed from counters, sums are FP64 in a fixed order, and `exp` is that of `libm`.

mod chain;
mod logprob;
mod params;
mod random;
mod seen;

pub use chain::Sampler;
pub use logprob::{LogProbs, Ranked, check_logits};
pub use params::Sampling;
pub(crate) use random::uniform;
