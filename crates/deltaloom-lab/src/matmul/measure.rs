//! Products are checked once against the dense fine-tune and then timed in rounds in which all ways take turns: what slows the machine for a while slows all of them.
//! What the numbers mean for the goals is said by [`super::goals`].

use std::hint::black_box;
use std::time::Instant;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::super::clock::Clock;
use super::goals;
use super::pair::{Pair, normal};
use super::report::{MatmulReport, ProductReport, WayReport};
use super::way::{Prepared, Way};
use deltaloom::__internals::check_cancelled;
use deltaloom::{Error, Progress, Result, with_threads};
use deltaloom_compute::{DenseMatrix, Mode, Run, Timers, WeightType};
use deltaloom_report::median;

/// What fast products may be off by, as a share of the sum of the absolute products.
const TOLERANCE: f64 = 1e-5;
/// Seconds that a sample takes at least; a short product is repeated.
const SAMPLE_SECONDS: f64 = 0.002;
/// The most repetitions of a sample.
const REPEATS: u32 = 400;
/// Most tokens.
const TOKENS: usize = 4096;
/// Runs in which phases are timed.
const PHASE_RUNS: usize = 7;

/// What to measure.
#[derive(Debug, Clone)]
pub struct MatmulOptions {
    /// Numbers of tokens.
    pub tokens: Vec<usize>,
    /// Ways; raw is always measured.
    pub ways: Vec<Way>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// Rounds.
    pub rounds: usize,
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// Of the activations.
    pub seed: u64,
}

/// Measures every way, mode and number of tokens on a matrix.
///
/// # Errors
/// [`Error::InvalidArgument`] for zero rounds or tokens, or too many; [`Error::Cancelled`]; what decoding gives.
pub fn run(pair: &Pair, options: &MatmulOptions, progress: &dyn Progress) -> Result<MatmulReport> {
    if let Some(tokens) = options.tokens.iter().find(|tokens| !(1..=TOKENS).contains(*tokens)) {
        return Err(Error::InvalidArgument(format!("{tokens} tokens: between 1 and {TOKENS}")));
    }
    if options.rounds == 0 || options.tokens.is_empty() || options.modes.is_empty() {
        return Err(Error::InvalidArgument("no rounds, tokens or modes: nothing to measure".into()));
    }
    with_threads(options.threads, || Measurement::new(pair, options, progress)?.run())
}

struct Measurement<'a> {
    pair: &'a Pair,
    options: &'a MatmulOptions,
    progress: &'a dyn Progress,
    ways: Vec<(Way, Prepared)>,
    reports: Vec<WayReport>,
    /// The absolute values of the weights.
    absolute: DenseMatrix,
    /// Room for a copy of the matrix.
    copy: Vec<u8>,
    copy_seconds: Vec<f64>,
}

impl<'a> Measurement<'a> {
    fn new(pair: &'a Pair, options: &'a MatmulOptions, progress: &'a dyn Progress) -> Result<Self> {
        let shape = pair.shape();
        let (mut ways, mut reports) = (Vec::new(), Vec::new());
        let is_asked = |way: &Way| *way == Way::Raw || options.ways.contains(way);
        for way in Way::ALL.into_iter().filter(is_asked) {
            let prepared = Prepared::new(way, pair);
            let (resident_bytes, missing) = match &prepared {
                Ok(prepared) => (Some(prepared.resident_bytes()), None),
                // A form that these weights cannot have.
                Err(Error::InvalidArgument(why)) => (None, Some(why.clone())),
                Err(_) => (None, None),
            };
            let resident_fraction =
                resident_bytes.map(|bytes| number(bytes) / number(shape.len_bytes() as u64));
            let (way_name, group) = (way.name(), way.group());
            reports.push(WayReport { way: way_name, group, resident_bytes, resident_fraction, missing });
            match prepared {
                Ok(prepared) => ways.push((way, prepared)),
                Err(Error::InvalidArgument(_)) => {}
                Err(e) => return Err(e),
            }
        }
        let absolute = absolute(&pair.tuned)?;
        let copy = vec![0; shape.len_bytes()];
        Ok(Self { pair, options, progress, ways, reports, absolute, copy, copy_seconds: Vec::new() })
    }

