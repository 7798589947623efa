//! Requests for tenants, as a server gets them, and how well a family keeps up that cannot hold all
//! tenants.
//!
//! Every token belongs to a sequence. There is no cache of keys and values here, because it costs
//! the same in any case.

use std::collections::VecDeque;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde::Serialize;

use super::{TenantsCase, family};
use crate::activations::activations;
use crate::clock::Stopwatch;
use crate::rounds::Rounds;
use deltaloom::__internals::to_usize;
use deltaloom::{Progress, Result};
use deltaloom_compute::{Form, Mode, Run};
use deltaloom_lm::layer::{Batch, Sequence, TenantId};
use deltaloom_lm::tenancy::{Family, FamilyOptions, Forms, Residency};
use deltaloom_report::median;

/// The requests to serve.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RequestOptions {
    /// Number of requests, served once before and once during the measurement.
    pub requests: usize,
    /// Tokens per request.
    pub tokens: usize,
    /// Number of requests at a time, with one token of each in a batch.
    pub active: usize,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { requests: 64, tokens: 32, active: 4 }
    }
}

/// In which order tenants are requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Requests of some tokens for random tenants.
    Random,
    /// One token for every tenant in turn; no other order is worse.
    InTurn,
}

/// How well a family kept up.
#[derive(Debug, Clone, Serialize)]
pub struct PressureReport {
    /// Order of the requests.
    pub arrivals: Arrivals,
    /// The forms of the matrices: `csr`, or `share` if each was chosen.
    pub forms: &'static str,
    /// Memory of all tenants as sparse rows, over the budget.
    pub tenants_over_budget: f64,
    /// The budget.
    pub budget_bytes: u64,
    /// Median over the rounds.
    pub tokens_per_second: f64,
    /// Tokens per second of the same forms when all tenants fit, over this.
    pub slowdown: f64,
    /// What was in memory after the last round, and what was done in all rounds.
    pub residency: Residency,
}

/// The batches in order: for each token its tenant and position.
fn steps(
    arrivals: Arrivals,
    tenants: usize,
    options: &RequestOptions,
    seed: u64,
) -> Vec<Vec<(usize, usize)>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut next = 0;
    let mut tenant = || match arrivals {
        Arrivals::InTurn => {
            next += 1;
            (next - 1) % tenants.max(1)
        }
        Arrivals::Random => to_usize(((random.next_u64() >> 32) * tenants as u64) >> 32),
    };
    let tokens = if arrivals == Arrivals::InTurn { 1 } else { options.tokens };
    let count = if arrivals == Arrivals::InTurn { options.requests.max(tenants) } else { options.requests };
    let mut waiting: VecDeque<usize> = (0..count).map(|_| tenant()).collect();
    let mut active: Vec<(usize, usize)> = Vec::new();
    let mut steps = Vec::new();
    loop {
        active.retain(|(_, position)| *position < tokens);
        while active.len() < options.active.max(1) {
            let Some(tenant) = waiting.pop_front() else { break };
            active.push((tenant, 0));
        }
        if active.is_empty() {
            return steps;
        }
        steps.push(active.clone());
        active.iter_mut().for_each(|(_, position)| *position += 1);
    }
}

/// Serves all steps. Returns the seconds.
fn serve(family: &mut Family, steps: &[Vec<(usize, usize)>], x: &[f32], width: usize) -> Result<f64> {
    let watch = Stopwatch::start();
    for step in steps {
        let sequence = |(tenant, position): &(usize, usize)| Sequence {
            tenant: TenantId::new(*tenant),
            tokens: 1,
            position: *position,
        };
        let batch = Batch::new(step.iter().map(sequence).collect())?;
        family.forward(&batch, &x[..step.len() * width], &Run::new(Mode::Fast))?;
    }
    Ok(watch.seconds())
}

/// Serves the same requests with budgets for all tenants, a half and a quarter of them, and less.
/// `all_bytes` is the memory of all tenants.
pub(super) fn run(
    case: &TenantsCase,
    options: &RequestOptions,
    rounds: Rounds,
    seed: u64,
    all_bytes: u64,
    progress: &dyn Progress,
) -> Result<Vec<PressureReport>> {
    const OVER: [u64; 4] = [1, 2, 4, 8];
    let x = activations(seed, options.active.max(1), case.config.width)?;
    let mut reports = Vec::new();
    progress.start(4 * rounds.turns(OVER.len()));
    for (arrivals, forms) in [Arrivals::Random, Arrivals::InTurn]
        .into_iter()
        .flat_map(|arrivals| [Forms::All(Form::Csr), Forms::ByShare].map(|forms| (arrivals, forms)))
    {
        let steps = steps(arrivals, case.tuned.len(), options, seed);
        let tokens: usize = steps.iter().map(Vec::len).sum();
        let open = |over: &u64| {
            family(
                case,
                FamilyOptions::default()
                    .with_budget(all_bytes.div_ceil(*over))
                    .with_forms(forms)
                    .with_prefetch(0),
            )
        };
        let mut families = OVER.iter().map(open).collect::<Result<Vec<_>>>()?;
        // The first round fills the budget.
        let times = rounds.run(&mut families, progress, |family, _| -> Result<_> {
            let seconds = serve(family, &steps, &x, case.config.width);
            progress.advance(1);
            seconds
        })?;
        let speeds: Vec<f64> =
            times.into_iter().map(|times| tokens as f64 / median(times).unwrap_or(0.0)).collect();
        for ((over, family), speed) in OVER.iter().zip(&families).zip(&speeds) {
            let over = *over as f64;
            reports.push(PressureReport {
                arrivals,
                forms: if forms == Forms::ByShare { "share" } else { "csr" },
                tenants_over_budget: over,
                budget_bytes: family.residency().budget_bytes,
                tokens_per_second: *speed,
                slowdown: speeds[0] / speed,
                residency: family.residency(),
            });
        }
    }
    Ok(reports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_gets_all_its_tokens() {
        let options = RequestOptions { requests: 5, tokens: 3, active: 2 };
        let random = steps(Arrivals::Random, 4, &options, 1);
        assert_eq!(random.iter().map(Vec::len).sum::<usize>(), 15);
        assert!(
            random
                .iter()
                .all(|step| step.len() <= 2 && step.iter().all(|(tenant, at)| *tenant < 4 && *at < 3))
        );
        let in_turn = steps(Arrivals::InTurn, 4, &options, 1);
        assert_eq!(in_turn, [vec![(0, 0), (1, 0)], vec![(2, 0), (3, 0)], vec![(0, 0)]]);
    }
}
