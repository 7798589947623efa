//! Shares of right answers, and how sure they are.

use serde::Serialize;

/// Items below which a share is no score.
const ENOUGH: u64 = 500;

/// A share of items with its interval of 95 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// Right ones of all.
    pub value: f64,
    /// Lower end of Wilson's interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Number of right ones.
    pub right: u64,
    /// Number of all.
    pub of: u64,
}

impl Share {
    /// The share of `right` in `of`, which must not be 0 or below `right`; else `None`.
    ///
    /// The interval is that of E. B. Wilson, "Probable inference, the law of succession, and
    /// statistical inference" (1927).
    #[must_use]
    pub fn new(right: u64, of: u64) -> Option<Self> {
        if of == 0 || right > of {
            return None;
        }
        // 97.5 % of a normal distribution are below this.
        const Z: f64 = 1.959_963_984_540_054;
        let (n, value) = (of as f64, right as f64 / of as f64);
        let square = Z * Z / n;
        let middle = (value + square / 2.0) / (1.0 + square);
        let half = Z * (value * (1.0 - value) / n + square / (4.0 * n)).sqrt() / (1.0 + square);
        // Rounding would leave these two ends a little beside 0 and 1.
        let low = if right == 0 { 0.0 } else { middle - half };
        let high = if right == of { 1.0 } else { middle + half };
        Some(Self { value, low, high, right, of })
    }
}

/// What a share of this many items is called: a score only from 500 on.
#[must_use]
pub fn kind_of_number(items: u64) -> &'static str {
    if items < ENOUGH { "sample" } else { "score" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_wilson() {
        let share = Share::new(45, 60).unwrap();
        assert!((share.low - 0.627_679_299_229_521_8).abs() < 1e-12, "{share:?}");
        assert!((share.high - 0.842_234_774_699_433_3).abs() < 1e-12, "{share:?}");
        let none = Share::new(0, 10).unwrap();
        assert!(none.low == 0.0 && none.high > 0.2);
        assert_eq!(Share::new(10, 10).unwrap().high, 1.0);
        assert_eq!(Share::new(0, 0), None);
        assert_eq!(Share::new(2, 1), None);
    }

    #[test]
    fn few_items_are_no_score() {
        assert_eq!(kind_of_number(499), "sample");
        assert_eq!(kind_of_number(500), "score");
    }
}
