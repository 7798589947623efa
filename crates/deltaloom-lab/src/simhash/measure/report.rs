//! Results of a comparison of hashed products: a row for each method, and verdicts that follow from
//! the rows. It measures nothing.

use serde::Serialize;

/// The kind of method in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The dense product in single precision, the reference for times.
    Exact,
    /// The same weights packed by deltaloom, by estimated cost. They are decoded before use, so
    /// there is no time.
    Packed,
    /// Symmetric quantisation.
    Quantised,
    /// Products estimated from signatures.
    Simhash,
    /// The same for the activations that remain after exact top columns.
    SimhashTop,
    /// The top columns alone.
    Top,
    /// An unbiased sample of columns alone.
    Sample,
    /// No product at all, only zeros.
    Nothing,
}

impl Kind {
    /// A short description.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Packed => "packed, exact",
            Self::Quantised => "quantised",
            Self::Simhash => "SimHash",
            Self::SimhashTop => "SimHash and exact columns",
            Self::Top => "exact columns alone",
            Self::Sample => "sampled columns",
            Self::Nothing => "left out",
        }
    }

    /// Whether it is a method under examination.
    #[must_use]
    pub fn is_hashed(self) -> bool {
        matches!(self, Self::Simhash | Self::SimhashTop)
    }
}

/// One method on one matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodReport {
    /// Name.
    pub method: String,
    /// What kind of method it is.
    pub kind: Kind,
    /// Bits of memory per weight, including norms, scales and padding, but without a base.
    pub bits_per_weight: f64,
    /// Bits per weight that a product of one token reads, if different.
    pub read_bits_per_weight: f64,
    /// Squared error over the squares of the approximated product; `None` if that is zero
    /// throughout.
    pub nmse: Option<f64>,
    /// NMSE predicted by theory, for methods that have one.
    pub predicted_nmse: Option<f64>,
    /// Squared error over the squares of the whole product, including that of a base.
    pub output_nmse: Option<f64>,
    /// Median seconds of a product of all tokens, as processor time of one thread.
    pub seconds: Option<f64>,
    /// Seconds of that spent on hashing the activations.
    pub hash_seconds: Option<f64>,
    /// Seconds over those of the exact product.
    pub time_ratio: Option<f64>,
    /// Whether no other method has less error with no more bits, or fewer bits with no more error.
    pub on_frontier: bool,
    /// The quantised method with the least error and no more bits, or zeros if there is none.
    pub rival: Option<String>,
    /// Error of this method over that of its rival.
    pub error_over_rival: Option<f64>,
}

/// Marks the methods on the frontier and finds rivals.
pub(super) fn compare(rows: &mut [MethodReport]) {
    let points: Vec<(f64, f64)> =
        rows.iter().map(|row| (row.bits_per_weight, row.nmse.unwrap_or(f64::INFINITY))).collect();
    for (row, (bits, nmse)) in rows.iter_mut().zip(&points) {
        let is_better = |(b, e): &(f64, f64)| b <= bits && e <= nmse && (b < bits || e < nmse);
        row.on_frontier = row.nmse.is_some() && !points.iter().any(is_better);
    }
    let rivals: Vec<(String, f64, f64)> = rows
        .iter()
        .filter(|row| matches!(row.kind, Kind::Quantised | Kind::Nothing))
        .filter_map(|row| Some((row.method.clone(), row.bits_per_weight, row.nmse?)))
        .collect();
    for row in rows.iter_mut().filter(|row| row.kind.is_hashed()) {
        let affordable = rivals.iter().filter(|(_, bits, _)| *bits <= row.bits_per_weight);
        if let (Some(nmse), Some((name, _, least))) =
            (row.nmse, affordable.min_by(|a, b| a.2.total_cmp(&b.2)))
        {
            row.rival = Some(name.clone());
            row.error_over_rival = Some(nmse / least);
        }
    }
}

