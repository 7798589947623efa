//! Which keys share a table, by cost.

use std::cmp::Ordering;

use deltaloom_kernels::rans::ALPHABET;

use super::log2::{self, n_log2};
use super::table::{self, Counts};
use crate::limits::narrow;

/// Writers stay below the format's limit: more tables than this no longer fit the cache of
/// decoders.
pub(crate) const WRITTEN_TABLES: usize = 32;

/// The symbols that occur, in rising order, with their counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    counts: Vec<(u8, u32)>,
}

impl Row {
    /// From a count per symbol.
    pub(crate) fn new(counts: &[u32]) -> Self {
        Self { counts: (0..=u8::MAX).zip(counts.iter().copied()).filter(|(_, count)| *count > 0).collect() }
    }

    pub(crate) fn counts(&self) -> &[(u8, u32)] {
        &self.counts
    }

    pub(crate) fn joined(&self, other: &Self) -> Self {
        let mut counts = Vec::with_capacity(self.counts.len() + other.counts.len());
        self.merge(other, |symbol, count| counts.push((symbol, count)));
        Self { counts }
    }

    /// Calls `take` with every symbol of the two and the sum of its counts, in rising order.
    fn merge(&self, other: &Self, mut take: impl FnMut(u8, u32)) {
        let (mut a, mut b) = (self.counts.iter().peekable(), other.counts.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let order = x.0.cmp(&y.0);
            let count = match order {
                Ordering::Less => x.1,
                Ordering::Greater => y.1,
                Ordering::Equal => x.1 + y.1,
            };
            take(x.0.min(y.0), count);
            a.next_if(|_| order.is_le());
            b.next_if(|_| order.is_ge());
        }
        a.chain(b).for_each(|(symbol, count)| take(*symbol, *count));
    }

    pub(crate) fn entropy(&self) -> u64 {
        let mut sum = EntropySum::default();
        self.counts.iter().for_each(|(_, count)| sum.add(*count));
        sum.entropy()
    }

    /// How many more bits the two cost together than separately, in 1/65536 bits.
    pub(crate) fn joining_loses(&self, other: &Self) -> u64 {
        let mut joined = EntropySum::default();
        self.merge(other, |_, count| joined.add(count));
        joined.entropy().saturating_sub(self.entropy() + other.entropy())
    }

    /// Cost with a table of its own, which is included.
    pub(crate) fn cost(&self) -> u64 {
        table::own_table_cost_of(self.counts.iter().map(|(_, count)| *count))
    }

    /// Cost of both with one table, which is included.
    fn joined_cost(&self, other: &Self) -> u64 {
        let (mut sum, mut used) = (EntropySum::default(), 0);
        self.merge(other, |_, count| {
            sum.add(count);
            used += 1;
        });
        sum.entropy() + table::table_bits(used) * log2::ONE_BIT
    }

    pub(crate) fn to_counts(&self) -> Counts {
        let mut counts = [0; ALPHABET];
        self.counts.iter().for_each(|(symbol, count)| counts[usize::from(*symbol)] = *count);
        counts
    }
}

/// Entropy of counts that arrive one after another.
#[derive(Default)]
struct EntropySum {
    total: u64,
    parts: u64,
}

impl EntropySum {
    fn add(&mut self, count: u32) {
        self.total += u64::from(count);
        self.parts += n_log2(u64::from(count));
    }

    fn entropy(&self) -> u64 {
        n_log2(self.total).saturating_sub(self.parts)
    }
}

/// Keys that share a table: adjacent keys, or any cells.
#[derive(Debug, Clone)]
pub(crate) struct KeyRun {
    pub(crate) cells: Vec<u16>,
    pub(crate) row: Row,
    pub(crate) cost: u64,
}

impl KeyRun {
    /// One key.
    pub(crate) fn new(key: u16, row: Row) -> Self {
        let cost = row.cost();
        Self { cells: vec![key], row, cost }
    }

    pub(crate) fn first_key(&self) -> u8 {
        narrow(self.cells[0], "cells without classes are keys")
    }
}

/// Joins adjacent runs while that saves bits, or while there are too many.
pub(crate) fn join_neighbours(mut runs: Vec<KeyRun>) -> Vec<KeyRun> {
    let mut joined_costs: Vec<u64> = runs.windows(2).map(|w| w[0].row.joined_cost(&w[1].row)).collect();
    loop {
        let saving =
            |i: usize| (runs[i].cost + runs[i + 1].cost).cast_signed() - joined_costs[i].cast_signed();
        // The first of the largest, so that the result depends only on the counts.
        let best = (0..joined_costs.len()).rev().max_by_key(|i| saving(*i));
        let Some(best) = best.filter(|best| saving(*best) > 0 || runs.len() > WRITTEN_TABLES) else { break };
        let next = runs.remove(best + 1);
        runs[best].row = runs[best].row.joined(&next.row);
        runs[best].cells.extend(next.cells);
        runs[best].cost = joined_costs.remove(best);
        for i in [best.checked_sub(1), Some(best)].into_iter().flatten().filter(|i| i + 1 < runs.len()) {
            joined_costs[i] = runs[i].row.joined_cost(&runs[i + 1].row);
        }
    }
    runs
}
