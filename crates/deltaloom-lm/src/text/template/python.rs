//! Values as Python writes them: `str(value)` where a template prints one, and `json.dumps`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Levels of lists in lists that are written.
const DEPTH: usize = 100;

/// Prints a value: undefined as nothing, and all others as `str` does.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        ValueKind::Number if !value.is_integer() => out.write_str(&number(value)?).map_err(Error::from),
        ValueKind::Seq | ValueKind::Map => {
            let mut writer = Writer { style: &Style::Python, state, text: String::new() };
            writer.value(value, 0)?;
            out.write_str(&writer.text).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// How JSON is written.
pub(super) struct Json {
    /// Spaces of a level; `None` writes one line.
    pub(super) indent: Option<usize>,
    /// Between items, and between a key and its value.
    pub(super) separators: Option<(String, String)>,
    /// By keys.
    pub(super) sorted: bool,
}

impl Json {
    /// The text of a value.
    pub(super) fn text(self, state: &State, value: &Value) -> Result<String, Error> {
        let style = Style::Json(self);
        let mut writer = Writer { style: &style, state, text: String::new() };
        writer.value(value, 0)?;
        Ok(writer.text)
    }
}

enum Style {
    Python,
    Json(Json),
}

struct Writer<'a> {
    style: &'a Style,
    state: &'a State<'a, 'a>,
    text: String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        if depth > DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "a value has too many levels"));
        }
        let json = matches!(self.style, Style::Json(_));
        match value.kind() {
            ValueKind::None if json => self.text.push_str("null"),
            ValueKind::None => self.text.push_str("None"),
            ValueKind::Bool => self.text.push_str(match (value.is_true(), json) {
                (true, true) => "true",
                (true, false) => "True",
                (false, true) => "false",
                (false, false) => "False",
            }),
            ValueKind::Number => self.text.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or(""))?,
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("{kind} cannot be written as JSON"),
                ));
            }
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.text.push('[');
        let mut any = false;
        for item in value.try_iter()? {
            self.next_item(any, depth + 1);
            any = true;
            self.value(&item, depth + 1)?;
        }
        self.close(any, depth, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if let Style::Json(Json { sorted: true, .. }) = self.style {
            keys.sort();
        }
        self.text.push('{');
        let any = !keys.is_empty();
        for (place, key) in keys.iter().enumerate() {
            self.next_item(place > 0, depth + 1);
            match (self.style, key.as_str()) {
                (Style::Json(_), None) => {
                    self.text.push('"');
                    self.value(key, depth + 1)?;
                    self.text.push('"');
                }
                _ => self.value(key, depth + 1)?,
            }
            self.text.push_str(match self.style {
                Style::Json(Json { separators: Some((_, colon)), .. }) => colon,
                _ => ": ",
            });
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.close(any, depth, '}');
        Ok(())
    }

    fn next_item(&mut self, any: bool, depth: usize) {
        let (indent, separator) = match self.style {
            Style::Python => (None, ", "),
            Style::Json(Json { indent, separators, .. }) => {
                let separator = separators.as_ref().map(|pair| pair.0.as_str());
                (*indent, separator.unwrap_or(if indent.is_some() { "," } else { ", " }))
            }
        };
        if any {
            self.text.push_str(separator);
        }
        self.new_line(indent, depth);
    }

    fn close(&mut self, any: bool, depth: usize, bracket: char) {
        if let (true, Style::Json(Json { indent, .. })) = (any, self.style) {
            self.new_line(*indent, depth);
        }
        self.text.push(bracket);
    }

    fn new_line(&mut self, indent: Option<usize>, depth: usize) {
        if let Some(indent) = indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, string: &str) -> Result<(), Error> {
        let quote = match self.style {
            Style::Json(_) => '"',
            Style::Python if string.contains('\'') && !string.contains('"') => '"',
            Style::Python => '\'',
        };
        let json = matches!(self.style, Style::Json(_));
        self.state.consume_fuel(string.len() as u64 / 64)?;
        self.text.push(quote);
        for c in string.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' if json => self.text.push_str("\\b"),
                '\u{c}' if json => self.text.push_str("\\f"),
                c if c == quote => self.text.extend(['\\', c]),
                c if json && c < ' ' => self.text.push_str(&format!("\\u{:04x}", u32::from(c))),
                c if !json && (c < ' ' || ('\u{7f}'..'\u{a1}').contains(&c) || c == '\u{ad}') => {
                    self.text.push_str(&format!("\\x{:02x}", u32::from(c)));
                }
                c => self.text.push(c),
            }
        }
        self.text.push(quote);
        Ok(())
    }
}

/// A number, as `repr` writes it.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    Ok(if !number.is_finite() {
        text.to_lowercase()
    } else if (-4..16).contains(&exponent) {
        format!("{number:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    })
}
