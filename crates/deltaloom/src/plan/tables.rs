//! Decides by cost which keys share a table and which groups share a table set.
//! It counts in fixed point, so the result is the same everywhere; docs/adr/0005.

use std::cell::RefCell;
use std::cmp::Ordering;

use deltaloom_kernels::keys::KEYS;
use deltaloom_kernels::rans::ALPHABET;

use super::cells::{cell_runs, cells_bits, fit_cells};
use crate::entropy::log2;
use crate::entropy::rows::{KeyRun, Row, join_neighbours};
use crate::entropy::table::{self, TableSet};

/// Number of the newest table sets that a group may reuse.
const RECENT_SETS: usize = 4;

/// Counts the pairs of key and symbol that `add` adds to the counters `key * 256 + symbol`.
pub(crate) fn count(add: impl FnOnce(&mut [u32])) -> Histogram {
    thread_local! {
        // All zero between uses. A new array of this size would cost more than most counting.
        static COUNTERS: RefCell<Vec<u32>> = RefCell::new(vec![0; KEYS * ALPHABET]);
    }
    COUNTERS.with_borrow_mut(|counters| {
        add(counters);
        let mut rows = Vec::new();
        for (key, counts) in (0..).zip(counters.chunks_mut(ALPHABET)) {
            // Most rows are empty, which is seen fastest without a branch for each counter.
            if counts.iter().fold(0, |any, count| any | count) != 0 {
                rows.push((key, Row::new(counts)));
                counts.fill(0);
            }
        }
        Histogram { rows }
    })
}

/// Counts of the symbols of every key that occurs, keys in rising order. In histories the keys are
/// cells: 256 * class + key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Histogram {
    rows: Vec<(u16, Row)>,
}

impl Histogram {
    /// From rows in rising order of their keys.
    pub(super) fn of_rows(rows: Vec<(u16, Row)>) -> Self {
        Self { rows }
    }

    /// One run for each key.
    pub(super) fn runs(&self) -> Vec<KeyRun> {
        self.rows.iter().map(|(key, row)| KeyRun::new(*key, row.clone())).collect()
    }

    /// The same counts with other keys. `to` must not fall.
    pub(super) fn with_keys(&self, to: impl Fn(u16) -> u16) -> Self {
        let mut rows: Vec<(u16, Row)> = Vec::new();
        for (key, row) in &self.rows {
            match rows.last_mut() {
                Some((last, joined)) if *last == to(*key) => *joined = joined.joined(row),
                _ => rows.push((to(*key), row.clone())),
            }
        }
        Self { rows }
    }

    /// Calls `take` with every key of the two and its rows.
    fn merge<'a>(&'a self, other: &'a Self, mut take: impl FnMut(u16, &'a Row, Option<&'a Row>)) {
        let (mut a, mut b) = (self.rows.iter().peekable(), other.rows.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let order = x.0.cmp(&y.0);
            match order {
                Ordering::Less => take(x.0, &x.1, None),
                Ordering::Greater => take(y.0, &y.1, None),
                Ordering::Equal => take(x.0, &x.1, Some(&y.1)),
            }
            a.next_if(|_| order.is_le());
            b.next_if(|_| order.is_ge());
        }
        a.chain(b).for_each(|(key, row)| take(*key, row, None));
    }

    pub(crate) fn joined(&self, other: &Self) -> Self {
        let mut rows = Vec::with_capacity(self.rows.len().max(other.rows.len()));
        self.merge(other, |key, row, and| {
            rows.push((key, and.map_or_else(|| row.clone(), |and| row.joined(and))));
        });
        Self { rows }
    }

    /// As [`Row::joining_loses`], key by key.
    fn joining_loses(&self, other: &Self) -> u64 {
        let mut loss = 0;
        self.merge(other, |_, row, and| loss += and.map_or(0, |and| row.joining_loses(and)));
        loss
    }
}

/// Tables that fit a histogram, and the cost of coding it with them, tables included, in 1/65536
/// bits.
#[derive(Debug, Clone)]
pub(crate) struct Fit {
    pub(super) gaps: Option<Row>,
    pub(super) runs: Vec<KeyRun>,
    /// Whether it is for a history.
    pub(super) serves_cells: bool,
    pub(crate) cost: u64,
}

/// Joins adjacent keys while that saves bits. `gaps` gets a table in front of the others.
pub(crate) fn fit(histogram: &Histogram, gaps: Option<&Row>) -> Fit {
    let runs = join_neighbours(histogram.runs());
    let cost = runs.iter().map(|run| run.cost).chain(gaps.map(Row::cost)).sum();
    Fit { gaps: gaps.cloned(), runs, serves_cells: false, cost }
}

