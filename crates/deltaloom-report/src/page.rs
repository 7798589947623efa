//! A report as one self-contained HTML file: no network, no fonts, no script.
//!
//! The same input gives the same bytes: it adds neither a time nor the name of a machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::figure::{Figure, Unit};
use super::svg::{self, escape, human};

/// Most rows of a table on a page; the rest is in its CSV.
const ROWS: usize = 200;

/// A cell of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Text.
    Text(String),
    /// A number: short in the table, with nine digits in the CSV.
    Value(f64, Unit),
    /// A number that its maker has written: for people, and exactly for the CSV.
    Written {
        /// For people.
        shown: String,
        /// For the CSV.
        exact: String,
    },
    /// Nothing is known.
    Empty,
}

impl Cell {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A number that may be missing.
    #[must_use]
    pub fn maybe(value: Option<f64>, unit: Unit) -> Self {
        value.map_or(Self::Empty, |value| Self::Value(value, unit))
    }

    /// For people.
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Value(value, unit) => human(*value, *unit),
            Self::Written { shown, .. } => shown.clone(),
            Self::Empty => "–".to_owned(),
        }
    }

    fn csv(&self) -> String {
        match self {
            Self::Text(text) if text.contains([',', '"', '\n', '\r']) => {
                format!("\"{}\"", text.replace('"', "\"\""))
            }
            Self::Text(text) => text.clone(),
            Self::Value(value, _) if value.is_finite() && value.fract() == 0.0 => value.to_string(),
            // Nine digits distinguish any two F32 numbers.
            Self::Value(value, _) if value.is_finite() => {
                format!("{value:.8e}").parse::<f64>().unwrap_or(*value).to_string()
            }
            Self::Written { exact, .. } => exact.clone(),
            Self::Value(..) | Self::Empty => String::new(),
        }
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows, each with a cell per column.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    /// All rows as comma-separated values, with the names of the columns first.
    #[must_use]
    pub fn csv(&self) -> String {
        let names: Vec<Cell> = self.columns.iter().map(Cell::text).collect();
        let mut out = String::new();
        for row in std::iter::once(&names).chain(&self.rows) {
            let cells: Vec<String> = row.iter().map(Cell::csv).collect();
            let _ = writeln!(out, "{}", cells.join(","));
        }
        out
    }

    fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let is_number = |column: usize| {
            self.rows
                .iter()
                .any(|row| matches!(row.get(column), Some(Cell::Value(..) | Cell::Written { .. })))
        };
        let rule = |(column, _)| if is_number(column) { "---:" } else { "---" }.to_owned();
        let mut out = line(self.columns.iter().map(|name| in_markdown(name)).collect());
        out.push_str(&line(self.columns.iter().enumerate().map(rule).collect()));
        for row in self.rows.iter().take(ROWS) {
            out.push_str(&line(row.iter().map(|cell| in_markdown(&cell.shown())).collect()));
        }
        if self.rows.len() > ROWS {
            let _ = writeln!(out, "\n{} more rows are left out.", self.rows.len() - ROWS);
        }
        out
    }

    fn html(&self) -> String {
        let mut out = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
        for (i, name) in self.columns.iter().enumerate() {
            // A heading stands over its numbers.
            let is_number =
                |row: &Vec<Cell>| matches!(row.get(i), Some(Cell::Value(..) | Cell::Written { .. }));
            let is_number = self.rows.iter().any(is_number);
            let class = if is_number { " class=\"n\"" } else { "" };
            let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", escape(name));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        let is_cut = self.rows.len() > ROWS;
        for (i, row) in self.rows.iter().enumerate() {
            if is_cut && (ROWS / 2..self.rows.len() - ROWS / 2).contains(&i) {
                if i == ROWS / 2 {
                    let more = human((self.rows.len() - ROWS) as f64, Unit::Number);
                    let _ = writeln!(
                        out,
                        "<tr><td class=\"more\" colspan=\"{}\">{more} more rows are in the CSV below</td></tr>",
                        self.columns.len()
                    );
                }
                continue;
            }
            out.push_str("<tr>");
            for cell in row {
                let class = if matches!(cell, Cell::Text(_)) { "" } else { " class=\"n\"" };
                let _ = write!(out, "<td{class}>{}</td>", escape(&cell.shown()));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
        out
    }
}

/// A part of a page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Section {
    /// Heading; also the title of its picture.
    pub heading: String,
    /// Visible text. An empty line begins a paragraph; text between backticks is shown as code.
    pub text: String,
    /// Picture.
    pub figure: Option<Figure>,
    /// Its numbers: folded away below a picture, open without one.
    pub table: Option<Table>,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// Title.
    pub title: String,
    /// What it is about and which command made it, formatted like the text of a section.
    pub subtitle: String,
    /// Its sections.
    pub sections: Vec<Section>,
}

impl Page {
    /// The page as an HTML file.
    #[must_use]
    pub fn html(&self) -> String {
        let names = self.file_names();
        let title = escape(&self.title);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{SHEET}{}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n{}</header>\n",
            svg::sheet(),
            paragraphs(&self.subtitle),
        );
        if self.sections.len() > 3 {
            out.push_str("<nav aria-label=\"Sections\">\n");
            for (section, name) in self.sections.iter().zip(&names) {
                let _ = writeln!(out, "<a href=\"#{name}\">{}</a>", escape(&section.heading));
            }
            out.push_str("</nav>\n");
        }
        for (section, name) in self.sections.iter().zip(&names) {
            section.write(name, &mut out);
        }
        out.push_str("</main>\n</body>\n</html>\n");
        out
    }

    /// The page as Markdown, without its pictures. Long tables are cut as in HTML.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!("# {}\n", self.title);
        let mut add = |text: &str| {
            if !text.trim().is_empty() {
                let _ = write!(out, "\n{}\n", text.trim());
            }
        };
        add(&self.subtitle);
        for section in &self.sections {
            add(&format!("## {}", section.heading));
            add(&section.text);
            add(&section.table.as_ref().map(Table::markdown).unwrap_or_default());
        }
        out
    }

    /// Its pictures as separate files: name and contents.
    #[must_use]
    pub fn pictures(&self) -> Vec<(String, String)> {
        let pictures = self.sections.iter().zip(self.file_names());
        pictures
            .filter_map(|(section, name)| {
                let figure = section.figure.as_ref()?;
                Some((format!("{name}.svg"), svg::standalone(figure, &section.heading)))
            })
            .collect()
    }

    /// A unique name of lower-case letters, digits and hyphens for each section.
    fn file_names(&self) -> Vec<String> {
        let mut taken = BTreeSet::new();
        let mut names = Vec::new();
        for section in &self.sections {
            let heading = section.heading.to_ascii_lowercase();
            let words = heading.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            let mut plain = words.collect::<Vec<_>>().join("-");
            plain.truncate(60);
            if plain.is_empty() {
                "section".clone_into(&mut plain);
            }
            let numbered = std::iter::once(plain.clone()).chain((2..).map(|n: u32| format!("{plain}-{n}")));
            let name = numbered.into_iter().find(|name| !taken.contains(name)).unwrap_or(plain);
            taken.insert(name.clone());
            names.push(name);
        }
        names
    }
}

