//! What a layer's tokens attend to, and how positions enter: data only. The table of wavelengths is
//! computed here, once per model; attention applies it.

use std::f64::consts::TAU;

use super::config::Norm;
use deltaloom::{Error, Result};

/// The attention of one layer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct AttentionPlan {
    /// How positions enter queries and keys.
    pub positions: Positions,
    /// Which tokens a token sees.
    pub reach: Reach,
    /// The factor of scores.
    pub scale: Scale,
    /// The norm of every head of queries and keys, before positions enter; the layer's vectors
    /// hold its weights.
    pub qk_norm: Option<Norm>,
}

impl AttentionPlan {
    /// A plan without positions and norms, with the usual scale.
    #[must_use]
    pub fn new(reach: Reach) -> Self {
        Self { positions: Positions::None, reach, scale: Scale::OfHeadSize, qk_norm: None }
    }

    /// Sets how positions enter.
    #[must_use]
    pub fn with_positions(self, positions: Positions) -> Self {
        Self { positions, ..self }
    }

    /// Sets the norm of queries and keys.
    #[must_use]
    pub fn with_qk_norm(self, qk_norm: Option<Norm>) -> Self {
        Self { qk_norm, ..self }
    }

    /// Sets the factor of scores.
    #[must_use]
    pub fn with_scale(self, scale: Scale) -> Self {
        Self { scale, ..self }
    }

    /// Checks that the plan can be computed for heads of this size.
    pub(super) fn check(&self, head_size: usize) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if let Some(norm) = self.qk_norm {
            check_epsilon(norm.epsilon())?;
        }
        if let Reach::Window { tokens: 0 } = self.reach {
            return wrong("a sliding window of 0 tokens shows nothing".to_owned());
        }
        if let Scale::Constant(scale) = self.scale
            && !scale.is_finite()
        {
            return wrong(format!("the scale of attention is {scale}: must be finite"));
        }
        let Positions::Rotary { theta, table } = self.positions else { return Ok(()) };
        if !(theta > 0.0 && theta.is_finite()) {
            return wrong(format!("the theta of rotary positions is {theta}: must be finite and positive"));
        }
        if !head_size.is_multiple_of(2) {
            return wrong(format!("rotary positions need an even head size, not {head_size}"));
        }
        table.check()
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

/// How positions enter queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Positions {
    /// Not at all.
    None,
    /// Pairs of elements turn by an angle that grows with the position.
    Rotary {
        /// Base of the wavelengths.
        theta: f32,
        /// The wavelengths.
        table: Table,
    },
}

/// The wavelengths of rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Table {
    /// `2 pi theta^(2 i / size)`.
    Default,
    /// All of them longer.
    Linear {
        /// How much longer.
        factor: f32,
    },
    /// Long ones longer, short ones as they are, and a mix between: LLaMA 3.1.
    Llama3 {
        /// How much longer the long ones are.
        factor: f32,
        /// Wavelengths above the trained length over this are long.
        low: f32,
        /// Wavelengths below the trained length over this are short.
        high: f32,
        /// The trained length.
        trained: f32,
    },
}

impl Table {
    fn check(self) -> Result<()> {
        let numbers = match self {
            Self::Default => return Ok(()),
            Self::Linear { factor } => vec![factor],
            Self::Llama3 { factor, low, high, trained } => vec![factor, low, high - low, trained],
        };
        if numbers.iter().all(|number| *number > 0.0 && number.is_finite()) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "rotary positions have {self:?}: numbers must be finite and positive, and high above low"
        )))
    }

    /// Radians per position for each pair of elements of a head.
    ///
    /// The default ones are computed in FP32, as the models were trained with them; what changes
    /// them is computed in F64.
    #[expect(clippy::cast_possible_truncation, reason = "the table is FP32")]
    pub(crate) fn rates(self, theta: f32, size: usize) -> Vec<f32> {
        let single = |number: usize| number as f32;
        let default = (0..size / 2).map(|pair| 1.0 / libm::powf(theta, single(2 * pair) / single(size)));
        let changed = |rate: f32| match self {
            Self::Default => rate,
            Self::Linear { factor } => rate / factor,
            Self::Llama3 { factor, low, high, trained } => {
                let [rate, factor, low, high] = [rate, factor, low, high].map(f64::from);
                // How often the pair turns within the trained length.
                let turns = f64::from(trained) * rate / TAU;
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                ((1.0 - share) * rate / factor + share * rate) as f32
            }
        };
        default.map(changed).collect()
    }
}

/// Which tokens of its sequence a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reach {
    /// Itself and all before it.
    Causal,
    /// Itself and those before it, this many together.
    Window {
        /// Number of tokens.
        tokens: usize,
    },
    /// All of them, also those behind it: encoders.
    Full,
}

/// The factor of scores.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_wavelengths_grow_and_short_ones_stay() {
        let theta = 500_000.0;
        let plain = Table::Default.rates(theta, 64);
        assert_eq!((plain.len(), plain[0]), (32, 1.0));
        let linear = Table::Linear { factor: 4.0 }.rates(theta, 64);
        assert!(plain.iter().zip(&linear).all(|(a, b)| *b == a / 4.0));
        let llama3 = Table::Llama3 { factor: 8.0, low: 1.0, high: 4.0, trained: 8192.0 }.rates(theta, 64);
        // Pair 31 turns once in 2 million tokens.
        assert!(llama3[0] == plain[0] && llama3[31] == plain[31] / 8.0);
        let between = plain.iter().zip(&llama3).filter(|(a, b)| a != b && **b > *a / 7.99).count();
        assert!((1..6).contains(&between), "{between}");
    }

    #[test]
    fn impossible_plans_are_refused() {
        let rotary = |theta, table| {
            AttentionPlan::new(Reach::Causal).with_positions(Positions::Rotary { theta, table })
        };
        let llama3 = Table::Llama3 { factor: 8.0, low: 4.0, high: 4.0, trained: 8192.0 };
        for plan in [
            rotary(0.0, Table::Default),
            rotary(f32::NAN, Table::Default),
            rotary(1e4, Table::Linear { factor: 0.0 }),
            rotary(1e4, llama3),
            AttentionPlan::new(Reach::Window { tokens: 0 }),
            AttentionPlan::new(Reach::Causal).with_qk_norm(Some(Norm::RmsNorm { epsilon: -1.0 })),
            AttentionPlan { scale: Scale::Constant(f32::NAN), ..AttentionPlan::new(Reach::Causal) },
        ] {
            assert!(matches!(plan.check(4), Err(Error::InvalidArgument(_))), "{plan:?}");
        }
        assert!(
            rotary(1e4, Table::Default).check(3).is_err() && rotary(1e4, Table::Default).check(4).is_ok()
        );
    }
}
