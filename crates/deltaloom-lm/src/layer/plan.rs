//! What a layer's tokens attend to, and how positions enter: data only. [`super::spans`] says what
//! a query sees, and [`super::rotary`] computes the turns.

use super::config::{Heads, Norm};
use super::table::{MAX_POSITIONS, Table};
use deltaloom::{Error, Result};

/// The attention of one layer.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AttentionPlan {
    /// How positions enter queries and keys.
    pub positions: Positions,
    /// Which tokens a token sees.
    pub reach: Reach,
    /// The factor of scores.
    pub scale: Scale,
    /// By how much queries grow with their position, if they do.
    #[serde(default)]
    pub law: Option<Law>,
    /// The norm of every head of queries and keys.
    #[serde(default)]
    pub qk_norm: Option<QkNorm>,
}

impl AttentionPlan {
    /// A plan without positions and norms, with the usual scale.
    #[must_use]
    pub fn new(reach: Reach) -> Self {
        Self { positions: Positions::None, reach, scale: Scale::OfHeadSize, law: None, qk_norm: None }
    }

    /// Sets how positions enter.
    #[must_use]
    pub fn with_positions(self, positions: Positions) -> Self {
        Self { positions, ..self }
    }

    /// Sets what a token sees.
    #[must_use]
    pub fn with_reach(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// Sets the norm of queries and keys.
    #[must_use]
    pub fn with_qk_norm(self, qk_norm: Option<QkNorm>) -> Self {
        Self { qk_norm, ..self }
    }

    /// Sets the factor of scores.
    #[must_use]
    pub fn with_scale(self, scale: Scale) -> Self {
        Self { scale, ..self }
    }

    /// Sets by how much queries grow.
    #[must_use]
    pub fn with_law(self, law: Option<Law>) -> Self {
        Self { law, ..self }
    }

    /// Checks that the plan can be computed for these heads.
    pub(super) fn check(&self, heads: Heads) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        let is_length = |tokens: usize| (1..=MAX_POSITIONS).contains(&tokens);
        if let Some(norm) = &self.qk_norm {
            norm.check(heads.query)?;
        }
        match self.reach {
            Reach::Causal | Reach::Full => (),
            Reach::Window { tokens, .. } if !is_length(tokens) => {
                return wrong(format!(
                    "a sliding window of {tokens} tokens: must be from 1 to {MAX_POSITIONS}"
                ));
            }
            Reach::Window { tokens, sinks } if sinks >= tokens => {
                return wrong(format!("{sinks} sinks need a larger window than {tokens} tokens"));
            }
            Reach::Chunk { tokens } if !is_length(tokens) => {
                return wrong(format!("chunks of {tokens} tokens: must be from 1 to {MAX_POSITIONS}"));
            }
            Reach::Window { .. } | Reach::Chunk { .. } => (),
        }
        if let Scale::Constant(scale) = self.scale
            && !scale.is_finite()
        {
            return wrong(format!("the scale of attention is {scale}: must be finite"));
        }
        match self.law {
            Some(Law::LogLength { trained }) if !(2..=MAX_POSITIONS).contains(&trained) => {
                return wrong(format!("a scale by the logarithm of length over that of {trained} tokens"));
            }
            Some(Law::Floor { every, slope }) if !is_length(every) || !(0.0..=1e3).contains(&slope) => {
                return wrong(format!("a scale that grows by {slope} every {every} tokens"));
            }
            _ => (),
        }
        let Positions::Rotary { theta, table, map } = &self.positions else { return Ok(()) };
        if !(*theta > 0.0 && theta.is_finite()) {
            return wrong(format!("the theta of rotary positions is {theta}: must be finite and positive"));
        }
        if !heads.size.is_multiple_of(2) {
            return wrong(format!("rotary positions need an even head size, not {}", heads.size));
        }
        table.check(*theta, heads.size)?;
        map.check()?;
        if self.reach == Reach::Full && self.turns_late() {
            return wrong("tokens that see those behind them need plain positions".to_owned());
        }
        if self.sinks() > 0 && *map != PositionMap::Identity {
            return wrong(
                "sinks have positions of their own: they need the positions as they are".to_owned(),
            );
        }
        Ok(())
    }

    /// Checks that positions stay within the trained length, if they are meant to.
    pub(crate) fn check_trained(&self, trained: usize) -> Result<()> {
        let Positions::Rotary { map, .. } = &self.positions else { return Ok(()) };
        let (name, largest) = match *map {
            PositionMap::Identity => return Ok(()),
            PositionMap::Grouped { group: 1, .. } => return Ok(()),
            PositionMap::Grouped { neighbours, .. } => ("neighbours of grouped positions", neighbours + 1),
            PositionMap::DualChunk { chunk, local, saturate } => {
                ("distances of dual chunks", saturate.unwrap_or(chunk + local))
            }
            PositionMap::Clipped { at } => ("clipped distances", at + 1),
        };
        if largest <= trained {
            return Ok(());
        }
        let what = format!("{name} reach {largest} tokens: the model was trained for {trained}");
        Err(Error::InvalidArgument(what))
    }

