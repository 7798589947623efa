//! Values on the command line, as clap parses them: the closed sets, sizes, ranges and pairs that
//! commands read. They know nothing of options and commands.

pub(crate) mod bench;
pub(crate) mod compute;
pub(crate) mod lab;
pub(crate) mod series;

use std::ffi::OsString;
use std::ops::{Bound, RangeBounds};

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;

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
    /// Looked for before the command line is parsed, for messages about the command line itself.
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

/// A whole number in a range.
pub(crate) fn count(range: impl RangeBounds<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(range)
}

/// A number of threads; 0 means one per core.
pub(crate) fn threads() -> RangedU64ValueParser<usize> {
    count(..=1024)
}

/// How often something is measured.
pub(crate) fn rounds() -> RangedU64ValueParser<usize> {
    count(1..=1000)
}

/// A number of bytes with or without a unit: kB, MB and GB are powers of 1000, KiB, MiB and GiB
/// of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_bytes: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}; use B, kB, MB, GB, KiB, MiB or GiB")),
    };
    let number = number.parse::<u64>().map_err(|_| "expected a size such as 64MiB".to_owned())?;
    // More could not be counted in bits.
    let bytes = number.checked_mul(unit_bytes).filter(|bytes| *bytes <= 1 << 60);
    bytes.ok_or_else(|| "at most 2^60 bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let good = [("0", 0), ("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("3kB", 3000), ("7B", 7)];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in ["", "MiB", "1.5GiB", "-1", "4 parsecs", "99999999999999999999", "2000000000GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
