//! Where a command reports what it has measured.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct PageArguments {
    /// Also write the results as one self-contained HTML page with charts
    #[arg(long, value_name = "FILE.html")]
    pub(crate) html: Option<PathBuf>,
    /// With --html: also write each chart as an SVG file into this folder
    #[arg(long, value_name = "DIR", requires = "html")]
    pub(crate) svg: Option<PathBuf>,
    /// Replace an existing page and charts
    #[arg(long, requires = "html")]
    pub(crate) overwrite: bool,
}
