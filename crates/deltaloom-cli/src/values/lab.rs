//! Values of the experiments.

use clap::ValueEnum;
use clap::builder::PossibleValue;
use deltaloom_compute::{Mode, WeightType};
use deltaloom_lab::lossy::{Method, Rule};
use deltaloom_lab::simhash::measure::Correction;
use deltaloom_lab::simhash::{Pieces, Projection};

use super::measure::parse_size;

/// A published threshold method by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MethodName(Method);

impl MethodName {
    const ALL: [Self; Method::ALL.len()] = {
        let mut all = [Self(Method::P1); Method::ALL.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = Self(Method::ALL[i]);
            i += 1;
        }
        all
    };

    pub(crate) fn method(self) -> Method {
        self.0
    }
}

impl ValueEnum for MethodName {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

/// A rule for thresholds, with its text as its name.
#[derive(Debug, Clone)]
pub(crate) struct Adaptive {
    pub(crate) text: String,
    pub(crate) rule: Rule,
}

impl Adaptive {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let positive = |number: &str| {
            let parsed = number.trim().parse::<f32>().map_err(|e| format!("{number:?}: {e}"))?;
            if parsed.is_finite() && parsed >= 0.0 {
                Ok(parsed)
            } else {
                Err(format!("{number:?} is not 0 or more"))
            }
        };
        let rule = match text.split_once('=') {
            Some(("bytes", count)) => Rule::Bytes(count.parse().map_err(|e| format!("{count:?}: {e}"))?),
            Some(("quantile", q)) => match q.parse::<f64>() {
                Ok(q) if (0.0..=1.0).contains(&q) => Rule::Quantile(q),
                _ => return Err(format!("{q:?} is not between 0 and 1")),
            },
            Some(("lr-steps", numbers)) => match numbers.split_once(',') {
                Some((lr, steps)) => Rule::LrSteps { lr: positive(lr)?, steps: positive(steps)? },
                None => return Err("expected lr-steps=LR,STEPS, such as lr-steps=5e-5,101".to_owned()),
            },
            Some(("threshold", value)) => Rule::Fixed(positive(value)?),
            _ => return Err("expected bytes=N, quantile=Q, lr-steps=LR,STEPS or threshold=T".to_owned()),
        };
        Ok(Self { text: text.to_owned(), rule })
    }
}

/// Which form of the threshold methods runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodForm {
    /// Exactly as published
    Published,
    /// As they would be used in practice
    Corrected,
    /// Measure fast and exact
    Both,
}

/// The type of generated weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weight {
    /// 2 bytes per weight
    Bf16,
    /// 4 bytes per weight
    F32,
}

impl Weight {
    pub(crate) fn weight_type(self) -> WeightType {
        match self {
            Self::Bf16 => WeightType::Bf16,
            Self::F32 => WeightType::F32,
        }
    }
}

/// The numerical guarantees to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Modes {
    /// Results may differ in the last bits
    Fast,
    /// Identical bits, however the product is computed
    #[value(alias = "bit-exact")]
    Exact,
    /// The same with activations rounded to BF16
    Exact16,
    /// Measure fast and exact
    Both,
}

impl Modes {
    pub(crate) fn modes(self) -> Vec<Mode> {
        match self {
            Self::Fast => vec![Mode::Fast],
            Self::Exact => vec![Mode::Exact],
            Self::Exact16 => vec![Mode::Exact16],
            Self::Both => vec![Mode::Fast, Mode::Exact],
        }
    }
}

/// What is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HashOn {
    /// The whole matrix
    Weights,
    /// Only its difference from the base; the base's product is exact
    Delta,
}

/// How estimates are corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CorrectionName {
    /// Estimates only
    None,
    /// The columns with the largest |x| times norm are exact, the others are estimated
    Topk,
    /// No estimate: an unbiased random sample of exact columns
    Sample,
}

impl CorrectionName {
    pub(crate) fn correction(self) -> Correction {
        match self {
            Self::None => Correction::None,
            Self::Topk => Correction::TopK,
            Self::Sample => Correction::Sample,
        }
    }
}

/// How hyperplanes are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProjectionName {
    /// Normally distributed
    Gaussian,
    /// Random signs
    Rademacher,
}

impl ProjectionName {
    pub(crate) fn projection(self) -> Projection {
        match self {
            Self::Gaussian => Projection::Gaussian,
            Self::Rademacher => Projection::Rademacher,
        }
    }
}

pub(crate) fn parse_pieces(text: &str) -> Result<Pieces, String> {
    if text == "row" {
        return Ok(Pieces::Rows);
    }
    let (rows, cols) = parse_shape(text).map_err(|e| format!("{e}, or row"))?;
    Ok(Pieces::Blocks { rows, cols })
}

pub(crate) fn parse_shape(text: &str) -> Result<(usize, usize), String> {
    let shape = text.split_once('x').and_then(|(rows, cols)| Some((rows.parse().ok()?, cols.parse().ok()?)));
    shape.ok_or_else(|| format!("{text:?} is not ROWSxCOLS such as 16x16"))
}

/// A memory budget: a number of bytes, or a percentage of dense copies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Budget {
    Bytes(u64),
    Percent(f64),
}

impl Budget {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(percent) = text.trim().strip_suffix('%') else { return parse_size(text).map(Self::Bytes) };
        match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(Self::Percent(percent)),
            _ => Err("expected a size such as 4MiB, or from 0% to 1000%".to_owned()),
        }
    }

    /// In bytes.
    #[expect(clippy::cast_possible_truncation, reason = "a budget, not an exact number")]
    pub(crate) fn of(self, dense_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (percent / 100.0 * dense_bytes as f64) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_sizes_or_shares() {
        let good = [
            ("25%", Budget::Percent(25.0)),
            (" 0.5 %", Budget::Percent(0.5)),
            ("4MiB", Budget::Bytes(4 << 20)),
        ];
        for (text, budget) in good {
            assert_eq!(Budget::parse(text), Ok(budget));
        }
        assert!(["-1%", "x%", "%", "NaN%", "4"].iter().filter(|text| Budget::parse(text).is_ok()).eq(&["4"]));
        assert_eq!((Budget::Percent(25.0).of(1000), Budget::Bytes(7).of(1000)), (250, 7));
    }
}
