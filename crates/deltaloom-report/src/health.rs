//! Whether training continues as before: how much of the weights changes per step and layer, which
//! layers are frozen, and which steps depart from those before.
//!
//! Pure functions on a series' records of its steps; they read no weights.

use std::collections::{BTreeMap, VecDeque};

use deltaloom::__internals::ratio;
use deltaloom::series::StepRecord;
use serde::Serialize;

/// When a step deserves attention. The natural logarithm of a step's changed fraction is compared
/// with earlier steps at the same distance from their references: more changes over eight steps
/// than over one.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WarningRule {
    /// Number of earlier steps to compare with.
    pub window: usize,
    /// With fewer earlier steps than this, no judgement is made.
    pub min_window: usize,
    /// How many deviations (1.4826 times the median absolute deviation) from the median are too
    /// many.
    pub threshold: f64,
    /// Least deviation, so that a steady run does not cause trivial warnings; 0.05 is 5 %.
    pub min_deviation: f64,
    /// Changed fraction from which everything counts as changed. Reported only if the median before
    /// is below 0.9.
    pub everything: f64,
    /// Number of last steps in which frozen layers are searched.
    pub frozen_window: usize,
    /// A layer is frozen if at least this fraction of it is bit-identical in each of them.
    pub frozen_share: f64,
}

impl WarningRule {
    /// Compares a step with this many earlier ones.
    #[must_use]
    pub fn with_window(self, window: usize) -> Self {
        Self { window, ..self }
    }

    /// Warns from this many deviations on.
    #[must_use]
    pub fn with_threshold(self, threshold: f64) -> Self {
        Self { threshold, ..self }
    }

    /// Looks for frozen layers in this many last steps.
    #[must_use]
    pub fn with_frozen_window(self, frozen_window: usize) -> Self {
        Self { frozen_window, ..self }
    }
}

impl Default for WarningRule {
    fn default() -> Self {
        Self {
            window: 50,
            min_window: 8,
            threshold: 6.0,
            min_deviation: 0.05,
            everything: 0.999,
            frozen_window: 20,
            frozen_share: 1.0,
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepHealth {
    /// Number of the step.
    pub step: u64,
    /// The step it was packed against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<u64>,
    /// Whether it is self-contained.
    pub is_keyframe: bool,
    /// Original bytes over stored bytes.
    pub ratio: f64,
    /// Number of its weights.
    pub weights: u64,
    /// Stored bytes of its weights, with the index.
    pub weights_bytes: u64,
    /// Stored bytes of everything else: states of the training, and other files.
    pub other_bytes: u64,
    /// Stored bits per weight.
    pub bits_per_weight: f64,
    /// Fraction of elements that differ from the reference step.
    pub changed_fraction: Option<f64>,
    /// Deviations from the median of the earlier steps, if there are enough of them.
    pub deviations: Option<f64>,
}

/// What is wrong with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WarningKind {
    /// Much more changed than before.
    More,
    /// Much less changed than before.
    Less,
    /// No element changed.
    Nothing,
    /// All elements changed, unlike before.
    Everything,
    /// Weights are NaN or infinite.
    NonFinite,
    /// Matrices that had several values before now have only one.
    Constant,
}

impl WarningKind {
    /// Description of the affected steps.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::More => "more changed than before",
            Self::Less => "less changed than before",
            Self::Nothing => "nothing changed",
            Self::Everything => "everything changed",
            Self::NonFinite => "weights are NaN or infinite",
            Self::Constant => "matrices have become constant",
        }
    }

    /// The same with the number of affected weights or matrices, if known.
    #[must_use]
    pub fn counted(self, count: Option<u64>) -> String {
        match (self, count) {
            (_, None) => self.label().to_owned(),
            (Self::NonFinite, Some(1)) => "1 weight is NaN or infinite".to_owned(),
            (Self::Constant, Some(1)) => "1 matrix has become constant".to_owned(),
            (_, Some(count)) => format!("{count} {}", self.label()),
        }
    }
}

