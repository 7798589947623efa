//! The page and the event files of a series: sizes of its steps, changes, and comparison with other
//! methods. It draws nothing itself and opens no store.

mod changes;
mod distribution;
mod methods;
mod metrics;
mod steps;

use super::figure::{Axis, Figure, Unit};
use super::health::{Health, WarningRule, health};
use super::page::{Page, Section, Table};
use super::tensorboard::EventWriter;
use changes::{changes, frozen, layer_map, warnings};
use deltaloom::series::StepRecord;
use deltaloom::{Result, WeightStatistics};
use distribution::{distribution, fields};
use methods::{frontier, method_panels, method_steps, method_totals};
use metrics::{metrics, saved};
use steps::{bits, overview, parts, predictors, ratios};

/// The ratios of a coding method on the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodRatios {
    /// Name.
    pub name: String,
    /// Original bytes over stored bytes, for all steps together.
    pub total_ratio: f64,
    /// The same for each step, in order.
    pub ratios: Vec<(u64, f64)>,
}

/// Size and error of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontierPoint {
    /// Kind of method: the points of a group share a colour.
    pub group: String,
    /// Name.
    pub name: String,
    /// Stored bytes.
    pub bytes: f64,
    /// Error; zero means exact.
    pub error: f64,
}

/// Contents of a series' page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SeriesSummary {
    /// Name of the series.
    pub name: String,
    /// Command that made the page.
    pub command: String,
    /// Its steps, in order.
    pub steps: Vec<StepRecord>,
    /// The rule by which steps and layers are judged.
    pub rule: WarningRule,
    /// Other methods on the same steps.
    pub methods: Vec<MethodRatios>,
    /// Bytes against error of methods.
    pub frontier: Vec<FrontierPoint>,
    /// What the error of the frontier is.
    pub error_label: String,
    /// Weights of the newest step.
    pub weights: Option<WeightStatistics>,
}

/// Builds the page of a series. Sections without data are omitted.
#[must_use]
pub fn series_page(summary: &SeriesSummary) -> Page {
    let health = health(&summary.steps, &summary.rule);
    let mut sections = vec![overview(summary, &health)];
    if !health.steps.is_empty() {
        sections.extend(metrics(summary));
        sections.extend([ratios(summary, &health), saved(summary), bits(&health)]);
        if health.steps.iter().any(|step| step.changed_fraction.is_some()) {
            sections.extend([changes(&health), warnings(&health), layer_map(&health), frozen(&health)]);
        } else if !health.warnings.is_empty() {
            sections.push(warnings(&health));
        }
        sections.extend([predictors(summary), parts(summary)]);
    }
    if !summary.methods.is_empty() {
        sections.extend([
            method_totals(summary),
            method_steps(summary, &health),
            method_panels(summary, &health),
        ]);
    }
    if !summary.frontier.is_empty() {
        sections.push(frontier(summary));
    }
    if let Some(weights) = &summary.weights {
        sections.extend([distribution(weights), fields(weights)]);
    }
    let command = match &*summary.command {
        "" => String::new(),
        command => format!("\n\n`{command}`"),
    };
    let subtitle = format!(
        "Every step is stored exactly. All numbers are computed from the steps in the store.{command}"
    );
    Page { title: format!("Series {}", summary.name), subtitle, sections }
}

/// Builds a page about methods on the same steps. It shows only `methods`, `frontier` and
/// `error_label`.
#[must_use]
pub fn methods_page(title: &str, subtitle: &str, summary: &SeriesSummary) -> Page {
    let health = health(&[], &summary.rule);
    let mut sections =
        vec![method_totals(summary), method_steps(summary, &health), method_panels(summary, &health)];
    if !summary.frontier.is_empty() {
        sections.push(frontier(summary));
    }
    Page { title: title.to_owned(), subtitle: subtitle.to_owned(), sections }
}

/// Writes ratio, changed fraction, stored bits and the numbers of training of every step as curves
/// for TensorBoard, and the changed fraction of every layer.
///
/// # Errors
/// Those of writing the file.
pub fn series_events(steps: &[StepRecord], health: &Health, events: &mut EventWriter) -> Result<()> {
    for (i, (record, step)) in steps.iter().zip(&health.steps).enumerate() {
        events.scalar("series/ratio", step.step, step.ratio)?;
        events.scalar("series/bits_per_weight", step.step, step.bits_per_weight)?;
        if let Some(fraction) = step.changed_fraction {
            events.scalar("series/changed_fraction", step.step, fraction)?;
        }
        for (name, value) in &record.metrics {
            events.scalar(&format!("train/{name}"), step.step, *value)?;
        }
        for layer in &health.layers {
            if let Some(Some(fraction)) = layer.changed_fractions.get(i) {
                events.scalar(&format!("changed_fraction/{}", layer.layer.name), step.step, *fraction)?;
            }
        }
    }
    Ok(())
}

fn steps_axis() -> Axis {
    Axis::linear("step", Unit::Count)
}

fn section(heading: &str, text: String, figure: Figure, table: Table) -> Section {
    Section { heading: heading.to_owned(), text, figure: Some(figure), table: Some(table) }
}

fn totals(steps: &[StepRecord], is_counted: impl Fn(&StepRecord) -> bool) -> (usize, u64, u64) {
    steps.iter().filter(|step| is_counted(step)).fold((0, 0, 0), |(n, original, stored), step| {
        (n + 1, original + step.original_bytes, stored + step.stored_bytes)
    })
}
