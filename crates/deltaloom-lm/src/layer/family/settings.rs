//! The settings of a `config.json`, as transformers writes them. Absent ones have the defaults of
//! transformers; settings that change what a model computes and are not known are refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{unsupported, wrong};
use crate::layer::plan::{Positions, Reach};
use crate::layer::table::{By, Table};
use deltaloom::Result;

/// What is read.
#[derive(Debug, Deserialize)]
pub(crate) struct Settings {
    pub(super) model_type: String,
    #[serde(alias = "n_embd")]
    pub(super) hidden_size: Option<usize>,
    #[serde(alias = "n_inner", alias = "ffn_dim")]
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
    /// Where Phi-3 has that of its rotary positions.
    original_max_position_embeddings: Option<usize>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Settings of rotary positions.
#[derive(Debug, Deserialize)]
struct Rotary {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    #[serde(default, deserialize_with = "short_list")]
    short_factor: Option<Vec<f32>>,
    #[serde(default, deserialize_with = "short_list")]
    long_factor: Option<Vec<f32>>,
    partial_rotary_factor: Option<f64>,
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

    /// Refuses switches that do not have these values, where they are set.
    pub(super) fn check_switches(&self, usual: &[(&str, bool)]) -> Result<()> {
        let set = |name: &str| self.others.get(name).filter(|value| !value.is_null());
        for (name, usual) in usual {
            if set(name).is_some_and(|value| *value != Value::Bool(*usual)) {
                return Err(wrong(format!("{name} is not supported but as {usual}")));
            }
        }
        Ok(())
    }

    /// A number of a family, if it is set.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.others.get(name).and_then(Value::as_f64)
    }

    /// A switch of a family, if it is set.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.others.get(name).and_then(Value::as_bool)
    }

    /// How positions enter. Both styles of keys are read, and must not disagree.
    pub(super) fn positions(&self) -> Result<Positions> {
        let (new, old) = (self.rope_parameters.as_ref(), self.rope_scaling.as_ref());
        let by_layer = |it: &&Rotary| it.full_attention.is_some() || it.sliding_attention.is_some();
        if new.into_iter().chain(old).any(|it| by_layer(&it)) {
            return Err(wrong("rotary positions that differ between layers are not supported".to_owned()));
        }
        let thetas = [new.and_then(|it| it.rope_theta), old.and_then(|it| it.rope_theta), self.rope_theta];
        let mut said = thetas.into_iter().flatten();
        let theta = said.next();
        if let Some(other) = said.find(|other| Some(*other) != theta) {
            return Err(wrong(format!("rope_theta is {} and {other}", theta.unwrap_or_default())));
        }
        let table = |it: Option<&Rotary>| it.map(|it| it.table(self)).transpose();
        let table = match (table(new)?, table(old)?) {
            (Some(new), Some(old)) if new != old => {
                return Err(wrong("rope_parameters and rope_scaling say different things".to_owned()));
            }
            (new, old) => new.or(old).unwrap_or(Table::Default),
        };
        Ok(Positions::rotary(theta.unwrap_or(10_000.0), table))
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
        let table = own.or(old).map_or(Ok(Table::Default), |it| it.table(self))?;
        Ok(Positions::rotary(theta, table))
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
            (true, Some(tokens)) => Ok(Reach::Window { tokens, sinks: 0 }),
            (true, None) => Err(wrong("sliding_window is missing".to_owned())),
        }
    }
}

impl Rotary {
    fn table(&self, settings: &Settings) -> Result<Table> {
        if self.others.values().any(Value::is_object) {
            return Err(wrong("rotary positions that differ between layers are not supported".to_owned()));
        }
        let kind = self.rope_type.as_deref().unwrap_or("default");
        let partial = self.partial_rotary_factor.filter(|share| *share != 1.0);
        if partial.is_some() && kind != "proportional" {
            return Err(wrong("partial_rotary_factor is not supported".to_owned()));
        }
        let missing = |name: &str| wrong(format!("{name} of rotary positions is missing"));
        let needed = |name: &str, value: Option<f64>| value.ok_or_else(|| missing(name));
        let list = |name: &str, list: &Option<Vec<f32>>| list.clone().ok_or_else(|| missing(name));
        let most = settings.max_position_embeddings;
        let original = self.original_max_position_embeddings.or(settings.original_max_position_embeddings);
        let trained = || {
            let trained = original.or(most).ok_or_else(|| missing("original_max_position_embeddings"))?;
            match most {
                Some(most) if trained > most => Err(wrong(format!(
                    "original_max_position_embeddings is {trained}: above max_position_embeddings, {most}"
                ))),
                _ => Ok(trained),
            }
        };
        let factor = || needed("factor", self.factor);
        // What transformers computes where it is not said.
        let ratio = || match (self.factor, original, most) {
            (Some(factor), _, _) => Ok(factor),
            (None, Some(original), Some(most)) => Ok(most as f64 / original as f64),
            _ => factor(),
        };
        // transformers takes 0 for nothing.
        let set = |value: Option<f64>| value.filter(|value| *value != 0.0);
        match kind {
            "default" => Ok(Table::Default),
            "linear" => Ok(Table::Linear { factor: factor()? }),
            "dynamic" => Ok(Table::Dynamic { factor: factor()?, trained: trained()?, by: By::Query }),
            "yarn" => Ok(Table::Yarn {
                factor: ratio()?,
                trained: trained()?,
                beta_fast: self.beta_fast.unwrap_or(32.0),
                beta_slow: self.beta_slow.unwrap_or(1.0),
                attention_factor: self.attention_factor,
                mscale: set(self.mscale),
                mscale_all_dim: set(self.mscale_all_dim),
                truncate: self.truncate.unwrap_or(true),
            }),
            // The older name of the same.
            "longrope" | "su" => Ok(Table::Longrope {
                short: list("short_factor", &self.short_factor)?,
                long: list("long_factor", &self.long_factor)?,
                trained: trained()?,
                factor: ratio()?,
                attention_factor: self.attention_factor,
                by: By::Query,
            }),
            "llama3" => Ok(Table::Llama3 {
                factor: factor()?,
                low: needed("low_freq_factor", self.low_freq_factor)?,
                high: needed("high_freq_factor", self.high_freq_factor)?,
                trained: trained()?,
            }),
            "proportional" if self.factor.is_some_and(|factor| factor != 1.0) => {
                Err(wrong("a factor of proportional rotary positions is not supported".to_owned()))
            }
            "proportional" => Ok(Table::Proportional {
                share: needed("partial_rotary_factor", self.partial_rotary_factor)?,
            }),
            other => Err(unsupported("rope_type", other)),
        }
    }
}

/// Reads a list of numbers, which is refused before it fills the memory.
fn short_list<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Option<Vec<f32>>, D::Error> {
    /// More pairs than any head has.
    const MOST: usize = 4096;
    struct List;
    impl<'de> serde::de::Visitor<'de> for List {
        type Value = Option<Vec<f32>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {MOST} numbers")
        }

        fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut from: A,
        ) -> std::result::Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(number) = from.next_element()? {
                if list.len() == MOST {
                    return Err(serde::de::Error::invalid_length(MOST + 1, &self));
                }
                list.push(number);
            }
            Ok(Some(list))
        }
    }
    from.deserialize_any(List)
}
