//! What a recipe changes in a layer.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::rope::{Rope, RopeKind};
use super::word_or_section;
use crate::yaml::Fault;

/// What changes in a layer. What is missing stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Change {
    /// How positions enter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope: Option<Rope>,
    /// How positions are mapped before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<Map>,
    /// Which tokens are seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reach: Option<ReachSetting>,
    /// A factor of queries that grows with the position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleSetting>,
    /// A norm of queries and keys that the model was not trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<NormSetting>,
}

/// How positions of queries and keys are mapped before they turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Map {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: MapKind,
    /// Of Self-Extend: positions that share a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u64>,
    /// Of Self-Extend and `ReRoPE`: neighbours whose positions stay exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
    /// Of dual chunks: tokens of a chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<u64>,
    /// Of dual chunks: tokens beyond a chunk that stay exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<u64>,
    /// Of dual chunks: the largest position of a query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturate: Option<u64>,
}

/// A map of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MapKind {
    /// As they are.
    Identity,
    /// Far tokens share positions in groups.
    SelfExtend,
    /// Positions inside chunks.
    DualChunk,
    /// All far tokens are at one distance.
    Rerope,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapSection {
    #[serde(rename = "type")]
    kind: MapKind,
    #[serde(default)]
    group: Option<u64>,
    #[serde(default)]
    window: Option<u64>,
    #[serde(default)]
    chunk: Option<u64>,
    #[serde(default)]
    local: Option<u64>,
    #[serde(default)]
    saturate: Option<u64>,
}

word_or_section!(Map, MapKind);

impl Map {
    fn of_word(kind: MapKind) -> Self {
        Self { kind, group: None, window: None, chunk: None, local: None, saturate: None }
    }

    fn of_section<'de, D: Deserializer<'de>>(section: D) -> Result<Self, D::Error> {
        let MapSection { kind, group, window, chunk, local, saturate } = MapSection::deserialize(section)?;
        Ok(Self { kind, group, window, chunk, local, saturate })
    }

    fn check(self) -> Result<(), Fault> {
        let given = [
            ("group", self.group),
            ("window", self.window),
            ("chunk", self.chunk),
            ("local", self.local),
            ("saturate", self.saturate),
        ];
        let (needed, more): (&[&str], &[&str]) = match self.kind {
            MapKind::Identity => (&[], &[]),
            MapKind::SelfExtend => (&["group", "window"], &[]),
            MapKind::DualChunk => (&["chunk", "local"], &["saturate"]),
            MapKind::Rerope => (&["window"], &[]),
        };
        for (name, number) in given {
            let what = match number {
                None if needed.contains(&name) => "missing".to_owned(),
                Some(_) if !needed.contains(&name) && !more.contains(&name) => {
                    let known = [needed, more].concat().join(", ");
                    format!("this map does not have it: it has {known}")
                }
                Some(0) => "must be 1 or more".to_owned(),
                Some(number) if number > 1 << 31 => format!("{number} is more than 2^31"),
                _ => continue,
            };
            return Err(Fault::new(format!("map.{name}"), what));
        }
        Ok(())
    }
}

/// Which tokens a token sees: `causal`, `{window: N, sinks: S}` or `{chunk: N}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ReachSetting {
    /// All before it.
    Causal,
    /// The last ones, and the first ones of the sequence.
    Window {
        /// How many of the last ones, with itself.
        tokens: u64,
        /// How many of the first ones.
        sinks: u64,
    },
    /// Those of its chunk before it.
    Chunk {
        /// Number of tokens of a chunk.
        tokens: u64,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReachWord {
    Causal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReachSection {
    #[serde(default)]
    window: Option<u64>,
    #[serde(default)]
    sinks: Option<u64>,
    #[serde(default)]
    chunk: Option<u64>,
}

word_or_section!(ReachSetting, ReachWord);

impl ReachSetting {
    fn of_word(word: ReachWord) -> Self {
        match word {
            ReachWord::Causal => Self::Causal,
        }
    }

    fn of_section<'de, D: Deserializer<'de>>(section: D) -> Result<Self, D::Error> {
        match ReachSection::deserialize(section)? {
            ReachSection { window: Some(tokens), sinks, chunk: None } => {
                Ok(Self::Window { tokens, sinks: sinks.unwrap_or(0) })
            }
            ReachSection { window: None, sinks: None, chunk: Some(tokens) } => Ok(Self::Chunk { tokens }),
            _ => Err(D::Error::custom("wanted window, perhaps with sinks, or chunk")),
        }
    }

    fn check(self) -> Result<(), Fault> {
        let wrong = |field: &str, what: String| Err(Fault::new(format!("reach.{field}"), what));
        match self {
            Self::Window { tokens: 0, .. } => wrong("window", "0 tokens show nothing".to_owned()),
            Self::Window { tokens, sinks } if sinks >= tokens => {
                wrong("sinks", format!("{sinks} must be fewer than the window of {tokens}"))
            }
            Self::Chunk { tokens: 0 } => wrong("chunk", "0 tokens show nothing".to_owned()),
            Self::Window { tokens, .. } | Self::Chunk { tokens } if tokens > 1 << 31 => {
                wrong("window", format!("{tokens} is more than 2^31"))
            }
            _ => Ok(()),
        }
    }
}

/// A factor of queries that grows with the position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ScaleSetting {
    /// How it grows.
    #[serde(rename = "type")]
    pub law: Law,
    /// Of `floor`: it grows every so many tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Of `floor`: the factor of the logarithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slope: Option<f64>,
}

/// How a factor grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Law {
    /// `1 + slope ln(1 + floor((position + 1) / every))`: Llama 4.
    Floor,
    /// `max(1, ln(position + 1) / ln(trained))`.
    LogLength,
}