    /// The factor of the scores of a query.
    pub(super) fn query_scale(&self, heads: Heads, head: usize, position: usize) -> f32 {
        let gain = match self.qk_norm.as_ref().map(|norm| &norm.gain) {
            Some(Gain::Calibrated(gains)) => gains[head],
            _ => 1.0,
        };
        self.scale.of(heads.size) * gain * self.law.map_or(1.0, |law| law.at(position))
    }

    /// The factor of cosines and sines.
    pub(super) fn attention_factor(&self) -> f64 {
        match &self.positions {
            Positions::None => 1.0,
            Positions::Rotary { table, .. } => table.attention_factor(),
        }
    }

    /// Number of first tokens that everybody sees.
    pub(super) fn sinks(&self) -> usize {
        if let Reach::Window { sinks, .. } = self.reach { sinks } else { 0 }
    }

    /// Whether turns depend on the query, so that keys are kept as they are and turn when they are
    /// read.
    pub(super) fn turns_late(&self) -> bool {
        match &self.positions {
            Positions::None => false,
            Positions::Rotary { table, map, .. } => {
                let has_map = !matches!(map, PositionMap::Identity | PositionMap::Grouped { group: 1, .. });
                has_map || table.is_by_query() || self.sinks() > 0
            }
        }
    }

    /// The first token that those from this position on will see, and the sinks before it.
    pub(crate) fn first_seen(&self, position: usize) -> usize {
        match self.reach {
            Reach::Causal | Reach::Full => 0,
            Reach::Window { tokens, .. } => (position + 1).saturating_sub(tokens),
            Reach::Chunk { tokens } => position / tokens * tokens,
        }
    }
}

/// How positions enter queries and keys.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Positions {
    /// Not at all.
    None,
    /// Pairs of elements turn by an angle that grows with the position.
    Rotary {
        /// Base of the table.
        theta: f32,
        /// How fast they turn.
        table: Table,
        /// Which position stands for a token.
        #[serde(default)]
        map: PositionMap,
    },
}

impl Positions {
    /// Rotary positions as they are.
    #[must_use]
    pub fn rotary(theta: f32, table: Table) -> Self {
        Self::Rotary { theta, table, map: PositionMap::Identity }
    }
}

/// Which positions stand for a query and for the keys that it sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PositionMap {
    /// Their own.
    #[default]
    Identity,
    /// Tokens at some distance share positions: Self-Extend (2401.01325).
    Grouped {
        /// How many share one.
        group: usize,
        /// How many of the nearest tokens, with itself, have their own.
        neighbours: usize,
    },
    /// Positions begin again with every chunk: dual chunk attention (2402.17463).
    DualChunk {
        /// Number of tokens of a chunk.
        chunk: usize,
        /// How far a query's position goes on behind its chunk.
        local: usize,
        /// The largest position of a query; `None` for `chunk + local`.
        #[serde(default)]
        saturate: Option<usize>,
    },
    /// Larger distances than this count as this: ReRoPE.
    Clipped {
        /// The distance.
        at: usize,
    },
}

impl PositionMap {
    fn check(self) -> Result<()> {
        let is_length = |tokens: usize| (1..=MAX_POSITIONS).contains(&tokens);
        let is_right = match self {
            Self::Identity => true,
            Self::Grouped { group, neighbours } => is_length(group) && is_length(neighbours),
            Self::DualChunk { chunk, local, saturate } => {
                let saturates = saturate.is_none_or(|most| (chunk..=MAX_POSITIONS).contains(&most));
                is_length(chunk) && is_length(local) && local <= chunk && saturates
            }
            Self::Clipped { at } => is_length(at),
        };
        if is_right {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!("positions cannot be mapped by {self:?}")))
    }
}

/// Which tokens of its sequence a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Reach {
    /// Itself and all before it.
    Causal,
    /// Itself and those before it, this many together; and the first tokens of all.
    Window {
        /// Number of tokens.
        tokens: usize,
        /// Number of first tokens that all see (2309.17453). The largest position of a query that
        /// sees them is the sum of both numbers less 1.
        #[serde(default)]
        sinks: usize,
    },
    /// Itself and those before it in its chunk: Llama 4.
    Chunk {
        /// Number of tokens of a chunk.
        tokens: usize,
    },
    /// All of them, also those behind it: encoders.
    Full,
}

