//! The settings of a `config.json`, as transformers writes them. Absent ones have the defaults of
//! transformers; settings that change what a model computes and are not known are refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{unsupported, wrong};
use crate::layer::plan::{Positions, Reach, Table};
use deltaloom::Result;

/// What is read.
#[derive(Debug, Deserialize)]
pub(crate) struct Settings {
    pub(super) model_type: String,
    #[serde(alias = "n_embd")]
    pub(super) hidden_size: Option<usize>,
    #[serde(alias = "n_inner")]
    pub(super) intermediate_size: Option<usize>,
    #[serde(alias = "n_layer")]
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) vocab_size: Option<usize>,
    #[serde(alias = "n_head")]
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    #[serde(alias = "rms_norm_eps", alias = "layer_norm_epsilon")]
    pub(super) norm_epsilon: Option<f32>,
    #[serde(alias = "hidden_activation", alias = "activation_function")]
    hidden_act: Option<String>,
    pub(super) query_pre_attn_scalar: Option<f32>,
    rope_local_base_freq: Option<f32>,
    pub(super) sliding_window_pattern: Option<usize>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rotary>,
    /// Where transformers stores them from version 5 on.
    rope_parameters: Option<Rotary>,
    pub(super) sliding_window: Option<usize>,
    pub(super) use_sliding_window: Option<bool>,
    pub(super) max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    pub(crate) tie_word_embeddings: Option<bool>,
    #[serde(alias = "n_positions")]
    pub(crate) max_position_embeddings: Option<usize>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Settings of rotary positions.
#[derive(Debug, Deserialize)]
struct Rotary {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
    full_attention: Option<Box<Rotary>>,
    sliding_attention: Option<Box<Rotary>>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Settings of other kinds of models, and why they are refused.
const FOREIGN: [(&str, &str); 9] = [
    ("num_local_experts", "a mixture of experts"),
    ("num_experts", "a mixture of experts"),
    ("n_routed_experts", "a mixture of experts"),
    ("kv_lora_rank", "multi-head latent attention"),
    ("q_lora_rank", "multi-head latent attention"),
    ("quantization_config", "quantised weights"),
    ("no_rope_layers", "layers without positions"),
    ("attn_logit_softcapping", "capped scores"),
    ("final_logit_softcapping", "capped logits"),
];

impl Settings {
    /// Refuses what would be computed wrongly.
    pub(super) fn check(&self, activation: &str) -> Result<()> {
        if let Some(activation) = self.hidden_act.as_deref().filter(|name| *name != activation) {
            return Err(unsupported("hidden_act", activation));
        }
        for (name, why) in FOREIGN {
            if self.others.get(name).is_some_and(|value| !value.is_null()) {
                return Err(wrong(format!("{name} is not supported: {why}")));
            }
        }
        let partial = self.others.get("partial_rotary_factor").and_then(Value::as_f64);
        if partial.is_some_and(|factor| factor != 1.0) {
            return Err(wrong("partial_rotary_factor is not supported".to_owned()));
        }
        if self.switch("use_bidirectional_attention") == Some(true) {
            return Err(wrong("use_bidirectional_attention is not supported".to_owned()));
        }
        Ok(())
    }

    /// A switch of a family, if it is set.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.others.get(name).and_then(Value::as_bool)
    }

    /// How positions enter. Both styles of keys are read; the newer one wins.
    pub(super) fn positions(&self) -> Result<Positions> {
        let rotary = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = self.rope_parameters.as_ref().and_then(|it| it.rope_theta);
        let theta = theta.or(self.rope_theta).unwrap_or(10_000.0);
        if rotary.is_some_and(|it| it.full_attention.is_some() || it.sliding_attention.is_some()) {
            return Err(wrong("rotary positions that differ between layers are not supported".to_owned()));
        }
        let table = rotary.map_or(Ok(Table::Default), |it| it.table(self.max_position_embeddings))?;
        Ok(Positions::Rotary { theta, table })
    }

    /// How positions enter layers with or without a window, where each kind has settings of its
    /// own. Old files scale only those without.
    pub(super) fn positions_by_reach(&self, has_window: bool, thetas: [f32; 2]) -> Result<Positions> {
        let both = self.rope_parameters.as_ref();
        let (own, old_theta, old, default) = match has_window {
            true => (
                both.and_then(|it| it.sliding_attention.as_deref()),
                self.rope_local_base_freq,
                None,
                thetas[0],
            ),
            false => {
                let own = both.and_then(|it| it.full_attention.as_deref());
                (own, self.rope_theta, self.rope_scaling.as_ref(), thetas[1])
            }
        };
        let theta = own.and_then(|it| it.rope_theta).or(old_theta).unwrap_or(default);
        let table = own.or(old).map_or(Ok(Table::Default), |it| it.table(self.max_position_embeddings))?;
        Ok(Positions::Rotary { theta, table })
    }

    /// What layer `number` sees in a model with windows of this many tokens in some layers.
    /// `default` says which, if `layer_types` does not.
    pub(super) fn reach(
        &self,
        number: usize,
        window: Option<usize>,
        default: impl Fn(usize) -> bool,
    ) -> Result<Reach> {
        let has_window = match &self.layer_types {
            Some(types) => match types.get(number).map(String::as_str) {
                Some("full_attention") => false,
                Some("sliding_attention") => true,
                Some(other) => return Err(unsupported("layer_types", other)),
                None => return Err(wrong(format!("layer_types has no layer {number}"))),
            },
            None => window.is_some() && default(number),
        };
        match (has_window, window) {
            (false, _) => Ok(Reach::Causal),
            (true, Some(tokens)) => Ok(Reach::Window { tokens }),
            (true, None) => Err(wrong("sliding_window is missing".to_owned())),
        }
    }
}

impl Rotary {
    fn table(&self, max_positions: Option<usize>) -> Result<Table> {
        if self.others.values().any(Value::is_object) {
            return Err(wrong("rotary positions that differ between layers are not supported".to_owned()));
        }
        let partial = self.others.get("partial_rotary_factor").and_then(Value::as_f64);
        if partial.is_some_and(|factor| factor != 1.0) {
            return Err(wrong("partial_rotary_factor is not supported".to_owned()));
        }
        let needed = |name: &str, value: Option<f32>| {
            value.ok_or_else(|| wrong(format!("{name} of rotary positions is missing")))
        };
        let factor = || needed("factor", self.factor);
        match self.rope_type.as_deref().unwrap_or("default") {
            "default" => Ok(Table::Default),
            "linear" => Ok(Table::Linear { factor: factor()? }),
            "llama3" => {
                let trained = self.original_max_position_embeddings;
                let trained = trained.or(max_positions.map(|positions| positions as f32));
                Ok(Table::Llama3 {
                    factor: factor()?,
                    low: needed("low_freq_factor", self.low_freq_factor)?,
                    high: needed("high_freq_factor", self.high_freq_factor)?,
                    trained: needed("original_max_position_embeddings", trained)?,
                })
            }
            other => Err(unsupported("rope_type", other)),
        }
    }
}
