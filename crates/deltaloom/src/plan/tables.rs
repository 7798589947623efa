//! Which keys share a table and which groups share a table set, by cost.
//! It counts in fixed point, so the answer is the same everywhere; docs/adr/0005.

use std::cmp::Ordering;

use deltaloom_kernels::keys::KEYS;
use deltaloom_kernels::rans::ALPHABET;

use crate::entropy::log2::{self, n_log2};
use crate::entropy::table::{self, Counts, TableSet};

/// A writer stays below the format's limit: more tables than this cost decoders their cache.
const MAX_TABLES: usize = 32;
/// Newest table sets that a group may use again.
const RECENT_SETS: usize = 4;

/// Counters of (key, symbol) while counting.
#[derive(Debug, Clone)]
pub(crate) struct Counters(Vec<u32>);

impl Default for Counters {
    fn default() -> Self {
        Self(vec![0; KEYS * ALPHABET])
    }
}

impl Counters {
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u32] {
        &mut self.0
    }

    pub(crate) fn add(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a += b);
        self
    }

    pub(crate) fn finish(&self) -> Histogram {
        let rows =
            self.0.chunks(ALPHABET).zip(0..=u8::MAX).filter(|(row, _)| row.iter().any(|count| *count > 0));
        Histogram { rows: rows.map(|(row, key)| (key, Box::new(std::array::from_fn(|s| row[s])))).collect() }
    }
}

/// Counts of the symbols of every key that occurs, keys rising.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Histogram {
    rows: Vec<(u8, Box<Counts>)>,
}

impl Histogram {
    fn rows(&self) -> impl Iterator<Item = (u8, &Counts)> {
        self.rows.iter().map(|(key, counts)| (*key, &**counts))
    }

    /// Bits of all symbols given their keys, without tables, in 1/65536 bits.
    fn entropy(&self) -> u64 {
        self.rows().map(|(_, row)| row_entropy(row)).sum()
    }

    fn joined(&self, other: &Self) -> Self {
        let mut rows = self.rows.clone();
        for (key, counts) in &other.rows {
            match rows.binary_search_by_key(key, |(key, _)| *key) {
                Ok(i) => rows[i].1.iter_mut().zip(counts.iter()).for_each(|(a, b)| *a += b),
                Err(i) => rows.insert(i, (*key, counts.clone())),
            }
        }
        Self { rows }
    }
}

fn row_entropy(row: &Counts) -> u64 {
    let total: u64 = row.iter().map(|&c| u64::from(c)).sum();
    let parts: u64 = row.iter().map(|&c| n_log2(u64::from(c))).sum();
    n_log2(total).saturating_sub(parts)
}

/// Neighbouring keys that share a table: the symbols that occur, rising, with their counts.
#[derive(Debug, Clone)]
struct KeyRun {
    first_key: u8,
    counts: Vec<(u8, u32)>,
    cost: u64,
}

impl KeyRun {
    fn new(first_key: u8, counts: Vec<(u8, u32)>) -> Self {
        let cost = table::own_table_cost_of(counts.iter().map(|(_, count)| *count));
        Self { first_key, counts, cost }
    }

    fn of_row(first_key: u8, row: &Counts) -> Self {
        Self::new(first_key, (0..=u8::MAX).zip(row.iter().copied()).filter(|(_, count)| *count > 0).collect())
    }

    fn joined(&self, next: &Self) -> Self {
        let mut counts = Vec::with_capacity(self.counts.len() + next.counts.len());
        let (mut a, mut b) = (self.counts.iter().peekable(), next.counts.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let count = match x.0.cmp(&y.0) {
                Ordering::Less => x.1,
                Ordering::Greater => y.1,
                Ordering::Equal => x.1 + y.1,
            };
            counts.push((x.0.min(y.0), count));
            let order = x.0.cmp(&y.0);
            a.next_if(|_| order.is_le());
            b.next_if(|_| order.is_ge());
        }
        counts.extend(a.chain(b));
        Self::new(self.first_key, counts)
    }

    fn to_row(&self) -> Counts {
        let mut row = [0; ALPHABET];
        self.counts.iter().for_each(|(symbol, count)| row[usize::from(*symbol)] = *count);
        row
    }
}

/// A table set and what coding a histogram with it costs, tables included, in 1/65536 bits.
#[derive(Debug, Clone)]
pub(crate) struct CostedSet {
    pub(crate) set: TableSet,
    pub(crate) cost: u64,
}