/// Consecutive steps that depart in the same way from those before.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Warning {
    /// How they depart.
    pub kind: WarningKind,
    /// The first of them.
    pub step: u64,
    /// The last of them.
    pub last_step: u64,
    /// Changed fraction of the step that is farthest from the expected one.
    pub changed_fraction: Option<f64>,
    /// Number of affected weights or matrices, for warnings about them; from the step with the
    /// most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Median of the steps before that one.
    pub expected_fraction: Option<f64>,
    /// Its deviations from that median.
    pub deviations: Option<f64>,
}

/// The kind of a layer, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LayerKind {
    /// Embedding of tokens or positions.
    Embedding,
    /// One of several, with a number.
    Numbered,
    /// Any other part.
    Other,
    /// Norm outside the numbered layers.
    Norm,
    /// Output projection.
    Head,
}

/// Tensors that belong together by their names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Layer {
    /// Its kind.
    pub kind: LayerKind,
    /// The common prefix of their names, up to the number if there is one.
    pub name: String,
}

impl Layer {
    /// The layer of a tensor.
    #[must_use]
    pub fn of(tensor: &str) -> Self {
        let mut parts = Vec::new();
        let mut begin = 0;
        for (end, separator) in tensor.match_indices(['.', '/']).chain([(tensor.len(), "")]) {
            parts.push((&tensor[begin..end], end));
            begin = end + separator.len();
        }
        let numbered = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let ends_in_digit = |part: &str| part.bytes().last().is_some_and(|b| b.is_ascii_digit());
        let up_to = |kind, end: usize| Self { kind, name: tensor[..end].to_owned() };
        if let Some((_, end)) = parts.iter().find(|(part, _)| numbered(part)) {
            return up_to(LayerKind::Numbered, *end);
        }
        let kind_of = |part: &str| {
            let part = part.to_ascii_lowercase();
            if part.contains("embed") || matches!(&*part, "wte" | "wpe") {
                Some(LayerKind::Embedding)
            } else if part.contains("norm") || part == "ln_f" {
                Some(LayerKind::Norm)
            } else if part.contains("head") || matches!(&*part, "output" | "score" | "classifier") {
                Some(LayerKind::Head)
            } else if ends_in_digit(&part) {
                Some(LayerKind::Numbered)
            } else {
                None
            }
        };
        let known = parts.iter().find_map(|(part, end)| Some(up_to(kind_of(part)?, *end)));
        let without_last = parts.iter().rev().nth(1).map_or(tensor.len(), |(_, end)| *end);
        known.unwrap_or_else(|| up_to(LayerKind::Other, without_last))
    }

    /// Sorts by kind, then by name, with the number compared as a number.
    fn order(&self) -> (LayerKind, String, u64, String) {
        let digits = self.name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (name, number) = self.name.split_at(self.name.len() - digits);
        (self.kind, name.to_owned(), number.parse().unwrap_or(0), self.name.clone())
    }
}

/// What a layer did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerHealth {
    /// The layer.
    #[serde(flatten)]
    pub layer: Layer,
    /// Number of its elements, at the last step that has it.
    pub elems: u64,
    /// Fraction of elements that differ from the reference step, for each step of the report;
    /// `None` for keyframes.
    pub changed_fractions: Vec<Option<f64>>,
    /// Steps of the frozen window that have a changed fraction.
    pub window_steps: usize,
    /// Mean fraction of bit-identical elements in the window.
    pub identical_share: Option<f64>,
    /// Mean fraction of elements that moved by less than the caller's threshold, in the window.
    pub below_share: Option<f64>,
    /// Whether it is frozen by the rule.
    pub is_frozen: bool,
    /// The step since which none of its elements changed, if none changed at the last step.
    pub unchanged_since: Option<u64>,
}

/// The state of a series.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The rule that was applied.
    pub rule: WarningRule,
    /// Its steps.
    pub steps: Vec<StepHealth>,
    /// Its layers: embeddings, numbered layers, others, norms, heads.
    pub layers: Vec<LayerHealth>,
    /// What deserves attention.
    pub warnings: Vec<Warning>,
}

/// A weighted sum of fractions of elements.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    elems: f64,
    sum: f64,
}

