//! A GGUF file as a model of Hugging Face: its settings as `config.json`, its tensors under the
//! names of Hugging Face in FP32, with the rows of queries and keys in their order. So everything
//! behind it has one kind of model.

mod blocks;
mod reader;

use deltaloom::Result;
use deltaloom::checkpoint::Checkpoint;
use serde_json::{Map, Value as Json, json};

use super::convert::Safetensors;
use blocks::Kind;
use reader::{Header, Tensor, Value, wrong};

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
const SETTINGS: [(&str, &str); 8] = [
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("context_length", "max_position_embeddings"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
];

/// The text of a `config.json`, and a checkpoint in memory.
pub(super) fn read(bytes: &[u8]) -> Result<(String, Checkpoint)> {
    let header = reader::read(bytes)?;
    let config = config(&header)?;
    let heads = |name: &str| config.get(name).and_then(Json::as_u64);
    let query = heads("num_attention_heads");
    let key = heads("num_key_value_heads").or(query);
    let is_turned = config.get("model_type").and_then(Json::as_str) == Some("llama");
    let mut file = Safetensors::default();
    // Tensors that overlap would take more memory than the file can account for.
    let mut left = bytes.len();
    for (name, tensor) in &header.tensors {
        let new_name =
            renamed(name).ok_or_else(|| wrong(format!("tensor {name:?} is not one of a known model")))?;
        let (kind, found) = stored(bytes, &header, name, tensor)?;
        left = left.checked_sub(found.len()).ok_or_else(|| wrong("its tensors overlap".to_owned()))?;
        let mut numbers = kind.numbers(found)?;
        let heads = match () {
            () if !is_turned => None,
            () if name.contains(".attn_q.") => query,
            () if name.contains(".attn_k.") => key,
            () => None,
        };
        if let Some(heads) = heads {
            let rows = tensor.shape.first().copied().unwrap_or(0);
            numbers = in_halves(&numbers, rows, heads)
                .ok_or_else(|| wrong(format!("tensor {name:?} does not have {heads} heads")))?;
        }
        file.push(&new_name, "F32", &tensor.shape, numbers.into_iter().map(f32::to_le_bytes));
    }
    Ok((Json::Object(config).to_string(), file.checkpoint()?))
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

/// The kind of a tensor, and its bytes.
fn stored<'a>(bytes: &'a [u8], header: &Header, name: &str, tensor: &Tensor) -> Result<(Kind, &'a [u8])> {
    let kind = Kind::of(tensor.kind, name)?;
    let row = tensor.shape.last().copied().unwrap_or(1);
    let len = tensor.shape.iter().try_fold(1u64, |len, size| len.checked_mul(*size));
    let len = len.filter(|_| kind.bytes(row).is_some()).and_then(|len| kind.bytes(len));
    let found = len.and_then(|len| reader::data(bytes, header, tensor, len));
    let found =
        found.ok_or_else(|| wrong(format!("tensor {name:?} ends behind the file or within a block")))?;
    Ok((kind, found))
}

/// Rows of pairs, which llama.cpp has next to each other, as the two halves of each head.
fn in_halves(numbers: &[f32], rows: u64, heads: u64) -> Option<Vec<f32>> {
    let (rows, heads) = (usize::try_from(rows).ok()?, usize::try_from(heads).ok()?);
    let size = rows.checked_div(heads).filter(|size| size * heads == rows && size % 2 == 0)?;
    let width = numbers.len().checked_div(rows)?;
    let row = |row: usize| {
        let (head, place) = (row / size, row % size);
        let old = head * size + 2 * (place % (size / 2)) + place / (size / 2);
        &numbers[old * width..][..width]
    };
    Some((0..rows).flat_map(row).copied().collect())
}

fn config(header: &Header) -> Result<Map<String, Json>> {
    let Some(Value::Text(family)) = header.values.get("general.architecture") else {
        return Err(wrong("general.architecture is missing".to_owned()));
    };
    let get = |name: &str| header.values.get(&format!("{family}.{name}"));
    let mut config = Map::new();
    let mut set = |name: &str, value: Json| _ = config.insert(name.to_owned(), value);
    set("model_type", json!(family));
    set("hidden_act", json!("silu"));
    for (old, new) in SETTINGS {
        match get(old) {
            Some(Value::Integer(number)) => set(new, json!(number)),
            Some(Value::Number(number)) => set(new, json!(number)),
            Some(other) => return Err(wrong(format!("{family}.{old} is {other:?}"))),
            None => {}
        }
    }
    let embedding = header.tensors.get("token_embd.weight").and_then(|tensor| tensor.shape.first());
    set("vocab_size", json!(embedding.copied().unwrap_or(0)));
    set("tie_word_embeddings", json!(!header.tensors.contains_key("output.weight")));
    if let Some(Value::Number(theta)) = get("rope.freq_base") {
        set("rope_theta", json!(theta));
    }
    match (get("rope.scaling.type"), get("rope.scaling.factor")) {
        (None, None) => {}
        (Some(Value::Text(kind)), _) if kind == "none" => {}
        (Some(Value::Text(kind)), Some(Value::Number(factor))) => {
            set("rope_scaling", json!({"rope_type": kind, "factor": factor}));
        }
        (kind, _) => return Err(wrong(format!("{family}.rope.scaling.type is {kind:?}"))),
    }
    if let (Some(Value::Integer(size)), Some(Value::Integer(turned))) =
        (get("attention.key_length"), get("rope.dimension_count"))
        && size != turned
    {
        return Err(wrong(format!("only {turned} of {size} elements of a head have positions")));
    }
    if get("expert_count").is_some_and(|count| *count != Value::Integer(0)) {
        return Err(wrong("it is a mixture of experts".to_owned()));
    }
    if let Some(window) = get("attention.sliding_window").filter(|window| **window != Value::Integer(0)) {
        return Err(wrong(format!(
            "{family}.attention.sliding_window is {window:?}, which is not supported"
        )));
    }
    Ok(config)
}

#[cfg(test)]
mod tests;
