//! The table of ratios in README.md, between two marker lines, from the recorded sizes. It measures
//! nothing.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::sizes::{Size, Weights, recorded};
use crate::{Mode, root, say, settle};

const README: &str = "README.md";
const START: &str = "<!-- numbers -->";
const END: &str = "<!-- /numbers -->";

/// Writes the table between the markers of the README, or checks it.
///
/// # Errors
/// A README without markers; in check mode, one with another table.
pub fn run(mode: Mode) -> Result<()> {
    let table = table(&recorded()?.sizes);
    say(&table)?;
    let readme = fs::read_to_string(root().join(README)).context(README)?;
    let new = with_table(&readme, &table)?;
    settle(mode, README, new.as_bytes(), "readme-numbers")
}

/// The README with `table` between its markers.
fn with_table(readme: &str, table: &str) -> Result<String> {
    let parts = readme.split_once(START).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let Some((head, tail)) = parts else {
        bail!("{README} has no line {START} with a line {END} after it");
    };
    Ok(format!("{head}{START}\n{table}\n{END}{tail}"))
}

fn table(sizes: &[Size]) -> String {
    let mut lines = vec![
        "| pair | original | packed | ratio | XOR + zstd-1 |".to_owned(),
        "|---|--:|--:|--:|--:|".to_owned(),
    ];
    lines.extend(sizes.iter().filter(|size| size.weights == Weights::Lm12m).map(|size| {
        let (original, packed) = (size_of(size.original_bytes), size_of(size.packed_bytes));
        let note = if size.base.is_none() { " (no XOR)" } else { "" };
        format!(
            "| {} | {original} | {packed} | {:.2} | {:.2}{note} |",
            size.name, size.ratio, size.xor_zstd1_ratio
        )
    }));
    lines.join("\n")
}

fn size_of(bytes: u64) -> String {
    if bytes < 100_000 {
        format!("{:.1} kB", bytes as f64 / 1e3)
    } else {
        format!("{:.2} MB", bytes as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let readme = format!("# x\n{START}\nold\n{END}\nend\n");
        assert_eq!(with_table(&readme, "new").unwrap(), format!("# x\n{START}\nnew\n{END}\nend\n"));
        assert_eq!(
            with_table(&with_table(&readme, "a").unwrap(), "b").unwrap(),
            with_table(&readme, "b").unwrap()
        );
        assert!(with_table("# x\n", "new").is_err());
        assert!(with_table(&format!("{END}\n{START}\n"), "new").is_err());
    }
}