/// Tables for a histogram: neighbouring keys are joined while that saves bits. `gaps` becomes a table before the others.
pub(crate) fn fit(histogram: &Histogram, gaps: Option<&Counts>) -> CostedSet {
    let mut runs: Vec<KeyRun> = histogram.rows().map(|(key, row)| KeyRun::of_row(key, row)).collect();
    let mut joined: Vec<KeyRun> = runs.windows(2).map(|w| w[0].joined(&w[1])).collect();
    loop {
        let saving =
            |i: usize| (runs[i].cost + runs[i + 1].cost).cast_signed() - joined[i].cost.cast_signed();
        // The first of the largest, so that the result does not depend on anything but the counts.
        let best = (0..joined.len()).rev().max_by_key(|i| saving(*i));
        let Some(best) = best.filter(|best| saving(*best) > 0 || runs.len() > MAX_TABLES) else { break };
        runs[best] = joined[best].clone();
        runs.remove(best + 1);
        joined.remove(best);
        for i in [best.checked_sub(1), Some(best)].into_iter().flatten().filter(|i| i + 1 < runs.len()) {
            joined[i] = runs[i].joined(&runs[i + 1]);
        }
    }
    let mut set = TableSet { first_keys: Vec::new(), tables: Vec::new() };
    let mut cost = 0;
    if let Some(gaps) = gaps {
        set.tables.push(table::normalise(gaps));
        set.first_keys.push(1);
        cost += table::own_table_cost(gaps);
    }
    for (i, run) in runs.iter().enumerate() {
        set.tables.push(table::normalise(&run.to_row()));
        cost += run.cost;
        if i > 0 {
            // In a set with a gap table the key before is at least 1, since 1 stands for 0 there.
            set.first_keys.push(if gaps.is_some() { run.first_key.max(2) } else { run.first_key });
        }
    }
    CostedSet { set, cost }
}

/// Cost of a histogram with a set that is there already; `None` when it lacks a symbol.
fn cost_with(histogram: &Histogram, gaps: Option<&Counts>, set: &TableSet) -> Option<u64> {
    let from = usize::from(gaps.is_some());
    let map = set.key_map(from);
    let gap_cost = gaps.map_or(Some(0), |gaps| table::coded_cost(gaps, set.tables.first()?))?;
    let row_cost = |(key, row): (u8, &Counts)| {
        table::coded_cost(row, set.tables.get(usize::from(map[usize::from(key)]))?)
    };
    histogram.rows().map(row_cost).try_fold(gap_cost, |sum, cost| Some(sum + cost?))
}

/// What a group wants coded.
#[derive(Debug, Clone)]
pub(crate) struct TableRequest {
    pub(crate) histogram: Histogram,
    pub(crate) gaps: Option<Counts>,
    /// The set that fits this group alone.
    pub(crate) own: CostedSet,
}

/// All table sets of a container, and those that groups may use again.
#[derive(Debug, Default)]
pub(crate) struct SetPool {
    pub(crate) sets: Vec<TableSet>,
    recent_dense: Vec<usize>,
    recent_sparse: Vec<usize>,
}

impl SetPool {
    /// Adds a set that nobody else will use.
    pub(crate) fn push(&mut self, set: TableSet) -> usize {
        self.sets.push(set);
        self.sets.len() - 1
    }

    /// A set for every request: one that is there already, one shared with other requests, or its own. The order of requests is the only input besides them.
    pub(crate) fn assign(&mut self, requests: &[&TableRequest]) -> Vec<usize> {
        enum Choice {
            Set(usize),
            Cluster(usize),
        }
        let mut clusters: Vec<Cluster> = Vec::new();
        let choices: Vec<Choice> = requests
            .iter()
            .map(|request| {
                if let Some(set) = self.reusable(request) {
                    return Choice::Set(set);
                }
                let entropy = request.histogram.entropy();
                let best = (0..clusters.len())
                    .map(|i| (clusters[i].joining_saves(request, entropy), i))
                    .max_by_key(|(saving, i)| (*saving, std::cmp::Reverse(*i)))
                    .filter(|(saving, _)| *saving > 0);
                if let Some((_, i)) = best {
                    clusters[i].join(request);
                    return Choice::Cluster(i);
                }
                clusters.push(Cluster::new(request, entropy));
                Choice::Cluster(clusters.len() - 1)
            })
            .collect();
        let first_of_cluster = self.sets.len();
        for cluster in clusters {
            let is_sparse = cluster.gaps.is_some();
            let set = self.push(cluster.into_set());
            let recent = if is_sparse { &mut self.recent_sparse } else { &mut self.recent_dense };
            recent.push(set);
            if recent.len() > RECENT_SETS {
                recent.remove(0);
            }
        }
        let resolve = |choice| match choice {
            Choice::Set(set) => set,
            Choice::Cluster(i) => first_of_cluster + i,
        };
        choices.into_iter().map(resolve).collect()
    }

