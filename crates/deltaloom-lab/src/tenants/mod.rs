//! Runs a batch of tokens of many fine-tunes of one base, through a [`Family`] and by other means.
//! It reports tokens per second, memory, and whether the outputs equal the dense ones.
//!
//! [`deltaloom_lm::tenancy`] does the serving; this measures it. Other means are in `rivals`,
//! requests in `requests`.

mod case;
mod requests;
mod rivals;
mod whole;

pub use case::TenantsCase;
pub(crate) use case::fine_tune;
pub use requests::{Arrivals, PressureReport, RequestOptions};
pub use whole::{WholeModel, whole_model};

use std::path::Path;

use serde::Serialize;

use crate::activations::activations;
use crate::clock::Stopwatch;
use crate::products::{Checked, Reference};
use crate::rounds::Rounds;
use deltaloom::{Error, Progress, Result};
use deltaloom_compute::{Form, Mode, Run, Tolerance};
use deltaloom_lm::layer::{Batch, LayerConfig, LayerWeights, MatrixRole, Sequence, TenantId, forward};
use deltaloom_lm::tenancy::{Family, FamilyOptions, Forms};
use deltaloom_report::median;
use rivals::{DenseCopies, Swapped};

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct TenantsOptions {
    /// Tokens per tenant in the batch.
    pub tokens: usize,
    /// Memory budget in bytes for the resident forms of all tenants, if forms are chosen.
    pub budget_bytes: u64,
    /// Number of timed rounds for each way.
    pub rounds: usize,
    /// Requests, if budgets that are too small are measured.
    pub requests: Option<RequestOptions>,
    /// Seed of the activations and requests.
    pub seed: u64,
}

/// One way to serve the batch.
#[derive(Debug, Clone, Serialize)]
pub struct WayReport {
    /// Its name.
    pub name: String,
    /// Median of all rounds.
    pub tokens_per_second: f64,
    /// Memory of weights: the base if it is needed, and the weights of all tenants.
    pub resident_bytes: u64,
    /// Whether every bit equals that of the dense fine-tunes, token by token.
    pub is_bit_exact: bool,
    /// Largest error of any product, as a fraction of the sum of its absolute products.
    pub error: f64,
    /// Whether the outputs keep the promise of the mode.
    pub is_right: bool,
    /// For families, the number of matrices of all tenants in each form.
    pub forms: String,
}

/// A goal and its result.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The goal.
    pub goal: String,
    /// What was measured.
    pub value: f64,
    /// The limit.
    pub limit: f64,
    /// Whether the goal is met.
    pub is_met: bool,
}

/// Results.
#[derive(Debug, Clone, Serialize)]
pub struct TenantsReport {
    /// Description of the input.
    pub about: String,
    /// Shape of the layer.
    pub config: LayerConfig,
    /// Instruction set.
    pub isa: &'static str,
    /// Number of threads.
    pub threads: usize,
    /// Whether times are processor time, as with one thread, or wall time.
    pub is_processor_time: bool,
    /// Number of rounds.
    pub rounds: usize,
    /// Number of tenants.
    pub tenants: usize,
    /// Tokens per tenant.
    pub tokens_per_tenant: usize,
    /// Fraction of matrix elements that differ from the base.
    pub changed_fraction: f64,
    /// Bytes of the layer.
    pub base_bytes: u64,
    /// Bytes of a container, on average.
    pub packed_bytes: u64,
    /// Ways to serve one batch.
    pub ways: Vec<WayReport>,
    /// Bytes of memory per tenant in addition to the base, by form.
    pub tenant_bytes: Vec<(String, u64)>,
    /// Results for budgets that are too small.
    pub pressure: Vec<PressureReport>,
    /// Their requests.
    pub requests: Option<RequestOptions>,
    /// Goals.
    pub verdicts: Vec<Verdict>,
    /// Whether all outputs are right.
    pub is_right: bool,
}

