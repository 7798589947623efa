//! How the writer of a JSON text has laid it out, as far as its first lines and all its brackets
//! tell.

use crate::predict::json::{Indent, Layout, MOST_LEVELS, Strings, Token, Tokens};

/// The layout of a text. `None` if it does not look like JSON.
pub(super) fn layout_of(text: &[u8]) -> Option<Layout> {
    let (first, _) = Tokens::new(text).next()?;
    if first != Token::Open {
        return None;
    }
    let (mut after_colon, mut after_comma, mut indent) = (None, None, None);
    let mut has_returns = false;
    let (mut depth, mut levels) = (0u64, MOST_LEVELS);
    let mut before: Option<(Token, usize)> = None;
    for (token, place) in Tokens::new(text) {
        let (last, end) = before.unwrap_or((Token::Comma, place.start));
        let gap = &text[end..place.start];
        let line = gap.iter().rposition(|byte| *byte == b'\n');
        has_returns |= gap.contains(&b'\r');
        match (last, line) {
            (Token::Open, None) if token != Token::Close => levels = levels.min(depth - 1),
            (Token::Colon, None) => _ = after_colon.get_or_insert(!gap.is_empty()),
            (Token::Comma, None) if before.is_some() => _ = after_comma.get_or_insert(!gap.is_empty()),
            _ => {}
        }
        if let (Token::Open | Token::Comma, Some(line), 1..) = (last, line, depth) {
            let spaces = &gap[line + 1..];
            indent.get_or_insert_with(|| match spaces.first() {
                Some(b'\t') => Indent::Tab,
                _ => Indent::Spaces(u8::try_from(spaces.len() as u64 / depth).unwrap_or(u8::MAX).min(16)),
            });
        }
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        before = Some((token, place.end));
    }
    let strings = if text.is_ascii() { Strings::Ascii } else { Strings::Utf8 };
    let layout = Layout {
        has_space_after_colon: after_colon.unwrap_or(false),
        has_space_after_comma: after_comma.unwrap_or(false),
        has_returns,
        strings,
        indent: indent.unwrap_or(Indent::Spaces(0)),
        levels,
    };
    // Some writers escape other characters. Then strings stay as they are.
    let is_same = layout.apply(text, text.len()).is_some_and(|again| text.trim_ascii_end() == again);
    Some(if is_same { layout } else { Layout { strings: Strings::Same, ..layout } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_from_a_text() {
        let value = serde_json::json!({"b": [1, 2, {"c": "é"}], "a": {}, "d": [[], [3]]});
        let compact = serde_json::to_vec(&value).unwrap();
        let pretty = serde_json::to_vec_pretty(&value).unwrap();
        let of_compact = layout_of(&compact).unwrap();
        let of_pretty = layout_of(&pretty).unwrap();
        assert_eq!((of_compact.levels, of_compact.has_space_after_colon), (0, false));
        assert_eq!((of_pretty.levels, of_pretty.indent), (MOST_LEVELS, Indent::Spaces(2)));
        assert_eq!(of_compact.apply(&pretty, 1000).unwrap(), compact);
        assert_eq!(of_pretty.apply(&compact, 1000).unwrap(), pretty);
        let lines = b"[\r\n\t{\"x\": \"\\u00e9\", \"y\": 1},\r\n\t{}\r\n]\r\n";
        let of_lines = layout_of(lines).unwrap();
        assert_eq!((of_lines.levels, of_lines.strings, of_lines.indent), (1, Strings::Ascii, Indent::Tab));
        assert_eq!(
            of_lines.apply(b"[{\"x\":\"\xc3\xa9\",\"y\":1},{}]", 1000).unwrap(),
            lines.trim_ascii_end()
        );
        assert!(layout_of(b"no JSON").is_none() && layout_of(b"").is_none());
        assert_eq!(layout_of(br#"["\/"]"#).unwrap().strings, Strings::Same);
    }
}
