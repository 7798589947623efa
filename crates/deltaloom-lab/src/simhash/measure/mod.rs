//! EXPERIMENT: compares hash-based products with quantisation and the exact product on one matrix:
//! bits per weight, error, time.
//!
//! [`crate::simhash`] makes the estimates; this module measures them and derives verdicts.

mod quantised;
mod report;

pub use report::{Kind, MethodReport};

use deltaloom_kernels::quantised::CodeBits;
use serde::Serialize;

use crate::clock::Stopwatch;
use crate::rounds::Rounds;
use crate::simhash::{
    ColumnStore, Dense, HashSettings, HashedMatrix, Matrix, Pieces, Projection, Selection, share_of,
};
use deltaloom::__internals::log2::ONE_BIT;
use deltaloom::__internals::plan;
use deltaloom::tensor::DType;
use deltaloom::{Error, Progress, Result};
use deltaloom_report::median;
use quantised::Quantised;

/// Rounds in which every method is timed once; the median counts.
const ROUNDS: usize = 5;
/// Least duration of a measurement in seconds.
const LEAST_SECONDS: f64 = 5e-4;

/// Bytes of weights whose packed size is estimated together.
const PACKED_BYTES: usize = 1 << 20;

/// How estimates are corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// Not at all.
    None,
    /// Columns with the largest |x_j| x norm are exact, and the rest is estimated.
    TopK,
    /// For comparison: an unbiased sample of columns, without signatures.
    Sample,
}

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Numbers of bits of signatures.
    pub bits: Vec<usize>,
    /// The parts that get a signature.
    pub pieces: Vec<Pieces>,
    /// Corrections.
    pub corrections: Vec<Correction>,
    /// Fraction of the columns that a correction uses.
    pub fraction: f64,
    /// Rows of random normal activations.
    pub tokens: usize,
    /// How directions are drawn.
    pub projection: Projection,
    /// Each seed gives different activations, directions and samples.
    pub seed: u64,
}

/// Methods side by side on one matrix. Everything but exact and packed is LOSSY.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimHashReport {
    /// Always true, because this is an experiment.
    pub experiment: bool,
    /// What was hashed: `weights`, or `delta`, the difference from an exact base.
    pub on: &'static str,
    /// Number of rows of the matrix.
    pub rows: usize,
    /// Number of its columns.
    pub cols: usize,
    /// Rows of random normal activations.
    pub tokens: usize,
    /// How directions were drawn.
    pub projection: Projection,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Fraction of the columns that a correction uses.
    pub fraction: f64,
    /// Instruction set of the loops.
    pub isa: &'static str,
    /// With a base: squares of the difference's product over those of the whole product.
    pub delta_energy: Option<f64>,
    /// The methods.
    pub methods: Vec<MethodReport>,
    /// Conclusions from them.
    pub verdicts: Vec<String>,
}

type Product<'a> = Box<dyn Fn(&mut [f32]) -> Result<()> + 'a>;

/// A method before it is measured.
struct Method<'a> {
    name: String,
    kind: Kind,
    bits_per_weight: f64,
    read_bits_per_weight: f64,
    predicted_nmse: Option<f64>,
    /// Adds its product to the output; `None` for methods that compute nothing.
    add_product: Option<Product<'a>>,
    /// Hashes the activations alone.
    hash: Option<Product<'a>>,
}

impl<'a> Method<'a> {
    fn new(name: impl Into<String>, kind: Kind, bits_per_weight: f64) -> Self {
        Self {
            name: name.into(),
            kind,
            bits_per_weight,
            read_bits_per_weight: bits_per_weight,
            predicted_nmse: None,
            add_product: None,
            hash: None,
        }
    }

    fn computed(self, add_product: impl Fn(&mut [f32]) -> Result<()> + 'a) -> Self {
        Self { add_product: Some(Box::new(add_product)), ..self }
    }
}

