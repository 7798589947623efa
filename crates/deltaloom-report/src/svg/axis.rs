//! Axes: their range, their ticks, and the position of a value in pixels. It draws nothing.

use super::text::{exponent10, pow10, round, tick_labels};
use crate::figure::{Axis, Scale, Unit};

/// Pixels of the lane for zeros next to a logarithmic axis.
const ZERO_LANE_PX: f64 = 26.0;

/// A tick: its position and its text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tick {
    pub(crate) value: f64,
    pub(crate) label: String,
}

/// A range of values and its ticks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    pub(crate) scale: Scale,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) has_zero_lane: bool,
    pub(crate) ticks: Vec<Tick>,
}

/// Which ends of the range are fixed in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// The values' own ends.
    Tight,
    /// The next ticks, or zero if the values are not far from it.
    Round,
    /// From zero to the next tick.
    FromZero,
}

impl Span {
    /// The range of some values, with about `count` ticks. Values that are not finite are ignored;
    /// a logarithmic axis also ignores those that are not positive.
    pub(crate) fn of(
        axis: &Axis,
        values: impl Iterator<Item = f64> + Clone,
        ends: Ends,
        count: usize,
    ) -> Self {
        let finite = values.filter(|v| v.is_finite());
        let is_log = axis.scale == Scale::Log;
        let (mut low, mut high) = finite
            .clone()
            .filter(|v| !is_log || *v > 0.0)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = if is_log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        let has_zero_lane = is_log && finite.clone().any(|v| v <= 0.0);
        let mut span = Self { scale: axis.scale, low, high, has_zero_lane, ticks: Vec::new() };
        if is_log {
            span.spread_log(axis.unit, ends, count)
        } else {
            span.spread_linear(axis.unit, ends, count)
        }
        span
    }

    fn spread_linear(&mut self, unit: Unit, ends: Ends, count: usize) {
        match ends {
            Ends::FromZero => (self.low, self.high) = (self.low.min(0.0), self.high.max(0.0)),
            Ends::Round if self.low > 0.0 && self.low < self.high / 2.0 => self.low = 0.0,
            Ends::Round | Ends::Tight => {}
        }
        let only = self.low;
        let is_single = self.high <= self.low;
        if is_single {
            let around = if unit == Unit::Count || only == 0.0 { 1.0 } else { only.abs() / 2.0 };
            let from_zero = ends == Ends::FromZero || (only >= 0.0 && ends == Ends::Round);
            (self.low, self.high) = (if from_zero { 0.0 } else { only - around }, only + around);
        }
        // One rule for all units, because their factors are powers of ten: percentages have steps
        // of a hundredth, and so on.
        let rough = nice_step((self.high - self.low) / count.max(1) as f64);
        let step = if unit == Unit::Count { rough.max(1.0) } else { rough };
        if ends != Ends::Tight {
            self.low = (self.low / step + 1e-9).floor() * step;
            self.high = (self.high / step - 1e-9).ceil() * step;
            if unit == Unit::Percent && self.high > 1.0 && self.high < 1.2 {
                self.high = 1.0;
            }
        }
        let first = (self.low / step - 1e-9).ceil();
        let values: Vec<f64> = (0..200)
            .map(|i| (first + f64::from(i)) * step)
            .take_while(|v| *v <= self.high + step * 1e-6)
            .map(|v| if v.abs() < step * 1e-6 { 0.0 } else { v })
            .collect();
        let values = if is_single && ends == Ends::Tight { vec![only] } else { values };
        let labels = tick_labels(&values, step, unit);
        self.ticks = values.into_iter().zip(labels).map(|(value, label)| Tick { value, label }).collect();
    }

    fn spread_log(&mut self, unit: Unit, ends: Ends, count: usize) {
        let decades = |low: f64, high: f64| usize::try_from(exponent10(high) - exponent10(low)).unwrap_or(0);
        // With few decades there is room for ticks between them.
        let is_wide = (self.high.log10() - self.low.log10()) * 3.0 > count as f64 * 2.0;
        if ends != Ends::Tight || self.high <= self.low {
            // Keeps values off the very edge.
            (self.low, self.high) = (round_down(self.low / 1.04), round_up(self.high * 1.04));
            if is_wide {
                self.low = pow10(exponent10(self.low));
                self.high = Some(pow10(exponent10(self.high)))
                    .filter(|p| *p >= self.high)
                    .unwrap_or(pow10(exponent10(self.high) + 1));
            }
        }
        if self.high <= self.low {
            self.high = round_up(self.low * 1.01);
        }
        let (first, last) = (exponent10(self.low), exponent10(self.high));
        let every = decades(self.low, self.high).div_ceil(count + 2).max(1);
        let every = i32::try_from(every).unwrap_or(1);
        let within: &[f64] = if is_wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let inside = |v: &f64| *v >= self.low * (1.0 - 1e-9) && *v <= self.high * (1.0 + 1e-9);
        let mut values: Vec<f64> = (first..=last)
            .filter(|e| (e - first) % every == 0)
            .flat_map(|e| within.iter().map(move |m| m * pow10(e)))
            .filter(inside)
            .collect();
        if values.len() < 2 {
            values = [1.0, 2.0, 5.0]
                .iter()
                .flat_map(|m| [first, last].map(|e| m * pow10(e)))
                .filter(inside)
                .collect();
            values.sort_by(f64::total_cmp);
            values.dedup();
        }
        self.ticks = values.into_iter().map(|value| Tick { value, label: round(value, unit) }).collect();
    }
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `rough`.
fn nice_step(rough: f64) -> f64 {
    if !rough.is_finite() || rough <= 0.0 {
        return 1.0;
    }
    let base = pow10(exponent10(rough));
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * base);
    steps.into_iter().find(|step| *step >= rough * (1.0 - 1e-9)).unwrap_or(10.0 * base)
}

