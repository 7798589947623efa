//! `adapter_config.json`, as far as it matters for merging.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use regex_lite::RegexBuilder;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::super::Wanted;
use super::super::explain::explain;
use crate::error::{Error, Result};
use crate::limits::Limits;

pub(super) const CONFIG: &str = "adapter_config.json";
/// A configuration is a page of text.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Keys that are more than a part of a name. Each is compared with each module.
const MAX_EXPRESSIONS: u64 = 256;
/// Bytes of one compiled expression.
const MAX_EXPRESSION_BYTES: usize = 1 << 18;

/// The keys that matter for merging; all others are for training. What is null is absent.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub(super) struct Config {
    peft_type: String,
    r: Option<u64>,
    lora_alpha: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    pub(super) fan_in_fan_out: Option<bool>,
    rank_pattern: Option<Patterns<u64>>,
    alpha_pattern: Option<Patterns<f64>>,
}

impl Config {
    /// Reads the configuration of the adapter in a directory.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG);
        let length = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        Limits::check("an adapter's configuration in bytes", length, MAX_CONFIG_BYTES)
            .map_err(|e| e.in_file(&path))?;
        let json = std::fs::read(&path).map_err(Error::io(&path))?;
        Self::parse(&json).map_err(|e| explain(e, &json, Wanted::AdapterConfig).in_file(&path))
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let json = json.strip_prefix("\u{feff}".as_bytes()).unwrap_or(json);
        let config: Self = serde_json::from_slice(json)
            .map_err(|e| Error::corrupt(format!("an adapter's configuration: {e}")))?;
        let alpha = config.alpha_pattern.as_ref().map_or(0, Patterns::expression_count);
        let rank = config.rank_pattern.as_ref().map_or(0, Patterns::expression_count);
        Limits::check("the number of regular expressions of an adapter", alpha + rank, MAX_EXPRESSIONS)?;
        Ok(config)
    }

    /// The type, if its merge is not that of LoRA.
    pub(super) fn other_type(&self) -> Option<&str> {
        (self.peft_type != "LORA").then_some(&self.peft_type)
    }

    /// Whether rows are scaled to a trained length.
    pub(super) fn is_dora(&self) -> bool {
        self.use_dora == Some(true)
    }

    /// The scales of modules, which have these ranks in the file.
    pub(super) fn scales(&self, modules: &[(&str, u64)]) -> Vec<f64> {
        let names: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
        let alphas = self.alpha_pattern.as_ref().map_or_else(Vec::new, |patterns| patterns.of(&names));
        let ranks = self.rank_pattern.as_ref().map_or_else(Vec::new, |patterns| patterns.of(&names));
        let scale = |(i, (_, rank)): (usize, &(&str, u64))| {
            let alpha = alphas.get(i).copied().flatten().or(self.lora_alpha).unwrap_or(0.0);
            let own = self.r.filter(|r| *r > 0).unwrap_or(*rank);
            let rank = ranks.get(i).copied().flatten().unwrap_or(own).max(1) as f64;
            alpha / if self.use_rslora == Some(true) { rank.sqrt() } else { rank }
        };
        modules.iter().enumerate().map(scale).collect()
    }
}

/// Values by regular expressions of names, in the order of the file: the first that fits counts.
#[derive(Debug, Clone, PartialEq)]
struct Patterns<T>(Vec<(String, T)>);

impl<T: Copy> Patterns<T> {
    fn expression_count(&self) -> u64 {
        self.0.iter().filter(|(key, _)| !is_literal(key)).count() as u64
    }

    /// The value of each module.
    fn of(&self, modules: &[&str]) -> Vec<Option<T>> {
        let mut values = vec![None; modules.len()];
        for (key, value) in &self.0 {
            let matches = matcher(key);
            for (found, module) in values.iter_mut().zip(modules).filter(|(found, _)| found.is_none()) {
                *found = matches(module).then_some(*value);
            }
        }
        values
    }
}

/// Whether a key has only letters, digits, underscores and dots, as most have.
fn is_literal(key: &str) -> bool {
    key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
}

