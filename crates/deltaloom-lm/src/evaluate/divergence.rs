//! How far a model is from another on the same text: Kullback-Leibler divergence of its
//! probabilities, position by position, and what llama.cpp's `--kl-divergence` lists beside it.

use std::collections::BTreeMap;

use deltaloom::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;

use super::share::Share;
use crate::sample::LogProbs;

/// How many of the most probable tokens are compared.
const TOP: usize = 5;

/// Adds up positions.
#[derive(Debug, Clone, Default)]
pub struct Divergence {
    points: Vec<Point>,
    /// Number of positions at the end of each window.
    ends: Vec<usize>,
}

/// Both models at one position.
#[derive(Debug, Clone, Copy)]
struct Point {
    divergence: f64,
    /// The same the other way round: of the base from the student.
    reverse: f64,
    /// Share of the most probable tokens of one that are also among those of the other.
    overlap: f64,
    /// The token that follows.
    next: u32,
    /// Change of the probability of the token that follows.
    change: f64,
    /// Losses of both models on that token, in nats.
    losses: [f64; 2],
    has_same_top: bool,
}

/// The distribution of a number over positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard error of the mean; 0 for one position.
    pub standard_error: f64,
    /// Largest.
    pub maximum: f64,
    /// 99.9 % are not larger; and so on.
    pub p99_9: f64,
    /// 99 %.
    pub p99: f64,
    /// 95 %.
    pub p95: f64,
    /// 90 %.
    pub p90: f64,
    /// 75 %.
    pub p75: f64,
    /// Half.
    pub median: f64,
    /// 25 %.
    pub p25: f64,
    /// 10 %.
    pub p10: f64,
    /// 5 %.
    pub p5: f64,
    /// 1 %.
    pub p1: f64,
    /// 0.1 %.
    pub p0_1: f64,
    /// Smallest.
    pub minimum: f64,
}

/// Positions of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Group {
    /// How many.
    pub tokens: u64,
    /// Mean divergence of the student from the base, in nats.
    pub kl: f64,
    /// Its standard error.
    pub kl_error: f64,
}

/// A base and a student on one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DivergenceReport {
    /// Mean divergence of the student from the base, in nats. The same as `kl.mean`.
    pub mean_kl: f64,
    /// Divergences of positions, in nats.
    pub kl: Spread,
    /// Standard error of the mean from the differences between windows, whose positions depend on
    /// each other; `None` for fewer than two windows.
    pub kl_window_error: Option<f64>,
    /// Mean divergence of the base from the student, in nats: it is large where the student finds
    /// likely what the base does not.
    pub reverse_kl: f64,
    /// Its standard error.
    pub reverse_kl_error: f64,
    /// Mean share of the five most probable tokens of the base that are among the five of the
    /// student.
    pub top5_overlap: f64,
    /// Student's less base's probability of the token that follows.
    pub probability_change: Spread,
    /// Root of its mean square.
    pub probability_change_rms: f64,
    /// Positions where both have the same most probable token.
    pub same_top: Share,
    /// Mean losses, in nats.
    pub base_loss: f64,
    /// Of the student.
    pub student_loss: f64,
    /// Perplexities.
    pub base_perplexity: f64,
    /// Of the student.
    pub student_perplexity: f64,
    /// Student's perplexity as a multiple of the base's.
    pub perplexity_ratio: f64,
    /// Natural logarithm of that.
    pub log_perplexity_ratio: f64,
    /// Its standard error.
    pub log_perplexity_ratio_error: f64,
    /// Correlation of both losses; `None` if one of them never changes.
    pub loss_correlation: Option<f64>,
    /// Positions.
    pub tokens: u64,
}

