//! Compares a transformer layer on packed weights with the dense one: sizes, times by phase and
//! parameter, and memory of many tenants. Also checks whether every output has the same bits.
//!
//! [`deltaloom_lm::layer`] is the layer; this measures it.

mod case;
mod delta;
mod repeat;
mod restored;

pub use case::LayerCase;
pub use delta::{RowDelta, TensorDelta};
pub use restored::RestoredReport;

use serde::Serialize;

use crate::activations::activations;
use crate::rounds::Rounds;
use crate::statistics::{LayerStatistics, TenantBytes};
use crate::timing::{Seconds, seconds};
use deltaloom::{Progress, Result};
use deltaloom_compute::{Choice, Form, Mode, Tolerance};
use deltaloom_lm::layer::LayerConfig;
use deltaloom_report::median;
use repeat::{Difference, Repeat, Role, repeat, worst_product};

/// What to measure.
#[derive(Debug, Clone)]
pub struct LayerOptions {
    /// Token counts of one sequence.
    pub tokens: Vec<usize>,
    /// Resident forms.
    pub choices: Vec<Choice>,
    /// How often each form is opened and computed, after one warm-up.
    pub repeats: usize,
    /// Tenant counts to report memory for.
    pub tenants: Vec<u64>,
    /// Seed of the activations.
    pub seed: u64,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self {
            tokens: vec![1, 16],
            choices: Form::ALL.map(Choice::Form).to_vec(),
            repeats: 7,
            tenants: vec![1, 4, 16, 64],
            seed: 0,
        }
    }
}

/// Time of one parameter in a run.
#[derive(Debug, Clone, Serialize)]
pub struct ParameterTimes {
    /// Its tensor.
    pub name: String,
    /// Wall time without its bias.
    pub total: Seconds,
    /// Decoding of coded tiles.
    pub decode: Seconds,
    /// Building rows, or the vector, from the base and the differences.
    pub patch: Seconds,
    /// Multiplying.
    pub multiply: Seconds,
}

/// A layer in one form with one token count.
#[derive(Debug, Clone, Serialize)]
pub struct RunReport {
    /// The form, `budget` if a budget was set, or `file` for the fine-tune's own weights.
    pub form: String,
    /// How its matrices are multiplied.
    pub mode: &'static str,
    /// Number of tokens of the sequence.
    pub tokens: usize,
    /// Memory of the weights in addition to the base.
    pub resident_bytes: u64,
    /// Whether all output bits equal those of the fine-tune's own weights.
    pub is_bit_exact: bool,
    /// Length of the difference from those outputs, over their length.
    pub relative_error: f64,
    /// Largest error of any product, as a fraction of the sum of its absolute products.
    pub product_error: f64,
    /// Whether it keeps the promise of its mode.
    pub is_right: bool,
    /// Reading the index, finding references, building the form.
    pub load: Seconds,
    /// Rearranging activations.
    pub arrange: Seconds,
    /// Decoding of coded tiles.
    pub decode: Seconds,
    /// Patching.
    pub patch: Seconds,
    /// Multiplying.
    pub multiply: Seconds,
    /// Rearranging results.
    pub finish: Seconds,
    /// Norms, attention between its projections, activations, biases.
    pub between: Seconds,
    /// The whole layer.
    pub forward: Seconds,
    /// Loading and computing the layer.
    pub total: Seconds,
    /// `total` if nothing had to be patched: a bound for any such method.
    pub without_patch_seconds: f64,
    /// `total` if nothing had to be patched or decoded.
    pub without_patch_and_decode_seconds: f64,
    /// Median of the whole layer, which a busy machine affects less than the mean.
    pub forward_median_seconds: f64,
    /// That median over the median for the fine-tune's own weights.
    pub over_dense: f64,
    /// All parameters, slowest first.
    pub parameters: Vec<ParameterTimes>,
}

