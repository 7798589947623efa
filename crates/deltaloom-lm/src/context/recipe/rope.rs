//! How positions enter, as a recipe says it.

use serde::{Deserialize, Deserializer, Serialize};

use super::word_or_section;
use crate::yaml::Fault;

/// How positions enter, with the names of transformers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rope {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: RopeKind,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: RopeNumbers,
}

/// A type of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RopeKind {
    /// No positions.
    None,
    /// Those of `rope_theta`.
    Default,
    /// All slower.
    Linear,
    /// A theta that grows with the length.
    Dynamic,
    /// A larger theta.
    Ntk,
    /// Slow ones slower, with a ramp.
    Yarn,
    /// A divisor for each pair.
    Longrope,
    /// Slow ones slower, with a mix.
    Llama3,
    /// Only some pairs turn.
    Proportional,
    /// Given numbers.
    Custom,
}

/// Which length a table follows that depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum By {
    /// The position of each query: a text computed at once and token by token is the same.
    Query,
    /// The length of the whole sequence, which is `target`: as transformers computes a prompt.
    Sequence,
}

/// Defines the numbers of rotary positions, so that a list of those that are there can be made.
macro_rules! rope_numbers {
    ($($field:ident: $kind:ty,)*) => {
        /// Numbers of rotary positions, with the names of transformers.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct RopeNumbers {
            $(
            /// As in transformers.
            #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$kind>,
            )*
        }

        /// The same with the type.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct RopeSection {
            #[serde(rename = "type")]
            kind: RopeKind,
            $(#[serde(default)] $field: Option<$kind>,)*
        }

        impl From<RopeSection> for Rope {
            fn from(section: RopeSection) -> Self {
                let RopeSection { kind, $($field,)* } = section;
                Self { kind, numbers: RopeNumbers { $($field,)* } }
            }
        }

        impl RopeNumbers {
            fn given(&self) -> Vec<&'static str> {
                let mut given = Vec::new();
                $(if self.$field.is_some() { given.push(stringify!($field)); })*
                given
            }
        }
    };
}

rope_numbers! {
    rope_theta: f64,
    factor: f64,
    original_max_position_embeddings: u64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    beta_fast: f64,
    beta_slow: f64,
    attention_factor: f64,
    mscale: f64,
    mscale_all_dim: f64,
    truncate: bool,
    short_factor: Vec<f64>,
    long_factor: Vec<f64>,
    partial_rotary_factor: f64,
    inv_freq: Vec<f64>,
    by: By,
}

word_or_section!(Rope, RopeKind);

impl Rope {
    fn of_word(kind: RopeKind) -> Self {
        Self { kind, numbers: RopeNumbers::default() }
    }

    fn of_section<'de, D: Deserializer<'de>>(section: D) -> Result<Self, D::Error> {
        RopeSection::deserialize(section).map(Into::into)
    }

    /// The numbers that its type must have, and those that it may have.
    fn known(kind: RopeKind) -> (&'static [&'static str], &'static [&'static str]) {
        const TRAINED: &str = "original_max_position_embeddings";
        match kind {
            RopeKind::None => (&[], &[]),
            RopeKind::Default => (&[], &["rope_theta"]),
            RopeKind::Linear | RopeKind::Ntk => (&["factor"], &["rope_theta"]),
            RopeKind::Dynamic => (&["factor"], &["rope_theta", TRAINED, "by"]),
            RopeKind::Yarn => (
                &["factor"],
                &[
                    "rope_theta",
                    TRAINED,
                    "beta_fast",
                    "beta_slow",
                    "attention_factor",
                    "mscale",
                    "mscale_all_dim",
                    "truncate",
                ],
            ),
            RopeKind::Longrope => (
                &["short_factor", "long_factor"],
                &["rope_theta", TRAINED, "factor", "attention_factor", "by"],
            ),
            RopeKind::Llama3 => {
                (&["factor"], &["rope_theta", TRAINED, "low_freq_factor", "high_freq_factor"])
            }
            RopeKind::Proportional => (&["partial_rotary_factor"], &["rope_theta"]),
            RopeKind::Custom => (&["inv_freq"], &[]),
        }
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        let (needed, more) = Self::known(self.kind);
        let given = self.numbers.given();
        let wrong = |field: &str, what: String| Err(Fault::new(format!("rope.{field}"), what));
        if let Some(missing) = needed.iter().find(|name| !given.contains(name)) {
            return wrong(missing, "missing".to_owned());
        }
        if let Some(other) = given.iter().find(|name| !needed.contains(name) && !more.contains(name)) {
            let all = [needed, more].concat();
            let known = if all.is_empty() { "no numbers".to_owned() } else { all.join(", ") };
            return wrong(other, format!("this type does not have it: it has {known}"));
        }
        let numbers = &self.numbers;
        for (field, number) in [("factor", numbers.factor), ("attention_factor", numbers.attention_factor)] {
            let least = if field == "factor" { 1.0 } else { f64::MIN_POSITIVE };
            if let Some(number) = number
                && !(least..=1e6).contains(&number)
            {
                return wrong(field, format!("{number} is not from {least:.0} to a million"));
            }
        }
        let positive = [
            ("rope_theta", numbers.rope_theta),
            ("low_freq_factor", numbers.low_freq_factor),
            ("high_freq_factor", numbers.high_freq_factor),
            ("beta_fast", numbers.beta_fast),
            ("beta_slow", numbers.beta_slow),
        ];
        for (field, number) in positive {
            if let Some(number) = number
                && !(number > 0.0 && number < 1e30)
            {
                return wrong(field, format!("{number} must be positive and not huge"));
            }
        }
        if let Some(share) = numbers.partial_rotary_factor
            && !(share > 0.0 && share <= 1.0)
        {
            return wrong("partial_rotary_factor", format!("{share} is not above 0 and at most 1"));
        }
        if numbers.original_max_position_embeddings == Some(0) {
            return wrong("original_max_position_embeddings", "0 tokens".to_owned());
        }
        for (field, list) in [
            ("short_factor", &numbers.short_factor),
            ("long_factor", &numbers.long_factor),
            ("inv_freq", &numbers.inv_freq),
        ] {
            if let Some(number) = list.iter().flatten().find(|number| !(**number > 0.0 && **number < 1e30)) {
                return wrong(field, format!("{number} must be positive and not huge"));
            }
        }
        let order = |low: Option<f64>, low_default, high: Option<f64>, high_default| {
            low.unwrap_or(low_default) < high.unwrap_or(high_default)
        };
        if self.kind == RopeKind::Llama3
            && !order(numbers.low_freq_factor, 1.0, numbers.high_freq_factor, 4.0)
        {
            return wrong("high_freq_factor", "must be above low_freq_factor".to_owned());
        }
        if self.kind == RopeKind::Yarn && !order(numbers.beta_slow, 1.0, numbers.beta_fast, 32.0) {
            return wrong("beta_fast", "must be above beta_slow".to_owned());
        }
        Ok(())
    }
}