/// A family of all tenants of a case.
fn family(case: &TenantsCase, options: FamilyOptions) -> Result<Family> {
    let layers = vec![(case.config.clone(), case.names.clone())];
    let mut family = Family::new(Path::new("base"), case.base.clone(), layers, options)?;
    for tenant in 0..case.tuned.len() {
        family.add(case.container(tenant)?)?;
    }
    Ok(family)
}

/// A way to serve the batch: its promise and its means.
struct Way<'a> {
    name: String,
    mode: Mode,
    serve: Serve<'a>,
}

enum Serve<'a> {
    Copies(&'a DenseCopies),
    Decoded(Swapped),
    Copied(Swapped, &'a DenseCopies),
    Family(Box<Family>),
}

impl Way<'_> {
    /// Serves the batch. Returns the output and, if products are compared with those of dense
    /// copies, their largest error.
    fn run(
        &mut self,
        case: &TenantsCase,
        batch: &Batch,
        x: &[f32],
        reference: Option<&DenseCopies>,
    ) -> Result<(Vec<f32>, Option<f64>)> {
        let run = Run::new(self.mode);
        let mut worst = reference.map(|_| 0.0f64);
        let mut layer = |weights: &dyn LayerWeights, batch: &Batch, x: &[f32], first: usize| {
            let Some(reference) = reference else { return forward(&case.config, weights, batch, x, &run) };
            let reference = OfCase { case, copies: reference, first };
            let checked = Checked::new(weights, &reference);
            let output = forward(&case.config, &checked, batch, x, &run)?;
            worst = worst.map(|worst| worst.max(checked.error.get()));
            Ok(output)
        };
        let output = match &mut self.serve {
            Serve::Copies(copies) => layer(*copies, batch, x, 0),
            Serve::Family(family) => {
                let running = family.start(batch)?;
                layer(&running.layer(0)?, batch, x, 0)
            }
            Serve::Decoded(swapped) => one_by_one(case, batch, x, swapped, Swapped::decode, &mut layer),
            Serve::Copied(swapped, copies) => {
                let swap = |swapped: &mut Swapped, tenant| swapped.copy(copies, tenant);
                one_by_one(case, batch, x, swapped, swap, &mut layer)
            }
        };
        Ok((output?, worst))
    }

    fn resident_bytes(&self, case: &TenantsCase, copies: &DenseCopies) -> u64 {
        match &self.serve {
            // Copies decode nothing, so they need no base.
            Serve::Copies(_) => copies.matrix_bytes(),
            Serve::Decoded(swapped) => case.base_bytes() + swapped.layer.matrix_bytes(),
            Serve::Copied(swapped, copies) => copies.matrix_bytes() + swapped.layer.matrix_bytes(),
            Serve::Family(family) => {
                let residency = family.residency();
                case.base_bytes() + residency.matrix_bytes + residency.vector_bytes
            }
        }
    }
}

/// The reference for products of a case. The tenants of a batch count from `first` on.
struct OfCase<'a> {
    case: &'a TenantsCase,
    copies: &'a DenseCopies,
    first: usize,
}

impl Reference for OfCase<'_> {
    fn product(&self, role: MatrixRole, tenant: TenantId, x: &[f32], y: &mut [f32]) -> Result<Tolerance> {
        let tuned = self.copies.matrix(role, tenant.number() + self.first)?;
        tuned.matmul(x, y, &Run::default())?;
        Tolerance::new(&self.case.base_matrix(role)?, tuned)
    }
}

/// Turns the resident weights into those of each tenant and then multiplies its tokens.
fn one_by_one(
    case: &TenantsCase,
    batch: &Batch,
    x: &[f32],
    swapped: &mut Swapped,
    swap: impl Fn(&mut Swapped, usize) -> Result<()>,
    layer: &mut impl FnMut(&dyn LayerWeights, &Batch, &[f32], usize) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(x.len());
    for (sequence, tokens) in batch.places() {
        let tenant = sequence.tenant.number();
        swap(swapped, tenant)?;
        let alone = Batch::new(vec![Sequence { tenant: TenantId::ONLY, ..*sequence }])?;
        let width = case.config.width;
        let x = &x[tokens.start * width..tokens.end * width];
        out.extend(layer(&swapped.layer, &alone, x, tenant)?);
    }
    Ok(out)
}

