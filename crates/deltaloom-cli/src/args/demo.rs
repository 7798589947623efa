//! The options of `deltaloom demo`.

use std::path::PathBuf;

use clap::Args;

/// Demonstrate deltaloom on small real weights that are built into the program.
///
/// Packs three fine-tunes of one base, verifies them, restores them and compares every byte. Prints
/// their sizes next to general-purpose compression of the same bytes.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Keep the files, in this new folder
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Print the table as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
