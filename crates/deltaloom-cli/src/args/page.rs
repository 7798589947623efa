//! Where an experiment reports what it has measured.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct PageArguments {
    /// Also write a page with pictures, which needs no network
    #[arg(long, value_name = "FILE.html")]
    pub(crate) html: Option<PathBuf>,
    /// With --html: also write each picture as a file into this folder
    #[arg(long, value_name = "DIR", requires = "html")]
    pub(crate) svg: Option<PathBuf>,
    /// Replace an existing page and pictures
    #[arg(long, requires = "html")]
    pub(crate) overwrite: bool,
}

/// How an experiment says what it has measured.
#[derive(Debug, Args)]
pub(crate) struct ReportArguments {
    /// Print the report as JSON on standard output
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print the rows as comma-separated values on standard output
    #[arg(long)]
    pub(crate) csv: bool,
    #[command(flatten)]
    pub(crate) page: PageArguments,
}
