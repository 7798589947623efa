//! Checks products against the dense fine-tune in the first round and times them in the others.
//! [`super::goals`] compares the numbers with the goals.

use std::hint::black_box;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::goals;
use super::pair::{Pair, normal};
use super::report::{MatmulReport, ProductReport, WayReport};
use super::way::{Prepared, Way};
use crate::clock::Stopwatch;
use crate::rounds::Rounds;
use deltaloom::{Error, Progress, Result, with_threads};
use deltaloom_compute::{DenseMatrix, Mode, Run, Timers, Tolerance, WeightType};
use deltaloom_report::median;

/// Least duration of a sample in seconds; a short product is repeated.
const SAMPLE_SECONDS: f64 = 0.002;
/// Most repetitions in a sample.
const REPEATS: u32 = 400;
/// Most tokens.
const TOKENS: usize = 4096;
/// Number of runs in which phases are timed.
const PHASE_RUNS: usize = 7;

/// What to measure.
#[derive(Debug, Clone)]
pub struct MatmulOptions {
    /// Token counts.
    pub tokens: Vec<usize>,
    /// Ways to measure; raw is always measured.
    pub ways: Vec<Way>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// Number of timed rounds.
    pub rounds: usize,
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// Seed of the activations.
    pub seed: u64,
}

/// Measures every way, mode and token count on a matrix.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are no rounds or tokens, or too many tokens;
/// [`Error::Cancelled`]; errors of decoding.
pub fn run(pair: &Pair, options: &MatmulOptions, progress: &dyn Progress) -> Result<MatmulReport> {
    if let Some(tokens) = options.tokens.iter().find(|tokens| !(1..=TOKENS).contains(*tokens)) {
        return Err(Error::InvalidArgument(format!("{tokens} tokens: must be between 1 and {TOKENS}")));
    }
    if options.tokens.is_empty() || options.modes.is_empty() {
        return Err(Error::InvalidArgument("no tokens or modes: nothing to measure".into()));
    }
    with_threads(options.threads, || Measurement::new(pair, options, progress)?.run())
}