/// Whether a module is one that a key means: the name, or its end behind a dot, must match. What is
/// no expression here is taken literally.
fn matcher(key: &str) -> Box<dyn Fn(&str) -> bool + '_> {
    let is_end = move |module: &str, same: &dyn Fn(&str) -> bool| {
        let Some(at) = module.len().checked_sub(key.len()).filter(|at| module.is_char_boundary(*at)) else {
            return false;
        };
        let (before, end) = module.split_at(at);
        (before.is_empty() || before.ends_with('.')) && same(end)
    };
    if is_literal(key) {
        // A dot is any one byte.
        let same = |end: &str| key.bytes().zip(end.bytes()).all(|(k, byte)| k == byte || k == b'.');
        return Box::new(move |module| is_end(module, &same));
    }
    let expression =
        RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$")).size_limit(MAX_EXPRESSION_BYTES).build();
    match expression {
        Ok(expression) => Box::new(move |module| expression.is_match(module)),
        Err(_) => Box::new(move |module| is_end(module, &|end| end == key)),
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// Keeps the order of a map.
struct InOrder<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
    type Value = Patterns<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from names of modules to numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(entry) = map.next_entry()? {
            found.push(entry);
        }
        Ok(Patterns(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(config: &str, module: &str) -> f64 {
        Config::parse(config.as_bytes()).unwrap().scales(&[(module, 8)])[0]
    }

    #[test]
    fn the_first_key_that_matches_counts() {
        let config = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16,
            "alpha_pattern": {"q_proj": 4, "layers.1.q_proj": 64}}"#;
        assert_eq!(scale(config, "layers.1.q_proj"), 0.5);
        assert_eq!(scale(config, "layers.1.my_q_proj"), 2.0);
        let config = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16,
            "alpha_pattern": {"layers.1.q_proj": 64, "q_proj": 4}}"#;
        assert_eq!((scale(config, "layers.1.q_proj"), scale(config, "layers.2.q_proj")), (8.0, 0.5));
        assert_eq!(scale(config, "layers.11.q_proj"), 0.5);
    }

    #[test]
    fn keys_are_expressions() {
        let with = |key: &str| {
            format!(
                r#"{{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "rank_pattern": {{"{key}": 2}},
                "alpha_pattern": {{"{key}": 10}}}}"#
            )
        };
        for (key, module, is_match) in [
            (r".*\\.layers\\.1\\..*(q_proj|k_proj)", "model.layers.1.attn.q_proj", true),
            (r".*\\.layers\\.1\\..*(q_proj|k_proj)", "model.layers.11.attn.q_proj", false),
            (r"^model\\.layers\\.[01]\\.q", "model.layers.0.q", true),
            (r"^layers\\.[01]\\.q", "model.layers.0.q", false),
            ("q|k", "layers.k", true),
            ("layers.0.q", "layers_0.q", true),
            // No expression: taken literally.
            ("(q", "layers.(q", true),
            ("(?=q)q", "q", false),
            ("q_proj", "é", false),
        ] {
            assert_eq!(scale(&with(key), module), if is_match { 5.0 } else { 1.0 }, "{key} {module}");
        }
        let many: Vec<String> = (0..300).map(|i| format!(r#""a*{i}": 1"#)).collect();
        let many = format!(r#"{{"peft_type": "LORA", "alpha_pattern": {{{}}}}}"#, many.join(","));
        assert!(Config::parse(many.as_bytes()).is_err());
    }

    #[test]
    fn nulls_are_absent() {
        let nulls = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": null, "use_dora": null,
            "fan_in_fan_out": null, "rank_pattern": null, "alpha_pattern": null, "task_type": null}"#;
        assert_eq!(scale(&format!("\u{feff}{nulls}"), "q"), 2.0);
        let config = Config::parse(nulls.as_bytes()).unwrap();
        assert!(!config.is_dora() && config.other_type().is_none());
        assert_eq!(scale(r#"{"peft_type": "LORA", "lora_alpha": 16}"#, "q"), 2.0, "the rank of the factors");
        let stable = r#"{"peft_type": "LORA", "r": 16, "lora_alpha": 8, "use_rslora": true}"#;
        assert_eq!(scale(stable, "q"), 2.0);
        assert_eq!(Config::parse(br#"{"peft_type": "IA3"}"#).unwrap().other_type(), Some("IA3"));
        assert!(Config::parse(b"{}").is_err());
    }
}
