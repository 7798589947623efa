//! Problems whose answer is a number, as GSM8K has them: `{"question": .., "answer": ".. #### 42"}`
//! in each line. What a model wrote is searched for its number in two ways, as
//! lm-evaluation-harness does: strictly behind `####`, and flexibly, the last number anywhere.

use std::path::Path;

use deltaloom::{Error, Limits, Result};
use serde::Deserialize;

use super::choices::{MOST_ITEMS, read_file};

/// A question with the number that answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The question.
    pub question: String,
    /// The answer with its steps, for examples before a question.
    pub steps: String,
    /// The number, as [`Answer`] writes numbers.
    pub number: String,
}

/// The number in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The first number behind `#### `.
    Strict,
    /// The last number.
    Flexible,
}

impl Answer {
    /// Finds it. Thousands separators, `$` and a full stop at the end are left out.
    #[must_use]
    pub fn of(self, text: &str) -> Option<String> {
        match self {
            Self::Strict => text.match_indices("#### ").find_map(|(at, mark)| {
                let rest = &text[at + mark.len()..];
                let sign = rest.len() - rest.trim_start_matches('-').len();
                let digits = rest[sign..].find(|c| !is_part(c)).unwrap_or(rest.len() - sign);
                (sign <= 1 && digits > 0).then(|| tidy(&rest[..sign + digits]))
            }),
            Self::Flexible => last_number(text),
        }
    }
}

fn is_part(c: char) -> bool {
    c.is_ascii_digit() || c == '.' || c == ','
}

fn tidy(number: &str) -> String {
    let plain = number.replace([',', '$'], "");
    plain.strip_suffix('.').unwrap_or(&plain).to_owned()
}

/// The last run of digits, with a sign before it, that has a digit in it.
fn last_number(text: &str) -> Option<String> {
    let part = |c: char| is_part(c) || c == '$';
    let mut end = text.len();
    loop {
        let last = text[..end].rfind(part)?;
        let stop = last + 1;
        let start = text[..stop]
            .rfind(|c| !part(c))
            .map_or(0, |before| before + text[before..].chars().next().map_or(0, char::len_utf8));
        if text[start..stop].contains(|c: char| c.is_ascii_digit()) {
            let signed = text[..start].ends_with('-');
            return Some(tidy(&text[start - usize::from(signed)..stop]));
        }
        end = start;
    }
}

#[derive(Deserialize)]
struct Line {
    question: String,
    answer: String,
}

/// Reads the problems of a file, and the digest of the file.
///
/// # Errors
/// The file cannot be read; a line is no problem or has no number behind `####`.
pub fn read_problems(path: &Path) -> Result<(Vec<Problem>, blake3::Hash)> {
    let (text, digest) = read_file(path)?;
    let mut problems = Vec::new();
    for (line, number) in text.lines().zip(1_u64..).filter(|(line, _)| !line.trim().is_empty()) {
        Limits::check("lines of a file", number, MOST_ITEMS)?;
        let bad = |why: &str| Error::corrupt(format!("line {number} {why}")).in_file(path);
        let Line { question, answer } =
            serde_json::from_str(line).map_err(|e| bad(&format!("has no question and answer: {e}")))?;
        let number = Answer::Strict.of(&answer).ok_or_else(|| bad("has no number behind ####"))?;
        problems.push(Problem { question, steps: answer, number });
    }
    if problems.is_empty() {
        return Err(Error::corrupt("no problems").in_file(path));
    }
    Ok((problems, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_strictly_and_flexibly() {
        for (text, strict, flexible) in [
            ("So 3 + 4.\n#### 7", Some("7"), Some("7")),
            ("#### -1,234.50", Some("-1234.50"), Some("-1234.50")),
            ("#### 1,000.\nThen 2", Some("1000"), Some("2")),
            ("It costs $1,200.", None, Some("1200")),
            ("The answer is -5, I think.", None, Some("-5")),
            ("#### none #### 8", Some("8"), Some("8")),
            ("No number... at all, $", None, None),
            ("####7 apples", None, Some("7")),
            ("zählt 12é", None, Some("12")),
            ("", None, None),
            ("#### ", None, None),
        ] {
            assert_eq!(Answer::Strict.of(text).as_deref(), strict, "{text}");
            assert_eq!(Answer::Flexible.of(text).as_deref(), flexible, "{text}");
        }
    }

    #[test]
    fn problems_are_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_problems(&path)
        };
        let line = r#"{"question": "2 + 2?", "answer": "It is 4.\n#### 4"}"#;
        let (problems, digest) = read(&format!("{line}\n\n{line}\n")).unwrap();
        assert_eq!((problems.len(), problems[0].number.as_str()), (2, "4"));
        assert_eq!(digest, blake3::hash(format!("{line}\n\n{line}\n").as_bytes()));
        assert!(read("").unwrap_err().with_path().contains("no problems"));
        assert!(read("{}").unwrap_err().with_path().contains("line 1"));
        assert!(read(r#"{"question": "?", "answer": "4"}"#).unwrap_err().with_path().contains("####"));
    }
}
