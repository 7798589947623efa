//! Gemma 3 without its images: LLaMA with norms on both sides of each network, norms of queries and
//! keys, GeGLU, and a window in five of six layers, which have rotary positions of their own.

use super::llama::{IGNORED, MATRICES, SIGN};
use super::{Architecture, Convention, Design, GLOBALS, Positions, Reach, Result, Settings, VectorRole};

pub(super) const GEMMA3: Architecture = Architecture {
    model_type: "gemma3_text",
    names: Convention {
        kind: "Hugging Face's Gemma 3",
        sign: SIGN,
        matrices: MATRICES,
        vectors: &[
            (VectorRole::Norm1Weight, "input_layernorm.weight"),
            (VectorRole::QueryNormWeight, "self_attn.q_norm.weight"),
            (VectorRole::KeyNormWeight, "self_attn.k_norm.weight"),
            (VectorRole::PostNorm1Weight, "post_attention_layernorm.weight"),
            (VectorRole::Norm2Weight, "pre_feedforward_layernorm.weight"),
            (VectorRole::PostNorm2Weight, "post_feedforward_layernorm.weight"),
        ],
        optional: &[
            (VectorRole::QueryBias, "self_attn.q_proj.bias"),
            (VectorRole::KeyBias, "self_attn.k_proj.bias"),
            (VectorRole::ValueBias, "self_attn.v_proj.bias"),
            (VectorRole::OutputBias, "self_attn.o_proj.bias"),
        ],
        ignored: IGNORED,
    },
    key_value_heads: Some(4),
    head_size: Some(256),
    design: Design::Gemma,
    globals: &GLOBALS,
    reach,
};

/// A window of `sliding_window` (4,096) tokens in all layers but every `sliding_window_pattern`-th
/// (6th).
fn reach(settings: &Settings, number: usize) -> Result<Reach> {
    let window = settings.sliding_window.unwrap_or(4096);
    let pattern = settings.sliding_window_pattern.unwrap_or(6);
    settings.reach(number, Some(window), |number| !(number + 1).is_multiple_of(pattern))
}

/// Rotary positions of layers with a window, and without.
pub(super) fn positions(settings: &Settings, reach: Reach) -> Result<Positions> {
    settings.positions_by_reach(matches!(reach, Reach::Window { .. }), [10_000.0, 1_000_000.0])
}

/// The factor of scores, from the size that the settings name instead of that of a head.
pub(super) fn scale(settings: &Settings) -> f32 {
    1.0 / settings.query_pre_attn_scalar.unwrap_or(256.0).sqrt()
}
