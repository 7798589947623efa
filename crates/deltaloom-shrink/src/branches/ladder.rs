//! Codes of fixed bits: multiples of a step that is fitted to a group of values.

use deltaloom::{Error, Result};
use half::f16;

use crate::forms::half;

/// How codes of a group are placed.
pub(super) struct Ladder<'a> {
    bits: u32,
    is_symmetric: bool,
    clips: &'a [f64],
}

/// The codes of a group: multiples of a step from `low` to `high`.
#[derive(Clone, Copy)]
pub(super) struct Rungs {
    pub(super) step: f16,
    low: f64,
    high: f64,
    /// Whether codes are -1 and 1.
    is_sign: bool,
}

impl Rungs {
    pub(super) fn code(self, value: f64) -> f64 {
        match self.is_sign {
            true => 1_f64.copysign(value),
            false => (value / self.step.to_f64()).round().clamp(self.low, self.high),
        }
    }
}

impl<'a> Ladder<'a> {
    pub(super) fn new(bits: u32, is_symmetric: bool, clips: &'a [f64]) -> Result<Self> {
        match bits {
            1..=8 => Ok(Self { bits, is_symmetric: is_symmetric || bits == 8, clips }),
            _ => Err(Error::InvalidArgument(format!("{bits} bits: 1 to 8 are possible"))),
        }
    }

    /// The range with the least square error of some values.
    pub(super) fn fit(&self, values: &[f64]) -> Rungs {
        if self.bits == 1 {
            let sum: f64 = values.iter().map(|value| value.abs()).sum();
            let step = half(sum / values.len().max(1) as f64);
            return Rungs { step, low: -1.0, high: 1.0, is_sign: true };
        }
        let low = values.iter().copied().fold(0.0, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        let most = f64::from(2_u32.pow(self.bits) - 1);
        let rungs = |clip: f64| {
            if self.is_symmetric {
                let top = (most - 1.0) / 2.0;
                let step = half(high.max(-low) * clip / top);
                return Rungs { step, low: -top, high: top, is_sign: false };
            }
            let step = half((high - low) * clip / most);
            let zero = (-low * clip / step.to_f64()).round().clamp(0.0, most);
            Rungs { step, low: -zero, high: most - zero, is_sign: false }
        };
        let error = |rungs: &Rungs| -> f64 {
            values.iter().map(|value| (rungs.code(*value) * rungs.step.to_f64() - value).powi(2)).sum()
        };
        let mut best = rungs(1.0);
        let mut least = error(&best);
        for rungs in self.clips.iter().map(|clip| rungs(*clip)) {
            let error = error(&rungs);
            if error < least {
                (best, least) = (rungs, error);
            }
        }
        best
    }
}