/// The factor of scores.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Scale {
    /// One over the square root of the head size.
    OfHeadSize,
    /// This number.
    Constant(f32),
}

impl Scale {
    pub(super) fn of(self, head_size: usize) -> f32 {
        match self {
            Self::OfHeadSize => 1.0 / (head_size as f32).sqrt(),
            Self::Constant(scale) => scale,
        }
    }
}

/// A factor of queries that grows with their position.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Law {
    /// The logarithm of the number of tokens so far over that of the trained length, at least 1.
    LogLength {
        /// The trained length.
        trained: usize,
    },
    /// 1 plus `slope` times the logarithm of 1 plus the number of whole steps so far: Llama 4.
    Floor {
        /// Number of tokens of a step.
        every: usize,
        /// How fast it grows.
        slope: f64,
    },
}

impl Law {
    /// The factor of a query at this position.
    #[expect(clippy::cast_possible_truncation, reason = "scores are FP32")]
    pub(super) fn at(self, position: usize) -> f32 {
        let tokens = position + 1;
        let factor = match self {
            Self::LogLength { trained } => ((tokens as f64).ln() / (trained as f64).ln()).max(1.0),
            Self::Floor { every, slope } => 1.0 + slope * ((tokens / every) as f64).ln_1p(),
        };
        factor as f32
    }
}

/// A norm of every head of queries and keys.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QkNorm {
    /// The norm.
    pub norm: Norm,
    /// Whether positions enter before or after it.
    #[serde(default)]
    pub place: NormPlace,
    /// What its results are multiplied by.
    #[serde(default)]
    pub gain: Gain,
}

/// Where a norm is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// Before queries and keys turn.
    #[default]
    Before,
    /// After it: Llama 4.
    After,
}

/// What a norm's results are multiplied by.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Gain {
    /// The layer's vectors.
    #[default]
    Weights,
    /// Nothing.
    One,
    /// A number for each query head; keys as they are.
    Calibrated(Vec<f32>),
}

impl QkNorm {
    /// A norm with the layer's vectors, before positions enter.
    #[must_use]
    pub fn of_weights(norm: Norm) -> Self {
        Self { norm, place: NormPlace::Before, gain: Gain::Weights }
    }

    /// The norm before queries and keys turn that gives the same: turning keeps the mean square,
    /// but for the square of the factor of cosines and sines, which a norm behind it takes away.
    #[expect(clippy::cast_possible_truncation, reason = "norms are FP32")]
    pub(super) fn before_turning(&self, factor: f64) -> Norm {
        match (self.place, self.norm) {
            (NormPlace::After, Norm::RmsNorm { epsilon }) => {
                Norm::RmsNorm { epsilon: (f64::from(epsilon) / (factor * factor)) as f32 }
            }
            (_, norm) => norm,
        }
    }

    fn check(&self, query_heads: usize) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        check_epsilon(self.norm.epsilon())?;
        match &self.gain {
            Gain::Weights if self.place == NormPlace::After => {
                return wrong("a norm after positions cannot have the layer's vectors".to_owned());
            }
            Gain::Weights => return Ok(()),
            Gain::One => (),
            Gain::Calibrated(gains) => {
                let is_right = |gain: &f32| *gain > 0.0 && gain.is_finite();
                if gains.len() != query_heads || !gains.iter().all(is_right) {
                    return wrong(format!(
                        "gains of queries: must be {query_heads}, one for each head, finite and positive"
                    ));
                }
            }
        }
        match self.norm {
            Norm::RmsNorm { .. } => Ok(()),
            _ => wrong("only an RMS norm of queries and keys needs no vectors".to_owned()),
        }
    }
}