/// Memory of many fine-tunes of one base in one form.
#[derive(Debug, Clone, Serialize)]
pub struct TenantMemory {
    /// Number of fine-tunes.
    pub tenants: u64,
    /// The form.
    pub form: String,
    /// Bytes of the base once and all tenants.
    pub bytes: u64,
    /// That over the same number of dense copies without a base.
    pub over_copies: f64,
}

/// Results.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// Shape of the layer.
    pub config: LayerConfig,
    /// Instruction set.
    pub isa: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// Repeats of each run.
    pub repeats: usize,
    /// Sizes of the difference in every form, and how sparse it is.
    pub statistics: LayerStatistics,
    /// Results for restoring the whole layer before computing it.
    pub restored: Vec<RestoredReport>,
    /// The runs. For each token count, the first one uses the fine-tune's own weights.
    pub runs: Vec<RunReport>,
    /// Memory by number of tenants, in the forms that were run.
    pub memory: Vec<TenantMemory>,
    /// The same in forms that are only counted.
    pub counted_memory: Vec<TenantBytes>,
    /// Whether every run keeps the promise of its mode.
    pub is_right: bool,
}

/// Computes a layer in all forms, modes and token counts, on the threads of the current rayon pool.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are no repeats; what forms refuse; [`Error::Cancelled`].
pub fn run(case: &LayerCase, options: &LayerOptions, progress: &dyn Progress) -> Result<LayerReport> {
    let rounds = Rounds::new(options.repeats)?;
    let statistics = case.statistics(progress)?;
    let mut ways = ways(options);
    let turns = rounds.turns(ways.len()).saturating_mul(options.tokens.len() as u64);
    progress.start(statistics.original_bytes.saturating_mul(turns));
    let (mut runs, mut restored): (Vec<RunReport>, Vec<RestoredReport>) = (Vec::new(), Vec::new());
    for &tokens in &options.tokens {
        let x = activations(options.seed, tokens, case.config().width)?;
        // The fine-tune's own weights come first.
        let mut expected: Option<Vec<f32>> = None;
        let repeats = rounds.run(&mut ways, progress, |way, turn| -> Result<_> {
            if turn.is_warm_up {
                way.error = worst_product(case, way.choice, way.mode, &x, tokens)?;
            }
            let (mut done, output) = repeat(case, way.choice, way.mode, &x, tokens)?;
            done.difference = Difference::of(&output, expected.get_or_insert_with(|| output.clone()));
            progress.advance(statistics.original_bytes);
            Ok(done)
        })?;
        let dense_seconds =
            median(repeats.iter().take(1).flatten().map(|it| it.forward).collect()).unwrap_or(0.0);
        runs.extend(
            ways.iter()
                .zip(&repeats)
                .map(|(way, repeats)| describe(case, way, tokens, repeats, dense_seconds)),
        );
        let expected = expected.unwrap_or_default();
        restored.extend(restored::measure(case, options.repeats, &x, tokens, &expected)?);
    }
    let is_right = runs.iter().all(|run| run.is_right) && restored.iter().all(|it| it.is_bit_exact);
    Ok(LayerReport {
        config: case.config().clone(),
        isa: deltaloom::isa_name(),
        threads: rayon::current_num_threads(),
        repeats: options.repeats,
        memory: memory(options, statistics.original_bytes, &runs),
        counted_memory: options.tenants.iter().map(|tenants| statistics.for_tenants(*tenants)).collect(),
        statistics,
        restored,
        is_right,
        runs,
    })
}

/// One way to compute the layer; without a choice, with the fine-tune's own weights.
struct Way {
    choice: Option<Choice>,
    mode: Mode,
    /// Largest error of any product for the last token count.
    error: f64,
}

impl Way {
    fn form(&self) -> &'static str {
        match self.choice {
            None => "file",
            Some(Choice::Form(form)) => form.name(),
            Some(_) => "budget",
        }
    }
}

