//! JSON texts with another layout: other line ends, spaces and escapes, and the same tokens;
//! docs/format.md section 3.11.
//! Any bytes are taken for JSON. Nothing is checked but the length of the result.

use std::ops::Range;

use super::fields;
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::Result;

/// Containers of so many levels at most are told apart; deeper ones count as that deep.
pub(crate) const MOST_LEVELS: u64 = 1 << 16;
const MOST_SPACES: u8 = 16;

/// How characters of strings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strings {
    /// As the text has them.
    Same,
    /// In UTF-8, with the fewest escapes.
    Utf8,
    /// In ASCII.
    Ascii,
}

/// What a level adds to the start of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Indent {
    Spaces(u8),
    Tab,
}

/// How a writer of JSON lays out its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Whether a space follows each colon, and each comma that ends no line.
    pub(crate) has_space_after_colon: bool,
    pub(crate) has_space_after_comma: bool,
    /// Whether lines end as in Windows.
    pub(crate) has_returns: bool,
    pub(crate) strings: Strings,
    pub(crate) indent: Indent,
    /// The elements of containers of so many outer levels have lines of their own.
    pub(crate) levels: u64,
}

/// A part of a text. White space is between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Open,
    Close,
    Comma,
    Colon,
    String,
    /// Anything else, such as a number.
    Other,
}

/// The tokens of a text and their places.
pub(crate) struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }
}

