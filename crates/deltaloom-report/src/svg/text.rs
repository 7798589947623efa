//! Text in pictures: its width, formatting of numbers, and escaping. It places nothing.

use crate::figure::Unit;

/// Size of all text in pictures, in pixels.
pub(crate) const FONT_PX: f64 = 12.0;

/// Widths of DejaVu Sans from the space to the tilde, in hundredths of the font size. It is the
/// widest of the usual sans-serif fonts, so text in any of them fits.
const WIDTHS: [u8; 95] = [
    32, 40, 46, 84, 64, 95, 78, 27, 39, 39, 50, 84, 32, 36, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    34, 34, 84, 84, 84, 53, 100, 68, 69, 70, 77, 63, 58, 77, 75, 29, 29, 66, 56, 86, 75, 79, 60, 79, 69, 63,
    61, 73, 68, 99, 69, 61, 69, 39, 34, 39, 84, 50, 50, 61, 63, 55, 63, 62, 35, 63, 63, 28, 28, 58, 28, 97,
    63, 61, 63, 63, 41, 52, 39, 63, 59, 82, 59, 59, 52, 64, 34, 64, 84,
];

fn char_width(c: char) -> f64 {
    let known = (c as usize).checked_sub(32).and_then(|i| WIDTHS.get(i));
    let hundredths = match (known, c) {
        (Some(&width), _) => f64::from(width),
        (None, '\u{a0}' | '·') => 32.0,
        (None, '\0'..'\u{2000}') => 85.0,
        // Other scripts and signs are up to a full square wide.
        (None, _) => 105.0,
    };
    hundredths / 100.0 * FONT_PX
}

/// Width in pixels.
pub(crate) fn width(text: &str) -> f64 {
    text.chars().map(char_width).sum()
}

/// The text or, if it is wider than `max` pixels, its beginning and end around an ellipsis, because
/// names of tensors differ at either end.
pub(crate) fn fit(text: &str, max: f64) -> String {
    if width(text) <= max {
        return text.to_owned();
    }
    let room = (max - char_width('…')).max(0.0);
    let (mut head, mut tail) = (String::new(), String::new());
    let (mut from_left, mut from_right) = (text.chars(), text.chars().rev());
    let mut used = 0.0;
    for turn in 0.. {
        let next = if turn % 2 == 0 { from_right.next() } else { from_left.next() };
        let Some(c) = next else { break };
        used += char_width(c);
        if used > room {
            break;
        }
        if turn % 2 == 0 { tail.push(c) } else { head.push(c) }
    }
    head + "…" + &tail.chars().rev().collect::<String>()
}

/// Escapes text for HTML and XML, between tags and in attributes. Control characters, which XML
/// does not allow, are replaced.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Ten to a power, exactly as the decimal number is parsed.
pub(crate) fn pow10(exponent: i32) -> f64 {
    format!("1e{exponent}").parse().unwrap_or(f64::INFINITY)
}

/// Exponent of a positive number in scientific notation.
pub(crate) fn exponent10(x: f64) -> i32 {
    let text = format!("{x:e}");
    text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0)
}

/// Formats a number with commas between thousands.
fn grouped(x: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", x.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    if x < 0.0 && text.bytes().any(|b| matches!(b, b'1'..=b'9')) {
        out.push('−');
    }
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

