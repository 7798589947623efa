//! MMLU: a folder of CSV files, one for each subject, without header lines and with six columns:
//! question, four choices, and the letter of the right one. `dev` holds solved examples.

use std::path::{Path, PathBuf};

use super::{ChoiceFile, Item, read_file};
use deltaloom::{Error, Result};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

struct Question {
    text: String,
    right: usize,
}

/// One subject without examples.
pub(super) fn read_one(path: &Path) -> Result<ChoiceFile> {
    let (text, digest) = read_file(path)?;
    let items = subject_items(&subject(path), &questions(&text).map_err(|e| e.in_file(path))?, &[]);
    Ok(ChoiceFile { items, files: vec![(path.to_owned(), digest)] })
}

/// All subjects of a folder: of its folder `test` if there is one.
pub(super) fn read_folder(folder: &Path, shots: usize) -> Result<ChoiceFile> {
    let test = folder.join("test");
    let mut found = ChoiceFile { items: Vec::new(), files: Vec::new() };
    for path in csv_files(if test.is_dir() { &test } else { folder })? {
        let mut read = |path: &Path| {
            let (text, digest) = read_file(path)?;
            found.files.push((path.to_owned(), digest));
            questions(&text).map_err(|e| e.in_file(path))
        };
        let name = subject(&path);
        let asked = read(&path)?;
        let mut examples = Vec::new();
        if shots > 0 {
            let file = format!("{name}_dev.csv");
            let beside = path.with_file_name(&file);
            let dev = folder.join("dev").join(&file);
            examples = read(if dev.exists() { &dev } else { &beside })?;
            if examples.len() < shots {
                return Err(Error::InvalidArgument(format!(
                    "{name} has {} solved examples, not {shots}",
                    examples.len()
                )));
            }
        }
        found.items.extend(subject_items(&name, &asked, &examples[..shots.min(examples.len())]));
    }
    Ok(found)
}

/// In the order of their names, without files of examples.
fn csv_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if name.ends_with(".csv") && !name.ends_with("_dev.csv") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn subject(path: &Path) -> String {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
    let end = ["_test", "_val", "_dev"].iter().find_map(|end| stem.strip_suffix(end));
    end.unwrap_or(stem).to_owned()
}

fn subject_items(name: &str, asked: &[Question], examples: &[Question]) -> Vec<Item> {
    let mut start = format!(
        "The following are multiple choice questions (with answers) about {}.\n\n",
        name.replace('_', " ")
    );
    for example in examples {
        start.push_str(&format!("{} {}\n\n", example.text, LETTERS[example.right]));
    }
    let item = |question: &Question| Item {
        context: format!("{start}{}", question.text),
        choices: LETTERS.map(|letter| format!(" {letter}")).to_vec(),
        right: question.right,
        group: name.to_owned(),
    };
    asked.iter().map(item).collect()
}

fn questions(text: &str) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (row, number) in rows(text)?.into_iter().zip(1_u64..) {
        let right = row.last().and_then(|last| LETTERS.iter().position(|letter| letter == last));
        match (&row[..], right) {
            ([question, a, b, c, d, _], Some(right)) => {
                let text = format!("{}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:", question.trim());
                questions.push(Question { text, right });
            }
            (_, None)
                if number == 1 && row.last().is_some_and(|last| last.eq_ignore_ascii_case("answer")) => {}
            _ => {
                return Err(Error::corrupt(format!(
                    "row {number} has {} columns, not a question, four choices and a letter from A to D",
                    row.len()
                )));
            }
        }
    }
    Ok(questions)
}

/// Rows of a CSV file as RFC 4180 has them: cells in quotes may hold commas, line ends and doubled
/// quotes.
fn rows(text: &str) -> Result<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    let (mut row, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() => quoted = true,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted && letters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            other => cell.push(other),
        }
    }
    if quoted {
        return Err(Error::corrupt("a cell in quotes does not end"));
    }
    if !(row.is_empty() && cell.is_empty()) {
        row.push(cell);
        rows.push(row);
    }
    rows.retain(|row| row.iter().any(|cell| !cell.is_empty()));
    Ok(rows)
}
