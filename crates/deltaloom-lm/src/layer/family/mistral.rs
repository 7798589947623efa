//! Mistral: LLaMA with a sliding window in every layer.

use super::llama::{IGNORED, MATRICES, SIGN};
use super::{Architecture, Convention, Design, GLOBALS, VectorRole};

pub(super) const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    names: Convention {
        kind: "Hugging Face's Mistral",
        sign: SIGN,
        matrices: MATRICES,
        vectors: &[
            (VectorRole::Norm1Weight, "input_layernorm.weight"),
            (VectorRole::Norm2Weight, "post_attention_layernorm.weight"),
        ],
        optional: &[],
        ignored: IGNORED,
    },
    key_value_heads: Some(8),
    head_size: None,
    design: Design::Llama,
    globals: &GLOBALS,
    reach: |settings, number| settings.reach(number, settings.sliding_window, |_| true),
};
