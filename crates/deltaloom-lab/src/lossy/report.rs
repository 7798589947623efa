//! The result of a method for each step and for all of them: sizes, thresholds, errors. It computes
//! them from sums and measures nothing.

use serde::Serialize;

use super::errors::Errors;
use super::threshold::Threshold;
use deltaloom::__internals::ratio;

/// Thresholds of the tensors of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Thresholds {
    /// Sum of all thresholds, for the average.
    #[serde(skip)]
    sum: f64,
    #[serde(skip)]
    count: u64,
    /// Average of the tensors' thresholds.
    pub avg: f64,
    /// Least of them.
    pub min: f64,
    /// Greatest of them.
    pub max: f64,
    /// Number of tensors in the zone of P2.
    pub zone_tensors: u64,
}

impl Thresholds {
    pub(super) fn push(&mut self, threshold: Threshold) {
        let value = f64::from(threshold.value);
        self.min = if self.count == 0 { value } else { self.min.min(value) };
        self.max = self.max.max(value);
        self.sum += value;
        self.count += 1;
        self.zone_tensors += u64::from(threshold.zone);
        let count = self.count as f64;
        self.avg = self.sum / count;
    }
}

/// One step of one method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// Its number.
    pub step: u64,
    /// Bytes of the original that the method stores, as they are in the checkpoint.
    pub in_bytes: u64,
    /// Bytes of everything that a reader needs.
    pub out_bytes: u64,
    /// The size that the authors of a published method compare with: four bytes per element,
    /// whatever its dtype.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fp32_bytes: Option<u64>,
    /// The bytes of the output that they count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published_bytes: Option<u64>,
    /// Bytes of tensors and files that a published method does not store at all.
    pub left_out_bytes: u64,
    /// Number of elements of the float tensors.
    pub elems: u64,
    /// Number of elements that are kept.
    pub kept_elems: u64,
    /// Kept elements over all; `None` if every element is exact.
    pub kept_fraction: Option<f64>,
    /// `None` if nothing has a threshold.
    pub thresholds: Option<Thresholds>,
    /// Greatest absolute error of an element; `None` if it is NaN.
    pub max_error: Option<f64>,
    /// Length of the error of the reconstructed update over the length of the true one; `None` if
    /// it is not finite.
    pub relative_update_error: Option<f64>,
    /// Distance of the reconstruction from the original over the length of the true update: the
    /// errors of all steps so far. `None` if it is not finite.
    pub relative_state_error: Option<f64>,
    /// Loss from an evaluation of the reconstruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

impl StepReport {
    pub(super) fn new(step: u64, in_bytes: u64) -> Self {
        Self {
            step,
            in_bytes,
            out_bytes: 0,
            fp32_bytes: None,
            published_bytes: None,
            left_out_bytes: 0,
            elems: 0,
            kept_elems: 0,
            kept_fraction: None,
            thresholds: None,
            max_error: None,
            relative_update_error: None,
            relative_state_error: None,
            loss: None,
        }
    }

    /// A step that is stored exactly.
    pub(super) fn exact(step: u64, in_bytes: u64, out_bytes: u64) -> Self {
        let zero = Some(0.0);
        Self {
            out_bytes,
            max_error: zero,
            relative_update_error: zero,
            relative_state_error: zero,
            ..Self::new(step, in_bytes)
        }
    }

    pub(super) fn set_errors(&mut self, errors: &Errors, thresholds: &Thresholds) {
        self.kept_fraction = (self.elems > 0).then(|| ratio(self.kept_elems, self.elems));
        self.thresholds = (thresholds.count > 0).then_some(*thresholds);
        self.max_error = Some(errors.max).filter(|max| max.is_finite());
        self.relative_update_error = errors.relative_update();
        self.relative_state_error = errors.relative_state();
    }

    /// Input over output.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        ratio(self.in_bytes, self.out_bytes)
    }
}

/// All steps of one method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowReport {
    /// Name of the method, or names of all methods that are the same in this form.
    pub method: String,
    /// `exact`, `published` or `corrected`.
    pub form: &'static str,
    /// Whether a reader gets something other than what was stored.
    pub lossy: bool,
    /// Total input over total output.
    pub ratio: f64,
    /// The same without the first step.
    pub ratio_after_first: Option<f64>,
    /// Mean of the steps' ratios, which published tables show.
    pub mean_ratio: f64,
    /// All bytes as FP32 over all bytes that the authors of a published method count.
    pub published_ratio: Option<f64>,
    /// Mean of the steps' ratios of these.
    pub published_mean_ratio: Option<f64>,
    /// Input bytes of all steps.
    pub in_bytes: u64,
    /// Output bytes of all steps.
    pub out_bytes: u64,
    /// The steps.
    pub steps: Vec<StepReport>,
}

impl RowReport {
    pub(super) fn new(method: String, form: &'static str, steps: &[StepReport]) -> Self {
        let sum = |steps: &[StepReport], of: fn(&StepReport) -> u64| steps.iter().map(of).sum::<u64>();
        let (in_bytes, out_bytes) = (sum(steps, |s| s.in_bytes), sum(steps, |s| s.out_bytes));
        let after = steps.get(1..).filter(|steps| !steps.is_empty());
        let published: Option<Vec<(u64, u64)>> =
            steps.iter().map(|step| Some((step.fp32_bytes?, step.published_bytes?))).collect();
        let published = published.filter(|sizes| !sizes.is_empty());
        let total = |sizes: &Vec<(u64, u64)>| {
            ratio(sizes.iter().map(|(fp32, _)| fp32).sum(), sizes.iter().map(|(_, bytes)| bytes).sum())
        };
        Self {
            method,
            form,
            lossy: form != "exact",
            ratio: ratio(in_bytes, out_bytes),
            ratio_after_first: after.map(|s| ratio(sum(s, |s| s.in_bytes), sum(s, |s| s.out_bytes))),
            mean_ratio: mean(steps.iter().map(StepReport::ratio)),
            published_ratio: published.as_ref().map(total),
            published_mean_ratio: published.map(|sizes| mean(sizes.iter().map(|(a, b)| ratio(*a, *b)))),
            in_bytes,
            out_bytes,
            steps: steps.to_vec(),
        }
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}