/// Serves a batch in all ways, and requests with small budgets.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are no tenants, tokens or rounds; [`Error::Cancelled`].
pub fn run(case: &TenantsCase, options: &TenantsOptions, progress: &dyn Progress) -> Result<TenantsReport> {
    let tenants = case.tuned.len();
    if tenants == 0 || options.tokens == 0 {
        return Err(Error::InvalidArgument("there are no tenants or no tokens".into()));
    }
    let sequence = |tenant| Sequence { tenant: TenantId::new(tenant), tokens: options.tokens, position: 0 };
    let batch = Batch::new((0..tenants).map(sequence).collect())?;
    let x = activations(options.seed, batch.tokens(), case.config.width)?;
    let copies = DenseCopies::new(case)?;
    let dense = forward(&case.config, &copies, &batch, &x, &Run::default())?;
    let mut ways = ways(case, options, &copies)?;

    let rounds = Rounds::new(options.rounds)?;
    progress.start(rounds.turns(ways.len()));
    // From the first round, in which every product is compared.
    let mut checked = Vec::new();
    let times = rounds.run(&mut ways, progress, |way, turn| -> Result<_> {
        let watch = Stopwatch::start();
        let (output, error) = way.run(case, &batch, &x, turn.is_warm_up.then_some(&copies))?;
        let seconds = watch.seconds();
        if let Some(error) = error {
            checked.push((output, error));
        }
        progress.advance(1);
        Ok(seconds)
    })?;
    let describe = |way: &Way<'_>, times: Vec<f64>, output: &[f32], error: f64| {
        let is_bit_exact = output.iter().map(|y| y.to_bits()).eq(dense.iter().map(|y| y.to_bits()));
        let tokens_per_second = batch.tokens() as f64 / median(times).unwrap_or(0.0);
        let is_right = if way.mode == Mode::Exact { is_bit_exact } else { Tolerance::allows(error) };
        let forms = match &way.serve {
            Serve::Family(family) => {
                family.forms().iter().map(|(form, n)| format!("{n} {}", form.name())).collect()
            }
            _ => Vec::new(),
        };
        WayReport {
            name: way.name.clone(),
            tokens_per_second,
            resident_bytes: way.resident_bytes(case, &copies),
            is_bit_exact,
            error,
            is_right,
            forms: forms.join(", "),
        }
    };
    let measured = ways.iter().zip(times).zip(&checked);
    let reports: Vec<WayReport> =
        measured.map(|((way, times), (output, error))| describe(way, times, output, *error)).collect();
    drop(ways);

    let tenant_bytes = tenant_bytes(case)?;
    let all_bytes = tenant_bytes
        .iter()
        .find(|(form, _)| form == Form::Csr.name())
        .map_or(0, |(_, bytes)| bytes * tenants as u64);
    let pressure = match &options.requests {
        Some(requests) => requests::run(
            case,
            requests,
            Rounds::new(options.rounds.min(5))?,
            options.seed,
            all_bytes,
            progress,
        )?,
        None => Vec::new(),
    };
    let packed: u64 = case.containers.iter().map(|container| container.len() as u64).sum();
    Ok(TenantsReport {
        about: case.about.clone(),
        config: case.config.clone(),
        isa: deltaloom::isa_name(),
        threads: rayon::current_num_threads(),
        is_processor_time: cfg!(unix) && rayon::current_num_threads() == 1,
        rounds: options.rounds,
        tenants,
        tokens_per_tenant: options.tokens,
        changed_fraction: case.changed_fraction(),
        base_bytes: case.base_bytes(),
        packed_bytes: packed / tenants as u64,
        verdicts: verdicts(case, &reports, &pressure),
        is_right: reports.iter().all(|way| way.is_right),
        ways: reports,
        tenant_bytes,
        pressure,
        requests: options.requests,
    })
}

const DENSE_COPIES: &str = "dense copies";
const DECODED: &str = "dense swaps, decoded";
const CHOSEN: &str = "family, chosen forms, fast";