impl Mean {
    fn add(&mut self, share: Option<f64>, elems: u64) {
        if let Some(share) = share.filter(|share| share.is_finite()) {
            self.elems += elems as f64;
            self.sum += share * elems as f64;
        }
    }

    fn get(self) -> Option<f64> {
        (self.elems > 0.0).then(|| self.sum / self.elems)
    }
}

/// Judges a series by its steps, in their order.
#[must_use]
pub fn health(records: &[StepRecord], rule: &WarningRule) -> Health {
    let mut windows: BTreeMap<u64, VecDeque<f64>> = BTreeMap::new();
    let mut warnings: Vec<Warning> = Vec::new();
    // The previous step, and the previous one with a changed fraction.
    let (mut previous, mut previous_delta) = (None, None);
    let mut steps = Vec::with_capacity(records.len());
    for record in records {
        let changed_fraction = record.changed_fraction.or_else(|| changed(record));
        let is_sound = record.nonfinite_weights == 0 && record.constant_matrices == 0;
        for (kind, count) in [
            (WarningKind::NonFinite, record.nonfinite_weights),
            (WarningKind::Constant, record.constant_matrices),
        ] {
            if count > 0 {
                add_warning(&mut warnings, odd(record.step, kind, count, changed_fraction), previous);
            }
        }
        previous = Some(record.step);
        let mut deviations = None;
        if let Some(fraction) = changed_fraction {
            let distance = record.reference.map_or(0, |reference| record.step.abs_diff(reference));
            let window = windows.entry(distance).or_default();
            let (warning, z) = judge(record.step, fraction, window, rule);
            deviations = z;
            if let Some(warning) = warning {
                add_warning(&mut warnings, warning, previous_delta);
            }
            previous_delta = Some(record.step);
            if fraction > 0.0 && is_sound {
                window.push_back(fraction.ln());
                if window.len() > rule.window {
                    window.pop_front();
                }
            }
        }
        let elems: u64 = record.tensors.iter().map(|tensor| tensor.elems).sum();
        let weights_bytes = record.stored_bytes.saturating_sub(record.other_bytes);
        steps.push(StepHealth {
            step: record.step,
            reference: record.reference,
            is_keyframe: record.is_keyframe,
            ratio: ratio(record.original_bytes, record.stored_bytes),
            weights: elems,
            weights_bytes,
            other_bytes: record.other_bytes,
            bits_per_weight: weights_bytes as f64 * 8.0 / elems.max(1) as f64,
            changed_fraction,
            deviations,
        });
    }
    Health { rule: rule.clone(), steps, layers: layers(records, rule), warnings }
}

fn changed(record: &StepRecord) -> Option<f64> {
    let mut mean = Mean::default();
    for tensor in record.tensors.iter().filter(|_| !record.is_keyframe) {
        mean.add(tensor.changed_fraction, tensor.elems);
    }
    mean.get()
}

fn odd(step: u64, kind: WarningKind, count: u64, changed_fraction: Option<f64>) -> Warning {
    Warning {
        kind,
        step,
        last_step: step,
        changed_fraction,
        count: Some(count),
        expected_fraction: None,
        deviations: None,
    }
}

/// Joins the warning to one of the same kind that ends with the previous step.
fn add_warning(warnings: &mut Vec<Warning>, warning: Warning, previous: Option<u64>) {
    let joins = |last: &&mut Warning| last.kind == warning.kind && Some(last.last_step) == previous;
    match warnings.iter_mut().rev().find(joins) {
        Some(last) => {
            let size = |warning: &Warning| {
                warning.count.map_or_else(|| warning.deviations.map_or(0.0, f64::abs), |count| count as f64)
            };
            let (first, last_step) = (last.step, warning.step);
            if size(&warning) > size(last) {
                *last = warning;
            }
            (last.step, last.last_step) = (first, last_step);
        }
        None => warnings.push(warning),
    }
}