/// Compares methods on `weights`, or on their difference from `base`, whose product is exact.
///
/// # Errors
/// [`Error::InvalidArgument`] for sizes that cannot be hashed, no tokens, a fraction out of range,
/// or a base of another shape; [`Error::Cancelled`].
pub fn run(
    weights: &Matrix,
    base: Option<&Matrix>,
    comparison: &Comparison,
    progress: &dyn Progress,
) -> Result<SimHashReport> {
    let x = Matrix::normal(comparison.tokens, weights.cols(), 1.0, stream(comparison.seed, 0))
        .map_err(|e| Error::InvalidArgument(format!("activations: {e}")))?;
    let difference = base.map(|base| weights.less(base)).transpose()?;
    let hashed = difference.as_ref().unwrap_or(weights);
    let dense_base = base.map(Dense::new).transpose()?;
    let exact = weights.exact_product(&x)?;
    let target = hashed.exact_product(&x)?;
    let energy = squares(&target);

    let dense = Dense::new(weights)?;
    let stored = stored(hashed);
    let columns = ColumnStore::new(hashed)?;
    let signatures = signatures(hashed, comparison)?;
    let mut methods = vec![Method::new("exact", Kind::Exact, dense.bits_per_weight()).computed(|out| {
        out.copy_from_slice(&dense.product(&x)?);
        Ok(())
    })];
    methods.push(Method::new("packed exactly (estimate)", Kind::Packed, packed_bits(weights, base)));
    methods.push(Method::new("zeros", Kind::Nothing, 0.0).computed(|_| Ok(())));
    methods.extend(stored.iter().map(|(name, quantised)| {
        Method::new(name, Kind::Quantised, quantised.bits_per_weight()).computed(|out| {
            quantised.add_product(&x, out);
            Ok(())
        })
    }));
    methods.extend(estimates(&x, &columns, &signatures, comparison, energy)?);

    let weight_bytes = 4 * weights.values().len() as u64;
    let rounds = Rounds::new(ROUNDS)?;
    progress.start(weight_bytes * rounds.turns(methods.len()));
    let mut scratch = vec![0.0; exact.len()];
    let times = rounds.run(&mut methods, progress, |method, _| -> Result<_> {
        let whole = || {
            let out = product(method, &x, weights.rows(), dense_base.as_ref())?;
            std::hint::black_box(out);
            Ok(())
        };
        let whole = method.add_product.as_ref().map(|_| seconds(whole)).transpose()?;
        let hash = method.hash.as_ref().map(|work| seconds(|| work(&mut scratch))).transpose()?;
        progress.advance(weight_bytes);
        Ok((whole, hash))
    })?;
    let times: Vec<_> = times
        .into_iter()
        .map(|times| times.into_iter().unzip::<_, _, Vec<_>, Vec<_>>())
        .map(|(whole, hash)| [whole, hash].map(|all| median(all.into_iter().flatten().collect())))
        .collect();
    let exact_seconds = times.first().and_then(|[seconds, _]| *seconds);
    let mut rows = Vec::with_capacity(methods.len());
    for (method, [seconds, hash_seconds]) in methods.iter().zip(times) {
        let error = match &method.add_product {
            Some(_) => errors(&product(method, &x, weights.rows(), dense_base.as_ref())?, &exact),
            None => 0.0,
        };
        rows.push(MethodReport {
            method: method.name.clone(),
            kind: method.kind,
            bits_per_weight: method.bits_per_weight,
            read_bits_per_weight: method.read_bits_per_weight,
            nmse: over(error, energy),
            predicted_nmse: method.predicted_nmse.filter(|nmse| nmse.is_finite()),
            output_nmse: over(error, squares(&exact)),
            seconds,
            hash_seconds,
            time_ratio: seconds.zip(exact_seconds).map(|(a, b)| a / b),
            on_frontier: false,
            rival: None,
            error_over_rival: None,
        });
    }
    report::compare(&mut rows);
    Ok(SimHashReport {
        experiment: true,
        on: if base.is_some() { "delta" } else { "weights" },
        rows: weights.rows(),
        cols: weights.cols(),
        tokens: comparison.tokens,
        projection: comparison.projection,
        seed: comparison.seed,
        fraction: comparison.fraction,
        isa: deltaloom::isa_name(),
        delta_energy: base.and_then(|_| over(energy, squares(&exact))),
        verdicts: report::verdicts(&rows),
        methods: rows,
    })
}