impl Fit {
    pub(crate) fn set(&self) -> TableSet {
        if self.serves_cells {
            let tables = self.runs.iter().map(|run| table::normalise(&run.row.to_counts())).collect();
            return TableSet { first_keys: Vec::new(), cells: cell_runs(&self.runs), tables };
        }
        let mut set = TableSet::of_keys(Vec::new(), Vec::new());
        if let Some(gaps) = &self.gaps {
            set.tables.push(table::normalise(&gaps.to_counts()));
            set.first_keys.push(1);
        }
        for (i, run) in self.runs.iter().enumerate() {
            set.tables.push(table::normalise(&run.row.to_counts()));
            if i > 0 {
                // In a set with a gap table, the key before is at least 1, since 0 is stored as 1
                // there.
                let first_key = run.first_key();
                set.first_keys.push(if self.gaps.is_some() { first_key.max(2) } else { first_key });
            }
        }
        set
    }

    /// What the frequencies of the tables, whole parts of 4096, cost beyond the entropy, in 1/65536
    /// bits. It matters where nearly all symbols are the same.
    pub(crate) fn rounding_cost(&self) -> u64 {
        let of = |row: &Row| {
            let coded = table::coded_cost(row.counts().iter().copied(), &table::normalise(&row.to_counts()));
            coded.unwrap_or(0).saturating_sub(row.entropy())
        };
        self.gaps.iter().chain(self.runs.iter().map(|run| &run.row)).map(of).sum()
    }

    /// Bits of the tables themselves.
    pub(crate) fn table_bits(&self) -> u64 {
        let rows = self.gaps.iter().chain(self.runs.iter().map(|run| &run.row));
        let of_tables: u64 = rows.map(|row| table::table_bits(row.counts().len())).sum();
        of_tables + if self.serves_cells { cells_bits(&self.runs) } else { 0 }
    }
}

/// Cost of a histogram with an existing set. `None` if the set lacks a symbol.
fn cost_with(histogram: &Histogram, gaps: Option<&Row>, set: &TableSet) -> Option<u64> {
    let map: Box<[u8]> = match &set.cells[..] {
        [] => Box::new(set.key_map(gaps.is_some().into())),
        _ => set.cell_map().as_flattened().into(),
    };
    let gap_cost =
        gaps.map_or(Some(0), |gaps| table::coded_cost(gaps.counts().iter().copied(), set.tables.first()?))?;
    let row_cost = |(key, row): &(u16, Row)| {
        table::coded_cost(row.counts().iter().copied(), set.tables.get(usize::from(map[usize::from(*key)]))?)
    };
    histogram.rows.iter().map(row_cost).try_fold(gap_cost, |sum, cost| Some(sum + cost?))
}

/// The statistics of a group that needs tables.
#[derive(Debug, Clone)]
pub(crate) struct TableRequest {
    pub(crate) histogram: Histogram,
    pub(crate) gaps: Option<Row>,
    /// The tables that fit this group alone.
    pub(crate) own: Fit,
}

/// All table sets of a container, and those that groups may reuse.
#[derive(Debug, Default)]
pub(crate) struct SetPool {
    pub(crate) sets: Vec<TableSet>,
    recent_dense: Vec<usize>,
    recent_sparse: Vec<usize>,
    recent_histories: Vec<usize>,
}

impl SetPool {
    /// Adds a set that no other group will use.
    pub(crate) fn push(&mut self, set: TableSet) -> usize {
        self.sets.push(set);
        self.sets.len() - 1
    }

    /// Returns a set for every request: an existing one, one shared with other requests, or its
    /// own. The result depends only on the requests and their order.
    pub(crate) fn assign(&mut self, requests: &[&TableRequest]) -> Vec<usize> {
        enum Choice {
            Set(usize),
            Cluster(usize),
        }
        let mut clusters: Vec<Cluster<'_>> = Vec::new();
        let choices: Vec<Choice> = requests
            .iter()
            .map(|request| {
                if let Some(set) = self.reusable(request) {
                    return Choice::Set(set);
                }
                let best = (0..clusters.len())
                    .map(|i| (clusters[i].joining_saves(request), i))
                    .max_by_key(|(saving, i)| (*saving, std::cmp::Reverse(*i)))
                    .filter(|(saving, _)| *saving > 0);
                if let Some((_, i)) = best {
                    clusters[i].join(request);
                    return Choice::Cluster(i);
                }
                clusters.push(Cluster::One(request));
                Choice::Cluster(clusters.len() - 1)
            })
            .collect();
        let first_of_cluster = self.sets.len();
        for cluster in clusters {
            let (is_sparse, serves_cells) = (cluster.gaps().is_some(), cluster.serves_cells());
            let set = self.push(cluster.into_set());
            let recent = match (is_sparse, serves_cells) {
                (true, _) => &mut self.recent_sparse,
                (false, true) => &mut self.recent_histories,
                (false, false) => &mut self.recent_dense,
            };
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
        let recent = match (&request.gaps, request.own.serves_cells) {
            (Some(_), _) => &self.recent_sparse,
            (None, true) => &self.recent_histories,
            (None, false) => &self.recent_dense,
        };
        let cost = |set: &usize| cost_with(&request.histogram, request.gaps.as_ref(), &self.sets[*set]);
        let best = recent.iter().filter_map(|set| Some((cost(set)?, *set))).min()?;
        (best.0 <= request.own.cost).then_some(best.1)
    }
}

/// Requests that will share a set.
enum Cluster<'a> {
    One(&'a TableRequest),
    Many { histogram: Histogram, gaps: Option<Row>, serves_cells: bool },
}

impl Cluster<'_> {
    fn histogram(&self) -> &Histogram {
        match self {
            Self::One(request) => &request.histogram,
            Self::Many { histogram, .. } => histogram,
        }
    }

