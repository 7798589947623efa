//! Qwen3: a norm of every head of queries and keys, heads of their own size, and no biases unless
//! `attention_bias` adds them.

use super::llama::{IGNORED, MATRICES, SIGN};
use super::{Architecture, Convention, Design, GLOBALS, VectorRole, qwen2};

pub(super) const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    names: Convention {
        kind: "Hugging Face's Qwen3",
        sign: SIGN,
        matrices: MATRICES,
        vectors: &[
            (VectorRole::Norm1Weight, "input_layernorm.weight"),
            (VectorRole::QueryNormWeight, "self_attn.q_norm.weight"),
            (VectorRole::KeyNormWeight, "self_attn.k_norm.weight"),
            (VectorRole::Norm2Weight, "post_attention_layernorm.weight"),
        ],
        optional: &[
            (VectorRole::QueryBias, "self_attn.q_proj.bias"),
            (VectorRole::KeyBias, "self_attn.k_proj.bias"),
            (VectorRole::ValueBias, "self_attn.v_proj.bias"),
            (VectorRole::OutputBias, "self_attn.o_proj.bias"),
        ],
        ignored: IGNORED,
    },
    key_value_heads: Some(32),
    head_size: Some(128),
    design: Design::QkNorm,
    globals: &GLOBALS,
    reach: qwen2::reach,
};
