//! Ids back to text, one at a time: characters that span tokens are held back until they are
//! complete. However a list of ids is split, the texts together are the same.
//!
//! Bytes that are not UTF-8 become U+FFFD, as `String::from_utf8_lossy` does it. There is no
//! clean-up of spaces before punctuation, which would change what a model wrote.

use std::collections::HashSet;

use serde_json::Value;

use deltaloom::{Error, Result};

/// How the strings of a vocabulary become bytes: the decoder of a `tokenizer.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decoding {
    replacements: Vec<(String, String)>,
    bytes: Bytes,
    /// Stands for a space.
    space: Option<char>,
    start: Start,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Bytes {
    /// Strings are text.
    #[default]
    Utf8,
    /// Each character stands for a byte.
    ByteLevel,
    /// Strings are text, but `<0x41>` is a byte.
    Fallback,
}

/// What is left out at the start of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Start {
    #[default]
    Nothing,
    /// Up to this many bytes of this value.
    Bytes(u8, usize),
    /// All spaces of the first token.
    SpacesOfFirst,
}

impl Decoding {
    /// Reads the parts of a decoder, in order.
    pub(super) fn from_parts(parts: &[(&str, &Value)]) -> Result<Self> {
        let mut found = Self::default();
        let mut fused = false;
        for (kind, part) in parts {
            let text = |key: &str| part[key].as_str().map(str::to_owned);
            let done = found.bytes != Bytes::Utf8 || fused;
            match *kind {
                "ByteLevel" if !done => found.bytes = Bytes::ByteLevel,
                "ByteFallback" if !done => found.bytes = Bytes::Fallback,
                "Fuse" if !fused => fused = true,
                "Metaspace" if !done && found.space.is_none() => {
                    found.space = part["replacement"].as_str().and_then(|text| text.chars().next());
                    let kept = part["prepend_scheme"] == "never" || part["add_prefix_space"] == false;
                    found.start = if kept { Start::Nothing } else { Start::SpacesOfFirst };
                }
                "Replace" if !done => {
                    let from = part["pattern"]["String"].as_str().filter(|from| !from.is_empty());
                    let (Some(from), Some(to)) = (from, text("content")) else {
                        return Err(unsupported("Replace with a pattern that is not a string"));
                    };
                    found.replacements.push((from.to_owned(), to));
                }
                "Strip" if fused && part["stop"] == 0 && found.start == Start::Nothing => {
                    let content = part["content"].as_str().map(str::as_bytes);
                    let (Some(&[byte]), Some(most)) = (content, part["start"].as_u64()) else {
                        return Err(unsupported("Strip of what is not one byte"));
                    };
                    found.start = Start::Bytes(byte, usize::try_from(most).unwrap_or(usize::MAX));
                }
                other => return Err(unsupported(&format!("{other:?} at this place"))),
            }
        }
        if parts.is_empty() {
            return Err(unsupported("missing"));
        }
        Ok(found)
    }

    /// The bytes of all ids. Added tokens are text as it stands.
    pub(super) fn pieces(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        added: &HashSet<u32>,
        special: &HashSet<u32>,
    ) -> Pieces {
        let vocabulary = tokenizer.get_vocab(true);
        let count = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new(), start: self.start };
        let level = byte_level();
        for id in (0..).take(count) {
            let kind = match tokenizer.id_to_token(id) {
                None => Kind::Missing,
                Some(token) if added.contains(&id) => {
                    pieces.bytes.extend_from_slice(token.as_bytes());
                    if special.contains(&id) { Kind::Special } else { Kind::Added }
                }
                Some(token) => {
                    self.append(token, &level, &mut pieces.bytes);
                    Kind::Text
                }
            };
            pieces.kinds.push(kind);
            pieces.ends.push(pieces.bytes.len());
        }
        pieces
    }

    fn append(&self, mut token: String, level: &[Option<u8>], bytes: &mut Vec<u8>) {
        for (from, to) in &self.replacements {
            token = token.replace(from, to);
        }
        if let Some(space) = self.space {
            token = token.replace(space, " ");
        }
        match self.bytes {
            Bytes::Utf8 => {}
            Bytes::Fallback => {
                let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let byte = digits.filter(|digits| digits.len() == 2);
                if let Some(byte) = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    return bytes.push(byte);
                }
            }
            Bytes::ByteLevel => {
                let byte = |c: char| level.get(c as usize).copied().flatten();
                if let Some(mapped) = token.chars().map(byte).collect::<Option<Vec<u8>>>() {
                    return bytes.extend(mapped);
                }
            }
        }
        bytes.extend_from_slice(token.as_bytes());
    }
}