/// Conclusions from the rows, in sentences.
pub(super) fn verdicts(rows: &[MethodReport]) -> Vec<String> {
    let hashed: Vec<&MethodReport> = rows.iter().filter(|row| row.kind.is_hashed()).collect();
    if hashed.iter().all(|row| row.nmse.is_none()) {
        return vec![
            "What is hashed is zero throughout: every estimate of it is exact, and nothing is learnt."
                .to_owned(),
        ];
    }
    let count = hashed.len();
    let mut out = Vec::new();
    let on_frontier: Vec<&str> =
        hashed.iter().filter(|row| row.on_frontier).map(|row| row.method.as_str()).collect();
    out.push(if on_frontier.is_empty() {
        format!("None of the {count} SimHash estimates is on the frontier: for each there is a method with no more bits and less error.")
    } else {
        format!("{} of the {count} SimHash estimates are on the frontier: {}.", on_frontier.len(), on_frontier.join(", "))
    });
    if let Some((least, most)) = range(hashed.iter().filter_map(|row| row.error_over_rival)) {
        out.push(format!(
            "The error of an estimate is {} to {} times that of quantisation at no more bits, or of zeros where no quantisation has so few.",
            figures(least), figures(most)
        ));
    }
    if let Some(row) = best(&hashed, |row| row.nmse)
        && let (Some(nmse), Some(rival), Some(ratio)) = (row.nmse, &row.rival, row.error_over_rival)
    {
        let (times, less) = if ratio >= 1.0 { (ratio, "less") } else { (1.0 / ratio, "more") };
        out.push(format!(
            "The most accurate estimate, {} at {} bits per weight, has NMSE {}; {rival} at no more bits has {} times {less} error.",
            row.method, figures(row.bits_per_weight), figures(nmse), figures(times)
        ));
    }
    let worse = hashed.iter().filter(|row| row.nmse.is_some_and(|nmse| nmse > 1.0)).count();
    if worse > 0 {
        out.push(format!("{worse} of {count} have NMSE above 1: the answer zero would be nearer."));
    }
    if let Some(packed) = rows.iter().find(|row| row.kind == Kind::Packed) {
        let larger = hashed.iter().filter(|row| row.bits_per_weight >= packed.bits_per_weight).count();
        out.push(format!(
            "{larger} of {count} take at least the {} bits per weight of the same numbers packed without loss (estimated; they have to be decoded before use).",
            figures(packed.bits_per_weight)
        ));
    }
    out.extend(speed(&hashed));
    let is_useless = |row: &&&MethodReport| {
        let better = |other: &MethodReport| {
            !other.kind.is_hashed()
                && other.bits_per_weight <= row.bits_per_weight
                && matches!((other.nmse, row.nmse), (Some(a), Some(b)) if a <= b)
                && matches!((other.seconds, row.seconds), (Some(a), Some(b)) if a <= b)
        };
        rows.iter().any(better)
    };
    out.push(format!(
        "For {} of {count} there is another method (not SimHash) that takes no more bits, no more time and has no more error.",
        hashed.iter().filter(is_useless).count()
    ));
    let simple = hashed.iter().filter(|row| row.kind == Kind::Simhash);
    if let Some((least, most)) = range(simple.filter_map(|row| Some(row.nmse? / row.predicted_nmse?))) {
        out.push(format!(
            "Measured NMSE of SimHash alone is {} to {} of the predicted 2.47 d / b.",
            figures(least),
            figures(most)
        ));
    }
    out.extend(exact_columns(rows, &hashed));
    out
}

/// How fast the estimates were, and how fast those were that beat zeros.
fn speed(hashed: &[&MethodReport]) -> Vec<String> {
    let sentence = |rows: &[&MethodReport], of: &str| {
        let fastest = best(rows, |row| row.time_ratio)?;
        let faster = rows.iter().filter(|row| row.time_ratio.is_some_and(|ratio| ratio < 1.0)).count();
        let ratio = fastest.time_ratio?;
        let words = match ratio < 1.0 {
            true => format!("{} times faster than", figures(1.0 / ratio)),
            false => format!("{} times slower than", figures(ratio)),
        };
        let share = match (fastest.hash_seconds, fastest.seconds) {
            (Some(hash), Some(all)) => {
                format!("; hashing the activations took {:.0} % of its time", 100.0 * (hash / all).min(1.0))
            }
            _ => String::new(),
        };
        Some(format!(
            "{faster} of {} {of} were faster than the exact product in this run; the fastest, {}, was {words} it at NMSE {}{share}.",
            rows.len(),
            fastest.method,
            fastest.nmse.map_or_else(|| "-".to_owned(), figures)
        ))
    };
    let useful: Vec<&MethodReport> =
        hashed.iter().copied().filter(|row| row.nmse.is_some_and(|nmse| nmse < 1.0)).collect();
    let all = sentence(hashed, "estimates");
    let nearer =
        if useful.len() < hashed.len() { sentence(&useful, "estimates with NMSE below 1") } else { None };
    all.into_iter().chain(nearer).collect()
}

