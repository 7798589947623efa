//! Which layers an entry of a recipe changes.

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::yaml::Fault;

/// Most layers that a list may name.
const MOST: usize = 4096;

/// Layers: a list of numbers from 0, or one of the keys of [`Selection`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Select {
    /// These.
    List(Vec<u64>),
    /// Found by a rule.
    Rule(Selection),
}

/// A rule: exactly one of these is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Selection {
    /// The last of each so many: 4 is 3, 7, 11 and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Some at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomLayers>,
    /// Those that moved least in a fine-tune.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Those whose change costs least, measured on tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<Sensitivity>,
}

/// Some layers at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RandomLayers {
    /// How many.
    pub count: u64,
    /// The same seed gives the same layers.
    #[serde(default)]
    pub seed: u64,
}

/// Layers that moved least in a fine-tune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Frozen {
    /// The fine-tune: a file, a folder, or a container of the model.
    pub from: String,
    /// How they are compared.
    #[serde(default)]
    pub measure: Measure,
    /// What is compared.
    #[serde(default)]
    pub of: Of,
    /// How many.
    pub count: u64,
}

/// How layers are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Measure {
    /// L2 norm of the change over that of the base.
    #[default]
    RelativeL2,
}

/// Which matrices are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Of {
    /// All of them.
    #[default]
    All,
    /// Those of queries and keys.
    Qk,
}

/// Layers whose change costs least.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Sensitivity {
    /// A file of token ids (.u16 or .u32), or of text.
    pub text: String,
    /// How many tokens are measured.
    #[serde(default = "sensitivity_tokens")]
    pub tokens: u64,
    /// How many layers.
    pub count: u64,
}

fn sensitivity_tokens() -> u64 {
    4096
}

impl<'de> Deserialize<'de> for Select {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Select;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of layers, or every, random, frozen or sensitivity")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Select, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Select::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Select, A::Error> {
                Selection::deserialize(MapAccessDeserializer::new(map)).map(Select::Rule)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Select {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let wrong = |field: &str, what: &str| Err(Fault::new(field, what));
        let rule = match self {
            Self::List(list) if list.is_empty() => return wrong("select", "no layer"),
            Self::List(list) if list.len() > MOST => return wrong("select", "too many layers"),
            Self::List(_) => return Ok(()),
            Self::Rule(rule) => rule,
        };
        let Selection { every, random, frozen, sensitivity } = rule;
        let there = [every.is_some(), random.is_some(), frozen.is_some(), sensitivity.is_some()];
        if there.iter().filter(|there| **there).count() != 1 {
            return wrong("select", "wanted one of every, random, frozen and sensitivity");
        }
        let counts = [
            ("every", *every),
            ("random.count", random.map(|random| random.count)),
            ("frozen.count", frozen.as_ref().map(|frozen| frozen.count)),
            ("sensitivity.count", sensitivity.as_ref().map(|sensitivity| sensitivity.count)),
            ("sensitivity.tokens", sensitivity.as_ref().map(|sensitivity| sensitivity.tokens)),
        ];
        match counts.iter().find(|(_, count)| *count == Some(0)) {
            Some((field, _)) => wrong(&format!("select.{field}"), "must be 1 or more"),
            None => Ok(()),
        }
    }
}
