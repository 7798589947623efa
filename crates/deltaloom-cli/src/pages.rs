//! Writes pages and their pictures to the files that the command line names.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use deltaloom::checkpoint::output::{Inputs, NewFile};
use deltaloom_report::Page;

use crate::target::{self, Target};
use crate::ui;

/// Writes a page, and its pictures if there is a folder for them. Never replaces an input.
pub(crate) fn write(
    page: &Page,
    output: &Path,
    svg: Option<&Path>,
    overwrite: bool,
    inputs: &Inputs,
) -> Result<()> {
    write_text(&Target::new(output), &page.html(), overwrite, inputs)?;
    let Some(folder) = svg else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|e| target::writing(folder, e))?;
    page.pictures().into_iter().try_for_each(|(name, picture)| {
        write_text(&Target::Path(folder.join(name)), &picture, overwrite, inputs)
    })
}

/// Writes a text to a file that appears complete, or to standard output.
fn write_text(target: &Target, text: &str, overwrite: bool, inputs: &Inputs) -> Result<()> {
    let path = match target {
        Target::Stdout => return ui::print(text),
        Target::Path(path) => path,
    };
    let mut file = NewFile::create(path, overwrite, inputs)?;
    file.file().write_all(text.as_bytes()).map_err(|e| target::writing(path, e))?;
    Ok(file.commit()?)
}
