//! Which differences of a tensor are kept: the rules of the published methods, and adaptive ones.
//! It codes nothing; a rule by target size is resolved where tensors are coded.

use serde::{Deserialize, Serialize};

/// Threshold of most published methods.
pub(super) const USUAL: f32 = 1e-3;
/// Threshold inside the zone of P2.
const ZONE: f32 = 5e-4;
/// Fraction of small differences from which a tensor is in the zone of P2.
const ZONE_SHARE: f64 = 0.9;

/// How the threshold of each tensor is found. Elements whose difference is at least the threshold
/// are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The same for all tensors. 0 keeps every element that differs, which is lossless.
    Fixed(f32),
    /// 5e-4 for a tensor in which more than 90 % of the differences are below 1e-3, otherwise 1e-3.
    Zone,
    /// This fraction of the range of the tensor's differences.
    Range(f32),
    /// This quantile of the tensor's absolute differences.
    Quantile(f64),
    /// The threshold with which a step's file has at most this many bytes, divided among tensors by
    /// their elements.
    Bytes(u64),
    /// The learning rate times the number of optimiser steps between two checkpoints, which is how
    /// far Adam moves a weight that always goes the same way.
    LrSteps {
        /// Learning rate.
        lr: f32,
        /// Steps between two checkpoints.
        steps: f32,
    },
}

/// A threshold, and whether the tensor is in the zone of P2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Threshold {
    pub(super) value: f32,
    pub(super) zone: bool,
}

impl Rule {
    /// The threshold of a tensor with these differences; `None` if it depends on the coded size.
    pub(super) fn threshold(&self, differences: &[f32]) -> Option<Threshold> {
        let value = match *self {
            Self::Fixed(value) => value,
            Self::Zone => return Some(zone(differences)),
            Self::Range(share) => {
                let (least, greatest) = range(differences);
                share * (greatest - least)
            }
            Self::Quantile(q) => quantile(differences, q),
            Self::Bytes(_) => return None,
            Self::LrSteps { lr, steps } => lr * steps,
        };
        Some(Threshold { value, zone: false })
    }
}

/// The rule of P2.
pub(super) fn zone(differences: &[f32]) -> Threshold {
    let below = differences.iter().filter(|d| d.abs() < USUAL).count();
    let zone = below as f64 > ZONE_SHARE * differences.len() as f64;
    Threshold { value: if zone { ZONE } else { USUAL }, zone }
}

/// Least and greatest of the differences that are not NaN; zeros if there are none.
pub(super) fn range(differences: &[f32]) -> (f32, f32) {
    let start = (f32::INFINITY, f32::NEG_INFINITY);
    let (least, greatest) = differences.iter().fold(start, |(low, high), d| (low.min(*d), high.max(*d)));
    if least <= greatest { (least, greatest) } else { (0.0, 0.0) }
}

/// The quantile of the absolute differences, interpolated as numpy does by default. NaN counts as
/// infinite.
pub(super) fn quantile(differences: &[f32], q: f64) -> f32 {
    let absolute = |d: &f32| if d.is_nan() { f32::INFINITY } else { d.abs() };
    let mut sizes: Vec<f32> = differences.iter().map(absolute).collect();
    let Some(last) = sizes.len().checked_sub(1) else { return 0.0 };
    let place = q.clamp(0.0, 1.0) * last as f64;
    #[expect(clippy::cast_possible_truncation, reason = "between 0 and the last element")]
    let below = (place.floor() as usize).min(last);
    let (_, &mut low, above) = sizes.select_nth_unstable_by(below, f32::total_cmp);
    let high = above.iter().copied().min_by(f32::total_cmp).unwrap_or(low);
    let part = place - below as f64;
    if part == 0.0 || low == high {
        return low;
    }
    #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
    let between = (f64::from(low) + part * (f64::from(high) - f64::from(low))) as f32;
    between
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile(numpy.abs([-4, 1, 3, -2]), q)
        let quantile_of = |q| quantile(&[-4.0, 1.0, 3.0, -2.0], q);
        assert_eq!([0.0, 0.5, 0.97, 1.0].map(quantile_of), [1.0, 2.5, 3.91, 4.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[f32::NAN, 1.0], 1.0), f32::INFINITY);
    }

    #[test]
    fn the_zone_begins_above_nine_tenths() {
        let mut differences = vec![1e-4; 91];
        differences.extend([1e-2; 9]);
        assert_eq!(zone(&differences), Threshold { value: 5e-4, zone: true });
        differences[0] = -1.0;
        assert_eq!(zone(&differences), Threshold { value: 1e-3, zone: false });
    }

    #[test]
    fn rules_follow_what_they_are_given() {
        let differences = [-1.0, 0.0, 3.0, f32::NAN];
        let value = |rule: Rule| rule.threshold(&differences).map(|t| t.value);
        assert_eq!(value(Rule::Range(0.5)), Some(2.0));
        assert_eq!(value(Rule::LrSteps { lr: 1e-6, steps: 8.0 }), Some(8e-6));
        assert_eq!(value(Rule::Quantile(0.0)), Some(0.0));
        assert_eq!(value(Rule::Bytes(10)), None);
        assert_eq!(range(&[f32::NAN]), (0.0, 0.0));
    }
}