/// Seeds of random streams that must be independent.
fn stream(seed: u64, number: u64) -> u64 {
    seed.wrapping_mul(4).wrapping_add(number)
}

/// The quantised variants.
fn stored(matrix: &Matrix) -> Vec<(String, Quantised)> {
    let widths = [CodeBits::Eight, CodeBits::Four, CodeBits::Two];
    let groups = [(None, "per row"), (Some(64), "per 64"), (Some(32), "per 32")];
    let pairs = widths.into_iter().flat_map(|width| groups.map(|group| (width, group)));
    pairs
        .map(|(width, (group, words))| {
            (format!("int{} {words}", width.bits()), Quantised::new(matrix, width, group))
        })
        .collect()
}

fn signatures(matrix: &Matrix, comparison: &Comparison) -> Result<Vec<(String, HashedMatrix)>> {
    let mut out = Vec::new();
    for pieces in &comparison.pieces {
        for &bits in &comparison.bits {
            let settings = HashSettings {
                bits,
                pieces: *pieces,
                projection: comparison.projection,
                seed: stream(comparison.seed, 1),
            };
            let words = match pieces {
                Pieces::Rows => "rows".to_owned(),
                Pieces::Blocks { rows, cols } => format!("{rows}x{cols}"),
            };
            out.push((format!("simhash {words} {bits} bits"), HashedMatrix::new(matrix, &settings)?));
        }
    }
    Ok(out)
}

/// Estimates with each correction, and the corrections alone.
fn estimates<'a>(
    x: &'a Matrix,
    columns: &'a ColumnStore,
    signatures: &'a [(String, HashedMatrix)],
    comparison: &Comparison,
    energy: f64,
) -> Result<Vec<Method<'a>>> {
    let count = share_of(x.cols(), comparison.fraction)?;
    let share = count as f64 / x.cols() as f64;
    let percent = format!("{} %", (1000.0 * share).round() / 10.0);
    let top = Selection::Top(count);
    let sample = Selection::Sampled { draws: count, seed: stream(comparison.seed, 2) };
    let mut methods = Vec::new();
    for correction in &comparison.corrections {
        match correction {
            Correction::None => methods.extend(signatures.iter().map(|(name, hashed)| {
                let mut method = Method::new(name, Kind::Simhash, hashed.bits_per_weight())
                    .computed(|out| hashed.add_estimate(&hashed.hash(x)?, out));
                method.hash = Some(Box::new(|_| hashed.hash(x).map(drop)));
                method.predicted_nmse = Some(hashed.predicted_nmse());
                method
            })),
            Correction::TopK => {
                let mut scratch = vec![0.0; columns.rows() * x.rows()];
                let rest = columns.add_selected(top, x, &mut scratch)?;
                let left = singles(&rest) / singles(x.values());
                for (name, hashed) in signatures {
                    let bits = hashed.bits_per_weight();
                    let name = format!("{name} + top {percent}");
                    let mut method = Method::new(name, Kind::SimhashTop, bits + columns.bits_per_weight())
                        .computed(move |out| {
                            let rest = columns.add_selected(top, x, out)?;
                            hashed.add_estimate(&hashed.hash_values(&rest), out)
                        });
                    let rest = rest.clone();
                    method.hash = Some(Box::new(move |_| {
                        std::hint::black_box(hashed.hash_values(&rest));
                        Ok(())
                    }));
                    method.read_bits_per_weight = bits + columns.bits_per_weight() * share;
                    method.predicted_nmse = Some(hashed.predicted_nmse() * left);
                    methods.push(method);
                }
                let mut alone =
                    Method::new(format!("top {percent} alone"), Kind::Top, columns.bits_per_weight())
                        .computed(move |out| columns.add_selected(top, x, out).map(drop));
                alone.read_bits_per_weight *= share;
                methods.push(alone);
            }
            Correction::Sample => {
                let mut method =
                    Method::new(format!("sample {percent}"), Kind::Sample, columns.bits_per_weight())
                        .computed(move |out| columns.add_selected(sample, x, out).map(drop));
                method.read_bits_per_weight *= share;
                method.predicted_nmse = Some(columns.predicted_sample_nmse(x, count, energy));
                methods.push(method);
            }
        }
    }
    Ok(methods)
}

