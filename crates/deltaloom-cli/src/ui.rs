//! What a person sees: progress, tables, errors with hints. Nothing here decides anything.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Whether there is work that asks [`Bar`] between chunks and may have files to clean up.
static CAN_STOP: AtomicBool = AtomicBool::new(false);

/// Makes the first Ctrl-C stop work cleanly between chunks, and the second at once. Before such work begins, the first does.
pub(crate) fn catch_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        let is_second = INTERRUPTED.swap(true, Ordering::SeqCst);
        if is_second || !CAN_STOP.load(Ordering::SeqCst) {
            note("error: interrupted");
            #[expect(
                clippy::exit,
                reason = "nothing was begun; or asked twice, and temporary files may stay"
            )]
            std::process::exit(2);
        }
    })?;
    Ok(())
}

/// A progress bar on standard error, drawn only on a terminal.
pub(crate) struct Bar {
    verb: &'static str,
    bar: OnceLock<ProgressBar>,
}

impl Bar {
    pub(crate) fn new(verb: &'static str) -> Self {
        CAN_STOP.store(true, Ordering::SeqCst);
        Self { verb, bar: OnceLock::new() }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}

impl deltaloom::Progress for Bar {
    fn start(&self, total_bytes: u64) {
        let template = "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
        let bar = self.bar.get_or_init(|| ProgressBar::new(total_bytes));
        bar.set_length(total_bytes);
        bar.set_position(0);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(self.verb);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = self.bar.get() {
            bar.inc(bytes);
        }
    }

    fn is_cancelled(&self) -> bool {
        INTERRUPTED.load(Ordering::SeqCst)
    }
}

/// Writes data to standard output. A reader that has had enough, such as `head`, changes no answer.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

/// Writes a value as JSON to standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Tells the person something beside the data.
pub(crate) fn note(text: &str) {
    // There is nobody to tell when standard error is closed.
    let _ignored = writeln!(io::stderr().lock(), "{text}");
}

/// Whether output ended because its reader, such as `head`, had enough.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.root_cause().downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// What can be done about the very error that has it as its context.
#[derive(Debug)]
pub(crate) struct Hint(pub(crate) String);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Prints an error, its causes, and what can be done about it.
pub(crate) fn print_error(error: &anyhow::Error) {
    let hint = error.downcast_ref::<Hint>();
    let causes = error.chain().skip(usize::from(hint.is_some()));
    let mut causes: Vec<String> = causes.map(|cause| printable(&cause.to_string())).collect();
    // Some messages name their source already; say it once.
    causes.dedup_by(|cause, before| before.ends_with(cause.as_str()));
    note(&format!("error: {}", causes.join(": ")));
    let hint = hint.map(|hint| hint.0.as_str());
    if let Some(hint) = hint.or_else(|| error.chain().find_map(|cause| hint_of(cause.downcast_ref()?))) {
        note(&format!("hint: {hint}"));
    }
}

fn hint_of(error: &deltaloom::Error) -> Option<&'static str> {
    #[cfg(feature = "object-store")]
    if let Some(hint) = deltaloom_object_store::hint(error) {
        return Some(hint);
    }
    error.hint()
}

/// Bytes for people: exact below 10,000, else three figures.
#[expect(clippy::cast_precision_loss, reason = "rounded anyway")]
pub(crate) fn bytes(count: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB"];
    if count < 10_000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1e3;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", units[unit])
}

/// A table with a header line; columns after the first are right-aligned.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(c, cell)| match c {
            0 => format!("{cell:<width$}", width = widths[0]),
            _ => format!("{cell:>width$}", width = widths[c]),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Control characters in names must not reach a terminal.
pub(crate) fn printable(name: &str) -> String {
    name.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_figures() {
        let cases = [
            (0, "0 B"),
            (9_999, "9999 B"),
            (10_000, "10.0 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (25_086_448, "25.1 MB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(printable("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
    }
}
