//! Finds calls of functions in an answer while it grows. However a text is split, the parts
//! together are the same.

use super::tools::Style;

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";
/// LLaMA may write this before a call.
const PYTHON: &str = "<|python_tag|>";

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text for people.
    Content(String),
    /// A call begins.
    Call { index: usize, name: String },
    /// More of the arguments of a call, which are JSON together.
    Arguments { index: usize, text: String },
}

/// Reads an answer.
#[derive(Debug, Clone)]
pub(crate) struct CallReader {
    style: Style,
    /// The functions that may be called.
    names: Vec<String>,
    /// What is not decided yet.
    held: String,
    state: State,
    calls: usize,
}

#[derive(Debug, Clone)]
enum State {
    /// Before a call.
    Before,
    /// In a call.
    Inside(Object),
    /// Behind the object of a call.
    Behind,
    /// No call can come any more.
    Content,
}

impl CallReader {
    pub(super) fn new(style: Style, names: Vec<String>) -> Self {
        Self { style, names, held: String::new(), state: State::Before, calls: 0 }
    }

    /// Whether a call was found so far.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Reads more of the answer.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// The answer ends here.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let state = std::mem::replace(&mut self.state, State::Content);
        let held = std::mem::take(&mut self.held);
        let text = match state {
            State::Inside(object) if object.is_announced => String::new(),
            State::Inside(object) => format!("{}{}{held}", self.opening(), object.text),
            State::Before | State::Content => held,
            State::Behind => String::new(),
        };
        // Spaces around calls are no content.
        let is_empty = if self.has_calls() { text.trim().is_empty() } else { text.is_empty() };
        if is_empty { Vec::new() } else { vec![Part::Content(text)] }
    }

    fn opening(&self) -> &'static str {
        match self.style {
            Style::Tagged => BEGIN,
            Style::Bare => "",
        }
    }

    /// Decides about what is held; `false` if more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match (&mut self.state, self.style) {
            (State::Before, Style::Tagged) => self.find_tag(parts),
            (State::Before, Style::Bare) => self.find_object(),
            (State::Inside(_), _) => self.read_object(parts),
            (State::Behind, _) => self.leave_object(),
            (State::Content, _) => {
                if !self.held.is_empty() {
                    parts.push(Part::Content(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }

    /// Gives out what is before a tag. Spaces before it, and what may become one, are held back.
    fn find_tag(&mut self, parts: &mut Vec<Part>) -> bool {
        let (certain, found) = match self.held.find(BEGIN) {
            Some(place) => (self.held[..place].trim_end().len(), Some(place)),
            None => (self.held[..self.held.len() - started(&self.held, BEGIN)].trim_end().len(), None),
        };
        if certain > 0 {
            parts.push(Part::Content(self.held[..certain].to_owned()));
        }
        match found {
            Some(place) => {
                self.held.drain(..place + BEGIN.len());
                self.state = State::Inside(Object::default());
            }
            None => _ = self.held.drain(..certain),
        }
        found.is_some()
    }

    /// An answer that does not begin with an object has no call.
    fn find_object(&mut self) -> bool {
        let text = self.held.trim_start();
        let rest = text.strip_prefix(PYTHON).unwrap_or(text).trim_start();
        if rest.is_empty() || (rest.len() == text.len() && PYTHON.starts_with(rest)) {
            return false;
        }
        if rest.starts_with('{') {
            let skipped = self.held.len() - rest.len();
            self.held.drain(..skipped);
            self.state = State::Inside(Object::default());
        } else {
            self.state = State::Content;
        }
        true
    }

    fn read_object(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Inside(object) = &mut self.state else { return false };
        object.read(&mut self.held);
        let is_known = |name: &String| self.style == Style::Tagged || self.names.contains(name);
        let index = self.calls.saturating_sub(usize::from(object.is_announced));
        if !object.is_announced
            && let Some(name) = object.name.clone().filter(is_known)
        {
            object.is_announced = true;
            self.calls += 1;
            parts.push(Part::Call { index, name });
        }
        if object.is_announced
            && let Some(text) = object.arguments()
        {
            parts.push(Part::Arguments { index, text });
        }
        match object.end {
            End::Open => false,
            End::Complete if object.is_announced => {
                self.state = State::Behind;
                true
            }
            End::Complete | End::Broken => {
                // It was no call.
                let text = if object.is_announced { String::new() } else { std::mem::take(&mut object.text) };
                self.held.insert_str(0, &text);
                let opening = self.opening();
                if !text.is_empty() && !opening.is_empty() {
                    parts.push(Part::Content(opening.to_owned()));
                }
                self.state = State::Content;
                true
            }
        }
    }

    /// Skips the closing tag, or what separates calls.
    fn leave_object(&mut self) -> bool {
        let text = self.held.trim_start();
        let (separator, next) = match self.style {
            Style::Tagged => (END, State::Before),
            Style::Bare => (";", State::Before),
        };
        if text.len() < separator.len() && separator.starts_with(text) {
            return false;
        }
        let rest = text.strip_prefix(separator).unwrap_or(text);
        let skipped = self.held.len() - rest.len();
        self.held.drain(..skipped);
        self.state = next;
        true
    }
}

/// Bytes at the end of a text that may become a word.
fn started(text: &str, word: &str) -> usize {
    (1..word.len()).rev().find(|count| text.ends_with(&word[..*count])).unwrap_or(0)
}

/// A JSON object that grows. Only its fields are looked for; what they hold is not checked.
#[derive(Debug, Clone, Default)]
struct Object {
    text: String,
    /// Bytes of it that were looked at.
    seen: usize,
    depth: usize,
    quoting: Quoting,
    /// The field whose value comes.
    key: Option<String>,
    /// Where the current key or value begins.
    begin: Option<usize>,
    name: Option<String>,
    arguments: Option<Arguments>,
    end: End,
    is_announced: bool,
}

/// The value of the arguments, by its place in the text.
#[derive(Debug, Clone)]
struct Arguments {
    begin: usize,
    end: Option<usize>,
    /// Where what was not given out yet begins.
    rest: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Quoting {
    #[default]
    Outside,
    Inside,
    Escaped,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Complete,
    Broken,
}

impl Object {
    /// Takes what belongs to the object.
    fn read(&mut self, held: &mut String) {
        self.text.push_str(held);
        held.clear();
        while self.end == End::Open
            && let Some(byte) = self.text.as_bytes().get(self.seen).copied()
        {
            self.end = self.byte(byte, self.seen);
            self.seen += 1;
        }
        if self.end == End::Complete {
            *held = self.text.split_off(self.seen);
        }
    }

    fn byte(&mut self, byte: u8, at: usize) -> End {
        match (self.quoting, byte) {
            (Quoting::Escaped, _) => self.quoting = Quoting::Inside,
            (Quoting::Inside, b'\\') => self.quoting = Quoting::Escaped,
            (Quoting::Inside, b'"') => {
                self.quoting = Quoting::Outside;
                if self.depth == 1 {
                    self.string_ends(at + 1);
                }
            }
            (Quoting::Inside, _) | (Quoting::Outside, b' ' | b'\n' | b'\r' | b'\t') => {}
            (Quoting::Outside, b'{') if self.depth == 0 => self.depth = 1,
            (Quoting::Outside, _) if self.depth == 0 => return End::Broken,
            (Quoting::Outside, b'"') => {
                self.quoting = Quoting::Inside;
                self.value_begins(at);
            }
            (Quoting::Outside, b'}' | b']') => {
                self.depth -= 1;
                match self.depth {
                    0 => {
                        self.value_ends(at);
                        return End::Complete;
                    }
                    1 => self.value_ends(at + 1),
                    _ => {}
                }
            }
            (Quoting::Outside, b',') if self.depth == 1 => {
                self.value_ends(at);
                self.key = None;
            }
            (Quoting::Outside, b':') if self.depth == 1 => {}
            // A key is a string.
            (Quoting::Outside, _) if self.depth == 1 && self.key.is_none() => return End::Broken,
            (Quoting::Outside, byte) => {
                self.value_begins(at);
                self.depth += usize::from(matches!(byte, b'{' | b'['));
            }
        }
        End::Open
    }

    /// A key or a value of the object itself begins, unless one goes on.
    fn value_begins(&mut self, at: usize) {
        if self.depth != 1 || self.begin.is_some() {
            return;
        }
        self.begin = Some(at);
        let is_arguments = matches!(self.key.as_deref(), Some("arguments" | "parameters"));
        if is_arguments && self.arguments.is_none() {
            self.arguments = Some(Arguments { begin: at, end: None, rest: at });
        }
    }

    fn string_ends(&mut self, end: usize) {
        match (&self.key, self.begin) {
            (None, Some(begin)) => {
                self.key = Some(serde_json::from_str(&self.text[begin..end]).unwrap_or_default());
                self.begin = None;
            }
            _ => self.value_ends(end),
        }
    }

    fn value_ends(&mut self, end: usize) {
        let (Some(begin), Some(key)) = (self.begin.take(), &self.key) else { return };
        let value = self.text[begin..end].trim_end();
        if key == "name" {
            self.name = self.name.take().or_else(|| serde_json::from_str(value).ok());
        }
        if let Some(arguments) = self.arguments.as_mut().filter(|arguments| arguments.begin == begin) {
            arguments.end = Some(begin + value.len());
        }
    }

    /// What is new of the arguments. A list or an object is given out as it grows, anything else as
    /// a whole; a string is taken for JSON that was written as one.
    fn arguments(&mut self) -> Option<String> {
        let Some(found) = &mut self.arguments else {
            // A call without arguments.
            return (self.end == End::Complete).then(|| "{}".to_owned());
        };
        let grows = matches!(self.text.as_bytes().get(found.begin), Some(b'{' | b'['));
        let end = found.end.or(grows.then_some(self.text.len()))?;
        let new = self.text.get(found.rest..end).filter(|new| !new.is_empty())?;
        let decoded = if grows { None } else { serde_json::from_str::<String>(new).ok() };
        let new = decoded.unwrap_or_else(|| new.to_owned());
        found.rest = end;
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content, and the calls with their arguments.
    fn read(style: Style, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut reader = CallReader::new(style, vec!["add".to_owned(), "now".to_owned()]);
        let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
        parts.extend(reader.finish());
        let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for part in parts {
            match part {
                Part::Content(text) => content.push_str(&text),
                Part::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Part::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        assert_eq!(reader.has_calls(), !calls.is_empty());
        (content, calls)
    }

    /// Reads a text as a whole, in two parts, and byte by byte.
    fn check(style: Style, text: &str, content: &str, calls: &[(&str, &str)]) {
        let calls: Vec<_> =
            calls.iter().map(|(name, args)| ((*name).to_owned(), (*args).to_owned())).collect();
        let expected = (content.to_owned(), calls);
        assert_eq!(read(style, &[text]), expected, "{text}");
        for place in (0..text.len()).filter(|place| text.is_char_boundary(*place)) {
            assert_eq!(read(style, &[&text[..place], &text[place..]]), expected, "{text} at {place}");
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        assert_eq!(read(style, &characters), expected, "{text}");
    }

    #[test]
    fn tagged_calls_are_found_among_text() {
        let all = |text, content, calls: &[(&str, &str)]| check(Style::Tagged, text, content, calls);
        all("no call <tool", "no call <tool", &[]);
        all("a < b\n", "a < b\n", &[]);
        all(
            "Sure.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": [1, \"}\"], \"b\": \"é\\\"\"}}\n</tool_call>",
            "Sure.",
            &[("add", "{\"a\": [1, \"}\"], \"b\": \"é\\\"\"}")],
        );
        all(
            "<tool_call>{\"arguments\":{},\"name\":\"now\"}</tool_call>\n<tool_call>{\"name\":\"other\"} </tool_call>\n",
            "",
            &[("now", "{}"), ("other", "{}")],
        );
        // Arguments as a string, and what is no object.
        all("<tool_call>{\"name\":\"add\",\"arguments\":\"{\\\"a\\\":1}\"}", "", &[("add", "{\"a\":1}")]);
        all("<tool_call>{\"name\":\"add\",\"arguments\":null }", "", &[("add", "null")]);
        all("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", &[]);
        all("<tool_call>{\"a\":1}</tool_call>", "<tool_call>{\"a\":1}</tool_call>", &[]);
        all("<tool_call>{\"na", "<tool_call>{\"na", &[]);
        // A text that was cut.
        all("<tool_call>{\"name\":\"add\",\"arguments\":{\"a\": 1", "", &[("add", "{\"a\": 1")]);
    }

    #[test]
    fn a_bare_call_is_the_whole_answer() {
        let all = |text, content, calls: &[(&str, &str)]| check(Style::Bare, text, content, calls);
        all("{\"name\": \"add\", \"parameters\": {\"a\": 1}}", "", &[("add", "{\"a\": 1}")]);
        all(
            "<|python_tag|>{\"name\": \"add\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {}}\n",
            "",
            &[("add", "{}"), ("now", "{}")],
        );
        all("2 {\"name\": \"add\"}", "2 {\"name\": \"add\"}", &[]);
        all("{\"name\": \"other\", \"x\": 1} etc", "{\"name\": \"other\", \"x\": 1} etc", &[]);
        all(" ", " ", &[]);
        all("{{", "{{", &[]);
        all("{]", "{]", &[]);
    }
}