/// The whole product of a method: that of the base, if there is one, plus its own.
fn product(method: &Method<'_>, x: &Matrix, rows: usize, base: Option<&Dense>) -> Result<Vec<f32>> {
    let mut out = match base {
        Some(base) if method.kind != Kind::Exact => base.product(x)?,
        _ => vec![0.0; rows * x.rows()],
    };
    if let Some(add_product) = &method.add_product {
        add_product(&mut out)?;
    }
    Ok(out)
}

/// Seconds of one call, averaged over enough calls for a measurable time.
fn seconds(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let watch = Stopwatch::start();
    let mut calls = 0u32;
    loop {
        work()?;
        calls += 1;
        let passed = watch.seconds();
        if passed >= LEAST_SECONDS {
            return Ok(passed / f64::from(calls));
        }
    }
}

/// Estimated bits per weight if deltaloom packed the same numbers.
fn packed_bits(weights: &Matrix, base: Option<&Matrix>) -> f64 {
    let all = [Some(weights), base];
    let is_bf16 = all.iter().flatten().all(|m| m.values().iter().all(|v| v.to_bits() & 0xffff == 0));
    let bytes = |matrix: &Matrix| -> Vec<u8> {
        let words = matrix.values().iter().map(|v| v.to_le_bytes());
        if is_bf16 { words.flat_map(|b| [b[2], b[3]]).collect() } else { words.flatten().collect() }
    };
    let dtype = if is_bf16 { DType::BF16 } else { DType::F32 };
    let Some(number) = dtype.number() else { return f64::NAN };
    let cost: u64 = match base {
        Some(base) => {
            let (bytes, base) = (bytes(weights), bytes(base));
            let pieces = bytes.chunks(PACKED_BYTES).zip(base.chunks(PACKED_BYTES));
            pieces.map(|(bytes, base)| plan::residual_cost(number, bytes, base)).sum()
        }
        None => bytes(weights).chunks(PACKED_BYTES).map(|bytes| plan::stand_alone_cost(number, bytes)).sum(),
    };
    cost as f64 / ONE_BIT as f64 / weights.values().len() as f64
}

fn squares(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum()
}

fn singles(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()
}

fn errors(found: &[f32], exact: &[f64]) -> f64 {
    found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum()
}