fn round_down(x: f64) -> f64 {
    let base = pow10(exponent10(x));
    [5.0, 2.0, 1.0].map(|m| m * base).into_iter().find(|v| *v <= x * (1.0 + 1e-9)).unwrap_or(base)
}

fn round_up(x: f64) -> f64 {
    let base = pow10(exponent10(x));
    [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * base)
        .into_iter()
        .find(|v| *v >= x * (1.0 - 1e-9))
        .unwrap_or(10.0 * base)
}

/// Maps a span to the pixels between two positions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Projection {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// Position of zeros next to a logarithmic axis.
    pub(crate) zero: Option<f64>,
}

impl Projection {
    pub(crate) fn new(span: &Span, from: f64, to: f64) -> Self {
        let lane = if span.has_zero_lane { ZERO_LANE_PX.copysign(to - from) } else { 0.0 };
        let zero = span.has_zero_lane.then_some(from + lane / 4.0);
        Self { scale: span.scale, low: span.low, high: span.high, from: from + lane, to, zero }
    }

    /// Position of a value; `None` if it is not finite.
    pub(crate) fn place(&self, value: f64) -> Option<f64> {
        let share = match self.scale {
            _ if !value.is_finite() => return None,
            Scale::Log if value <= 0.0 => return self.zero,
            Scale::Log => (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10()),
            Scale::Linear => (value - self.low) / (self.high - self.low),
        };
        Some(self.from + share * (self.to - self.from)).filter(|place| place.is_finite())
    }

    /// Maps a span to the steps of a colour scale; zeros stay outside.
    pub(crate) fn of_colours(span: &Span, steps: f64) -> Self {
        let zero = span.has_zero_lane.then_some(-1.0);
        Self { scale: span.scale, low: span.low, high: span.high, from: 0.0, to: steps, zero }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, values: &[f64], ends: Ends) -> Vec<String> {
        let span = Span::of(axis, values.iter().copied(), ends, 5);
        assert!(span.low < span.high, "{span:?}");
        span.ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        let number = Axis::linear("", Unit::Number);
        assert_eq!(
            labels(&number, &[0.0, 10_000.0], Ends::Tight),
            ["0", "2,000", "4,000", "6,000", "8,000", "10,000"]
        );
        let percent = Axis::linear("", Unit::Percent);
        assert_eq!(
            labels(&percent, &[0.01, 0.034], Ends::Round),
            ["0\u{a0}%", "1\u{a0}%", "2\u{a0}%", "3\u{a0}%", "4\u{a0}%"]
        );
        let bytes = Axis::log("", Unit::Bytes);
        assert_eq!(
            labels(&bytes, &[1.5e3, 5e8], Ends::Round),
            ["1\u{a0}kB", "10\u{a0}kB", "100\u{a0}kB", "1\u{a0}MB", "10\u{a0}MB", "100\u{a0}MB", "1\u{a0}GB"]
        );
    }

    #[test]
    fn ranges_of_one_value_none_or_nonsense_still_have_an_extent() {
        for scale in [Scale::Linear, Scale::Log] {
            for values in
                [&[][..], &[3.0], &[0.0], &[-2.0], &[f64::NAN, f64::INFINITY], &[1e300, 1e-300], &[7.0, 7.0]]
            {
                for ends in [Ends::Tight, Ends::Round, Ends::FromZero] {
                    let axis = Axis { label: String::new(), unit: Unit::Number, scale };
                    let span = Span::of(&axis, values.iter().copied(), ends, 5);
                    assert!(span.low < span.high && span.ticks.len() < 60, "{values:?} {ends:?} {span:?}");
                }
            }
        }
    }

    #[test]
    fn zeros_lie_beside_a_logarithmic_axis() {
        let span = Span::of(&Axis::log("", Unit::Number), [0.0, 1.0, 100.0].into_iter(), Ends::Round, 5);
        let projection = Projection::new(&span, 200.0, 0.0);
        let (zero, one, hundred) = (projection.place(0.0), projection.place(1.0), projection.place(100.0));
        assert!(zero > one && one > hundred && hundred > Some(0.0), "{zero:?} {one:?} {hundred:?}");
        assert_eq!(projection.place(f64::NAN), None);
    }
}