    fn gaps(&self) -> Option<&Row> {
        match self {
            Self::One(request) => request.gaps.as_ref(),
            Self::Many { gaps, .. } => gaps.as_ref(),
        }
    }

    fn serves_cells(&self) -> bool {
        match self {
            Self::One(request) => request.own.serves_cells,
            Self::Many { serves_cells, .. } => *serves_cells,
        }
    }

    /// Bits saved by coding the request with this cluster: the request's own tables, minus the cost
    /// of common statistics.
    fn joining_saves(&self, request: &TableRequest) -> i64 {
        if self.serves_cells() != request.own.serves_cells {
            return i64::MIN;
        }
        let of_gaps = match (self.gaps(), &request.gaps) {
            (Some(a), Some(b)) => a.joining_loses(b),
            (None, None) => 0,
            _ => return i64::MIN,
        };
        let loss = self.histogram().joining_loses(&request.histogram) + of_gaps;
        (request.own.table_bits() * log2::ONE_BIT).cast_signed() - loss.cast_signed()
    }

    fn join(&mut self, request: &TableRequest) {
        let gaps = self.gaps().zip(request.gaps.as_ref()).map(|(a, b)| a.joined(b));
        let (histogram, serves_cells) = (self.histogram().joined(&request.histogram), self.serves_cells());
        *self = Self::Many { histogram, gaps, serves_cells };
    }

    fn into_set(self) -> TableSet {
        match self {
            Self::One(request) => request.own.set(),
            Self::Many { histogram, serves_cells: true, .. } => fit_cells(&histogram).set(),
            Self::Many { histogram, gaps, .. } => fit(&histogram, gaps.as_ref()).set(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::rows::WRITTEN_TABLES;

    fn histogram(rows: &[(u8, &[u32])]) -> Histogram {
        count(|counters| {
            for (key, counts) in rows {
                counters[usize::from(*key) * ALPHABET..][..counts.len()].copy_from_slice(counts);
            }
        })
    }

    fn request(rows: &[(u8, &[u32])]) -> TableRequest {
        let histogram = histogram(rows);
        let own = fit(&histogram, None);
        TableRequest { histogram, gaps: None, own }
    }

    #[test]
    fn what_joining_loses_is_what_the_joined_cost_more() {
        let (a, b) = (histogram(&[(3, &[9, 0, 4]), (7, &[100])]), histogram(&[(3, &[1, 50]), (8, &[2, 2])]));
        let joined = a.joined(&b);
        assert_eq!(joined, histogram(&[(3, &[10, 50, 4]), (7, &[100]), (8, &[2, 2])]));
        let entropy_of =
            |histogram: &Histogram| -> u64 { histogram.rows.iter().map(|(_, row)| row.entropy()).sum() };
        assert_eq!(a.joining_loses(&b), entropy_of(&joined) - entropy_of(&a) - entropy_of(&b));
        assert_eq!(histogram(&[]), Histogram::default());
    }

    #[test]
    fn like_keys_share_a_table_and_unlike_ones_do_not() {
        let like = request(&[(10, &[900, 100]), (11, &[1800, 200]), (200, &[1, 5000])]);
        assert_eq!((like.own.set().tables.len(), &like.own.set().first_keys[..]), (2, &[200][..]));
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
        assert_eq!(request(&borrowed).own.set().tables.len(), WRITTEN_TABLES);
    }

    #[test]
    fn gap_tables_come_first() {
        let histogram = histogram(&[(0, &[5]), (200, &[0, 0, 0, 50_000])]);
        let gaps = Row::new(&[0, 0, 0, 0, 7]);
        let set = fit(&histogram, Some(&gaps)).set();
        assert_eq!(set.first_keys[0], 1);
        assert_eq!(set.tables[0][4], 4096);
        assert!(cost_with(&histogram, Some(&gaps), &set).is_some());
    }
}