impl Point {
    fn of(base: &[f32], student: &[f32], next: u32) -> Result<Self> {
        if base.len() != student.len() || next as usize >= base.len() {
            return Err(Error::InvalidArgument(format!(
                "{} and {} logits for id {next}: both models must have the same ids",
                base.len(),
                student.len()
            )));
        }
        let (p, q) = (LogProbs::new(base)?, LogProbs::new(student)?);
        let (mut divergence, mut reverse) = (0.0, 0.0);
        for id in (0..).take(base.len()) {
            let (of_base, of_student) = (p.of(id), q.of(id));
            // What a model rules out adds nothing to its sum. Equal logarithms add exactly 0.
            if of_base > f64::NEG_INFINITY {
                divergence += libm::exp(of_base) * (of_base - of_student);
            }
            if of_student > f64::NEG_INFINITY {
                reverse += libm::exp(of_student) * (of_student - of_base);
            }
        }
        let [of_p, of_q] = [p.top(TOP), q.top(TOP)];
        let shared = of_p.iter().filter(|one| of_q.iter().any(|other| other.id == one.id)).count();
        let (of_base, of_student) = (p.of(next), q.of(next));
        Ok(Self {
            // Rounding may leave a little less than 0.
            divergence: divergence.max(0.0),
            reverse: reverse.max(0.0),
            overlap: shared as f64 / of_p.len() as f64,
            next,
            change: libm::exp(of_student) - libm::exp(of_base),
            losses: [-of_base, -of_student],
            has_same_top: of_p.first().map(|best| best.id) == of_q.first().map(|best| best.id),
        })
    }
}

impl Divergence {
    /// Adds a position from the logits of both models and the id that follows.
    ///
    /// # Errors
    /// Logits are broken or of two lengths; `next` is no id.
    pub fn add(&mut self, base: &[f32], student: &[f32], next: u32) -> Result<()> {
        self.points.push(Point::of(base, student, next)?);
        Ok(())
    }

    /// Adds positions, one for each id of `next`, on all threads. Logits are `[positions, ids]`.
    ///
    /// # Errors
    /// As [`Self::add`]; then nothing is added.
    pub fn add_all(&mut self, base: &[f32], student: &[f32], next: &[u32]) -> Result<()> {
        let ids = base.len().checked_div(next.len()).unwrap_or(0).max(1);
        if ids * next.len() != base.len() || base.len() != student.len() {
            let what = format!("{} and {} logits for {} positions", base.len(), student.len(), next.len());
            return Err(Error::InvalidArgument(what));
        }
        let pairs = base.par_chunks_exact(ids).zip(student.par_chunks_exact(ids)).zip(next);
        let points = pairs.map(|((base, student), next)| Point::of(base, student, *next));
        self.points.extend(points.collect::<Result<Vec<_>>>()?);
        Ok(())
    }

    /// Ends a window: the positions since the last one depend on each other.
    pub fn end_window(&mut self) {
        if self.ends.last().copied().unwrap_or(0) < self.points.len() {
            self.ends.push(self.points.len());
        }
    }

    /// Divergences of all positions so far, in nats.
    pub fn divergences(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|point| point.divergence)
    }

    /// Divergences of positions by the kind of the token that follows.
    #[must_use]
    pub fn by_kind<K: Ord>(&self, kind: impl Fn(u32) -> K) -> BTreeMap<K, Group> {
        let mut groups: BTreeMap<K, Vec<f64>> = BTreeMap::new();
        for point in &self.points {
            groups.entry(kind(point.next)).or_default().push(point.divergence);
        }
        let group = |values: &[f64]| {
            let Spread { mean, standard_error, .. } = Spread::of(values)?;
            Some(Group { tokens: values.len() as u64, kl: mean, kl_error: standard_error })
        };
        groups.into_iter().filter_map(|(kind, values)| Some((kind, group(&values)?))).collect()
    }

    /// All positions so far; `None` if there are none.
    #[must_use]
    pub fn report(&self) -> Option<DivergenceReport> {
        let tokens = self.points.len();
        let kl = Spread::of(&self.divergences().collect::<Vec<_>>())?;
        let losses: Vec<[f64; 2]> = self.points.iter().map(|point| point.losses).collect();
        let changes: Vec<f64> = self.points.iter().map(|point| point.change).collect();
        let of = |model: usize| losses.iter().map(move |pair| pair[model]);
        let [base_loss, student_loss] = [0, 1].map(|model| mean(of(model), tokens));
        let ratios: Vec<f64> = losses.iter().map(|[base, student]| student - base).collect();
        let ratio = Spread::of(&ratios)?;
        let reverse = Spread::of(&self.points.iter().map(|point| point.reverse).collect::<Vec<_>>())?;
        let same_top = self.points.iter().filter(|point| point.has_same_top).count();
        Some(DivergenceReport {
            mean_kl: kl.mean,
            kl_window_error: self.window_error(kl.mean),
            kl,
            reverse_kl: reverse.mean,
            reverse_kl_error: reverse.standard_error,
            top5_overlap: mean(self.points.iter().map(|point| point.overlap), tokens),
            probability_change: Spread::of(&changes)?,
            probability_change_rms: mean(changes.iter().map(|change| change * change), tokens).sqrt(),
            same_top: Share::new(same_top as u64, tokens as u64)?,
            base_loss,
            student_loss,
            base_perplexity: libm::exp(base_loss),
            student_perplexity: libm::exp(student_loss),
            perplexity_ratio: libm::exp(ratio.mean),
            log_perplexity_ratio: ratio.mean,
            log_perplexity_ratio_error: ratio.standard_error,
            loss_correlation: correlation(&losses, [base_loss, student_loss]),
            tokens: tokens as u64,
        })
    }

    /// Of a ratio of sums, because windows may differ in length.
    fn window_error(&self, mean: f64) -> Option<f64> {
        let windows = self.ends.len();
        if windows < 2 || self.ends.last() != Some(&self.points.len()) {
            return None;
        }
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let excess = |(start, end): (usize, usize)| -> f64 {
            self.points[start..end].iter().map(|point| point.divergence - mean).sum()
        };
        let squares: f64 = starts.zip(self.ends.iter().copied()).map(|place| excess(place).powi(2)).sum();
        let n = windows as f64;
        Some((squares * n / (n - 1.0)).sqrt() / self.points.len() as f64)
    }
}

