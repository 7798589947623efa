//! LLaMA 1 to 3, and what has its names: SmolLM2.

use super::{Architecture, Convention, Design, GLOBALS, MatrixRole, VectorRole};

pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    names: NAMES,
    key_value_heads: None,
    head_size: None,
    design: Design::Llama,
    globals: &GLOBALS,
    reach: |settings, number| settings.reach(number, None, |_| false),
};

/// The matrices of all families that grew out of LLaMA.
pub(super) const MATRICES: &[(MatrixRole, &str)] = &[
    (MatrixRole::Query, "self_attn.q_proj.weight"),
    (MatrixRole::Key, "self_attn.k_proj.weight"),
    (MatrixRole::Value, "self_attn.v_proj.weight"),
    (MatrixRole::Output, "self_attn.o_proj.weight"),
    (MatrixRole::Up, "mlp.up_proj.weight"),
    (MatrixRole::Gate, "mlp.gate_proj.weight"),
    (MatrixRole::Down, "mlp.down_proj.weight"),
];

/// What identifies a layer of them.
pub(super) const SIGN: &str = "self_attn.q_proj.weight";
/// What old files of theirs have besides.
pub(super) const IGNORED: &[&str] = &["self_attn.rotary_emb.inv_freq"];

/// The names, with the biases that `attention_bias` and `mlp_bias` add.
pub(super) const NAMES: Convention = Convention {
    kind: "Hugging Face's LLaMA",
    sign: SIGN,
    matrices: MATRICES,
    vectors: &[
        (VectorRole::Norm1Weight, "input_layernorm.weight"),
        (VectorRole::Norm2Weight, "post_attention_layernorm.weight"),
    ],
    optional: &[
        (VectorRole::QueryBias, "self_attn.q_proj.bias"),
        (VectorRole::KeyBias, "self_attn.k_proj.bias"),
        (VectorRole::ValueBias, "self_attn.v_proj.bias"),
        (VectorRole::OutputBias, "self_attn.o_proj.bias"),
        (VectorRole::UpBias, "mlp.up_proj.bias"),
        (VectorRole::GateBias, "mlp.gate_proj.bias"),
        (VectorRole::DownBias, "mlp.down_proj.bias"),
    ],
    ignored: IGNORED,
};