impl ScaleSetting {
    fn check(self) -> Result<(), Fault> {
        let wrong = |field: &str, what: &str| Err(Fault::new(format!("scale.{field}"), what));
        match (self.law, self.every, self.slope) {
            (Law::Floor, None | Some(0), _) => wrong("every", "must be a number of tokens, 1 or more"),
            (Law::Floor, _, slope) if slope.is_some_and(|slope| !(0.0..=100.0).contains(&slope)) => {
                wrong("slope", "must be from 0 to 100")
            }
            (Law::LogLength, Some(_), _) => wrong("every", "log_length does not have it"),
            (Law::LogLength, _, Some(_)) => wrong("slope", "log_length does not have it"),
            _ => Ok(()),
        }
    }
}

/// A norm of every head of queries and keys: an experiment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct NormSetting {
    /// Before or after positions enter.
    pub place: Place,
    /// Added to the mean square.
    pub epsilon: f64,
    /// What normalised queries are multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gain: Option<GainSetting>,
    /// Of a calibrated gain: a file of token ids (.u16 or .u32), or of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Of a calibrated gain: how many tokens are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

/// What normalised queries are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GainSetting {
    /// Nothing.
    One,
    /// A number for each head with which scores keep their size.
    Calibrated,
}

/// Where a norm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Place {
    /// Before positions enter.
    Before,
    /// After that, as in Llama 4.
    After,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NormSection {
    place: Place,
    #[serde(default)]
    epsilon: Option<f64>,
    #[serde(default)]
    gain: Option<GainSetting>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    tokens: Option<u64>,
}

word_or_section!(NormSetting, Place);

impl NormSetting {
    const EPSILON: f64 = 1e-6;

    fn of_word(place: Place) -> Self {
        Self { place, epsilon: Self::EPSILON, gain: None, text: None, tokens: None }
    }

    fn of_section<'de, D: Deserializer<'de>>(section: D) -> Result<Self, D::Error> {
        let NormSection { place, epsilon, gain, text, tokens } = NormSection::deserialize(section)?;
        Ok(Self { place, epsilon: epsilon.unwrap_or(Self::EPSILON), gain, text, tokens })
    }

    /// The text of a calibrated gain, and how many of its tokens are read.
    #[must_use]
    pub fn calibration(&self) -> Option<(&str, u64)> {
        let is_calibrated = self.gain == Some(GainSetting::Calibrated);
        self.text.as_deref().filter(|_| is_calibrated).map(|text| (text, self.tokens.unwrap_or(4096)))
    }

    fn check(&self) -> Result<(), Fault> {
        let wrong = |field: &str, what: &str| Err(Fault::new(format!("qk_norm.{field}"), what));
        let foreign = "only a calibrated gain has it";
        match (self.gain == Some(GainSetting::Calibrated), &self.text, self.tokens) {
            _ if !(0.0..=1.0).contains(&self.epsilon) => {
                wrong("epsilon", &format!("{} is not from 0 to 1", self.epsilon))
            }
            (false, Some(_), _) => wrong("text", foreign),
            (false, _, Some(_)) => wrong("tokens", foreign),
            (true, None, _) => wrong("text", "missing: what a calibrated gain is measured on"),
            (true, _, Some(0)) => wrong("tokens", "must be 1 or more"),
            _ => Ok(()),
        }
    }
}

impl Change {
    /// With `later` on top.
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        Self {
            rope: later.rope.clone().or_else(|| self.rope.clone()),
            map: later.map.or(self.map),
            reach: later.reach.or(self.reach),
            scale: later.scale.or(self.scale),
            qk_norm: later.qk_norm.clone().or_else(|| self.qk_norm.clone()),
        }
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        self.rope.as_ref().map_or(Ok(()), Rope::check)?;
        self.map.map_or(Ok(()), Map::check)?;
        self.reach.map_or(Ok(()), ReachSetting::check)?;
        self.scale.map_or(Ok(()), ScaleSetting::check)?;
        self.qk_norm.as_ref().map_or(Ok(()), NormSetting::check)?;
        let maps = self.map.is_some_and(|map| map.kind != MapKind::Identity);
        if maps && self.rope.as_ref().is_some_and(|rope| rope.kind == RopeKind::None) {
            return Err(Fault::new("map", "there are no positions to map: rope is none"));
        }
        Ok(())
    }
}