impl Iterator for Tokens<'_> {
    type Item = (Token, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.text.get(self.at..)?;
        let start = self.at + rest.iter().position(|byte| !is_space(*byte))?;
        let rest = &self.text[start..];
        let (token, len) = match rest[0] {
            b'{' | b'[' => (Token::Open, 1),
            b'}' | b']' => (Token::Close, 1),
            b',' => (Token::Comma, 1),
            b':' => (Token::Colon, 1),
            b'"' => (Token::String, string_len(rest)),
            _ => {
                let end = rest.iter().position(|byte| is_space(*byte) || b"{}[],:\"".contains(byte));
                (Token::Other, end.unwrap_or(rest.len()))
            }
        };
        self.at = start + len;
        Some((token, start..self.at))
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Bytes of the string that a text begins with, with its quotes. Without a second one it goes on to
/// the end.
fn string_len(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) =
        text.get(at..).and_then(|rest| rest.iter().position(|byte| b"\"\\".contains(byte)))
    {
        at += found + 1;
        if text[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    text.len()
}

impl Layout {
    /// The same tokens in this layout. `None` if they take more than `most` bytes.
    pub(crate) fn apply(&self, text: &[u8], most: usize) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(text.len().min(most));
        let (mut depth, mut before) = (0u64, None);
        for (token, place) in Tokens::new(text) {
            let has_values = matches!(before, Some(Token::Close | Token::String | Token::Other));
            match (token, before) {
                (Token::Close, _) => {
                    depth = depth.saturating_sub(1);
                    if before != Some(Token::Open) && self.is_broken(depth) {
                        self.push_line(&mut out, depth, most)?;
                    }
                }
                (_, Some(Token::Open)) if self.is_broken(depth - 1) => {
                    self.push_line(&mut out, depth, most)?
                }
                // Values that follow each other, such as those of JSON lines.
                (Token::Open | Token::String | Token::Other, _) if depth == 0 && has_values => {
                    self.push_line(&mut out, 0, most)?;
                }
                _ => {}
            }
            match (token, self.strings) {
                (Token::String, Strings::Utf8) => push_string(&mut out, &text[place], false),
                (Token::String, Strings::Ascii) => push_string(&mut out, &text[place], true),
                _ => out.extend_from_slice(&text[place]),
            }
            match token {
                Token::Open => depth += 1,
                Token::Comma if depth > 0 && self.is_broken(depth - 1) => {
                    self.push_line(&mut out, depth, most)?
                }
                Token::Comma if self.has_space_after_comma => out.push(b' '),
                Token::Colon if self.has_space_after_colon => out.push(b' '),
                _ => {}
            }
            if out.len() > most {
                return None;
            }
            before = Some(token);
        }
        Some(out)
    }

    /// Whether the elements of a container within `depth` others have lines of their own.
    fn is_broken(&self, depth: u64) -> bool {
        depth.min(MOST_LEVELS - 1) < self.levels
    }

    /// The start of a line. `None` if that would be too much.
    fn push_line(&self, out: &mut Vec<u8>, depth: u64, most: usize) -> Option<()> {
        let (space, of_level) = match self.indent {
            Indent::Spaces(count) => (b' ', count),
            Indent::Tab => (b'\t', 1),
        };
        let count = usize::try_from(depth.checked_mul(of_level.into())?).ok()?;
        let len = out.len().checked_add(count).filter(|len| *len < most)?;
        out.extend_from_slice(if self.has_returns { b"\r\n" } else { b"\n" });
        out.resize(len + 1 + usize::from(self.has_returns), space);
        Some(())
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        let strings = match self.strings {
            Strings::Same => 0,
            Strings::Utf8 => 1,
            Strings::Ascii => 2,
        };
        let bits = [self.has_space_after_colon, self.has_space_after_comma, self.has_returns];
        let bits = bits.iter().rev().fold(0, |bits, bit| bits << 1 | u8::from(*bit));
        let indent = match self.indent {
            Indent::Spaces(count) => count,
            Indent::Tab => MOST_SPACES + 1,
        };
        meta.extend([bits | strings << 3, indent]);
        push_varint(meta, self.levels);
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        let (flags, indent) = (meta.u8()?, meta.u8()?);
        let strings = match flags >> 3 {
            0 => Strings::Same,
            1 => Strings::Utf8,
            2 => Strings::Ascii,
            _ => return Err(fields::bad("way to write strings")),
        };
        let indent = match indent {
            0..=MOST_SPACES => Indent::Spaces(indent),
            _ if indent == MOST_SPACES + 1 => Indent::Tab,
            _ => return Err(fields::bad("indentation")),
        };
        Ok(Self {
            has_space_after_colon: flags & 1 != 0,
            has_space_after_comma: flags & 2 != 0,
            has_returns: flags & 4 != 0,
            strings,
            indent,
            levels: fields::within(meta, 0..=MOST_LEVELS, "number of levels")?,
        })
    }
}

/// Appends a string with its escapes replaced by the fewest that are needed, and in ASCII by those
/// of all other characters. What is no UTF-8 and no known escape stays.
fn push_string(out: &mut Vec<u8>, string: &[u8], is_ascii: bool) {
    out.push(b'"');
    let is_closed = string.len() > 1 && ends_with_quote(string);
    let mut rest = &string[1..string.len() - usize::from(is_closed)];
    while let Some(first) = rest.first() {
        let plain =
            rest.iter().take_while(|byte| matches!(byte, b' '..=b'~') && !b"\"\\".contains(byte)).count();
        if plain > 0 {
            out.extend_from_slice(&rest[..plain]);
            rest = &rest[plain..];
            continue;
        }
        let (unit, len) = if *first == b'\\' { escaped(rest) } else { utf8(rest) };
        match unit {
            Some(unit) => push_unit(out, unit, is_ascii),
            None => out.extend_from_slice(&rest[..len]),
        }
        rest = &rest[len..];
    }
    if is_closed {
        out.push(b'"');
    }
}

/// Whether the last byte of a token is the quote that ends it.
fn ends_with_quote(string: &[u8]) -> bool {
    let Some((b'"', inner)) = string.split_last() else { return false };
    inner.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
}

/// The character, or half of a pair, that an escape stands for, and the bytes of the escape. Those
/// of an unknown one are its first two.
fn escaped(text: &[u8]) -> (Option<u32>, usize) {
    let Some(kind) = text.get(1) else { return (None, 1) };
    let unit = match kind {
        b'"' | b'\\' | b'/' => u32::from(*kind),
        b'b' => 8,
        b't' => 9,
        b'n' => 10,
        b'f' => 12,
        b'r' => 13,
        b'u' => {
            let Some(high) = hex(text) else { return (None, 2) };
            let low = text.get(6..).filter(|rest| rest.starts_with(b"\\u")).and_then(hex);
            return match (high, low) {
                (0xD800..0xDC00, Some(low @ 0xDC00..0xE000)) => {
                    (Some(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)), 12)
                }
                _ => (Some(high), 6),
            };
        }
        _ => return (None, 2),
    };
    (Some(unit), 2)
}

