//! Writes pages and their pictures to the files that the command line names.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Result, bail};
use deltaloom::checkpoint::output::{Inputs, NewFile};
use deltaloom_report::Page;

use crate::args::page::PageArguments;
use crate::target::{self, Target};
use crate::ui;
use crate::ui::table::{Cell, Table};

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

/// Writes the page if the command line asks for one.
pub(crate) fn write_asked(
    page: impl FnOnce() -> Page,
    arguments: &PageArguments,
    inputs: &Inputs,
) -> Result<()> {
    match &arguments.html {
        Some(output) => write(&page(), output, arguments.svg.as_deref(), arguments.overwrite, inputs),
        None => Ok(()),
    }
}

/// Fails if the page cannot be written, before anything is measured.
pub(crate) fn check(arguments: &PageArguments, inputs: &Inputs) -> Result<()> {
    match &arguments.html {
        Some(output) if Target::new(output) == Target::Stdout => {
            bail!("--html - would mix the page with the results; name a file")
        }
        Some(output) => Target::new(output).check(arguments.overwrite, inputs),
        None => Ok(()),
    }
}

/// The columns of a table for people, as a table of a page.
pub(crate) fn table<T>(table: &Table<'_, T>) -> deltaloom_report::Table {
    use deltaloom_report::Cell as OnPage;
    let on_page = |cell: &Cell| match cell.clone() {
        Cell::Text { shown, .. } => OnPage::Text(shown),
        Cell::Number { shown, exact } => OnPage::Written { shown, exact },
        Cell::Empty => OnPage::Empty,
    };
    let mut out = deltaloom_report::Table { columns: Vec::new(), rows: Vec::new() };
    for (title, cells) in table.for_people() {
        out.columns.push(title.to_owned());
        out.rows.resize(cells.len(), Vec::new());
        out.rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(on_page(cell)));
    }
    out
}
