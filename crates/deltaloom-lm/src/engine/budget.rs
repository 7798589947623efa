//! How a memory budget is divided: what a step needs first, then keys and values, and the rest for
//! the fine-tunes.

use serde::Serialize;

use crate::layer::{Memory, MemoryOptions};
use crate::model::{LOGIT_BYTES, ModelConfig};
use deltaloom::{Error, Result};

/// Part of what a step leaves that keys and values get, in percent.
const MEMORY_PERCENT: u64 = 30;

/// A divided budget, in bytes. Mapped files are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryBudget {
    /// Activations and logits of a step.
    pub step_bytes: u64,
    /// Keys and values.
    pub kv_bytes: u64,
    /// Resident forms of the fine-tunes.
    pub tenant_bytes: u64,
}

impl MemoryBudget {
    /// Divides `bytes`. Keys and values get 30 % of what a step leaves, or what one sequence of the
    /// full context needs if that is more.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a step and one sequence do not fit.
    pub fn of(bytes: u64, config: &ModelConfig, step_tokens: usize, memory: MemoryOptions) -> Result<Self> {
        let step_bytes = step_bytes(config, step_tokens);
        let left = bytes.saturating_sub(step_bytes);
        let one = Self::sequence_bytes(config, memory);
        let kv_bytes = (left / 100 * MEMORY_PERCENT).max(one);
        let tenant_bytes = left.checked_sub(kv_bytes).ok_or_else(|| {
            let needed = step_bytes.saturating_add(one);
            let what = format!("a budget of {bytes} bytes: a step and one sequence need {needed}");
            Error::InvalidArgument(what)
        })?;
        Ok(Self { step_bytes, kv_bytes, tenant_bytes })
    }

    /// Without a limit for fine-tunes: keys and values get `kv_bytes`, or what one sequence of the
    /// full context needs if that is more.
    #[must_use]
    pub fn unlimited(config: &ModelConfig, step_tokens: usize, memory: MemoryOptions, kv_bytes: u64) -> Self {
        let step_bytes = step_bytes(config, step_tokens);
        let kv_bytes = kv_bytes.max(Self::sequence_bytes(config, memory));
        Self { step_bytes, kv_bytes, tenant_bytes: u64::MAX }
    }

    /// Gives keys and values this many bytes. Fine-tunes have what is left.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is more than both have.
    pub fn with_kv(self, kv_bytes: u64) -> Result<Self> {
        if self.tenant_bytes == u64::MAX {
            return Ok(Self { kv_bytes, ..self });
        }
        let both = self.kv_bytes + self.tenant_bytes;
        let tenant_bytes = both.checked_sub(kv_bytes).ok_or_else(|| {
            let what = format!("{kv_bytes} bytes for keys and values: the budget has {both}");
            Error::InvalidArgument(what)
        })?;
        Ok(Self { kv_bytes, tenant_bytes, ..self })
    }

    /// Bytes of the keys and values of a sequence that fills the context; of a page each if the
    /// model names no context.
    #[must_use]
    pub fn sequence_bytes(config: &ModelConfig, memory: MemoryOptions) -> u64 {
        let memory = Memory::new(&config.layers, memory);
        memory.bytes_of(config.longest().unwrap_or(1)).unwrap_or(u64::MAX)
    }
}

/// The most bytes that are in memory at a time, in FP32: a layer's input, its norm and its output,
/// with what attention or the feed-forward network has in between.
fn step_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    let of_layer = |layer: &crate::layer::LayerConfig| {
        let [width, queries, keys, hidden] = [
            layer.width,
            layer.query_heads.saturating_mul(layer.head_size),
            layer.key_value_heads.saturating_mul(layer.head_size),
            layer.hidden_width,
        ]
        .map(|width| width as u64);
        let attention =
            width.saturating_mul(3).saturating_add(queries.saturating_add(keys).saturating_mul(2));
        let feed_forward = width.saturating_mul(4).saturating_add(hidden.saturating_mul(2));
        attention.max(feed_forward)
    };
    let widest = config.layers.iter().map(of_layer).max().unwrap_or(0);
    // Those that are computed at a time, and a copy of them.
    let logits = (2 * LOGIT_BYTES as u64).max((config.vocabulary as u64).saturating_mul(8));
    widest.saturating_mul(4).saturating_mul(tokens as u64).saturating_add(logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sequence_fits_or_the_budget_is_refused() {
        let text = r#"{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "max_position_embeddings": 1024}"#;
        let config = ModelConfig::parse(text).unwrap();
        let of = |bytes| MemoryBudget::of(bytes, &config, 256, MemoryOptions::default());
        // 2 layers, keys and values, 2 heads of 16, BF16.
        let one = 1024 * 2 * 2 * 2 * 16 * 2;
        assert_eq!(MemoryBudget::sequence_bytes(&config, MemoryOptions::default()), one);
        let step = 2 * (16 << 20) + 256 * 4 * (4 * 64 + 2 * 96);
        let smallest = of(step + one).unwrap();
        assert_eq!(smallest, MemoryBudget { step_bytes: step, kv_bytes: one, tenant_bytes: 0 });
        let refused = of(step + one - 1).unwrap_err().to_string();
        assert!(refused.contains(&(step + one).to_string()), "{refused}");
        let large = of(1 << 30).unwrap();
        assert_eq!(large.step_bytes + large.kv_bytes + large.tenant_bytes, 1 << 30);
        assert_eq!(large.kv_bytes, ((1 << 30) - step) / 100 * 30);
        let other = large.with_kv(5000).unwrap();
        assert_eq!((other.kv_bytes, other.tenant_bytes), (5000, (1 << 30) - step - 5000));
        assert!(large.with_kv(1 << 30).is_err());
        let unlimited = MemoryBudget::unlimited(&config, 256, MemoryOptions::default(), 10);
        assert_eq!((unlimited.kv_bytes, unlimited.tenant_bytes), (one, u64::MAX));
        assert_eq!(unlimited.with_kv(20).unwrap().kv_bytes, 20);
    }
}