fn ways<'a>(case: &TenantsCase, options: &TenantsOptions, copies: &'a DenseCopies) -> Result<Vec<Way<'a>>> {
    let way = |name: &str, mode, serve| Way { name: name.to_owned(), mode, serve };
    let of_family = |name: String, mode, forms, budget_bytes| {
        let options = FamilyOptions::default().with_budget(budget_bytes).with_forms(forms).with_prefetch(0);
        Ok::<_, Error>(Way { name, mode, serve: Serve::Family(Box::new(family(case, options)?)) })
    };
    let mut ways = vec![
        way(DECODED, Mode::Fast, Serve::Decoded(Swapped::new(case)?)),
        way("dense swaps, copied", Mode::Fast, Serve::Copied(Swapped::new(case)?, copies)),
        way(DENSE_COPIES, Mode::Fast, Serve::Copies(copies)),
        of_family(CHOSEN.to_owned(), Mode::Fast, Forms::ByShare, options.budget_bytes)?,
        of_family(
            "family, chosen forms, exact".to_owned(),
            Mode::Exact,
            Forms::ByShare,
            options.budget_bytes,
        )?,
    ];
    for form in Form::ALL {
        ways.push(of_family(
            format!("family, {}, fast", form.name()),
            Mode::Fast,
            Forms::All(form),
            u64::MAX,
        )?);
    }
    for form in [Form::Csr, Form::Bitmap] {
        ways.push(of_family(
            format!("family, {}, exact", form.name()),
            Mode::Exact,
            Forms::All(form),
            u64::MAX,
        )?);
    }
    Ok(ways)
}

/// Average bytes per tenant in each form; for tiles, those of the containers.
fn tenant_bytes(case: &TenantsCase) -> Result<Vec<(String, u64)>> {
    let tenants = case.tuned.len();
    let one_token = |tenant| Sequence { tenant: TenantId::new(tenant), tokens: 1, position: 0 };
    let batch = Batch::new((0..tenants).map(one_token).collect())?;
    let x = activations(0, tenants, case.config.width)?;
    let of = |form: Form| {
        let all: u64 = if form == Form::Tiles {
            case.containers.iter().map(|container| container.len() as u64).sum()
        } else {
            let options = FamilyOptions::default().with_forms(Forms::All(form)).with_prefetch(0);
            let mut family = family(case, options)?;
            family.forward(&batch, &x, &Run::new(Mode::Fast))?;
            family.residency().matrix_bytes + family.residency().vector_bytes
        };
        Ok((form.name().to_owned(), all / tenants as u64))
    };
    Form::ALL.into_iter().map(of).collect()
}

fn verdicts(case: &TenantsCase, ways: &[WayReport], pressure: &[PressureReport]) -> Vec<Verdict> {
    let way = |name: &str| ways.iter().find(|way| way.name == name);
    let mut verdicts = Vec::new();
    for (rival, limit) in [(DECODED, 2.0), (DENSE_COPIES, 1.5)] {
        if let (Some(own), Some(rival)) = (way(CHOSEN), way(rival)) {
            let value = own.tokens_per_second / rival.tokens_per_second;
            let goal = format!("tokens per second of {CHOSEN} over {}", rival.name);
            verdicts.push(Verdict { goal, value, limit, is_met: value >= limit });
        }
    }
    if let Some(own) = way(CHOSEN) {
        let value = own.resident_bytes.saturating_sub(case.base_bytes()) as f64
            / (case.base_bytes() * case.tuned.len() as u64).max(1) as f64;
        let goal = format!("bytes of a tenant of {CHOSEN} over the base's");
        verdicts.push(Verdict { goal, value, limit: 0.25, is_met: value <= 0.25 });
    }
    for row in
        pressure.iter().filter(|row| row.tenants_over_budget == 4.0 && row.arrivals == Arrivals::Random)
    {
        let goal =
            format!("slowdown with four times more tenants than the budget holds, forms {}", row.forms);
        verdicts.push(Verdict { goal, value: row.slowdown, limit: 3.0, is_met: row.slowdown < 3.0 });
    }
    verdicts
}
