//! Multiple choice: the choice that a model finds most probable after the question. `acc` compares
//! the sums of log-probabilities, and `acc_norm` the sums for each character of a choice, as
//! lm-evaluation-harness does.

mod glue;
mod lines;
mod mmlu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use deltaloom::{Error, Limits, Result};
use serde::Serialize;

use super::share::{Share, kind_of_number};
use crate::text::read_small;

/// Bytes of a file of items, and number of items.
const LARGEST_FILE: u64 = 1 << 30;
pub(super) const MOST_ITEMS: u64 = 1 << 20;
const MOST_CHOICES: u64 = 64;

/// A question and its choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What stands before each choice.
    pub context: String,
    /// What is scored, with the space before it.
    pub choices: Vec<String>,
    /// The right one, from 0.
    pub right: usize,
    /// A part of the file, such as a subject.
    pub group: String,
}

/// Items of a file or folder.
#[derive(Debug, Clone)]
pub struct ChoiceFile {
    /// The items, in order.
    pub items: Vec<Item>,
    /// The files that were read, with their BLAKE3-256.
    pub files: Vec<(PathBuf, blake3::Hash)>,
}

/// Reads items: JSON lines; a CSV file or folder as MMLU has them; or a TSV file as GLUE has them.
/// `shots` solved questions stand before each of MMLU, from its `dev` files.
///
/// JSON lines have a `context` (or `question`, `query`, `ctx`), `choices` (or `endings`), and an
/// `answer` (or `gold`, `label`): a number from 0, a letter from A, or the text of a choice.
///
/// # Errors
/// A file cannot be read or is none of these; an item has no right choice.
pub fn read_choices(path: &Path, shots: usize) -> Result<ChoiceFile> {
    let found = match path.extension().and_then(|extension| extension.to_str()) {
        _ if path.is_dir() => mmlu::read_folder(path, shots)?,
        Some("csv") => mmlu::read_one(path)?,
        Some("tsv") => single(path, glue::items)?,
        _ => single(path, lines::items)?,
    };
    Limits::check("items", found.items.len() as u64, MOST_ITEMS)?;
    if found.items.is_empty() {
        return Err(Error::corrupt("no items").in_file(path));
    }
    for item in &found.items {
        Limits::check("choices of an item", item.choices.len() as u64, MOST_CHOICES)?;
    }
    Ok(found)
}

fn single(path: &Path, items: impl FnOnce(&str) -> Result<Vec<Item>>) -> Result<ChoiceFile> {
    let (text, digest) = read_file(path)?;
    let items = items(&text).map_err(|e| e.in_file(path))?;
    Ok(ChoiceFile { items, files: vec![(path.to_owned(), digest)] })
}

/// The text of a file, and its digest.
pub(super) fn read_file(path: &Path) -> Result<(String, blake3::Hash)> {
    let bytes = read_small(path, LARGEST_FILE)?
        .ok_or_else(|| Error::io(path)(std::io::Error::new(std::io::ErrorKind::NotFound, "no such file")))?;
    let digest = blake3::hash(&bytes);
    let text = String::from_utf8(bytes).map_err(|_| Error::corrupt("not UTF-8").in_file(path))?;
    // Spreadsheets write a mark of byte order.
    Ok((text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned), digest))
}

/// Adds up items.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// Right by sum, right by character, and all, of each group.
    groups: BTreeMap<String, [u64; 3]>,
}

/// Shares of right answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoicesReport {
    /// By sums of log-probabilities.
    pub acc: Share,
    /// By sums for each character.
    pub acc_norm: Share,
    /// "score" from 500 items on, else "sample".
    pub kind: &'static str,
    /// The same of each group, if there are several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, [Share; 2]>,
}

impl Choices {
    /// Adds an item from the log-probabilities of its choices, each the sum over its tokens.
    /// Returns the choices by sum and by character; of equal ones the first.
    ///
    /// # Errors
    /// There are not as many as choices, or one is NaN.
    pub fn add(&mut self, item: &Item, log_probs: &[f64]) -> Result<[usize; 2]> {
        if log_probs.len() != item.choices.len() || log_probs.iter().any(|log_prob| log_prob.is_nan()) {
            return Err(Error::InvalidArgument(format!(
                "{} log-probabilities for {} choices, or NaN among them",
                log_probs.len(),
                item.choices.len()
            )));
        }
        let length = |place: usize| item.choices[place].trim_start().chars().count().max(1) as f64;
        let by_sum = best(log_probs.iter().copied());
        let by_character = best(log_probs.iter().zip(0..).map(|(log_prob, place)| log_prob / length(place)));
        let counts = self.groups.entry(item.group.clone()).or_default();
        counts[0] += u64::from(by_sum == item.right);
        counts[1] += u64::from(by_character == item.right);
        counts[2] += 1;
        Ok([by_sum, by_character])
    }

    /// Shares so far; `None` without items.
    #[must_use]
    pub fn report(&self) -> Option<ChoicesReport> {
        let sum = |place: usize| self.groups.values().map(|counts| counts[place]).sum::<u64>();
        let of =
            |counts: &[u64; 3]| Some([Share::new(counts[0], counts[2])?, Share::new(counts[1], counts[2])?]);
        let groups = self.groups.iter().filter_map(|(name, counts)| Some((name.clone(), of(counts)?)));
        let [acc, acc_norm] = of(&[sum(0), sum(1), sum(2)])?;
        let groups = if self.groups.len() > 1 { groups.collect() } else { BTreeMap::new() };
        Some(ChoicesReport { acc, acc_norm, kind: kind_of_number(acc.of), groups })
    }
}

fn best(values: impl Iterator<Item = f64>) -> usize {
    let first = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    (0..).zip(values).reduce(first).map_or(0, |(place, _)| place)
}

/// A choice with a space before it, unless it has one.
fn after_space(choice: &str) -> String {
    if choice.starts_with(char::is_whitespace) { choice.to_owned() } else { format!(" {choice}") }
}

#[cfg(test)]
mod tests;