    fn run(mut self) -> Result<MatmulReport> {
        let shape = self.pair.shape();
        let all: u64 = self.options.tokens.iter().map(|tokens| self.work(*tokens)).sum();
        let turns =
            (self.options.rounds as u64 + 1) * self.ways.len() as u64 * self.options.modes.len() as u64;
        self.progress.start(all.saturating_mul(turns));
        let mut products = Vec::new();
        for &tokens in &self.options.tokens {
            let reference = Reference::new(self.pair, &self.absolute, tokens, self.options.seed)?;
            for &mode in &self.options.modes {
                products.extend(self.products(mode, &reference)?);
            }
        }
        let verified = products.iter().all(|row: &ProductReport| row.verified);
        let (changed_elems, weight_bytes) = (self.pair.changed(), shape.len_bytes() as u64);
        let mut report = MatmulReport {
            source: self.pair.source.clone(),
            is_made: self.pair.is_made,
            tensor: self.pair.tensor.clone(),
            rows: shape.rows,
            cols: shape.cols,
            dtype: match shape.weight {
                WeightType::Bf16 => "BF16",
                WeightType::F32 => "F32",
            },
            weight_bytes,
            changed_elems,
            changed_fraction: number(changed_elems) / number((shape.rows * shape.cols) as u64),
            isa: deltaloom::isa_name(),
            threads: rayon::current_num_threads(),
            rounds: self.options.rounds,
            memcpy_bytes_per_second: number(weight_bytes) / median(self.copy_seconds).unwrap_or(f64::NAN),
            ways: self.reports,
            products,
            goals: Vec::new(),
            verified,
        };
        report.goals = goals::of(&report);
        Ok(report)
    }

    /// What one product counts for in progress: about its time.
    fn work(&self, tokens: usize) -> u64 {
        (self.pair.shape().len_bytes() as u64).saturating_mul(16 + tokens as u64) / 16
    }

    fn products(&mut self, mode: Mode, reference: &Reference) -> Result<Vec<ProductReport>> {
        let tokens = reference.tokens;
        let run = Run::new(mode);
        let mut y = vec![0.0; reference.dense.len()];
        let mut rows = Vec::new();
        for (i, (way, prepared)) in self.ways.iter().enumerate().filter(|(_, (way, _))| way.has_mode(mode)) {
            prepared.begin(&reference.base, &mut y);
            let seconds = sample(1, || prepared.product(&reference.x, &mut y, &run))?;
            let error = reference.error(&y, mode);
            rows.push(Row { index: i, way: *way, error, repeats: repeats(seconds), samples: Vec::new() });
            self.passed(tokens)?;
        }
        let len_bytes = self.copy.len();
        let mut copy_repeats = 2;
        for round in 0..self.options.rounds {
            // Another one begins each time.
            let count = rows.len();
            for turn in 0..count {
                let row = &mut rows[(round + turn) % count];
                let prepared = &self.ways[row.index].1;
                prepared.begin(&reference.base, &mut y);
                let product = || prepared.product(&reference.x, &mut y, &run);
                row.samples.push(sample(row.repeats, product)?);
                self.passed(tokens)?;
            }
            let copied = sample(copy_repeats, || {
                self.copy.copy_from_slice(black_box(&self.pair.tuned.bytes()[..len_bytes]));
                black_box(&mut self.copy);
                Ok(())
            })?;
            if round == 0 {
                copy_repeats = repeats(copied);
            }
            self.copy_seconds.push(copied);
        }
        let raw = rows.iter().find(|row| row.way == Way::Raw).map(|row| row.samples.clone());
        let raw = raw.unwrap_or_default();
        rows.into_iter().map(|row| self.report(row, mode, reference, &raw, &mut y)).collect()
    }