/// Factor and suffix for values up to `largest`.
fn scaled(unit: Unit, largest: f64) -> (f64, &'static str) {
    let pick = |steps: &[(f64, &'static str)]| {
        let fits = steps.iter().find(|(size, _)| largest >= *size);
        *fits.or(steps.last()).unwrap_or(&(1.0, ""))
    };
    let (size, suffix) = match unit {
        Unit::Number | Unit::Count => (1.0, ""),
        Unit::Percent => return (100.0, "\u{a0}%"),
        Unit::Ratio => (1.0, "×"),
        Unit::Bytes => pick(&[
            (1e15, "\u{a0}PB"),
            (1e12, "\u{a0}TB"),
            (1e9, "\u{a0}GB"),
            (1e6, "\u{a0}MB"),
            (1e3, "\u{a0}kB"),
            (1.0, "\u{a0}B"),
        ]),
        Unit::Seconds => {
            pick(&[(1.0, "\u{a0}s"), (1e-3, "\u{a0}ms"), (1e-6, "\u{a0}µs"), (1e-9, "\u{a0}ns")])
        }
    };
    (1.0 / size, suffix)
}

/// Formats a value with three significant digits, or all digits of a whole number; a ratio with two
/// decimals.
#[must_use]
pub fn human(value: f64, unit: Unit) -> String {
    written(value, unit, false)
}

/// The same without trailing zeros, for round values.
pub(crate) fn round(value: f64, unit: Unit) -> String {
    written(value, unit, true)
}

fn written(value: f64, unit: Unit, is_round: bool) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let (factor, suffix) = scaled(unit, value.abs());
    let x = value * factor;
    let size = x.abs();
    if size != 0.0 && !(1e-3..1e15).contains(&size) {
        return format!("{}{suffix}", scientific(x));
    }
    let is_whole = (x - x.round()).abs() <= size * 1e-12;
    let decimals = match unit {
        Unit::Ratio => 2,
        _ if is_whole => 0,
        _ => usize::try_from(2 - exponent10(size)).unwrap_or(0),
    };
    let text = grouped(x, decimals);
    let is_trimmed = is_round && text.contains('.');
    let text = if is_trimmed { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{suffix}")
}

fn scientific(x: f64) -> String {
    let text = format!("{x:.2e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    format!("{digits}e{exponent}").replace('-', "−")
}

/// Labels of values that are `step` apart, all in one unit and with as many decimals as needed.
pub(crate) fn tick_labels(ticks: &[f64], step: f64, unit: Unit) -> Vec<String> {
    let largest = ticks.iter().fold(0.0f64, |max, tick| max.max(tick.abs()));
    let (factor, suffix) = scaled(unit, largest);
    let step = step * factor;
    let extremes = largest * factor;
    if extremes != 0.0 && !(1e-3..1e9).contains(&extremes) {
        let write = |x: f64| if x == 0.0 { "0".to_owned() } else { scientific(x * factor) + suffix };
        return ticks.iter().map(|tick| write(*tick)).collect();
    }
    // A step of 2.5 needs one decimal more than its exponent suggests.
    let mut decimals = usize::try_from(-exponent10(step)).unwrap_or(0);
    let scale = pow10(i32::try_from(decimals).unwrap_or(0));
    if (step * scale - (step * scale).round()).abs() > 1e-6 {
        decimals += 1;
    }
    ticks.iter().map(|tick| grouped(tick * factor, decimals) + suffix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let cases = [
            (0.0, Unit::Number, "0"),
            (1234567.0, Unit::Number, "1,234,567"),
            (-1234.5, Unit::Number, "−1,234"),
            (2.34567, Unit::Number, "2.35"),
            (0.00123, Unit::Number, "0.00123"),
            (1.5e-7, Unit::Number, "1.5e−7"),
            (0.0305, Unit::Percent, "3.05\u{a0}%"),
            (25_086_448.0, Unit::Bytes, "25.1\u{a0}MB"),
            (999.0, Unit::Bytes, "999\u{a0}B"),
            (0.0042, Unit::Seconds, "4.20\u{a0}ms"),
            (110.0, Unit::Ratio, "110.00×"),
            (35.98, Unit::Ratio, "35.98×"),
            (0.07, Unit::Percent, "7\u{a0}%"),
            (f64::NAN, Unit::Ratio, "–"),
        ];
        for (value, unit, expected) in cases {
            assert_eq!(human(value, unit), expected, "{value} {unit:?}");
        }
    }

    #[test]
    fn long_names_keep_both_ends() {
        let name = "model.layers.3.self_attn.q_proj.weight";
        let short = fit(name, 120.0);
        assert!(width(&short) <= 120.0 && short.starts_with("model") && short.ends_with("eight"), "{short}");
        assert_eq!(fit("short", 120.0), "short");
        assert_eq!(fit(name, 0.0), "…");
    }

    #[test]
    fn everything_that_means_something_is_escaped() {
        assert_eq!(
            escape("<a href=\"x\" b='&'>\u{1}\u{ffff}"),
            "&lt;a href=&quot;x&quot; b=&#39;&amp;&#39;&gt;\u{fffd}\u{fffd}"
        );
    }
}