/// Checks the number that a norm adds before its root.
pub(super) fn check_epsilon(epsilon: f32) -> Result<()> {
    if epsilon >= 0.0 && epsilon.is_finite() {
        return Ok(());
    }
    let what = format!("the epsilon of a norm is {epsilon}: must be finite and not negative");
    Err(Error::InvalidArgument(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { query: 2, key_value: 1, size: 4 };

    fn mapped(map: PositionMap) -> AttentionPlan {
        let positions = Positions::Rotary { theta: 1e4, table: Table::Default, map };
        AttentionPlan::new(Reach::Causal).with_positions(positions)
    }

    #[test]
    fn impossible_plans_are_refused() {
        let plain = || AttentionPlan::new(Reach::Causal);
        let rotary = |theta, table| plain().with_positions(Positions::rotary(theta, table));
        let norm = |epsilon, place, gain| Some(QkNorm { norm: Norm::RmsNorm { epsilon }, place, gain });
        let calibrated = |gains: &[f32]| norm(1e-6, NormPlace::Before, Gain::Calibrated(gains.to_vec()));
        let dual = |chunk, local, saturate| mapped(PositionMap::DualChunk { chunk, local, saturate });
        let huge = usize::MAX;
        let layer_norm = Norm::LayerNorm { epsilon: 1e-5 };
        for plan in [
            rotary(0.0, Table::Default),
            rotary(f32::NAN, Table::Default),
            rotary(1e4, Table::Linear { factor: 0.0 }),
            plain().with_reach(Reach::Window { tokens: 0, sinks: 0 }),
            plain().with_reach(Reach::Window { tokens: 4, sinks: 4 }),
            plain().with_reach(Reach::Window { tokens: huge, sinks: 4 }),
            plain().with_reach(Reach::Chunk { tokens: 0 }),
            plain().with_reach(Reach::Chunk { tokens: huge }),
            plain().with_scale(Scale::Constant(f32::NAN)),
            plain().with_law(Some(Law::LogLength { trained: 1 })),
            plain().with_law(Some(Law::Floor { every: 0, slope: 0.1 })),
            plain().with_law(Some(Law::Floor { every: 9, slope: f64::NAN })),
            plain().with_law(Some(Law::Floor { every: 9, slope: -0.1 })),
            plain().with_qk_norm(norm(-1.0, NormPlace::Before, Gain::Weights)),
            plain().with_qk_norm(norm(1e-6, NormPlace::After, Gain::Weights)),
            plain().with_qk_norm(calibrated(&[1.0])),
            plain().with_qk_norm(calibrated(&[1.0, 0.0])),
            plain().with_qk_norm(calibrated(&[1.0, f32::NAN])),
            plain().with_qk_norm(Some(QkNorm { gain: Gain::One, ..QkNorm::of_weights(layer_norm) })),
            mapped(PositionMap::Grouped { group: 0, neighbours: 4 }),
            mapped(PositionMap::Grouped { group: 2, neighbours: 0 }),
            mapped(PositionMap::Grouped { group: 2, neighbours: huge }),
            mapped(PositionMap::Clipped { at: 0 }),
            dual(0, 0, None),
            dual(8, 0, None),
            dual(8, 9, None),
            dual(8, 2, Some(7)),
            dual(huge, 2, None),
            mapped(PositionMap::Clipped { at: 9 }).with_reach(Reach::Window { tokens: 8, sinks: 2 }),
            mapped(PositionMap::Clipped { at: 9 }).with_reach(Reach::Full),
        ] {
            assert!(matches!(plan.check(HEADS), Err(Error::InvalidArgument(_))), "{plan:?}");
        }
        let odd = Heads { size: 3, ..HEADS };
        assert!(rotary(1e4, Table::Default).check(odd).is_err());
        assert!(rotary(1e4, Table::Default).check(HEADS).is_ok());
    }

    #[test]
    fn positions_that_must_stay_within_the_trained_length_are_checked() {
        let grouped = |neighbours| mapped(PositionMap::Grouped { group: 2, neighbours });
        let dual = |local, saturate| mapped(PositionMap::DualChunk { chunk: 192, local, saturate });
        let clipped = |at| mapped(PositionMap::Clipped { at });
        for (good, bad) in [
            (grouped(255), grouped(256)),
            (dual(64, None), dual(65, None)),
            (dual(64, Some(255)), dual(64, Some(300))),
            (clipped(255), clipped(256)),
        ] {
            assert!(good.check_trained(256).is_ok() && bad.check_trained(256).is_err(), "{good:?}");
        }
    }

    #[test]
    fn plans_are_read_as_they_are_written() {
        let norm = QkNorm { gain: Gain::One, ..QkNorm::of_weights(Norm::RmsNorm { epsilon: 1e-6 }) };
        let plan = mapped(PositionMap::DualChunk { chunk: 192, local: 64, saturate: Some(255) })
            .with_law(Some(Law::Floor { every: 256, slope: 0.1 }))
            .with_qk_norm(Some(norm));
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<AttentionPlan>(&text).unwrap(), plan);
        for (from, to) in [("\"local\"", "\"locale\""), ("\"law\"", "\"laws\""), ("rotary", "rotating")] {
            assert!(text.contains(from));
            assert!(serde_json::from_str::<AttentionPlan>(&text.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn queries_grow_by_law() {
        let floor = Law::Floor { every: 256, slope: 0.1 };
        let log = Law::LogLength { trained: 256 };
        assert_eq!([0, 254].map(|at| floor.at(at)), [1.0; 2]);
        assert!((floor.at(255) - 1.069_314_7).abs() < 1e-6);
        assert_eq!([0, 255].map(|at| log.at(at)), [1.0; 2]);
        assert!((log.at(1023) - 1.25).abs() < 1e-6);
    }
}
