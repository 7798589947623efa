//! The options of `deltaloom demo`.

use std::path::PathBuf;

use clap::Args;

/// Demonstrate deltaloom on small real weights that are built into the program.
///
/// Packs three fine-tunes of one base, verifies them, restores them and compares every byte. Prints
/// their sizes next to general-purpose compression of the same bytes.
///
/// A small language model is built in, too. `generate` and `eval` know it as demo, its fine-tunes
/// as demo:pirate and demo:chat, and texts about its world as demo:text, demo:questions and
/// demo:problems, where no file has such a name. --write writes all of them to a folder.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom demo
  deltaloom demo --write speaker
  deltaloom generate demo \"Once upon a time\"")]
pub(crate) struct DemoArguments {
    /// Keep the files, in this new folder
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Only write the language model, its fine-tunes and its texts, to this folder
    #[arg(long, value_name = "DIR", conflicts_with = "keep")]
    pub(crate) write: Option<PathBuf>,
    /// With --write: replace the files that are written
    #[arg(long, requires = "write")]
    pub(crate) overwrite: bool,
    /// Print the table, or what was written, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
