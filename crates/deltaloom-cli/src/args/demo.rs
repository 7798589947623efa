//! The options of `deltaloom demo`.

use std::path::PathBuf;

use clap::Args;

/// Show what deltaloom does on a small real model that comes with the program.
///
/// Packs three fine-tunes of one base, verifies and restores them, compares every byte, and prints the sizes beside general-purpose compression of the same bytes.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Keep the files in this new directory
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Print the table as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
