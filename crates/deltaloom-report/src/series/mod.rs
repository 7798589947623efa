//! The page and the event files of a series: what its steps take, what changes, how other methods compare.
//! It draws nothing itself and opens no store.

mod changes;
mod distribution;
mod methods;
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
use steps::{bits, overview, parts, predictors, ratios};

/// What a method of coding makes of the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodRatios {
    /// Name.
    pub name: String,
    /// Original bytes over stored bytes, all steps together.
    pub total_ratio: f64,
    /// The same of each step, in their order.
    pub ratios: Vec<(u64, f64)>,
}

/// What a method pays for its error.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontierPoint {
    /// Kind of method: points of a group have a colour.
    pub group: String,
    /// Name.
    pub name: String,
    /// Stored bytes.
    pub bytes: f64,
    /// Error; zero is exact.
    pub error: f64,
}

/// What a page shows of a series.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SeriesSummary {
    /// Name of the series.
    pub name: String,
    /// Command that made the page.
    pub command: String,
    /// Its steps, in order.
    pub steps: Vec<StepRecord>,
    /// By which rule steps and layers are judged.
    pub rule: WarningRule,
    /// Other methods on the same steps.
    pub methods: Vec<MethodRatios>,
    /// Bytes against error, and what the error is.
    pub frontier: Vec<FrontierPoint>,
    /// What the error of the frontier is.
    pub error_label: String,
    /// Weights of the newest step.
    pub weights: Option<WeightStatistics>,
}

/// The page of a series. Sections without data are left out.
#[must_use]
pub fn series_page(summary: &SeriesSummary) -> Page {
    let health = health(&summary.steps, &summary.rule);
    let mut sections = vec![overview(summary, &health)];
    if !health.steps.is_empty() {
        sections.extend([ratios(summary, &health), bits(&health)]);
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

/// A page of methods on the same steps, of which only `methods`, `frontier` and `error_label` are shown.
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

/// Ratio, changed fraction and stored bits of every step as curves for TensorBoard, and the changed fraction of every layer.
///
/// # Errors
/// Those of writing the file.
pub fn series_events(health: &Health, events: &mut EventWriter) -> Result<()> {
    for (i, step) in health.steps.iter().enumerate() {
        events.scalar("series/ratio", step.step, step.ratio)?;
        events.scalar("series/bits_per_weight", step.step, step.bits_per_weight)?;
        if let Some(fraction) = step.changed_fraction {
            events.scalar("series/changed_fraction", step.step, fraction)?;
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
