//! What a person sees: tables, notes, warnings, errors with hints. Nothing here makes decisions.

pub(crate) mod container;
pub(crate) mod nearest;
pub(crate) mod table;

use std::io::{self, IsTerminal as _, Write};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context as _, Result};
use clap::builder::styling::{AnsiColor, Style};

use crate::args::GlobalArguments;
use crate::values::{Color, ProgressStyle};

/// How the program prints; constant during a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Errors are also printed as JSON on standard output.
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) progress: ProgressStyle,
    color: Color,
}

static LOOK: RwLock<Look> =
    RwLock::new(Look { json: false, quiet: false, progress: ProgressStyle::Bar, color: Color::Auto });

/// Sets how the program prints.
pub(crate) fn set_look(json: bool, arguments: &GlobalArguments) {
    let GlobalArguments { quiet, color, progress, .. } = *arguments;
    *LOOK.write().unwrap_or_else(PoisonError::into_inner) = Look { json, quiet, progress, color };
}

pub(crate) fn look() -> Look {
    *LOOK.read().unwrap_or_else(PoisonError::into_inner)
}

/// Whether messages on standard error are coloured.
pub(crate) fn has_color() -> bool {
    match look().color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            io::stderr().is_terminal() && !is_set("NO_COLOR")
        }
    }
}

fn painted(word: &str, color: AnsiColor) -> String {
    if !has_color() {
        return word.to_owned();
    }
    let style = Style::new().bold().fg_color(Some(color.into()));
    format!("{style}{word}{style:#}")
}

/// Writes data to standard output. A reader that closes the pipe, such as `head`, is not an error.
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

/// Writes a value as JSON to standard error.
pub(crate) fn say_json(value: &impl serde::Serialize) -> Result<()> {
    say(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints on standard error what was done, unless the program is quiet.
pub(crate) fn note(text: &str) {
    if !look().quiet {
        say(text);
    }
}

/// Prints on standard error what may be wrong.
pub(crate) fn warn(text: &str) {
    say(&format!("{} {text}", painted("warning:", AnsiColor::Yellow)));
}

/// Tells a person at a terminal that work will end soon.
pub(crate) fn say_stopping() {
    if io::stderr().is_terminal() && !look().quiet {
        say("stopping; press Ctrl-C again to quit at once");
    }
}

fn say(text: &str) {
    // Nothing can be reported if standard error is closed.
    let _ignored = writeln!(io::stderr().lock(), "{text}");
}

/// Whether output failed because its reader, such as `head`, closed the pipe.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| match cause.downcast_ref::<deltaloom::Error>() {
        Some(deltaloom::Error::Io { source, .. }) => is_pipe(source),
        _ => cause.downcast_ref().is_some_and(is_pipe),
    })
}

/// A hint for one specific error, attached as its context.
#[derive(Debug)]
pub(crate) struct Hint(pub(crate) String);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Prints an error, and what can be done about it.
pub(crate) fn print_error(message: &str, hint: Option<&str>) {
    say(&format!("{} {message}", painted("error:", AnsiColor::Red)));
    if let Some(hint) = hint {
        say(&format!("{} {hint}", painted("hint:", AnsiColor::Cyan)));
    }
}

/// A number and its noun.
pub(crate) fn count(number: u64, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// Numbers one after another.
pub(crate) fn list(numbers: &[impl ToString]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Bytes for people: exact below 10,000, otherwise three significant digits.
pub(crate) fn bytes(count: u64) -> String {
    if count < 10_000 {
        return format!("{count} B");
    }
    three_digits(count as f64, &[(1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"), (1e15, "PB")])
}

/// A fraction in percent.
pub(crate) fn percent(fraction: f64, digits: usize) -> String {
    format!("{:.digits$} %", 100.0 * fraction)
}

/// One size over another, such as that of the original over that of the container.
pub(crate) fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// Any number with four significant digits.
pub(crate) fn significant(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e6 {
        return format!("{value:.0}");
    }
    if !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:.3e}");
    }
    #[expect(clippy::cast_possible_truncation, reason = "-3 to 5")]
    let magnitude = value.abs().log10().floor() as i32;
    let digits = usize::try_from(3 - magnitude).unwrap_or(0);
    format!("{value:.digits$}")
}

/// A value with three significant digits, in the largest unit in which it is at least 1.
pub(crate) fn three_digits(value: f64, units: &[(f64, &str)]) -> String {
    let is_small = |size: &f64| value.abs() < 0.9995 * size;
    let fits = units.iter().rev().find(|(size, _)| !is_small(size)).or(units.first());
    let (size, unit) = *fits.unwrap_or(&(1.0, ""));
    let value = value / size;
    let digits = if value.abs() < 9.995 { 2 } else { usize::from(value.abs() < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// Escapes control characters, which must not reach a terminal.
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
    fn any_number_has_four_figures() {
        let cases = [
            (2.31, "2.310"),
            (0.0, "0"),
            (12.0, "12"),
            (1234.56, "1235"),
            (0.0456, "0.04560"),
            (5e-6, "5.000e-6"),
            (-3.91144, "-3.911"),
            (2e9, "2.000e9"),
        ];
        for (value, text) in cases {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(printable("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
    }
}
