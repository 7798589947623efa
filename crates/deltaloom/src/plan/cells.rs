//! Decides which cells of a history share a table. A cell is a key in a class. Hundreds of cells
//! occur, and there are about thirty tables.
//! It joins similar cells wherever they are, or neighbours if that is cheaper. It does not count
//! symbols.

use std::cmp::Ordering;

use super::tables::{Fit, Histogram};
use crate::entropy::log2::ONE_BIT;
use crate::entropy::rows::{KeyRun, join_neighbours};
use crate::entropy::table::CellRun;

/// Bits that a run of cells takes in the index after compression.
const BITS_PER_CELL_RUN: u64 = 10;
/// Odd symbols from 1 to this one go down, even ones go up.
const SIGNED_SYMBOLS: u8 = 15;

/// Tables for the cells of a histogram.
pub(super) fn fit_cells(histogram: &Histogram) -> Fit {
    let in_order = histogram.runs();
    let mut by_likeness: Vec<(Likeness, KeyRun)> =
        in_order.iter().map(|run| (Likeness::of(run), run.clone())).collect();
    by_likeness.sort_by(|a, b| a.0.cmp(&b.0));
    let by_likeness = by_likeness.into_iter().map(|(_, run)| run).collect();
    let [a, b] = [by_likeness, in_order].map(|runs| {
        let runs = join_neighbours(runs);
        let cost = runs.iter().map(|run| run.cost).sum::<u64>() + cells_bits(&runs) * ONE_BIT;
        Fit { gaps: None, runs, serves_cells: true, cost }
    });
    if b.cost < a.cost { b } else { a }
}

/// Orders cells so that similar ones are near each other: first by the direction of their changes,
/// then by how rare changes are.
struct Likeness {
    side: u8,
    unchanged: u64,
    total: u64,
}

impl Likeness {
    fn of(run: &KeyRun) -> Self {
        let (mut unchanged, mut down, mut up, mut total) = (0, 0, 0, 0);
        for (symbol, count) in run.row.counts() {
            let count = u64::from(*count);
            total += count;
            match symbol {
                0 => unchanged += count,
                1..=SIGNED_SYMBOLS if symbol % 2 == 1 => down += count,
                1..=SIGNED_SYMBOLS => up += count,
                _ => {}
            }
        }
        let side = if up > 2 * down + 2 {
            2
        } else if down > 2 * up + 2 {
            0
        } else {
            1
        };
        Self { side, unchanged, total }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let share = |a: &Self, b: &Self| u128::from(a.unchanged) * u128::from(b.total);
        self.side.cmp(&other.side).then(share(self, other).cmp(&share(other, self)))
    }
}

/// Bits that the index takes to say which cells each table serves.
pub(super) fn cells_bits(runs: &[KeyRun]) -> u64 {
    cell_runs(runs).len() as u64 * BITS_PER_CELL_RUN
}

/// The runs of cells that these tables serve, rising. Cells between them never occur.
pub(super) fn cell_runs(runs: &[KeyRun]) -> Vec<CellRun> {
    let mut cells: Vec<(u16, u8)> = (0..=u8::MAX)
        .zip(runs)
        .flat_map(|(table, run)| run.cells.iter().map(move |cell| (*cell, table)))
        .collect();
    cells.sort_unstable();
    cells.dedup_by_key(|(_, table)| *table);
    let mut cells: Vec<CellRun> = cells.into_iter().map(|(first, table)| CellRun { first, table }).collect();
    if let Some(first) = cells.first_mut() {
        first.first = 0;
    }
    cells
}
