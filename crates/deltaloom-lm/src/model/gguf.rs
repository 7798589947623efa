//! A GGUF file as a model of Hugging Face: its settings as `config.json`, its tensors under the
//! names of Hugging Face, BF16 as it is and all others in FP32, with the rows of queries and keys
//! in their order. So everything behind it has one kind of model.

use deltaloom::Result;
use deltaloom::checkpoint::Checkpoint;
use rayon::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::convert::Safetensors;
use crate::gguf::{Gguf, Kind, Tensor, Value, wrong};
use crate::layer::Table;

/// Architectures, in GGUF and as `model_type`. LLaMA with a window is a Mistral.
const FAMILIES: [(&str, &str); 3] = [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")];

/// Factors by which LLaMA 3.1 and later ones divide the rates of their positions.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Names outside the layers, in GGUF and in Hugging Face.
const GLOBALS: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Parts of a layer, in GGUF and in Hugging Face.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Settings, in GGUF behind the name of the architecture and in Hugging Face.
const SETTINGS: [(&str, &str); 6] = [
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("context_length", "max_position_embeddings"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
];

/// Settings of models that compute something else.
const FOREIGN: [&str; 9] = [
    "expert_count",
    "expert_used_count",
    "attention.kv_lora_rank",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
];

/// The text of a `config.json`, and a checkpoint in memory.
pub(super) fn read(file: &Gguf) -> Result<(String, Checkpoint)> {
    let config = config(file)?;
    let heads = |name: &str| config.get(name).and_then(Json::as_u64);
    let (query, key) = (heads("num_attention_heads"), heads("num_key_value_heads"));
    let is_turned = file.text("general.architecture")? == Some("llama");
    let tensors: Vec<(&String, &Tensor)> =
        file.tensors().iter().filter(|(name, _)| *name != ROPE_FREQS).collect();
    let numbers = tensors.par_iter().map(|(name, tensor)| {
        let bytes = file.numbers(tensor)?;
        let heads = match () {
            () if !is_turned => None,
            () if name.contains(".attn_q.") => query,
            () if name.contains(".attn_k.") => key,
            () => None,
        };
        let Some(heads) = heads else { return Ok(bytes) };
        in_halves(&bytes, tensor.shape.first().copied().unwrap_or(0), heads)
            .ok_or_else(|| wrong(format!("tensor {name:?} does not have {heads} heads")))
    });
    let numbers: Vec<Vec<u8>> = numbers.collect::<Result<_>>()?;
    let mut converted = Safetensors::default();
    for ((name, tensor), bytes) in tensors.into_iter().zip(numbers) {
        let new_name =
            renamed(name).ok_or_else(|| wrong(format!("tensor {name:?} is not one of a known model")))?;
        converted.push(&new_name, &tensor.kind.dtype().to_string(), &tensor.shape, [bytes]);
    }
    Ok((Json::Object(config).to_string(), converted.checkpoint()?))
}

fn renamed(name: &str) -> Option<String> {
    if let Some((_, new)) = GLOBALS.iter().find(|(old, _)| *old == name) {
        return Some((*new).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, new) = PARTS.iter().find(|(old, _)| *old == part)?;
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{new}.{kind}"))
}

/// Rows of pairs, which llama.cpp has next to each other, as the two halves of each head.
fn in_halves(bytes: &[u8], rows: u64, heads: u64) -> Option<Vec<u8>> {
    let (rows, heads) = (usize::try_from(rows).ok()?, usize::try_from(heads).ok()?);
    let size = rows.checked_div(heads).filter(|size| size * heads == rows && size % 2 == 0)?;
    let width = bytes.len().checked_div(rows)?;
    let row = |row: usize| {
        let (head, place) = (row / size, row % size);
        let old = head * size + 2 * (place % (size / 2)) + place / (size / 2);
        &bytes[old * width..][..width]
    };
    Some((0..rows).flat_map(row).copied().collect())
}

fn config(file: &Gguf) -> Result<Map<String, Json>> {
    let family =
        file.text("general.architecture")?.ok_or_else(|| wrong("general.architecture is missing"))?;
    let Some((_, model_type)) = FAMILIES.into_iter().find(|(name, _)| *name == family) else {
        let known = FAMILIES.map(|(name, _)| name).join(", ");
        return Err(wrong(format!("architecture {family:?} is not computed; known are {known}")));
    };
    let key = |name: &str| format!("{family}.{name}");
    let missing = |name: &str| wrong(format!("{family}.{name} is missing"));
    let integer = |name: &str| file.integer(&key(name));
    if let Some(name) = FOREIGN.into_iter().find(|name| is_set(file.value(&key(name)))) {
        return Err(wrong(format!("{family}.{name} is not supported: it is another kind of model")));
    }
    let mut config = Map::new();
    let mut set = |name: &str, value: Json| _ = config.insert(name.to_owned(), value);
    set("hidden_act", json!("silu"));
    for (old, new) in SETTINGS {
        match file.value(&key(old)) {
            Some(Value::Integer(number)) => set(new, json!(number)),
            Some(Value::Number(number)) => set(new, json!(number)),
            Some(other) => return Err(wrong(format!("{family}.{old} is {other:?}"))),
            None => return Err(missing(old)),
        }
    }
    // What is not said is as llama.cpp has it, not as transformers has it.
    let heads = integer("attention.head_count")?.ok_or_else(|| missing("attention.head_count"))?;
    let width = integer("embedding_length")?.ok_or_else(|| missing("embedding_length"))?;
    let of_width =
        || width.checked_div(heads).ok_or_else(|| wrong(format!("{family}.attention.head_count is 0")));
    let size = integer("attention.key_length")?.map_or_else(of_width, Ok)?;
    set("num_key_value_heads", json!(integer("attention.head_count_kv")?.unwrap_or(heads)));
    set("head_dim", json!(size));
    for (name, what) in [("attention.value_length", "in values"), ("rope.dimension_count", "with positions")]
    {
        if let Some(other) = integer(name)?.filter(|other| *other != size) {
            return Err(wrong(format!("a head has {size} elements, and {other} {what}: {family}.{name}")));
        }
    }
    let embedding = file.tensors().get("token_embd.weight").and_then(|tensor| tensor.shape.first());
    set("vocab_size", json!(embedding.copied().unwrap_or(0)));
    set("tie_word_embeddings", json!(!file.tensors().contains_key("output.weight")));
    let theta = file.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    set("rope_theta", json!(theta));
    if let Some(scaling) = scaling(file, family, theta, size)? {
        set("rope_scaling", scaling);
    }
    match integer("attention.sliding_window")?.filter(|window| *window > 0) {
        None => set("model_type", json!(model_type)),
        Some(window) if family == "llama" => {
            set("model_type", json!("mistral"));
            set("sliding_window", json!(window));
        }
        Some(window) => {
            return Err(wrong(format!(
                "{family}.attention.sliding_window is {window}, and it is not said in which layers"
            )));
        }
    }
    Ok(config)
}

/// Whether a setting is there and does not say "none".
fn is_set(value: Option<&Value>) -> bool {
    !matches!(value, None | Some(Value::Integer(0))) && value != Some(&Value::Number(0.0))
}

/// How rates of positions are changed, as `rope_scaling` of a `config.json`.
fn scaling(file: &Gguf, family: &str, theta: f64, size: u64) -> Result<Option<Json>> {
    let key = |name: &str| format!("{family}.rope.{name}");
    let factor = match file.number(&key("scaling.factor"))? {
        None => file.number(&key("scale_linear"))?,
        factor => factor,
    };
    // llama.cpp takes 0 for 1.
    let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0);
    let kind = file.text(&key("scaling.type"))?.unwrap_or("linear");
    let of_keys = match (kind, factor) {
        ("none", _) | ("linear", None) => None,
        ("linear", Some(factor)) => Some(json!({"rope_type": "linear", "factor": factor})),
        (other, _) => return Err(wrong(format!("{family}.rope.scaling.type {other:?} is not supported"))),
    };
    match (of_keys, file.tensors().get(ROPE_FREQS)) {
        (of_keys, None) => Ok(of_keys),
        (None, Some(tensor)) => llama3(file, tensor, theta, size),
        (Some(_), Some(_)) => Err(wrong(format!("positions are scaled by {ROPE_FREQS} and by settings"))),
    }
}

/// The factors of LLaMA 3.1, of which a file has the result: its three constants are those of all
/// published models, and the result must be that of a factor with them.
fn llama3(file: &Gguf, tensor: &Tensor, theta: f64, size: u64) -> Result<Option<Json>> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const TRAINED: usize = 8192;
    let refused = || {
        wrong(format!("{ROPE_FREQS} has other factors than LLaMA 3.1 (1, 4, 8192), which are not supported"))
    };
    let bytes = (tensor.kind == Kind::F32).then(|| file.numbers(tensor)).ok_or_else(refused)??;
    let found: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let factor = found.iter().copied().fold(1.0_f32, f32::max);
    if tensor.shape.len() != 1 || found.len() as u64 != size / 2 || !factor.is_finite() {
        return Err(refused());
    }
    #[expect(clippy::cast_possible_truncation, reason = "the setting is FP32")]
    let rates = |table: Table| table.rates(theta as f32, found.len() * 2, 0);
    let table = Table::Llama3 { factor: factor.into(), low: LOW, high: HIGH, trained: TRAINED };
    let pairs = rates(Table::Default).into_iter().zip(rates(table));
    let is_near =
        |((plain, changed), found): ((f32, f32), &f32)| (plain / changed / found - 1.0).abs() < 1e-4;
    if !pairs.zip(&found).all(is_near) {
        return Err(refused());
    }
    let is_changed = factor > 1.0;
    Ok(is_changed.then(|| {
        json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": TRAINED})
    }))
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
