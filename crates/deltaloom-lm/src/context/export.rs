//! Plans of attention in the words of transformers, where it has them.

use serde_json::{Map, Value, json};

use super::resolve::Resolved;
use crate::layer::{AttentionPlan, By, PositionMap, Positions, Reach, Scale, Table};

/// A family of transformers that a model is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportFamily {
    /// One table for all layers.
    Llama,
    /// The same, layers without positions, and windows of one size.
    SmolLm3,
}

/// The `config.json` of a LLaMA with other plans.
///
/// # Errors
/// Everything that the family cannot say.
pub fn export(
    config: &Map<String, Value>,
    resolved: &Resolved,
    family: ExportFamily,
) -> Result<Map<String, Value>, Vec<String>> {
    let (plans, trained) = (&resolved.layers[..], resolved.trained_tokens);
    let mut of_layers: Vec<(&'static str, Vec<usize>)> = Vec::new();
    let mut tables: Vec<(f32, &Table)> = Vec::new();
    let mut windows: Vec<usize> = Vec::new();
    for (number, plan) in plans.iter().enumerate() {
        let mut cannot = |what: &'static str| match of_layers.iter_mut().find(|(known, _)| *known == what) {
            Some((_, layers)) => layers.push(number),
            None => of_layers.push((what, vec![number])),
        };
        match &plan.positions {
            Positions::Rotary { theta, table, map } => {
                if *map != PositionMap::Identity {
                    cannot("a map of positions");
                }
                if !tables.contains(&(*theta, table)) {
                    tables.push((*theta, table));
                }
            }
            _ if family == ExportFamily::Llama => cannot("no positions (smollm3 has them)"),
            _ => {}
        }
        match plan.reach {
            Reach::Causal => {}
            Reach::Window { .. } if family == ExportFamily::Llama => cannot("a window (smollm3 has them)"),
            Reach::Window { tokens, sinks: 0 } => {
                if !windows.contains(&tokens) {
                    windows.push(tokens);
                }
            }
            Reach::Window { .. } => cannot("a window with sinks"),
            _ => cannot("chunks"),
        }
        if plan.law.is_some() {
            cannot("a scale that grows with the position");
        }
        if plan.qk_norm.is_some() {
            cannot("a norm of queries and keys");
        }
        if plan.scale != Scale::OfHeadSize {
            cannot("a constant scale");
        }
    }
    let mut faults: Vec<String> = of_layers.iter().map(|(what, layers)| of(layers, what)).collect();
    if config.get("model_type").and_then(Value::as_str) != Some("llama") {
        faults.insert(0, "the model is not a LLaMA".to_owned());
    }
    if resolved.positions.is_some() {
        faults.push("a table of positions that goes on".to_owned());
    }
    if windows.len() > 1 {
        faults.push(format!("{} sizes of windows: there is one for all layers", windows.len()));
    }
    if tables.len() > 1 {
        faults.push(format!("{} tables of positions: there is one for all layers", tables.len()));
    }
    let (theta, table) =
        tables.first().map_or((10_000.0, &Table::Default), |(theta, table)| (*theta, *table));
    let scaling = scaling(theta, table, plans.len(), config).unwrap_or_else(|what| {
        faults.push(what.to_owned());
        (theta.into(), Value::Null)
    });
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut config = config.clone();
    config.remove("rope_parameters");
    config.insert("rope_theta".to_owned(), json!(scaling.0));
    config.insert("rope_scaling".to_owned(), scaling.1);
    config.insert("max_position_embeddings".to_owned(), json!(trained));
    if family == ExportFamily::SmolLm3 {
        // 1 means with positions, whatever the name says.
        let with: Vec<u8> = plans.iter().map(|plan| u8::from(plan.positions != Positions::None)).collect();
        config.insert("no_rope_layers".to_owned(), json!(with));
        config.insert("model_type".to_owned(), json!("smollm3"));
        config.insert("architectures".to_owned(), json!(["SmolLM3ForCausalLM"]));
        let has_window = |plan: &AttentionPlan| matches!(plan.reach, Reach::Window { .. });
        let kind = |plan| if has_window(plan) { "sliding_attention" } else { "full_attention" };
        config.insert("use_sliding_window".to_owned(), json!(!windows.is_empty()));
        config.insert("sliding_window".to_owned(), json!(windows.first()));
        config.insert("layer_types".to_owned(), json!(plans.iter().map(kind).collect::<Vec<_>>()));
        // Its own defaults are ids of another vocabulary.
        for name in ["pad_token_id", "bos_token_id", "eos_token_id"] {
            config.entry(name).or_insert(Value::Null);
        }
    }
    Ok(config)
}