fn over(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then_some(part / whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaloom::Silent;

    fn comparison() -> Comparison {
        Comparison {
            bits: vec![64, 256],
            pieces: vec![Pieces::Blocks { rows: 16, cols: 16 }, Pieces::Rows],
            corrections: vec![Correction::None, Correction::TopK, Correction::Sample],
            fraction: 0.1,
            tokens: 8,
            projection: Projection::Gaussian,
            seed: 1,
        }
    }

    fn errors_of(report: &SimHashReport) -> Vec<(String, Option<f64>)> {
        report.methods.iter().map(|row| (row.method.clone(), row.nmse)).collect()
    }

    #[test]
    fn quantisation_beats_estimates_and_runs_repeat() {
        let weights = Matrix::normal(64, 128, 0.02, 3).unwrap();
        let report = run(&weights, None, &comparison(), &Silent).unwrap();
        let of = |name: &str| report.methods.iter().find(|row| row.method == name).unwrap();
        assert!(of("exact").nmse.unwrap() < 1e-12);
        assert_eq!(of("simhash 16x16 64 bits").bits_per_weight, 5.0);
        assert_eq!(of("simhash 16x16 64 bits").rival.as_deref(), Some("int4 per 32"));
        assert!(of("simhash 16x16 64 bits").error_over_rival.unwrap() > 30.0);
        for row in report.methods.iter().filter(|row| row.predicted_nmse.is_some()) {
            let ratio = row.nmse.unwrap() / row.predicted_nmse.unwrap();
            assert!((0.5..1.5).contains(&ratio), "{}: {ratio}", row.method);
        }
        assert!(of("simhash rows 256 bits + top 10.2 %").nmse < of("simhash rows 256 bits").nmse);
        assert!(report.methods.iter().all(|row| !(row.on_frontier && row.kind.is_hashed())));
        assert!(report.verdicts[0].starts_with("None of the 8"), "{:?}", report.verdicts);
        assert_eq!(errors_of(&report), errors_of(&run(&weights, None, &comparison(), &Silent).unwrap()));
        let other = Comparison { seed: 2, ..comparison() };
        assert_ne!(errors_of(&report), errors_of(&run(&weights, None, &other, &Silent).unwrap()));
    }

    #[test]
    fn beside_an_exact_base_only_the_difference_is_estimated() {
        let base = Matrix::normal(32, 64, 0.02, 3).unwrap();
        let unchanged = run(&base, Some(&base), &comparison(), &Silent).unwrap();
        for row in &unchanged.methods {
            assert_eq!(row.nmse, None, "{}", row.method);
            assert!(row.output_nmse.unwrap() < 1e-12, "{}", row.method);
        }
        assert!(unchanged.verdicts[0].contains("zero throughout"));
        let step = Matrix::normal(32, 64, 0.001, 77).unwrap();
        let nudged = base.values().iter().zip(step.values()).map(|(a, b)| a + b);
        let nudged = Matrix::new(32, 64, nudged.collect()).unwrap();
        let report = run(&nudged, Some(&base), &comparison(), &Silent).unwrap();
        let share = report.delta_energy.unwrap();
        assert!((0.001..0.005).contains(&share), "{share}");
        for row in report.methods.iter().filter(|row| row.kind != Kind::Exact && row.kind != Kind::Packed) {
            let ratio = row.output_nmse.unwrap() / (row.nmse.unwrap() * share);
            assert!((ratio - 1.0).abs() < 1e-9, "{}", row.method);
        }
        let zeros = report.methods.iter().find(|row| row.kind == Kind::Nothing).unwrap();
        assert!((zeros.nmse.unwrap() - 1.0).abs() < 1e-4);
    }

    #[test]
    fn an_unchanged_tensor_gives_the_bytes_of_the_exact_product() {
        let weights = Matrix::normal(48, 96, 0.02, 3).unwrap();
        let x = Matrix::normal(3, 96, 1.0, 5).unwrap();
        let difference = weights.less(&weights).unwrap();
        let columns = ColumnStore::new(&difference).unwrap();
        let signatures = signatures(&difference, &comparison()).unwrap();
        let dense = Dense::new(&weights).unwrap();
        for method in estimates(&x, &columns, &signatures, &comparison(), 0.0).unwrap() {
            assert_eq!(
                product(&method, &x, 48, Some(&dense)).unwrap(),
                dense.product(&x).unwrap(),
                "{}",
                method.name
            );
        }
    }

    #[test]
    fn impossible_comparisons_are_refused() {
        let weights = Matrix::normal(20, 30, 0.02, 3).unwrap();
        let refused = |comparison: &Comparison, base: Option<&Matrix>| {
            let result = run(&weights, base, comparison, &Silent);
            assert!(matches!(result, Err(Error::InvalidArgument(_))), "{comparison:?}");
        };
        refused(&Comparison { tokens: 0, ..comparison() }, None);
        refused(&Comparison { tokens: usize::MAX, ..comparison() }, None);
        refused(&Comparison { fraction: 0.0, ..comparison() }, None);
        refused(&Comparison { bits: vec![65], ..comparison() }, None);
        refused(&Comparison { pieces: vec![Pieces::Blocks { rows: 16, cols: 31 }], ..comparison() }, None);
        refused(&comparison(), Some(&Matrix::normal(30, 20, 0.02, 3).unwrap()));
    }
}
