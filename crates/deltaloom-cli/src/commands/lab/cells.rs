//! Entries of tables that only experiments need.

use crate::ui;
use crate::ui::table::Cell;

pub(super) fn yes(is: bool) -> Cell {
    Cell::Text { shown: if is { "yes" } else { "no" }.to_owned(), exact: is.to_string() }
}

/// A condition that should hold.
pub(super) fn holds(is: bool) -> Cell {
    Cell::Text { shown: if is { "yes" } else { "NO" }.to_owned(), exact: is.to_string() }
}

pub(super) fn seconds(value: f64) -> Cell {
    Cell::number(value, shown(value))
}

/// Seconds for people, in three significant digits.
fn shown(value: f64) -> String {
    if value == 0.0 {
        return "0 s".to_owned();
    }
    ui::three_digits(value, &[(1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_figures() {
        let cases = [
            (0.0, "0 s"),
            (4.2e-3, "4.20 ms"),
            (0.99949, "999 ms"),
            (0.99951, "1.00 s"),
            (-12.34e-6, "-12.3 us"),
            (1234.5, "1234 s"),
        ];
        for (value, text) in cases {
            assert_eq!(shown(value), text);
        }
    }
}