fn exact_columns(rows: &[MethodReport], hashed: &[&MethodReport]) -> Vec<String> {
    let nmse = |kind: Kind| rows.iter().find(|row| row.kind == kind)?.nmse;
    let mut out = Vec::new();
    let Some(top) = nmse(Kind::Top) else { return out };
    let with_top: Vec<f64> =
        hashed.iter().filter(|row| row.kind == Kind::SimhashTop).filter_map(|row| row.nmse).collect();
    let helped = with_top.iter().filter(|nmse| **nmse < top).count();
    if !with_top.is_empty() {
        out.push(format!(
            "Estimating what the exact top columns leave over was better than leaving it out (NMSE {}) in {helped} of {} cases.",
            figures(top), with_top.len()
        ));
    }
    if let Some(sample) = nmse(Kind::Sample) {
        out.push(format!(
            "An unbiased sample of as many columns has NMSE {}, {} times that of the top columns with the rest left out.",
            figures(sample), figures(sample / top)
        ));
    }
    out
}

fn best<'a>(
    rows: &[&'a MethodReport],
    by: impl Fn(&MethodReport) -> Option<f64>,
) -> Option<&'a MethodReport> {
    let known = rows.iter().filter_map(|row| Some((by(row)?, *row)));
    known.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, row)| row)
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| range.map_or(Some((v, v)), |(a, b): (f64, f64)| Some((a.min(v), b.max(v)))))
}

/// Formats with three significant figures.
fn figures(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || !v.is_finite() => format!("{value}"),
        v if !(1e-3..1e5).contains(&v) => format!("{value:.2e}"),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: &str, kind: Kind, bits: f64, nmse: f64, time_ratio: f64) -> MethodReport {
        MethodReport {
            method: method.to_owned(),
            kind,
            bits_per_weight: bits,
            read_bits_per_weight: bits,
            nmse: Some(nmse),
            predicted_nmse: kind.is_hashed().then_some(nmse / 0.9),
            output_nmse: Some(nmse),
            seconds: Some(time_ratio),
            hash_seconds: None,
            time_ratio: Some(time_ratio),
            on_frontier: false,
            rival: None,
            error_over_rival: None,
        }
    }

    #[test]
    fn verdicts_follow_the_rows() {
        let mut rows = vec![
            row("zeros", Kind::Nothing, 0.0, 1.0, 0.0),
            row("int4", Kind::Quantised, 4.0, 0.01, 1.0),
            row("a", Kind::Simhash, 5.0, 0.5, 2.0),
            row("b", Kind::Simhash, 0.25, 12.0, 0.5),
        ];
        compare(&mut rows);
        assert_eq!(rows.iter().map(|row| row.on_frontier).collect::<Vec<_>>(), [true, true, false, false]);
        assert_eq!((rows[2].rival.as_deref(), rows[2].error_over_rival), (Some("int4"), Some(50.0)));
        assert_eq!((rows[3].rival.as_deref(), rows[3].error_over_rival), (Some("zeros"), Some(12.0)));
        let said = verdicts(&rows).join("\n");
        for part in [
            "None of the 2",
            "int4 at no more bits has 50.0 times less error",
            "1 of 2 have NMSE above 1",
            "1 of 2 estimates were faster",
            "b, was 2.00 times faster than it at NMSE 12.0",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        // If estimates win, it says so as well.
        rows[2].nmse = Some(0.001);
        rows[3].time_ratio = Some(3.0);
        compare(&mut rows);
        let said = verdicts(&rows).join("\n");
        for part in [
            "1 of the 2 SimHash estimates are on the frontier: a",
            "int4 at no more bits has 10.0 times more error",
            "0 of 2 estimates were faster",
            "a, was 2.00 times slower",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