fn unsupported(what: &str) -> Error {
    Error::InvalidArgument(format!("the decoder of the tokenizer is {what}: it cannot be used"))
}

/// Which byte each character stands for in a byte-level vocabulary, by code point. Printable bytes
/// of Latin-1 stand for themselves, and the others for the characters from U+0100 on, in order.
fn byte_level() -> Vec<Option<u8>> {
    let mut bytes = vec![None; 0x144];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        let place = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => usize::from(byte),
            _ => {
                next += 1;
                next - 1
            }
        };
        bytes[place] = Some(byte);
    }
    bytes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Added,
    /// An added token that is not text, such as the end of a turn.
    Special,
    /// A row of the embedding without a token.
    Missing,
}

/// The bytes of every id.
#[derive(Debug, Clone)]
pub struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    kinds: Vec<Kind>,
    start: Start,
}

impl Pieces {
    /// One more than the largest id.
    #[must_use]
    pub fn ids(&self) -> usize {
        self.ends.len()
    }

    /// Whether an id has a token.
    #[must_use]
    pub fn has(&self, id: u32) -> bool {
        self.kind(id) != Kind::Missing
    }

    /// Whether an id is a token that is not text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Kind::Special
    }

    /// The bytes of an id, not always UTF-8. Empty if it has no token.
    #[must_use]
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..*end]
    }

    fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Missing)
    }

    /// The text of a list of ids that starts a text.
    #[must_use]
    pub fn text(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = Detokenizer::new(Position::Start, skip_special);
        let mut text = String::new();
        for id in ids {
            stream.push(self, *id, &mut text);
        }
        stream.finish(&mut text);
        text
    }
}

/// Where the ids of a stream stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// They start a text. Some tokenizers add a space there, which is left out again.
    Start,
    /// They continue a text.
    After,
}

/// Turns a stream of ids into text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    held: Vec<u8>,
    skip_special: bool,
    /// Nothing was pushed yet, and the start of the text is here.
    first: bool,
    /// Number of bytes that may still be left out.
    left_out: Option<usize>,
}

impl Detokenizer {
    /// A stream without ids. With `skip_special`, tokens that are not text give no text.
    #[must_use]
    pub fn new(position: Position, skip_special: bool) -> Self {
        let start = position == Position::Start;
        Self { held: Vec::new(), skip_special, first: start, left_out: start.then_some(usize::MAX) }
    }

    /// Appends the text that is complete with this id.
    pub fn push(&mut self, pieces: &Pieces, id: u32, text: &mut String) {
        if self.skip_special && pieces.is_special(id) {
            return;
        }
        let mut bytes = pieces.bytes(id);
        match pieces.start {
            Start::SpacesOfFirst if self.first && pieces.kind(id) == Kind::Text => {
                self.held.extend(bytes.iter().filter(|byte| **byte != b' '));
                bytes = &[];
            }
            Start::Bytes(byte, most) => {
                while let Some(left) = self.left_out
                    && let Some((first, rest)) = bytes.split_first()
                {
                    if left.min(most) == 0 || *first != byte {
                        self.left_out = None;
                    } else {
                        self.left_out = Some(left.min(most) - 1);
                        bytes = rest;
                    }
                }
            }
            Start::Nothing | Start::SpacesOfFirst => {}
        }
        self.first = false;
        self.held.extend_from_slice(bytes);
        self.release(text);
    }

    /// Appends what was held back: bytes that are not a complete character.
    pub fn finish(&mut self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }

    fn release(&mut self, text: &mut String) {
        let mut rest = self.held.as_slice();
        while !rest.is_empty() {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, bad) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(length) = error.error_len() else {
                rest = bad;
                break;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &bad[length..];
        }
        let released = self.held.len() - rest.len();
        self.held.drain(..released);
    }
}

#[cfg(test)]
#[path = "detokenize_tests.rs"]
mod tests;
