//! The numbers that a scale may be, near one that was fitted: what people type times the scale that
//! the adapter says, or a number with few digits.

/// Denominators of such numbers.
const DENOMINATORS: [f64; 15] =
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 16.0, 20.0, 32.0, 64.0, 100.0, 128.0, 1000.0];
/// A fit is that near, at least, relative to the number.
const RELATIVE: f64 = 1e-6;
/// Most numbers that are tried.
const MOST: usize = 24;

/// Whether the scale of the adapter is what was fitted, with this standard error.
pub(super) fn explains(configured: f64, fitted: f64, error: f64) -> bool {
    (configured - fitted).abs() <= tolerance(fitted, error)
}

fn tolerance(fitted: f64, error: f64) -> f64 {
    (6.0 * error).max(RELATIVE * fitted.abs())
}

/// Numbers near the fitted one, those that people type first, and the number itself.
pub(super) fn candidates(configured: f64, rank: u64, fitted: f64, error: f64) -> Vec<f32> {
    let near = |number: &f64| (number - fitted).abs() <= tolerance(fitted, error);
    // A strength times the configured scale, a scale, and a scale times the rank or its root.
    let rank = rank as f64;
    let mut found: Vec<f64> = Vec::new();
    for denominator in DENOMINATORS {
        let snapped = |number: f64| (number * denominator).round() / denominator;
        if configured != 0.0 {
            found.push(snapped(fitted / configured) * configured);
        }
        found.extend([
            snapped(fitted),
            snapped(fitted * rank) / rank,
            snapped(fitted * rank.sqrt()) / rank.sqrt(),
        ]);
    }
    found.retain(near);
    #[expect(clippy::cast_possible_truncation, reason = "libraries scale F32 tensors")]
    let single = |x: f64| x as f32;
    let mut singles: Vec<f32> = Vec::new();
    let itself = single(fitted);
    let around = [itself, itself.next_up(), itself.next_down()];
    for number in found.into_iter().map(single).take(MOST).chain(around) {
        if number.is_finite() && !singles.contains(&number) {
            singles.push(number);
        }
    }
    singles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_people_type_are_tried() {
        let has = |configured: f64, rank: u64, number: f32| {
            let fitted = f64::from(number) + 1e-4;
            let found = candidates(configured, rank, fitted, 1e-4);
            assert!(found.len() <= MOST + 3);
            found.contains(&number)
        };
        assert!(has(2.0, 8, 1.4) && has(2.0, 8, 1.5) && has(0.5, 8, 0.15) && has(1.0, 6, 1.0 / 3.0));
        assert!(has(0.0, 8, 0.75), "without a scale");
        assert!(has(5.0, 32, 20.0 / 32.0), "another alpha");
        let same = candidates(2.0, 8, 2.0, 0.0);
        assert_eq!(same[0], 2.0);
        assert!(explains(2.0, 2.0 + 1e-7, 0.0) && explains(2.0, 2.01, 0.01) && !explains(2.0, 1.4, 0.01));
        assert!(candidates(f64::NAN, 8, f64::NAN, f64::NAN).is_empty());
    }
}
