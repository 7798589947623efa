//! Which tokens a step computes. Every sequence that generates gets one token; what is left of the
//! step goes to prompts, in pieces, to whom got least so far: first by tenant, then by owner, then
//! by arrival. So nobody who sends many or long prompts holds up the others (counters of tokens as
//! in Sheng et al., "Fairness in Serving Large Language Models", 2024).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::RequestId;
use crate::layer::TenantId;

/// Tokens of a prompt that are given at a time.
const PIECE: usize = 64;
/// Steps that a tenant with work may be left out of.
const MOST_STEPS_LEFT_OUT: u32 = 8;

/// A sequence that could go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) request: RequestId,
    pub(super) tenant: TenantId,
    pub(super) owner: u64,
    /// Tokens to compute; 1 if it generates.
    pub(super) left: usize,
}

/// Limits of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepLimits {
    pub(super) tokens: usize,
    pub(super) tenants: usize,
}

/// Tokens that everyone got.
#[derive(Debug, Default, Clone)]
pub(super) struct Served {
    tenants: BTreeMap<TenantId, OfTenant>,
}

#[derive(Debug, Default, Clone)]
struct OfTenant {
    tokens: u64,
    owners: BTreeMap<u64, u64>,
    /// Steps since it was last served.
    left_out: u32,
}

impl Served {
    /// Forgets who has no work. Those who are new begin with the least that others got: they owe
    /// nothing, and nothing is owed to them.
    pub(super) fn keep(&mut self, with_work: impl Iterator<Item = (TenantId, u64)>) {
        let with_work: BTreeSet<(TenantId, u64)> = with_work.collect();
        let tenants: BTreeSet<TenantId> = with_work.iter().map(|(tenant, _)| *tenant).collect();
        self.tenants.retain(|tenant, _| tenants.contains(tenant));
        let least = self.tenants.values().map(|of| of.tokens).min().unwrap_or(0);
        for tenant in tenants {
            let of = self
                .tenants
                .entry(tenant)
                .or_insert_with(|| OfTenant { tokens: least, ..OfTenant::default() });
            of.owners.retain(|owner, _| with_work.contains(&(tenant, *owner)));
            let least = of.owners.values().copied().min().unwrap_or(0);
            for (_, owner) in with_work.range((tenant, 0)..=(tenant, u64::MAX)) {
                of.owners.entry(*owner).or_insert(least);
            }
        }
    }

    /// The order in which they are served.
    pub(super) fn rank(&self, tenant: TenantId, owner: u64) -> (u64, u64) {
        let of = self.tenants.get(&tenant);
        (of.map_or(0, |of| of.tokens), of.and_then(|of| of.owners.get(&owner)).copied().unwrap_or(0))
    }

    fn add(&mut self, candidate: &Candidate, tokens: usize) {
        let of = self.tenants.entry(candidate.tenant).or_default();
        of.tokens = of.tokens.saturating_add(tokens as u64);
        let owner = of.owners.entry(candidate.owner).or_default();
        *owner = owner.saturating_add(tokens as u64);
    }

    /// The tenants of the next step: those who were left out for too long, then those who got
    /// least.
    fn choose(&mut self, with_work: BTreeSet<TenantId>, most: usize) -> BTreeSet<TenantId> {
        let rank = |tenant: &TenantId| {
            let of = self.tenants.get(tenant);
            let left_out = of.map_or(0, |of| of.left_out);
            (
                Reverse(left_out >= MOST_STEPS_LEFT_OUT),
                of.map_or(0, |of| of.tokens),
                Reverse(left_out),
                *tenant,
            )
        };
        let mut ranked: Vec<TenantId> = with_work.into_iter().collect();
        ranked.sort_by_key(rank);
        for (place, tenant) in ranked.iter().enumerate() {
            let of = self.tenants.entry(*tenant).or_default();
            of.left_out = if place < most { 0 } else { of.left_out + 1 };
        }
        ranked.truncate(most);
        ranked.into_iter().collect()
    }
}

