//! The pages that experiments write for `--html`.

use anyhow::{Result, bail};
use deltaloom::checkpoint::output::Inputs;
use deltaloom_report::Page;

use crate::args::lab::page::PageArguments;
use crate::pages;
use crate::target::Target;
use crate::ui::table::{Cell, Table};

/// Writes the page if the command line asks for one.
pub(super) fn write_asked(
    page: impl FnOnce() -> Page,
    arguments: &PageArguments,
    inputs: &Inputs,
) -> Result<()> {
    match &arguments.html {
        Some(output) => pages::write(&page(), output, arguments.svg.as_deref(), arguments.overwrite, inputs),
        None => Ok(()),
    }
}

/// Fails if the page cannot be written, before anything is measured.
pub(super) fn check(arguments: &PageArguments, inputs: &Inputs) -> Result<()> {
    match &arguments.html {
        Some(output) if Target::new(output) == Target::Stdout => {
            bail!("--html - would mix the page with the results; name a file")
        }
        Some(output) => Target::new(output).check(arguments.overwrite, inputs),
        None => Ok(()),
    }
}

/// The columns of a table for people, as a table of a page.
pub(super) fn table<T>(table: &Table<'_, T>) -> deltaloom_report::Table {
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