    fn report(
        &self,
        row: Row,
        mode: Mode,
        reference: &Reference,
        raw: &[f64],
        y: &mut [f32],
    ) -> Result<ProductReport> {
        let shape = self.pair.shape();
        let (timers, prepared) = (Timers::default(), &self.ways[row.index].1);
        let timed = Run::new(mode).timed_by(&timers);
        prepared.begin(&reference.base, y);
        let mut runs = Vec::new();
        for _ in 0..PHASE_RUNS {
            prepared.product(&reference.x, y, &timed)?;
            runs.push(timers.take());
        }
        // Phases are timed on the wall: the fastest run was disturbed least.
        let phases = runs.into_iter().min_by(|a, b| a.total().total_cmp(&b.total())).unwrap_or_default();
        let times_raw = row.samples.iter().zip(raw).map(|(seconds, raw)| seconds / raw).collect();
        let median_seconds = median(row.samples).unwrap_or(f64::NAN);
        let elems = number((shape.rows * shape.cols) as u64);
        Ok(ProductReport {
            way: row.way.name(),
            mode: mode.name(),
            tokens: reference.tokens,
            median_seconds,
            times_raw: median(times_raw).filter(|times| times.is_finite()),
            weight_bytes_per_second: number(shape.len_bytes() as u64) / median_seconds,
            flops_per_second: 2.0 * elems * number(reference.tokens as u64) / median_seconds,
            phases,
            error: row.error,
            verified: row.error <= TOLERANCE,
        })
    }

    fn passed(&self, tokens: usize) -> Result<()> {
        self.progress.advance(self.work(tokens));
        check_cancelled(self.progress)
    }
}

/// A way while it is measured.
struct Row {
    index: usize,
    way: Way,
    error: f64,
    repeats: u32,
    samples: Vec<f64>,
}

/// Activations, and what products with them are to be.
struct Reference {
    tokens: usize,
    x: Vec<f32>,
    /// The bit-exact product of the fine-tune.
    dense: Vec<f32>,
    /// The bit-exact product of the base.
    base: Vec<f32>,
    /// Sums of absolute products.
    absolute: Vec<f32>,
}

impl Reference {
    fn new(pair: &Pair, absolute: &DenseMatrix, tokens: usize, seed: u64) -> Result<Self> {
        let shape = pair.shape();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5eed);
        let x: Vec<f32> = (0..tokens * shape.cols).map(|_| normal(&mut random)).collect();
        let product = |matrix: &DenseMatrix, x: &[f32]| {
            let mut y = vec![f32::NAN; tokens * shape.rows];
            matrix.matmul(x, &mut y, &Run::new(Mode::BitExact))?;
            Ok::<_, Error>(y)
        };
        let absolute_x: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        let (dense, base) = (product(&pair.tuned, &x)?, product(&pair.base, &x)?);
        Ok(Self { tokens, absolute: product(absolute, &absolute_x)?, dense, base, x })
    }

    /// The largest error as a share of the sum of the absolute products: 0 where bits are equal, infinite where they should be and are not.
    fn error(&self, y: &[f32], mode: Mode) -> f64 {
        let errors = y.iter().zip(&self.dense).zip(&self.absolute).map(|((y, dense), absolute)| {
            if y.to_bits() == dense.to_bits() || (y.is_nan() && dense.is_nan()) {
                return 0.0;
            }
            let error = (f64::from(*y) - f64::from(*dense)).abs() / f64::from(*absolute);
            if mode == Mode::BitExact || error.is_nan() { f64::INFINITY } else { error }
        });
        errors.fold(0.0, f64::max)
    }
}

/// The matrix without its signs.
fn absolute(matrix: &DenseMatrix) -> Result<DenseMatrix> {
    let shape = matrix.shape();
    let mut bytes = matrix.bytes().to_vec();
    bytes
        .iter_mut()
        .skip(shape.weight.bytes() - 1)
        .step_by(shape.weight.bytes())
        .for_each(|top| *top &= 0x7f);
    DenseMatrix::new(shape.rows, shape.cols, shape.weight, bytes)
}

/// Seconds of a product, the mean of so many: processor time on one thread, which other work on the machine does not lengthen, on several the time on the wall.
fn sample(repeats: u32, mut product: impl FnMut() -> Result<()>) -> Result<f64> {
    if repeats > 1 {
        // What fits into a cache is brought there first: forms that share the base with the one before would find it there.
        product()?;
    }
    let (wall, processor) = (Instant::now(), Clock::start());
    for _ in 0..repeats {
        product()?;
    }
    let seconds = match rayon::current_num_threads() {
        1 => processor.seconds(),
        _ => wall.elapsed().as_secs_f64(),
    };
    Ok(seconds / f64::from(repeats))
}

/// How often something that takes so long is repeated.
fn repeats(seconds: f64) -> u32 {
    (1..REPEATS).find(|repeats| f64::from(*repeats) * seconds >= SAMPLE_SECONDS).unwrap_or(REPEATS)
}

fn number(count: u64) -> f64 {
    count as f64
}
