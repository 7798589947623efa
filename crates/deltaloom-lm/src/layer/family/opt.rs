//! OPT: LayerNorm, biases everywhere, ReLU, and a table of positions whose first two rows stand for
//! no position.

use super::{
    Architecture, Convention, Design, GlobalNames, MatrixRole, Reach, Result, Settings, VectorRole, wrong,
};

pub(super) const OPT: Architecture = Architecture {
    model_type: "opt",
    names: Convention {
        kind: "Hugging Face's OPT",
        sign: super::llama::SIGN,
        matrices: &[
            (MatrixRole::Query, "self_attn.q_proj.weight"),
            (MatrixRole::Key, "self_attn.k_proj.weight"),
            (MatrixRole::Value, "self_attn.v_proj.weight"),
            (MatrixRole::Output, "self_attn.out_proj.weight"),
            (MatrixRole::Up, "fc1.weight"),
            (MatrixRole::Down, "fc2.weight"),
        ],
        vectors: &[
            (VectorRole::Norm1Weight, "self_attn_layer_norm.weight"),
            (VectorRole::Norm1Bias, "self_attn_layer_norm.bias"),
            (VectorRole::QueryBias, "self_attn.q_proj.bias"),
            (VectorRole::KeyBias, "self_attn.k_proj.bias"),
            (VectorRole::ValueBias, "self_attn.v_proj.bias"),
            (VectorRole::OutputBias, "self_attn.out_proj.bias"),
            (VectorRole::Norm2Weight, "final_layer_norm.weight"),
            (VectorRole::Norm2Bias, "final_layer_norm.bias"),
            (VectorRole::UpBias, "fc1.bias"),
            (VectorRole::DownBias, "fc2.bias"),
        ],
        optional: &[],
        ignored: &[],
    },
    key_value_heads: None,
    head_size: None,
    design: Design::Opt,
    globals: &GlobalNames {
        layers: "model.decoder.layers.",
        embedding: "model.decoder.embed_tokens.weight",
        positions: Some("model.decoder.embed_positions.weight"),
        first_position: 2,
        final_norm: "model.decoder.final_layer_norm.weight",
        final_norm_bias: Some("model.decoder.final_layer_norm.bias"),
        head: "lm_head.weight",
    },
    reach: |_, _| Ok(Reach::Causal),
};

/// Refuses what some sizes of OPT have: norms behind attention, embeddings of another width, no
/// biases.
pub(super) fn check(settings: &Settings) -> Result<()> {
    settings.check_switches(&[
        ("do_layer_norm_before", true),
        ("_remove_final_layer_norm", false),
        ("enable_bias", true),
        ("layer_norm_elementwise_affine", true),
    ])?;
    match settings.number("word_embed_proj_dim") {
        Some(width) if Some(width) != settings.hidden_size.map(|width| width as f64) => Err(wrong(format!(
            "word_embed_proj_dim: {width} is not supported: embeddings must be as wide as the layers"
        ))),
        _ => Ok(()),
    }
}