/// Whether a changed fraction departs from a window of logarithms, and by how many deviations.
fn judge(
    step: u64,
    fraction: f64,
    window: &VecDeque<f64>,
    rule: &WarningRule,
) -> (Option<Warning>, Option<f64>) {
    let warning = |kind, median: Option<f64>, deviations| Warning {
        kind,
        step,
        last_step: step,
        changed_fraction: Some(fraction),
        count: None,
        expected_fraction: median.map(|m| rounded(m.exp())),
        deviations,
    };
    let logs: Vec<f64> = window.iter().copied().collect();
    let centre = median(logs.clone()).filter(|_| logs.len() >= rule.min_window.max(1));
    if fraction <= 0.0 {
        return (Some(warning(WarningKind::Nothing, centre, None)), None);
    }
    let Some(centre) = centre else { return (None, None) };
    let deviation = median(logs.iter().map(|x| (x - centre).abs()).collect()).unwrap_or(0.0) * 1.4826;
    let z = rounded((fraction.ln() - centre) / deviation.max(rule.min_deviation));
    let kind = if fraction >= rule.everything && centre.exp() < 0.9 {
        Some(WarningKind::Everything)
    } else if z.abs() > rule.threshold {
        Some(if z > 0.0 { WarningKind::More } else { WarningKind::Less })
    } else {
        None
    };
    (kind.map(|kind| warning(kind, Some(centre), Some(z))), Some(z))
}

/// Six significant digits, because the last ones of a logarithm may differ among machines.
fn rounded(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}

/// The middle value, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

fn layers(records: &[StepRecord], rule: &WarningRule) -> Vec<LayerHealth> {
    // Names are parsed once each, because a series repeats them at every step.
    let mut by_tensor: BTreeMap<&str, Layer> = BTreeMap::new();
    let mut tables: BTreeMap<Layer, Vec<(u64, Mean, Mean)>> = BTreeMap::new();
    for (i, record) in records.iter().enumerate() {
        for tensor in &record.tensors {
            let layer = by_tensor.entry(&tensor.name).or_insert_with(|| Layer::of(&tensor.name));
            if !tables.contains_key(layer) {
                tables.insert(layer.clone(), vec![Default::default(); records.len()]);
            }
            let Some((elems, changed, below)) = tables.get_mut(layer).and_then(|cells| cells.get_mut(i))
            else {
                continue;
            };
            *elems += tensor.elems;
            if !record.is_keyframe {
                changed.add(tensor.changed_fraction, tensor.elems);
                below.add(tensor.below_fraction, tensor.elems);
            }
        }
    }
    let mut out: Vec<LayerHealth> =
        tables.into_iter().map(|(layer, cells)| layer_health(records, rule, layer, &cells)).collect();
    out.sort_by_cached_key(|health| health.layer.order());
    out
}

fn layer_health(
    records: &[StepRecord],
    rule: &WarningRule,
    layer: Layer,
    cells: &[(u64, Mean, Mean)],
) -> LayerHealth {
    let changed_fractions: Vec<Option<f64>> = cells.iter().map(|(_, changed, _)| changed.get()).collect();
    let known =
        || records.iter().zip(&changed_fractions).filter_map(|(record, f)| Some((record.step, (*f)?)));
    let known_steps = known().count();
    let in_window = |i: usize| i >= known_steps.saturating_sub(rule.frozen_window);
    let window: Vec<f64> =
        known().enumerate().filter(|(i, _)| in_window(*i)).map(|(_, (_, f))| 1.0 - f).collect();
    let belows: Vec<f64> = cells.iter().filter_map(|(_, _, below)| below.get()).collect();
    let belows = &belows[belows.len().saturating_sub(rule.frozen_window)..];
    let mean =
        |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let mut unchanged_since = None;
    for (step, fraction) in known() {
        unchanged_since = if fraction == 0.0 { unchanged_since.or(Some(step)) } else { None };
    }
    LayerHealth {
        layer,
        elems: cells.iter().rev().map(|(elems, _, _)| *elems).find(|elems| *elems > 0).unwrap_or(0),
        window_steps: window.len(),
        identical_share: mean(&window),
        below_share: mean(belows),
        is_frozen: !window.is_empty() && window.iter().all(|share| *share >= rule.frozen_share),
        unchanged_since,
        changed_fractions,
    }
}

#[cfg(test)]
mod tests;