fn mean(values: impl Iterator<Item = f64>, count: usize) -> f64 {
    values.sum::<f64>() / count as f64
}

fn correlation(losses: &[[f64; 2]], [base, student]: [f64; 2]) -> Option<f64> {
    let [mut both, mut of_base, mut of_student] = [0.0; 3];
    for [x, y] in losses {
        let (x, y) = (x - base, y - student);
        both += x * y;
        of_base += x * x;
        of_student += y * y;
    }
    let product = of_base.sqrt() * of_student.sqrt();
    (product > 0.0 && product.is_finite()).then(|| both / product)
}

impl Spread {
    /// Of some numbers; `None` if there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let (minimum, maximum) = (*sorted.first()?, *sorted.last()?);
        let count = values.len();
        let mean = mean(values.iter().copied(), count);
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let freedom = (count - 1).max(1) as f64;
        let at = |share: f64| percentile(&sorted, share);
        Some(Self {
            mean,
            standard_error: (squares / freedom / count as f64).sqrt(),
            maximum,
            p99_9: at(0.999),
            p99: at(0.99),
            p95: at(0.95),
            p90: at(0.9),
            p75: at(0.75),
            median: at(0.5),
            p25: at(0.25),
            p10: at(0.1),
            p5: at(0.05),
            p1: at(0.01),
            p0_1: at(0.001),
            minimum,
        })
    }
}

