//! Tables: described once, column by column, then rendered as text, as CSV or on a page.

use std::fmt::Display;

use super::{bytes, percent, printable, ratio};

/// An entry: as people see it, and exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Text { shown: String, exact: String },
    Number { shown: String, exact: String },
    Empty,
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::Text { shown: text.clone(), exact: text }
    }

    /// Sizes of dimensions.
    pub(crate) fn shape(sizes: &[u64]) -> Self {
        let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        Self::Text { shown: format!("[{}]", sizes.join(",")), exact: sizes.join("x") }
    }

    pub(crate) fn count(count: impl Display) -> Self {
        Self::Number { shown: count.to_string(), exact: count.to_string() }
    }

    pub(crate) fn bytes(count: u64) -> Self {
        Self::Number { shown: bytes(count), exact: count.to_string() }
    }

    /// A number that is shown as `shown`.
    pub(crate) fn number(value: f64, shown: String) -> Self {
        Self::Number { shown, exact: if value.is_finite() { value.to_string() } else { String::new() } }
    }

    pub(crate) fn fixed(value: f64, digits: usize) -> Self {
        Self::number(value, format!("{value:.digits$}"))
    }

    /// One size over another.
    pub(crate) fn ratio(value: f64) -> Self {
        Self::number(value, ratio(value))
    }

    /// In scientific notation.
    pub(crate) fn power(value: f64, digits: usize) -> Self {
        Self::number(value, if value == 0.0 { "0".to_owned() } else { format!("{value:.digits$e}") })
    }

    /// A fraction, shown in percent.
    pub(crate) fn percent(fraction: f64, digits: usize) -> Self {
        Self::number(fraction, percent(fraction, digits))
    }

    pub(crate) fn maybe<V>(value: Option<V>, cell: impl FnOnce(V) -> Self) -> Self {
        value.map_or(Self::Empty, cell)
    }

    fn shown(&self) -> String {
        match self {
            Self::Text { shown, .. } | Self::Number { shown, .. } => printable(shown),
            Self::Empty => "-".to_owned(),
        }
    }

    fn exact(&self) -> &str {
        match self {
            Self::Text { exact, .. } | Self::Number { exact, .. } => exact,
            Self::Empty => "",
        }
    }
}

struct Column {
    /// Its heading for people; without one, it is not shown to them.
    title: Option<String>,
    /// Its name in CSV; without one, it is not in CSV.
    key: Option<String>,
    cells: Vec<Cell>,
}

/// A table with one row per value of a slice.
pub(crate) struct Table<'a, T> {
    rows: &'a [T],
    columns: Vec<Column>,
}

impl<'a, T> Table<'a, T> {
    pub(crate) fn of(rows: &'a [T]) -> Self {
        Self { rows, columns: Vec::new() }
    }

    /// A column for people and for programs.
    pub(crate) fn both(self, title: &str, key: &str, cell: impl Fn(&T) -> Cell) -> Self {
        self.push(Some(title), Some(key), cell)
    }

    /// A column for people only.
    pub(crate) fn shown(self, title: &str, cell: impl Fn(&T) -> Cell) -> Self {
        self.push(Some(title), None, cell)
    }

    /// A column in CSV only.
    pub(crate) fn exact(self, key: &str, cell: impl Fn(&T) -> Cell) -> Self {
        self.push(None, Some(key), cell)
    }

    fn push(mut self, title: Option<&str>, key: Option<&str>, cell: impl Fn(&T) -> Cell) -> Self {
        let cells = self.rows.iter().map(cell).collect();
        self.columns.push(Column { title: title.map(str::to_owned), key: key.map(str::to_owned), cells });
        self
    }

    /// Lines for a terminal: a heading, then the rows. Numbers are aligned on the right.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![String::new(); self.rows.len() + 1];
        for (title, cells) in self.for_people() {
            let shown: Vec<String> =
                std::iter::once(title.to_owned()).chain(cells.iter().map(Cell::shown)).collect();
            let width = shown.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
            let is_numeric = cells.iter().any(|cell| matches!(cell, Cell::Number { .. }));
            for (line, cell) in lines.iter_mut().zip(shown) {
                let gap = if line.is_empty() { "" } else { "  " };
                let cell = if is_numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line.push_str(&format!("{gap}{cell}"));
            }
        }
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Comma-separated values: the keys, then the rows, with exact numbers.
    pub(crate) fn csv(&self) -> String {
        let columns = || self.columns.iter().filter_map(|column| Some((column.key.as_ref()?, column)));
        let keys: Vec<String> = columns().map(|(key, _)| quoted(key)).collect();
        let mut out = keys.join(",") + "\n";
        for row in 0..self.rows.len() {
            let cells: Vec<String> = columns().map(|(_, column)| quoted(column.cells[row].exact())).collect();
            out.push_str(&(cells.join(",") + "\n"));
        }
        out
    }

    /// Headings and entries of the columns for people.
    pub(crate) fn for_people(&self) -> impl Iterator<Item = (&str, &[Cell])> {
        self.columns.iter().filter_map(|column| Some((column.title.as_deref()?, &column.cells[..])))
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_text_and_csv() {
        let rows = [("a,\"b\"", 12_345, Some(0.25)), ("c\u{1b}", 7, None)];
        let table = Table::of(&rows)
            .both("name", "name", |row| Cell::text(row.0))
            .both("size", "size_bytes", |row| Cell::bytes(row.1))
            .exact("fraction", |row| Cell::maybe(row.2, |fraction| Cell::percent(fraction, 1)))
            .shown("changed", |row| Cell::maybe(row.2, |fraction| Cell::percent(fraction, 1)))
            .both("large", "is_large", |row| Cell::text((row.1 > 10).to_string()));
        assert_eq!(
            table.text(),
            "name        size  changed  large\n\
             a,\"b\"    12.3 kB   25.0 %  true\n\
             c\\u{1b}      7 B        -  false\n"
        );
        assert_eq!(
            table.csv(),
            "name,size_bytes,fraction,is_large\n\"a,\"\"b\"\"\",12345,0.25,true\nc\u{1b},7,,false\n"
        );
    }
}