fn ways(options: &LayerOptions) -> Vec<Way> {
    let dense = Way { choice: None, mode: Mode::Exact, error: 0.0 };
    let of = |choice: &Choice| {
        [Mode::Exact, Mode::Fast].map(|mode| Way { choice: Some(*choice), mode, error: 0.0 })
    };
    std::iter::once(dense).chain(options.choices.iter().flat_map(of)).collect()
}

fn describe(case: &LayerCase, way: &Way, tokens: usize, repeats: &[Repeat], dense_seconds: f64) -> RunReport {
    let of = |phase: &dyn Fn(&Repeat) -> f64| seconds(repeats.iter().map(phase));
    let total = of(&|it| it.open + it.forward);
    let (patch, decode) = (of(&|it| it.phases().patch), of(&|it| it.phases().decode));
    let forward_median_seconds = median(repeats.iter().map(|it| it.forward).collect()).unwrap_or(0.0);
    let is_bit_exact = repeats.iter().all(|it| it.difference.is_bit_exact);
    let relative_error = repeats.iter().map(|it| it.difference.relative_error).fold(0.0, worse);
    // Phases add up over threads, so divide by their number.
    let threads = rayon::current_num_threads() as f64;
    let without_patch_seconds = (total.mean - patch.mean / threads).max(0.0);
    RunReport {
        form: way.form().to_owned(),
        mode: way.mode.name(),
        tokens,
        resident_bytes: repeats.first().map_or(0, |it| it.resident_bytes),
        is_bit_exact,
        relative_error,
        product_error: way.error,
        is_right: is_bit_exact || (way.mode == Mode::Fast && Tolerance::allows(way.error)),
        load: of(&|it| it.open),
        arrange: of(&|it| it.phases().load),
        decode,
        patch,
        multiply: of(&|it| it.phases().multiply),
        finish: of(&|it| it.phases().finish),
        between: of(&Repeat::between),
        forward: of(&|it| it.forward),
        total,
        without_patch_seconds,
        without_patch_and_decode_seconds: (without_patch_seconds - decode.mean / threads).max(0.0),
        forward_median_seconds,
        over_dense: if dense_seconds > 0.0 { forward_median_seconds / dense_seconds } else { 1.0 },
        parameters: parameters(case, repeats),
    }
}

fn parameters(case: &LayerCase, repeats: &[Repeat]) -> Vec<ParameterTimes> {
    let names = case.names();
    let matrices = names.matrices().map(|(role, name)| (Role::Matrix(role), name));
    let vectors = names.vectors().map(|(role, name)| (Role::Vector(role), name));
    let mut parameters: Vec<ParameterTimes> = matrices
        .chain(vectors)
        .map(|(role, name)| {
            let times = || repeats.iter().map(|it| it.parameters.get(&role).copied().unwrap_or_default());
            ParameterTimes {
                name: name.to_owned(),
                total: seconds(times().map(|time| time.wall)),
                decode: seconds(times().map(|time| time.phases.decode)),
                patch: seconds(times().map(|time| time.phases.patch)),
                multiply: seconds(times().map(|time| time.phases.multiply)),
            }
        })
        .collect();
    parameters.sort_by(|a, b| b.total.mean.total_cmp(&a.total.mean));
    parameters
}

/// The larger of two errors; NaN is the largest.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn memory(options: &LayerOptions, base_bytes: u64, runs: &[RunReport]) -> Vec<TenantMemory> {
    let mut forms: Vec<(&str, u64)> = Vec::new();
    for run in runs.iter().filter(|run| run.form != "file") {
        if !forms.iter().any(|(form, _)| *form == run.form) {
            forms.push((&run.form, run.resident_bytes));
        }
    }
    let row = |tenants: u64, (form, each): (&str, u64)| {
        let bytes = base_bytes.saturating_add(tenants.saturating_mul(each));
        let over_copies = bytes as f64 / tenants.saturating_mul(base_bytes).max(1) as f64;
        TenantMemory { tenants, form: form.to_owned(), bytes, over_copies }
    };
    let tenants = options.tenants.iter();
    tenants.flat_map(|tenants| forms.iter().map(|form| row(*tenants, *form))).collect()
}