/// Between the two nearest of sorted numbers, as numpy's `percentile` does it.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "a place in the list")]
    let below = place as usize;
    let above = (below + 1).min(sorted.len() - 1);
    let (low, high) = (sorted[below], sorted[above]);
    // Equal numbers, infinite ones too, have nothing between them.
    if low == high { low } else { low + (high - low) * (place - below as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(base: &[f32], student: &[f32], next: u32) -> DivergenceReport {
        let mut divergence = Divergence::default();
        divergence.add(base, student, next).unwrap();
        divergence.report().unwrap()
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        // Probabilities 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4.
        let (two, one) = (2_f32.ln(), 0.0);
        let found = report(&[two, one, one], &[one, two, one], 0);
        assert!((found.mean_kl - 0.25 * 2_f64.ln()).abs() < 1e-7);
        assert!((found.probability_change.mean + 0.25).abs() < 1e-7);
        assert!((found.perplexity_ratio - 2.0).abs() < 1e-6);
        // The two are each other's mirror image.
        assert!((found.reverse_kl - found.mean_kl).abs() < 1e-12);
        assert_eq!((found.same_top.right, found.tokens), (0, 1));
        assert_eq!(found.loss_correlation, None);
    }

    #[test]
    fn the_reverse_divergence_is_that_of_the_models_in_turn() {
        let (base, student) = ([1.0, 0.0, -2.0, 0.5], [0.0, 0.3, 1.0, -1.0]);
        let (there, back) = (report(&base, &student, 1), report(&student, &base, 1));
        assert_eq!((there.reverse_kl, there.mean_kl), (back.mean_kl, back.reverse_kl));
        assert!(there.mean_kl != there.reverse_kl);
    }

    #[test]
    fn the_overlap_counts_shared_tokens_in_any_order() {
        let of = |ids: [usize; 5]| {
            let mut logits = [0.0; 9];
            ids.iter().zip(1_i16..).for_each(|(id, logit)| logits[*id] = f32::from(logit));
            logits
        };
        let overlap = |a, b| report(&of(a), &of(b), 0).top5_overlap;
        assert_eq!(overlap([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]), 1.0);
        assert_eq!(overlap([0, 1, 2, 3, 4], [4, 5, 6, 7, 8]), 0.2);
        // Fewer than five tokens.
        assert_eq!(report(&[0.0, 1.0], &[1.0, 0.0], 0).top5_overlap, 1.0);
    }

    #[test]
    fn groups_are_those_of_the_tokens_that_follow() {
        let mut divergence = Divergence::default();
        let (near, far) = ([0.0; 3], [1.0, -1.0, 0.0]);
        divergence.add(&near, &near, 0).unwrap();
        divergence.add(&near, &far, 1).unwrap();
        divergence.add(&near, &far, 2).unwrap();
        let groups = divergence.by_kind(|id| id > 0);
        assert_eq!((groups[&false].tokens, groups[&false].kl), (1, 0.0));
        assert_eq!((groups[&true].tokens, groups[&true].kl_error), (2, 0.0));
        assert!((groups[&true].kl * 2.0 / 3.0 - divergence.report().unwrap().mean_kl).abs() < 1e-12);
    }

    #[test]
    fn what_only_the_base_allows_is_infinitely_far() {
        assert_eq!(report(&[0.0, 0.0], &[0.0, f32::NEG_INFINITY], 0).mean_kl, f64::INFINITY);
        assert!(report(&[0.0, f32::NEG_INFINITY], &[0.0, 0.0], 0).mean_kl.is_finite());
    }

    #[test]
    fn broken_logits_are_errors() {
        let mut divergence = Divergence::default();
        assert!(divergence.add(&[0.0], &[0.0, 1.0], 0).is_err());
        assert!(divergence.add(&[0.0], &[0.0], 1).is_err());
        assert!(divergence.add(&[f32::NAN], &[0.0], 0).is_err());
        assert_eq!(divergence.report(), None);
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        let values: Vec<f64> = (0..=10).map(f64::from).rev().collect();
        let spread = Spread::of(&values).unwrap();
        assert_eq!((spread.minimum, spread.median, spread.maximum, spread.mean), (0.0, 5.0, 10.0, 5.0));
        assert!((spread.p90 - 9.0).abs() < 1e-12 && (spread.p25 - 2.5).abs() < 1e-12);
        assert!((spread.p99_9 - 9.99).abs() < 1e-12);
        assert_eq!(Spread::of(&[3.0]).unwrap().standard_error, 0.0);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn windows_give_an_error_of_their_own() {
        let (near, far) = ([0.0, 0.0], [1.0, -1.0]);
        let mut divergence = Divergence::default();
        divergence.add_all(&[near, near].concat(), &[near, near].concat(), &[0, 1]).unwrap();
        divergence.end_window();
        assert_eq!(divergence.report().unwrap().kl_window_error, None);
        divergence.add_all(&[near, near].concat(), &[far, far].concat(), &[0, 1]).unwrap();
        divergence.end_window();
        divergence.end_window();
        let found = divergence.report().unwrap();
        // Two windows with the means 0 and 2 m: the error of their mean m is m.
        assert!((found.kl_window_error.unwrap() - found.mean_kl).abs() < 1e-12 && found.mean_kl > 0.1);
        assert!(divergence.add_all(&[0.0; 3], &[0.0; 3], &[0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn a_model_is_not_far_from_itself(logits in proptest::collection::vec(-90.0_f32..90.0, 1..80), next: u8) {
            let next = u32::from(next) % u32::try_from(logits.len()).unwrap();
            let found = report(&logits, &logits, next);
            prop_assert_eq!((found.mean_kl, found.reverse_kl), (0.0, 0.0));
            prop_assert_eq!(found.top5_overlap, 1.0);
            prop_assert_eq!(found.log_perplexity_ratio, 0.0);
            prop_assert_eq!(found.probability_change_rms, 0.0);
            prop_assert_eq!(found.same_top.value, 1.0);
        }
    }
}