/// What some layers have.
fn of(layers: &[usize], what: &str) -> String {
    let numbers: Vec<String> = layers.iter().map(ToString::to_string).collect();
    format!("layer{} {}: {what}", if layers.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

/// The theta and `rope_scaling` of a table.
fn scaling(
    theta: f32,
    table: &Table,
    layers: usize,
    config: &Map<String, Value>,
) -> Result<(f64, Value), &'static str> {
    let size = |name: &str| config.get(name).and_then(Value::as_f64);
    let head_size = size("head_dim").or_else(|| Some(size("hidden_size")? / size("num_attention_heads")?));
    let theta = f64::from(theta);
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("rope_type", json!(table.name()));
    let new_theta = match table {
        _ if layers == 0 => return Err("no layers"),
        Table::Default => return Ok((theta, Value::Null)),
        Table::Ntk { factor } => {
            let size = head_size.ok_or("the size of heads is not known")?;
            return Ok((theta * factor.powf(size / (size - 2.0)), Value::Null));
        }
        Table::Linear { factor } => {
            put("factor", json!(factor));
            theta
        }
        Table::Llama3 { factor, low, high, trained } => {
            put("factor", json!(factor));
            put("low_freq_factor", json!(low));
            put("high_freq_factor", json!(high));
            put("original_max_position_embeddings", json!(trained));
            theta
        }
        Table::Yarn {
            factor,
            trained,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            put("factor", json!(factor));
            put("original_max_position_embeddings", json!(trained));
            put("beta_fast", json!(beta_fast));
            put("beta_slow", json!(beta_slow));
            put("truncate", json!(truncate));
            for (name, number) in [
                ("attention_factor", attention_factor),
                ("mscale", mscale),
                ("mscale_all_dim", mscale_all_dim),
            ] {
                if let Some(number) = number {
                    put(name, json!(number));
                }
            }
            theta
        }
        Table::Dynamic { by: By::Query, .. } | Table::Longrope { by: By::Query, .. } => {
            return Err(
                "a table by the length of each query (`by: query`): there it follows the whole sequence",
            );
        }
        Table::Dynamic { factor, .. } => {
            put("factor", json!(factor));
            theta
        }
        Table::Longrope { short, long, trained, factor, attention_factor, .. } => {
            put("short_factor", json!(short));
            put("long_factor", json!(long));
            put("factor", json!(factor));
            put("original_max_position_embeddings", json!(trained));
            if let Some(number) = attention_factor {
                put("attention_factor", json!(number));
            }
            theta
        }
        _ => return Err("a table of another type"),
    };
    Ok((new_theta, Value::Object(fields)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Extend, Extension};

    fn config() -> Map<String, Value> {
        let text =
            r#"{"model_type": "llama", "hidden_size": 320, "num_attention_heads": 5, "rope_theta": 10000.0}"#;
        serde_json::from_str(text).unwrap()
    }

    fn plan(table: Table) -> AttentionPlan {
        AttentionPlan::new(Reach::Causal).with_positions(Positions::rotary(1e4, table))
    }

    fn resolved(plans: &[AttentionPlan]) -> Resolved {
        Resolved {
            version: 1,
            required: true,
            name: "long".to_owned(),
            trained_tokens: 256,
            target_tokens: None,
            selections: Vec::new(),
            positions: None,
            layers: plans.to_vec(),
        }
    }

    #[test]
    fn a_table_that_goes_on_is_not_exported() {
        let positions = Some(Extension { extend: Extend::Tile, target: 512 });
        let resolved = Resolved { positions, ..resolved(&[AttentionPlan::new(Reach::Causal)]) };
        for family in [ExportFamily::Llama, ExportFamily::SmolLm3] {
            let faults = export(&Map::new(), &resolved, family).unwrap_err().join("; ");
            assert!(faults.contains("not a LLaMA") && faults.contains("a table of positions"), "{faults}");
        }
    }

    #[test]
    fn one_means_with_positions() {
        let llama3 = || plan(Table::Llama3 { factor: 4.0, low: 1.0, high: 4.0, trained: 256 });
        let plans = [llama3(), AttentionPlan::new(Reach::Causal), llama3()];
        let found = export(&config(), &resolved(&plans), ExportFamily::SmolLm3).unwrap();
        assert_eq!(found["no_rope_layers"], json!([1, 0, 1]));
        assert_eq!((&found["model_type"], &found["pad_token_id"]), (&json!("smollm3"), &Value::Null));
        assert_eq!(found["rope_scaling"]["rope_type"], "llama3");
        assert_eq!(found["rope_scaling"]["original_max_position_embeddings"], 256);
        let faults = export(&config(), &resolved(&plans), ExportFamily::Llama).unwrap_err();
        assert_eq!(faults, ["layer 1: no positions (smollm3 has them)"]);
    }

    #[test]
    fn windows_of_one_size_are_sliding_attention() {
        let window = |tokens| AttentionPlan::new(Reach::Window { tokens, sinks: 0 });
        let plans = [plan(Table::Default), window(128)];
        let found = export(&config(), &resolved(&plans), ExportFamily::SmolLm3).unwrap();
        assert_eq!(found["layer_types"], json!(["full_attention", "sliding_attention"]));
        assert_eq!((&found["use_sliding_window"], &found["sliding_window"]), (&json!(true), &json!(128)));
        let found = export(&config(), &resolved(&plans[..1]), ExportFamily::SmolLm3).unwrap();
        assert_eq!((&found["use_sliding_window"], &found["sliding_window"]), (&json!(false), &Value::Null));
        let faults =
            export(&config(), &resolved(&[window(9), window(8)]), ExportFamily::SmolLm3).unwrap_err();
        assert_eq!(faults, ["2 sizes of windows: there is one for all layers"]);
    }

    #[test]
    fn a_larger_theta_needs_no_type() {
        let found =
            export(&config(), &resolved(&[plan(Table::Ntk { factor: 4.0 })]), ExportFamily::Llama).unwrap();
        let theta = found["rope_theta"].as_f64().unwrap();
        // The last pair of 32 is slower by the factor.
        assert!((theta.powf(62.0 / 64.0) / 1e4_f64.powf(62.0 / 64.0) - 4.0).abs() < 1e-9, "{theta}");
        assert_eq!(found["rope_scaling"], Value::Null);
    }

    #[test]
    fn what_cannot_be_said_is_listed() {
        let map = PositionMap::Clipped { at: 255 };
        let plans = [
            AttentionPlan::new(Reach::Chunk { tokens: 9 }),
            AttentionPlan::new(Reach::Window { tokens: 9, sinks: 0 }).with_positions(Positions::Rotary {
                theta: 1e4,
                table: Table::Default,
                map,
            }),
            AttentionPlan::new(Reach::Window { tokens: 9, sinks: 2 }),
            plan(Table::Dynamic { factor: 1.0, trained: 256, by: By::Query }),
        ];
        let faults = export(&config(), &resolved(&plans), ExportFamily::Llama).unwrap_err().join("; ");
        for words in [
            "layers 0, 2: no positions",
            "layer 0: chunks",
            "layer 1: a map",
            "layers 1, 2: a window",
            "2 tables",
        ] {
            assert!(faults.contains(words), "{faults}, not {words}");
        }
        let faults = export(&config(), &resolved(&plans[..3]), ExportFamily::SmolLm3).unwrap_err();
        assert_eq!(
            faults,
            ["layer 0: chunks", "layer 1: a map of positions", "layer 2: a window with sinks"]
        );
        let faults = export(&config(), &resolved(&plans[3..]), ExportFamily::Llama).unwrap_err();
        assert!(faults[0].contains("by: query"), "{faults:?}");
    }
}
