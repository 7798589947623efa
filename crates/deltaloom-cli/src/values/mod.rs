//! Types and parsers of values on the command line: closed sets, sizes, ranges and pairs. They do
//! not depend on options or commands.

#[cfg(feature = "lab")]
pub(crate) mod bench;
#[cfg(feature = "compute")]
pub(crate) mod compute;
#[cfg(feature = "lab")]
pub(crate) mod lab;
#[cfg(feature = "compute")]
pub(crate) mod measure;
pub(crate) mod series;

use std::ffi::OsString;
use std::ops::{Bound, RangeInclusive};

use clap::ValueEnum;

/// When messages are coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// If it is a terminal and NO_COLOR is not set
    #[default]
    Auto,
    /// Even if it is a file or a pipe
    Always,
    /// Plain text only
    Never,
}

impl Color {
    /// Found before the command line is parsed, for errors in the command line itself.
    pub(crate) fn of_words(words: &[OsString]) -> Self {
        let text = |i: usize| words.get(i).and_then(|word| word.to_str());
        let value = (0..words.len()).find_map(|i| match text(i)? {
            "--color" => text(i + 1),
            word => word.strip_prefix("--color="),
        });
        value.and_then(|value| Self::from_str(value, false).ok()).unwrap_or_default()
    }
}

impl From<Color> for clap::ColorChoice {
    fn from(color: Color) -> Self {
        match color {
            Color::Auto => Self::Auto,
            Color::Always => Self::Always,
            Color::Never => Self::Never,
        }
    }
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressStyle {
    /// A bar, if it is a terminal
    #[default]
    Bar,
    /// One JSON object per line
    Json,
    /// Not at all
    Never,
}

/// The trade-off between time and size.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Preset {
    /// Fastest: one context per exponent, light zstd
    Fast,
    /// Row and column scales where they save space
    Default,
    /// Smallest: every method is tried; packs and unpacks at a few MB/s
    Max,
}

impl From<Preset> for deltaloom::Preset {
    fn from(preset: Preset) -> Self {
        match preset {
            Preset::Fast => Self::Fast,
            Preset::Default => Self::Default,
            Preset::Max => Self::Max,
        }
    }
}

/// The first row, and the row after the last.
pub(crate) type Rows = (Bound<u64>, Bound<u64>);

pub(crate) fn parse_rows(text: &str) -> Result<Rows, String> {
    let parse = |number: &str| match number.trim() {
        "" => Ok(None),
        number => number.parse::<u64>().map(Some).map_err(|e| format!("{number:?}: {e}")),
    };
    let (start, end) = text.split_once("..").ok_or("expected A..B, A.. or ..B, such as 0..16")?;
    match (parse(start)?, parse(end)?) {
        (Some(start), Some(end)) if start > end => Err(format!("{start} is after {end}")),
        (start, end) => Ok((
            start.map_or(Bound::Unbounded, Bound::Included),
            end.map_or(Bound::Unbounded, Bound::Excluded),
        )),
    }
}

/// A name and a text.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected a name, `=` and a text, such as licence=MIT".to_owned()),
    }
}

/// The most threads that a command starts.
const MAX_THREADS: usize = 1024;

/// A whole number in a range.
pub(crate) fn parse_count(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
}

/// A number of threads; 0 means one per core.
pub(crate) fn parse_threads(text: &str) -> Result<usize, String> {
    parse_count(text, 0..=MAX_THREADS)
        .map_err(|_| format!("expected a number of threads from 1 to {MAX_THREADS}, or 0 for one per core"))
}
