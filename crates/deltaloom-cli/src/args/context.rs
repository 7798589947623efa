//! The options of `deltaloom context`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{BaseArguments, ThreadsArgument};

/// Change what a model attends to, without training, and measure what that gains.
///
/// Weights never change. What a method gains is always measured against cutting the text to the
/// length that the model was trained for, which costs nothing.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "Examples:
  deltaloom context layers base/ tuned.loom"
)]
pub(crate) struct ContextArguments {
    #[command(subcommand)]
    pub(crate) command: ContextCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    Layers(LayersArguments),
}

/// Show how far each layer moved from a base to a fine-tune.
///
/// The measure is the L2 norm of the change over that of the base: of all matrices of a layer, and
/// of those of queries and keys alone. No model runs. The ranking says which layers moved least; it
/// does not say that they need no positions.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom context layers base.safetensors tuned.safetensors
  deltaloom context layers ./base-model tuned.loom
  deltaloom context layers base/ tuned/ --json | jq .by_all")]
pub(crate) struct LayersArguments {
    /// The base: a file, a folder or a container
    #[arg(value_name = "BASE")]
    pub(crate) first: PathBuf,
    /// The fine-tune: a file, a folder, or a container of BASE or of a --base
    #[arg(value_name = "TUNED")]
    pub(crate) tuned: PathBuf,
    #[command(flatten)]
    pub(crate) bases: BaseArguments,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
