//! The options of `deltaloom series plot` and `health`.

use std::path::PathBuf;

use clap::Args;
use deltaloom_report::WarningRule;

use super::StoreArgument;

/// Draw a series as one self-contained HTML page, and as SVG and TensorBoard files.
///
/// The charts show loss, learning rate and other numbers of the steps, ratios, bytes saved, changed
/// weights, stored bits and predictors per step, changes per layer, frozen layers, and the
/// distribution of the newest weights.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series plot runs/7b -o series.html
  deltaloom series plot runs/7b -o series.html --svg pictures --tensorboard logs --last 500")]
pub(crate) struct PlotArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// HTML page to write; `-` is standard output
    #[arg(short, long, value_name = "FILE.html")]
    pub(crate) output: PathBuf,
    /// Also write each chart as an SVG file into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Also write a TensorBoard event file into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) tensorboard: Option<PathBuf>,
    /// Show only the newest N steps [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    #[command(flatten)]
    pub(crate) rule: RuleArguments,
    /// Number of weights of the newest step to sample for their distribution; 0 omits the chart
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) sample: u64,
    /// Replace existing files
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Check a series for signs of trouble in training.
///
/// Reports changed weights and stored bits per step, frozen layers, and steps that differ from
/// those before them. Exit code 1 if there is a warning.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series health runs/7b
  deltaloom series health runs/7b --last 500 --threshold 6 --json | jq .warnings
  deltaloom series health runs/7b --last 50 --below 1e-5")]
pub(crate) struct HealthArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// Show only the newest N steps [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    #[command(flatten)]
    pub(crate) rule: RuleArguments,
    /// Also decode the steps of the frozen window, and report the fraction of each layer that moved
    /// by less than T
    #[arg(long, value_name = "T")]
    pub(crate) below: Option<f64>,
    /// Print the report as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print one CSV line per step: ratio, bits per weight, and the changed fraction of all weights
    /// and of each layer
    #[arg(long)]
    pub(crate) csv: bool,
}

/// When a step is worth a warning.
#[derive(Debug, Args)]
pub(crate) struct RuleArguments {
    /// Number of earlier steps to compare a step with
    #[arg(long, value_name = "N", default_value_t = WarningRule::default().window)]
    pub(crate) window: usize,
    /// Warn if the logarithm of the changed fraction is more than X deviations from the median of
    /// the earlier steps (estimated from the median absolute deviation)
    #[arg(long, value_name = "X", default_value_t = WarningRule::default().threshold)]
    pub(crate) threshold: f64,
    /// Number of newest steps in which to look for frozen layers
    #[arg(long, value_name = "N", default_value_t = WarningRule::default().frozen_window)]
    pub(crate) frozen_window: usize,
}

impl RuleArguments {
    pub(crate) fn rule(&self) -> WarningRule {
        let Self { window, threshold, frozen_window } = *self;
        WarningRule::default().with_window(window).with_threshold(threshold).with_frozen_window(frozen_window)
    }
}