/// How many tokens of each sequence the next step computes, sorted by tenant.
pub(super) fn plan(
    candidates: &[Candidate],
    served: &mut Served,
    limits: StepLimits,
) -> Vec<(Candidate, usize)> {
    let tenants = served.choose(candidates.iter().map(|it| it.tenant).collect(), limits.tenants);
    let mut waiting: Vec<Candidate> =
        candidates.iter().filter(|it| it.left > 0 && tenants.contains(&it.tenant)).copied().collect();
    let mut given: BTreeMap<RequestId, usize> = BTreeMap::new();
    let mut free = limits.tokens;
    while free > 0 && !waiting.is_empty() {
        // Generating comes first.
        let rank = |it: &Candidate| {
            let (tenant, owner) = served.rank(it.tenant, it.owner);
            (it.left > 1 || given.contains_key(&it.request), tenant, owner, it.request)
        };
        let Some(place) = (0..waiting.len()).min_by_key(|place| rank(&waiting[*place])) else { break };
        let it = &mut waiting[place];
        let tokens = it.left.min(PIECE).min(free);
        it.left -= tokens;
        free -= tokens;
        *given.entry(it.request).or_default() += tokens;
        served.add(it, tokens);
        if it.left == 0 {
            waiting.swap_remove(place);
        }
    }
    let chosen = |it: &Candidate| given.get(&it.request).map(|tokens| (*it, *tokens));
    let mut planned: Vec<(Candidate, usize)> = candidates.iter().filter_map(chosen).collect();
    planned.sort_by_key(|(it, _)| (it.tenant, it.request));
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(request: u64, tenant: usize, owner: u64, left: usize) -> Candidate {
        Candidate { request: RequestId(request), tenant: TenantId::new(tenant), owner, left }
    }

    fn step(
        candidates: &[Candidate],
        served: &mut Served,
        tokens: usize,
        tenants: usize,
    ) -> Vec<(u64, usize)> {
        served.keep(candidates.iter().map(|it| (it.tenant, it.owner)));
        let planned = plan(candidates, served, StepLimits { tokens, tenants });
        planned.into_iter().map(|(it, tokens)| (it.request.0, tokens)).collect()
    }

    #[test]
    fn generating_comes_before_prompts() {
        let all = [candidate(0, 0, 0, 500), candidate(1, 1, 0, 1), candidate(2, 2, 0, 1)];
        assert_eq!(step(&all, &mut Served::default(), 100, 9), [(0, 98), (1, 1), (2, 1)]);
        assert_eq!(step(&all, &mut Served::default(), 1, 9), [(1, 1)]);
    }

    #[test]
    fn prompts_are_shared_out_by_tenant_then_by_owner_then_by_arrival() {
        // A tenant with many requests gets no more than one with a single request.
        let mut all: Vec<Candidate> = (0..8).map(|request| candidate(request, 0, 7, 1000)).collect();
        all.push(candidate(8, 1, 7, 1000));
        assert_eq!(step(&all, &mut Served::default(), 256, 9), [(0, 128), (8, 128)]);
        let mut all: Vec<Candidate> = (0..8).map(|request| candidate(request, 0, 7, 1000)).collect();
        all.push(candidate(8, 0, 6, 1000));
        assert_eq!(step(&all, &mut Served::default(), 256, 9), [(0, 128), (8, 128)]);
    }

    #[test]
    fn who_comes_later_is_owed_nothing() {
        let mut served = Served::default();
        let first = candidate(0, 0, 0, 10_000);
        for _ in 0..10 {
            step(&[first], &mut served, 256, 9);
        }
        let later = candidate(1, 1, 0, 10_000);
        assert_eq!(step(&[first, later], &mut served, 256, 9), [(0, 128), (1, 128)]);
    }

    #[test]
    fn no_tenant_starves_beyond_the_limit_of_a_step() {
        let all: Vec<Candidate> = (0..10).map(|n| candidate(n as u64, n, 0, 1)).collect();
        let mut served = Served::default();
        let mut last = [0; 10];
        for now in 1..200 {
            for (request, tokens) in step(&all, &mut served, 64, 3) {
                assert_eq!(tokens, 1);
                last[usize::try_from(request).unwrap()] = now;
            }
            assert!(last.iter().all(|last| now - last <= 9), "{last:?} at {now}");
        }
    }

    #[test]
    fn one_who_was_left_out_for_long_comes_first() {
        let mut served = Served::default();
        let (greedy, modest) = (candidate(0, 0, 0, 1), candidate(1, 1, 0, 10_000));
        // Tenant 1 has got much more, so that 0 would always be chosen.
        step(&[modest], &mut served, 5_000, 1);
        served.keep([(TenantId::new(0), 0), (TenantId::new(1), 0)].into_iter());
        served.tenants.get_mut(&TenantId::new(0)).unwrap().tokens = 0;
        let steps = (0..20).map(|_| step(&[greedy, modest], &mut served, 64, 1)[0].0).collect::<Vec<_>>();
        assert_eq!(steps.iter().filter(|request| **request == 1).count(), 2, "{steps:?}");
    }
}