impl Section {
    fn write(&self, name: &str, out: &mut String) {
        let _ = write!(
            out,
            "<section id=\"{name}\">\n<h2>{}</h2>\n{}",
            escape(&self.heading),
            paragraphs(&self.text)
        );
        if let Some(figure) = &self.figure {
            let picture = svg::within_page(figure, &self.heading);
            let _ = write!(out, "<figure class=\"scroll\">\n{picture}</figure>\n");
            let parts = if let Figure::Zoom(zoom) = figure { &zoom.parts[..] } else { &[] };
            for (name, part) in parts {
                let picture = svg::within_page(part, &format!("{}: {name}", self.heading));
                let _ = write!(
                    out,
                    "<details>\n<summary>{}</summary>\n<figure class=\"scroll\">\n{picture}</figure>\n</details>\n",
                    escape(name)
                );
            }
        }
        if let Some(table) = &self.table {
            if self.figure.is_some() {
                let _ = write!(out, "<details>\n<summary>Table</summary>\n{}</details>\n", table.html());
            } else {
                out.push_str(&table.html());
            }
            let _ = write!(
                out,
                "<details>\n<summary>CSV</summary>\n<pre>{}</pre>\n</details>\n",
                escape(&table.csv())
            );
        }
        out.push_str("</section>\n");
    }
}

/// A text in a cell of a table in Markdown: in one line, and nothing in it is markup.
fn in_markdown(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '|' | '\\' | '`' | '*' | '_' | '<' | '[' | '&' | '~' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn paragraphs(text: &str) -> String {
    let mut out = String::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        out.push_str("<p>");
        for (i, part) in paragraph.split('`').enumerate() {
            let part = escape(part);
            let _ = if i % 2 == 0 { write!(out, "{part}") } else { write!(out, "<code>{part}</code>") };
        }
        out.push_str("</p>\n");
    }
    out
}

const SHEET: &str = "\
:root{color-scheme:light dark}
body{margin:0;background:#fff;color:#1f262d;font:16px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif}
main{max-width:820px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4em;overflow-wrap:anywhere}
h2{font-size:1.15rem;line-height:1.3;margin:0 0 .3em;overflow-wrap:anywhere}
p{margin:0 0 .7em;max-width:70ch;overflow-wrap:anywhere}
header p,td.more,nav{color:#55606b}
nav{display:flex;flex-wrap:wrap;gap:.2em 1.1em;padding:.7em 0;border-block:1px solid #e3e7eb;font-size:.9rem}
a{color:#0068b5;text-decoration:none}
a:hover{text-decoration:underline}
section{padding:26px 0 6px}
figure{margin:14px 0 10px}
.scroll{overflow-x:auto;background:linear-gradient(to left,#fff 30%,#fff0) right/48px 100% no-repeat local,linear-gradient(to left,#1f262d47,#1f262d00) right/14px 100% no-repeat scroll}
svg.dl{display:block;width:100%;min-width:600px;height:auto}
code,pre{font:.875em ui-monospace,SFMono-Regular,Menlo,Consolas,\"DejaVu Sans Mono\",monospace}
code{background:#f1f3f5;padding:.1em .3em;border-radius:3px}
pre{max-height:20em;overflow:auto;margin:.4em 0 .8em;padding:10px 12px;background:#f6f7f8;border-radius:4px;user-select:all}
details{margin:0 0 .3em;font-size:.9rem}
summary{cursor:pointer;color:#55606b}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:.4em 0 .9em}
th,td{padding:.25em 1.1em .25em 0;text-align:left;border-bottom:1px solid #e3e7eb;vertical-align:top}
th{font-weight:600;white-space:nowrap}
th.n,td.n{text-align:right;white-space:nowrap}
td{overflow-wrap:anywhere}
td:first-child:not(.n){min-width:12ch}
@media (prefers-color-scheme:dark){
body{background:#15191e;color:#e4e8ec}
header p,td.more,nav,summary{color:#a7b1bb}
a{color:#7dbbf2}
code{background:#242b32}
pre{background:#1b2026}
.scroll{background:linear-gradient(to left,#15191e 30%,#15191e00) right/48px 100% no-repeat local,linear-gradient(to left,#e4e8ec47,#e4e8ec00) right/14px 100% no-repeat scroll}
nav,th,td{border-color:#2b333b}
}
";