struct Measurement<'a> {
    pair: &'a Pair,
    options: &'a MatmulOptions,
    progress: &'a dyn Progress,
    ways: Vec<(Way, Prepared)>,
    reports: Vec<WayReport>,
    tolerance: Tolerance,
    rounds: Rounds,
    /// Memory for a copy of the matrix.
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
                // These weights cannot have this form.
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
        let (tolerance, rounds) = (Tolerance::new(&pair.base, &pair.tuned)?, Rounds::new(options.rounds)?);
        let (copy, copy_seconds) = (vec![0; shape.len_bytes()], Vec::new());
        Ok(Self { pair, options, progress, ways, reports, tolerance, rounds, copy, copy_seconds })
    }

    fn run(mut self) -> Result<MatmulReport> {
        let shape = self.pair.shape();
        let all: u64 = self.options.tokens.iter().map(|tokens| work(self.pair, *tokens)).sum();
        let of_mode = |mode| self.ways.iter().filter(|(way, _)| way.has_mode(mode)).count();
        let ways = self.options.modes.iter().map(|mode| of_mode(*mode)).sum();
        self.progress.start(all.saturating_mul(self.rounds.turns(ways)));
        let mut products = Vec::new();
        for &tokens in &self.options.tokens {
            let reference = Reference::new(self.pair, tokens, self.options.seed)?;
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

    fn products(&mut self, mode: Mode, reference: &Reference) -> Result<Vec<ProductReport>> {
        let tokens = reference.tokens;
        let run = Run::new(mode);
        let mut y = vec![0.0; reference.dense.len()];
        let of_mode = self.ways.iter().enumerate().filter(|(_, (way, _))| way.has_mode(mode));
        let mut subjects: Vec<Subject> = of_mode.map(|(index, _)| Subject::of(Some(index))).collect();
        subjects.push(Subject::of(None));
        let (ways, tuned, copy) = (&self.ways, self.pair.tuned.bytes(), &mut self.copy);
        let samples = self.rounds.run(&mut subjects, self.progress, |subject, turn| -> Result<_> {
            let Some(index) = subject.way else {
                let seconds = sample(subject.repeats, || {
                    copy.copy_from_slice(black_box(tuned));
                    black_box(&mut *copy);
                    Ok(())
                })?;
                subject.repeats = if turn.is_warm_up { repeats(seconds) } else { subject.repeats };
                return Ok(seconds);
            };
            let prepared = &ways[index].1;
            prepared.begin(&reference.base, &mut y);
            let seconds = sample(subject.repeats, || prepared.product(&reference.x, &mut y, &run))?;
            if turn.is_warm_up {
                subject.error = reference.error(&self.tolerance, &y, mode)?;
                subject.repeats = repeats(seconds);
            }
            self.progress.advance(work(self.pair, tokens));
            Ok(seconds)
        })?;
        let mut rows = Vec::new();
        for (subject, samples) in subjects.into_iter().zip(samples) {
            match subject.way {
                Some(index) => rows.push(Row { index, error: subject.error, samples }),
                None => self.copy_seconds.extend(samples),
            }
        }
        let raw = rows.iter().find(|row| self.ways[row.index].0 == Way::Raw);
        let raw = raw.map(|row| row.samples.clone()).unwrap_or_default();
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
        // Phases are wall times, so the fastest run was disturbed least.
        let phases = runs.into_iter().min_by(|a, b| a.total().total_cmp(&b.total())).unwrap_or_default();
        let times_raw = row.samples.iter().zip(raw).map(|(seconds, raw)| seconds / raw).collect();
        let median_seconds = median(row.samples).unwrap_or(f64::NAN);
        let elems = number((shape.rows * shape.cols) as u64);
        Ok(ProductReport {
            way: self.ways[row.index].0.name(),
            mode: mode.name(),
            tokens: reference.tokens,
            median_seconds,
            times_raw: median(times_raw).filter(|times| times.is_finite()),
            weight_bytes_per_second: number(shape.len_bytes() as u64) / median_seconds,
            flops_per_second: 2.0 * elems * number(reference.tokens as u64) / median_seconds,
            phases,
            error: row.error,
            verified: Tolerance::allows(row.error),
        })
    }
}

/// Weight of a product in the progress, roughly its time.
fn work(pair: &Pair, tokens: usize) -> u64 {
    (pair.shape().len_bytes() as u64).saturating_mul(16 + tokens as u64) / 16
}

/// What takes turns: products, by index, and a copy of the matrix, which is the limit.
struct Subject {
    way: Option<usize>,
    /// Products per sample, known after the first round.
    repeats: u32,
    error: f64,
}

impl Subject {
    fn of(way: Option<usize>) -> Self {
        Self { way, repeats: 1, error: 0.0 }
    }
}

/// A product to measure.
struct Row {
    index: usize,
    error: f64,
    samples: Vec<f64>,
}

/// Activations, and the expected products with them.
struct Reference {
    tokens: usize,
    x: Vec<f32>,
    /// The bit-exact product of the fine-tune.
    dense: Vec<f32>,
    /// The bit-exact product of the base.
    base: Vec<f32>,
}

impl Reference {
    fn new(pair: &Pair, tokens: usize, seed: u64) -> Result<Self> {
        let shape = pair.shape();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5eed);
        let x: Vec<f32> = (0..tokens * shape.cols).map(|_| normal(&mut random)).collect();
        let product = |matrix: &DenseMatrix, x: &[f32]| {
            let mut y = vec![f32::NAN; tokens * shape.rows];
            matrix.matmul(x, &mut y, &Run::new(Mode::Exact))?;
            Ok::<_, Error>(y)
        };
        let (dense, base) = (product(&pair.tuned, &x)?, product(&pair.base, &x)?);
        Ok(Self { tokens, dense, base, x })
    }

    /// The largest error of a product; infinite if bits should be equal but differ.
    fn error(&self, tolerance: &Tolerance, y: &[f32], mode: Mode) -> Result<f64> {
        match tolerance.error(&self.x, y, &self.dense)? {
            error if mode == Mode::Exact && error > 0.0 => Ok(f64::INFINITY),
            error => Ok(error),
        }
    }
}

/// Seconds of a product: the mean of `repeats` products.
fn sample(repeats: u32, mut product: impl FnMut() -> Result<()>) -> Result<f64> {
    if repeats > 1 {
        // Bring data that fits into the cache: otherwise forms that share the base with the
        // previous one would have an advantage.
        product()?;
    }
    let watch = Stopwatch::start();
    for _ in 0..repeats {
        product()?;
    }
    Ok(watch.seconds() / f64::from(repeats))
}

/// Number of repetitions for a product of this duration.
fn repeats(seconds: f64) -> u32 {
    (1..REPEATS).find(|repeats| f64::from(*repeats) * seconds >= SAMPLE_SECONDS).unwrap_or(REPEATS)
}

fn number(count: u64) -> f64 {
    count as f64
}
