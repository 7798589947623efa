//! How often and on how much something is measured.

#[cfg(feature = "lab")]
use super::parse_count;

/// How often something is measured.
#[cfg(feature = "lab")]
pub(crate) fn parse_rounds(text: &str) -> Result<usize, String> {
    parse_count(text, 1..=1000)
}

/// How many fine-tunes are served at once.
#[cfg(feature = "lab")]
pub(crate) fn parse_tenants(text: &str) -> Result<usize, String> {
    parse_count(text, 1..=4096)
}

/// A number of bytes with or without a unit: kB, MB and GB are powers of 1000, KiB, MiB and GiB
/// of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_bytes: u64 = match unit.trim() {
        "" | "B" => 1,
        "k" | "kB" => 1000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}; use B, kB, MB, GB, KiB, MiB or GiB")),
    };
    let number = number.parse::<u64>().map_err(|_| "expected a size such as 64MiB".to_owned())?;
    // More could not be counted in bits.
    let bytes = number.checked_mul(unit_bytes).filter(|bytes| *bytes <= 1 << 60);
    bytes.ok_or_else(|| "at most 2^60 bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let good = [("0", 0), ("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("3kB", 3000), ("7B", 7)];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in ["", "MiB", "1.5GiB", "-1", "4 parsecs", "99999999999999999999", "2000000000GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
