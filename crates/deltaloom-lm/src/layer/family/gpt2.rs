//! GPT-2: LayerNorm, one matrix for queries, keys and values, GELU, and a table of positions. Its
//! matrices are stored as [in, out]; [`crate::model`] turns them.

use super::{Architecture, Convention, Design, GlobalNames, MatrixRole, Reach, Result, Settings, VectorRole};

pub(super) const GPT2: Architecture = Architecture {
    model_type: "gpt2",
    names: Convention {
        kind: "Hugging Face's GPT-2",
        sign: "attn.c_attn.weight",
        matrices: &[
            (MatrixRole::Qkv, "attn.c_attn.weight"),
            (MatrixRole::Output, "attn.c_proj.weight"),
            (MatrixRole::Up, "mlp.c_fc.weight"),
            (MatrixRole::Down, "mlp.c_proj.weight"),
        ],
        vectors: &[
            (VectorRole::Norm1Weight, "ln_1.weight"),
            (VectorRole::Norm1Bias, "ln_1.bias"),
            (VectorRole::QkvBias, "attn.c_attn.bias"),
            (VectorRole::OutputBias, "attn.c_proj.bias"),
            (VectorRole::Norm2Weight, "ln_2.weight"),
            (VectorRole::Norm2Bias, "ln_2.bias"),
            (VectorRole::UpBias, "mlp.c_fc.bias"),
            (VectorRole::DownBias, "mlp.c_proj.bias"),
        ],
        optional: &[],
        // Masks.
        ignored: &["attn.bias", "attn.masked_bias"],
    },
    key_value_heads: None,
    head_size: None,
    design: Design::Gpt2,
    globals: &GlobalNames {
        layers: "h.",
        embedding: "wte.weight",
        positions: Some("wpe.weight"),
        first_position: 0,
        final_norm: "ln_f.weight",
        final_norm_bias: Some("ln_f.bias"),
        head: "lm_head.weight",
    },
    reach: |_, _| Ok(Reach::Causal),
};

/// Refuses switches that change what attention computes.
pub(super) fn check(settings: &Settings) -> Result<()> {
    settings.check_switches(&[
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ])
}
