//! Qwen2 and Qwen2.5: LLaMA with biases of queries, keys and values, and a window in the later
//! layers if it is switched on.

use super::llama::{IGNORED, MATRICES, SIGN};
use super::{Architecture, Convention, Design, GLOBALS, Reach, Result, Settings, VectorRole};

pub(super) const QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    names: Convention {
        kind: "Hugging Face's Qwen2",
        sign: SIGN,
        matrices: MATRICES,
        vectors: &[
            (VectorRole::Norm1Weight, "input_layernorm.weight"),
            (VectorRole::QueryBias, "self_attn.q_proj.bias"),
            (VectorRole::KeyBias, "self_attn.k_proj.bias"),
            (VectorRole::ValueBias, "self_attn.v_proj.bias"),
            (VectorRole::Norm2Weight, "post_attention_layernorm.weight"),
        ],
        optional: &[],
        ignored: IGNORED,
    },
    key_value_heads: Some(32),
    head_size: None,
    design: Design::Llama,
    globals: &GLOBALS,
    reach,
};

/// The window of Qwen2 and Qwen3: transformers uses it only if it is switched on, from layer
/// `max_window_layers` (28) on.
pub(super) fn reach(settings: &Settings, number: usize) -> Result<Reach> {
    let is_on = settings.use_sliding_window == Some(true);
    let window = settings.sliding_window.filter(|_| is_on);
    settings.reach(number, window, |number| number >= settings.max_window_layers.unwrap_or(28))
}
