//! Items as JSON lines.

use serde_json::Value;

use super::{Item, after_space};
use deltaloom::{Error, Result};

pub(super) fn items(text: &str) -> Result<Vec<Item>> {
    let lines = text.lines().zip(1_u64..).filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(line, number)| item(line).map_err(|why| Error::corrupt(format!("line {number} {why}"))))
        .collect()
}

fn item(line: &str) -> Result<Item, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("is not JSON: {e}"))?;
    let of = |names: &[&str]| {
        let found = names.iter().map(|name| &value[*name]).find(|found| !found.is_null());
        found.ok_or_else(|| format!("has no {:?}", names[0]))
    };
    let context =
        of(&["context", "question", "query", "ctx"])?.as_str().ok_or("has a context that is no text")?;
    let list = of(&["choices", "endings"])?;
    // AI2's files have objects of lists.
    let list = if list.is_object() { &list["text"] } else { list };
    let texts: Option<Vec<&str>> = list.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    let texts =
        texts.filter(|texts| texts.len() > 1).ok_or("does not have two or more choices that are texts")?;
    let right = right(of(&["answer", "gold", "label", "answerKey"])?, &texts)?;
    let group = value["group"].as_str().or(value["subject"].as_str()).unwrap_or("").to_owned();
    let choices = texts.into_iter().map(after_space).collect();
    Ok(Item { context: context.trim_end().to_owned(), choices, right, group })
}

/// A number from 0, a digit as text, a letter from A, or the text of a choice.
fn right(answer: &Value, texts: &[&str]) -> Result<usize, String> {
    let place = match answer {
        Value::String(text) => match (texts.iter().position(|choice| choice == text), text.as_bytes()) {
            (Some(place), _) => Some(place),
            (None, [letter @ b'A'..=b'Z']) => Some(usize::from(letter - b'A')),
            (None, digits) => std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()),
        },
        other => other.as_u64().and_then(|place| usize::try_from(place).ok()),
    };
    place.filter(|place| *place < texts.len()).ok_or_else(|| format!("has the answer {answer}: not a choice"))
}
