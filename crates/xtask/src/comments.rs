//! Checks that comments are at most 100 columns wide: rustfmt leaves them as they are.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{root, say};

const COLUMNS: usize = 100;

/// Checks every Rust file of the repository.
///
/// # Errors
/// When a line that is a comment is wider.
pub fn run() -> Result<()> {
    let mut wide = Vec::new();
    for folder in ["crates", "fuzz/src", "fuzz/fuzz_targets"] {
        check(&root().join(folder), &mut wide)?;
    }
    if wide.is_empty() {
        return say(&format!("no comment is wider than {COLUMNS} columns"));
    }
    wide.iter().try_for_each(|line| say(line))?;
    bail!("{} comments are wider than {COLUMNS} columns", wide.len())
}

fn check(folder: &Path, wide: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            check(&path, wide)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let path = path.strip_prefix(root()).unwrap_or(&path);
            let lines = wide_comments(&text).map(|line| format!("{}:{line}", path.display()));
            wide.extend(lines);
        }
    }
    Ok(())
}

/// Numbers of the lines with a wide comment. A line that has an address and nothing else cannot be
/// cut.
fn wide_comments(text: &str) -> impl Iterator<Item = usize> {
    let is_wide = |line: &str| {
        let comment = line.trim_start();
        comment.starts_with("//")
            && line.chars().count() > COLUMNS
            && comment.trim_start_matches(['/', '!']).split_whitespace().count() > 1
    };
    text.lines().enumerate().filter(move |(_, line)| is_wide(line)).map(|(number, _)| number + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_comment_count() {
        let words = "word ".repeat(30);
        let text = format!(
            "/// short\n    // {words}\nlet x = {words:?};\n//! {words}\n/// <{}>\n",
            "u".repeat(200)
        );
        assert_eq!(wide_comments(&text).collect::<Vec<_>>(), [2, 4]);
    }
}
