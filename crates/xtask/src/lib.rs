//! Makes the generated files of this repository, and checks that they are up to date. It codes
//! nothing itself: containers come from the library, help texts from the program.

pub mod api;
pub mod assets;
pub mod breakdown;
pub mod cli_reference;
mod commands;
pub mod comments;
pub mod corpus;
mod files;
pub mod golden;
pub mod history;
pub mod instructions;
mod merged_twice;
pub mod merges;
pub mod readme;
pub mod rooms;
pub mod series_scale;
pub mod sizes;
pub mod wire;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Whether to write the generated files or to compare them with the existing ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Write.
    Write,
    /// Change nothing, and fail if something would change.
    Check,
}

/// The root folder of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Prints a line of the report.
pub(crate) fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output")
}

/// Writes `contents` to a file, with its path relative to the root, or checks that it has them.
/// `recipe` is the command that generates it.
pub(crate) fn settle(mode: Mode, path: &str, contents: &[u8], recipe: &str) -> Result<()> {
    let is_new = settle_quietly(mode, path, contents, recipe)?;
    say(&format!("{path}: {}", if is_new { "written" } else { "up to date" }))
}

/// Likewise, without a report. Returns whether the file was written.
pub(crate) fn settle_quietly(mode: Mode, path: &str, contents: &[u8], recipe: &str) -> Result<bool> {
    let full = root().join(path);
    let found = fs::read(&full).ok();
    if found.as_deref() == Some(contents) {
        return Ok(false);
    }
    if mode == Mode::Check {
        let fault = if found.is_none() { "is missing" } else { "is out of date" };
        bail!("{path} {fault}; run `just {recipe}` and commit the result");
    }
    if let Some(folder) = full.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(&full, contents).with_context(|| path.to_owned())?;
    Ok(true)
}