    fn reusable(&self, request: &TableRequest) -> Option<usize> {
        let recent = if request.gaps.is_some() { &self.recent_sparse } else { &self.recent_dense };
        let cost = |set: &usize| cost_with(&request.histogram, request.gaps.as_ref(), &self.sets[*set]);
        let best = recent.iter().filter_map(|set| Some((cost(set)?, *set))).min()?;
        (best.0 <= request.own.cost).then_some(best.1)
    }
}

/// Requests that will share a set.
struct Cluster {
    histogram: Histogram,
    entropy: u64,
    gaps: Option<Counts>,
    alone: Option<TableSet>,
}

impl Cluster {
    fn new(request: &TableRequest, entropy: u64) -> Self {
        Self {
            histogram: request.histogram.clone(),
            entropy,
            gaps: request.gaps,
            alone: Some(request.own.set.clone()),
        }
    }

    fn joined(&self, request: &TableRequest) -> (Histogram, Option<Counts>) {
        let gaps = self.gaps.zip(request.gaps).map(|(a, b)| std::array::from_fn(|s| a[s] + b[s]));
        (self.histogram.joined(&request.histogram), gaps)
    }

    /// Bits saved by coding the request with this cluster: its tables, less what common statistics cost.
    fn joining_saves(&self, request: &TableRequest, entropy: u64) -> i64 {
        if self.gaps.is_some() != request.gaps.is_some() {
            return i64::MIN;
        }
        let (histogram, gaps) = self.joined(request);
        let mut loss = histogram.entropy().saturating_sub(self.entropy + entropy);
        if let (Some(joined), Some(a), Some(b)) = (&gaps, &self.gaps, &request.gaps) {
            loss += row_entropy(joined).saturating_sub(row_entropy(a) + row_entropy(b));
        }
        (table_bits(&request.own.set) * log2::ONE_BIT).cast_signed() - loss.cast_signed()
    }

    fn join(&mut self, request: &TableRequest) {
        (self.histogram, self.gaps) = self.joined(request);
        self.entropy = self.histogram.entropy();
        self.alone = None;
    }

    fn into_set(self) -> TableSet {
        self.alone.unwrap_or_else(|| fit(&self.histogram, self.gaps.as_ref()).set)
    }
}

fn table_bits(set: &TableSet) -> u64 {
    set.tables.iter().map(table::table_bits).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rows: &[(u8, &[u32])]) -> TableRequest {
        let mut counters = Counters::default();
        for (key, counts) in rows {
            counters.0[usize::from(*key) * ALPHABET..][..counts.len()].copy_from_slice(counts);
        }
        let histogram = counters.finish();
        let own = fit(&histogram, None);
        TableRequest { histogram, gaps: None, own }
    }

    #[test]
    fn like_keys_share_a_table_and_unlike_ones_do_not() {
        let like = request(&[(10, &[900, 100]), (11, &[1800, 200]), (200, &[1, 5000])]);
        assert_eq!((like.own.set.tables.len(), &like.own.set.first_keys[..]), (2, &[200][..]));
    }

    #[test]
    fn like_groups_share_a_set_and_later_ones_use_it_again() {
        let mut pool = SetPool::default();
        let (a, b, other) = (
            request(&[(9, &[900, 100, 7])]),
            request(&[(9, &[880, 120, 9])]),
            request(&[(9, &[3, 4, 40_000])]),
        );
        assert_eq!(pool.assign(&[&a, &b, &other]), [0, 0, 1]);
        assert_eq!(pool.assign(&[&b, &other]), [0, 1]);
        assert_eq!(pool.sets.len(), 2);
        let unknown_symbol = request(&[(9, &[880, 120, 9, 1])]);
        assert_eq!(pool.assign(&[&unknown_symbol]), [2]);
    }

    #[test]
    fn more_keys_than_tables_are_joined() {
        let rows: Vec<(u8, Vec<u32>)> = (0..100u8)
            .map(|k| (k, (0..60).map(|s| if s == k / 2 { 1_000_000 } else { 1 }).collect()))
            .collect();
        let borrowed: Vec<(u8, &[u32])> = rows.iter().map(|(k, c)| (*k, &c[..])).collect();
        assert_eq!(request(&borrowed).own.set.tables.len(), MAX_TABLES);
    }

    #[test]
    fn gap_tables_come_first() {
        let mut counters = Counters::default();
        counters.0[0] = 5;
        counters.0[200 * ALPHABET + 3] = 50_000;
        let histogram = counters.finish();
        let mut gaps = [0; ALPHABET];
        gaps[4] = 7;
        let set = fit(&histogram, Some(&gaps)).set;
        assert_eq!(set.first_keys[0], 1);
        assert_eq!(set.tables[0][4], 4096);
        assert!(cost_with(&histogram, Some(&gaps), &set).is_some());
    }
}
