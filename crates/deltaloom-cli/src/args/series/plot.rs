//! The options of `deltaloom series plot` and `health`.

use std::path::PathBuf;

use clap::Args;
use deltaloom_report::WarningRule;

use super::StoreArgument;

/// Draw the series: one HTML page that needs no network, SVG files, event files for TensorBoard.
///
/// Ratios, changed weights, stored bits and predictors per step, changes per layer, frozen layers, and the distribution of the newest weights.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series plot runs/7b -o series.html
  deltaloom series plot runs/7b -o series.html --svg pictures --tensorboard logs --last 500")]
pub(crate) struct PlotArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// The page
    #[arg(short, long, value_name = "FILE.html")]
    pub(crate) output: PathBuf,
    /// Also write each picture as a file into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Also write an event file into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) tensorboard: Option<PathBuf>,
    /// The newest so many steps; all without it
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    #[command(flatten)]
    pub(crate) rule: RuleArguments,
    /// Weights of the newest step that are looked at for their distribution; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) sample: u64,
    /// Replace existing files
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Say whether training goes on as it did: changed weights and stored bits per step, frozen layers, and steps that depart from those before.
///
/// Exit code 1 means that there is a warning.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom series health runs/7b
  deltaloom series health runs/7b --last 500 --threshold 6 --json | jq .warnings
  deltaloom series health runs/7b --last 50 --below 1e-5")]
pub(crate) struct HealthArguments {
    #[command(flatten)]
    pub(crate) store: StoreArgument,
    /// The newest so many steps; all without it
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    #[command(flatten)]
    pub(crate) rule: RuleArguments,
    /// Also decode the steps of the frozen window and say which share of each layer moved by less than this
    #[arg(long, value_name = "T")]
    pub(crate) below: Option<f64>,
    /// Print it as JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print a line for every step as CSV: ratio, bits per weight, and the changed fraction of all weights and of each layer
    #[arg(long)]
    pub(crate) csv: bool,
}

/// When a step is worth a look.
#[derive(Debug, Args)]
pub(crate) struct RuleArguments {
    /// Earlier steps that the changed fraction of a step is compared with
    #[arg(long, value_name = "N", default_value_t = WarningRule::default().window)]
    pub(crate) window: usize,
    /// Deviations (of the logarithm, by the median absolute deviation) from their median that are too many
    #[arg(long, value_name = "X", default_value_t = WarningRule::default().threshold)]
    pub(crate) threshold: f64,
    /// Newest steps in which frozen layers are looked for
    #[arg(long, value_name = "N", default_value_t = WarningRule::default().frozen_window)]
    pub(crate) frozen_window: usize,
}

impl RuleArguments {
    pub(crate) fn rule(&self) -> WarningRule {
        let Self { window, threshold, frozen_window } = *self;
        WarningRule { window, threshold, frozen_window, ..WarningRule::default() }
    }
}