/// The number of an escape with four hexadecimal digits.
fn hex(text: &[u8]) -> Option<u32> {
    let digits = text.get(2..6).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// The character that a text begins with, and its bytes; `None` for a byte that begins none.
fn utf8(text: &[u8]) -> (Option<u32>, usize) {
    let valid = (1..=4.min(text.len())).find_map(|len| str::from_utf8(&text[..len]).ok());
    valid.and_then(|valid| valid.chars().next()).map_or((None, 1), |c| (Some(c.into()), c.len_utf8()))
}

fn push_unit(out: &mut Vec<u8>, unit: u32, is_ascii: bool) {
    let short = match unit {
        8 => b'b',
        9 => b't',
        10 => b'n',
        12 => b'f',
        13 => b'r',
        0x22 => b'"',
        0x5C => b'\\',
        _ => 0,
    };
    if short != 0 {
        return out.extend([b'\\', short]);
    }
    match char::from_u32(unit) {
        Some(c) if unit >= 0x20 && (unit < 0x7F || !is_ascii) => {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Some(c) => c.encode_utf16(&mut [0; 2]).iter().for_each(|half| push_hex(out, (*half).into())),
        None => push_hex(out, unit),
    }
}

fn push_hex(out: &mut Vec<u8>, half: u32) {
    let digit = |shift: u32| b"0123456789abcdef"[(half >> shift & 15) as usize];
    out.extend([b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Layout = Layout {
        has_space_after_colon: true,
        has_space_after_comma: true,
        has_returns: false,
        strings: Strings::Same,
        indent: Indent::Spaces(2),
        levels: 0,
    };

    fn of(layout: Layout, text: &str) -> String {
        String::from_utf8(layout.apply(text.as_bytes(), 1 << 20).unwrap()).unwrap()
    }

    #[test]
    fn tokens_are_laid_out_as_writers_do() {
        let text = r#" {"a" : [1,2,{ }], "b":{"c":null,"d":"x, {y}: \" z"} } "#;
        assert_eq!(of(PLAIN, text), r#"{"a": [1, 2, {}], "b": {"c": null, "d": "x, {y}: \" z"}}"#);
        let compact = Layout { has_space_after_colon: false, has_space_after_comma: false, ..PLAIN };
        assert_eq!(of(compact, text), r#"{"a":[1,2,{}],"b":{"c":null,"d":"x, {y}: \" z"}}"#);
        let pretty = Layout { levels: MOST_LEVELS, ..PLAIN };
        let lines = "{\n  \"a\": [\n    1,\n    2,\n    {}\n  ],\n  \"b\": {\n    \"c\": null,\n    \"d\": \"x, {y}: \\\" z\"\n  }\n}";
        assert_eq!(of(pretty, text), lines);
        let outer = Layout { levels: 1, indent: Indent::Tab, has_returns: true, ..PLAIN };
        assert_eq!(of(outer, "[[1,2],[3],4]"), "[\r\n\t[1, 2],\r\n\t[3],\r\n\t4\r\n]");
        assert_eq!(of(PLAIN, "{\"a\":1}\n{\"a\":2}\n"), "{\"a\": 1}\n{\"a\": 2}");
    }

    #[test]
    fn characters_are_escaped_or_not() {
        let text = r#"["\u00e9\/\ud83d\ude00\u0001\ud800x\q\u12", "é😀\u007f\n"]"#;
        let utf8 = Layout { strings: Strings::Utf8, ..PLAIN };
        assert_eq!(of(utf8, text), "[\"é/😀\\u0001\\ud800x\\q\\u12\", \"é😀\u{7f}\\n\"]");
        let ascii = Layout { strings: Strings::Ascii, ..PLAIN };
        let expected = r#"["\u00e9/\ud83d\ude00\u0001\ud800x\q\u12", "\u00e9\ud83d\ude00\u007f\n"]"#;
        assert_eq!(of(ascii, text), expected);
    }

    #[test]
    fn what_would_be_long_is_refused_before_it_is_made() {
        let deep = vec![b'['; 1 << 16];
        let layout = Layout { levels: MOST_LEVELS, indent: Indent::Spaces(16), ..PLAIN };
        assert!(layout.apply(&deep, 1 << 20).is_none());
        assert!(PLAIN.apply(b"[1,2]", 5).is_none() && PLAIN.apply(b"[1,2]", 6).is_some());
    }

    fn any_layout() -> impl Strategy<Value = Layout> {
        let strings = prop_oneof![Just(Strings::Same), Just(Strings::Utf8), Just(Strings::Ascii)];
        let indent = prop_oneof![(0..=MOST_SPACES).prop_map(Indent::Spaces), Just(Indent::Tab)];
        (any::<[bool; 3]>(), strings, indent, 0..4u64).prop_map(|(flags, strings, indent, levels)| Layout {
            has_space_after_colon: flags[0],
            has_space_after_comma: flags[1],
            has_returns: flags[2],
            strings,
            indent,
            levels,
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_laid_out(text in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&br#"{}[],:"\u01dc8 "#[..])], 0..60), layout in any_layout()) {
            let once = layout.apply(&text, 1 << 16).unwrap();
            let mut fields = Vec::new();
            layout.push_to(&mut fields);
            prop_assert_eq!(Layout::parse(&mut ByteReader::new(&fields, "fields")).unwrap(), layout);
            // A second time changes nothing but literals that white space had told apart.
            prop_assert!(layout.apply(&once, 1 << 16).is_some());
        }
    }
}
