//! Costs what histories of elements save as contexts; docs/format.md section 15.
//! It does not compute classes: the owner of the ancestors does.

use deltaloom_kernels::Number;
use deltaloom_kernels::keys::KEYS;
use deltaloom_kernels::rans::ALPHABET;
use rayon::prelude::*;

use super::cells::fit_cells;
use super::tables::{Histogram, TableRequest};
use super::{Draft, GroupInput, group_scales, row_scales_of, scales_cost};
use crate::codec::{Coding, HistoryKind, UlpSymbols};
use crate::entropy::log2::ONE_BIT;
use crate::entropy::rows::Row;
use crate::limits::narrow;
use crate::residual::scales::{self, Scales};
use crate::scratch::Scratch;

/// Classes of a group's elements by their history, and the cost of naming the ancestors.
pub(crate) struct GroupHistory {
    /// By chunk.
    pub(crate) changes: Vec<Scratch>,
    /// By chunk.
    pub(crate) residuals: Vec<Scratch>,
    /// This group's share of the bits by which the index names the ancestors.
    pub(crate) index_bits: u64,
}

impl GroupHistory {
    pub(crate) fn classes(&self, kind: HistoryKind) -> &[Scratch] {
        match kind {
            HistoryKind::Changes => &self.changes,
            HistoryKind::Residuals => &self.residuals,
        }
    }
}

/// A group coded with one kind of history, with fixed scales. For changes, all tensors have the
/// same scales: optimisers move all weights by about the same amount, and many tensors can then
/// share tables.
pub(super) fn draft(
    group: &GroupInput<'_>,
    history: &GroupHistory,
    symbols: &[Option<UlpSymbols>],
    kind: HistoryKind,
    scales: Scales,
    changed: u64,
) -> Draft {
    let histogram = count(group, history.classes(kind), symbols, &scales);
    let own = fit_cells(&histogram);
    let raw_bits: u64 = symbols.iter().flatten().map(|chunk| chunk.raw_bits).sum();
    let cost = own.cost + (raw_bits + history.index_bits) * ONE_BIT + scales_cost(&scales);
    let request = TableRequest { histogram, gaps: None, own };
    let coding = Coding::History { scales: group_scales(&scales), kind };
    Draft { row_scales: scales.rows, ..Draft::sharing(coding, request, changed, cost) }
}

/// The scales for changes.
pub(super) fn absolute(number: Number) -> Scales {
    Scales { offset: scales::absolute_offset(number), rows: Vec::new(), cols: Vec::new() }
}

/// Counts of symbols by cell.
fn count(
    group: &GroupInput<'_>,
    classes: &[Scratch],
    symbols: &[Option<UlpSymbols>],
    scales: &Scales,
) -> Histogram {
    let coding_scales = group_scales(scales);
    let chunks: Vec<(usize, &UlpSymbols)> =
        symbols.iter().enumerate().filter_map(|(i, chunk)| Some((i, chunk.as_ref()?))).collect();
    let add = |cells: &mut CellCounts, (i, chunk): &(usize, &UlpSymbols)| {
        let shape = group.shape(group.chunks[*i]);
        let mut keys = Scratch::of_len(chunk.symbols.len());
        coding_scales.key_rule(&shape, row_scales_of(scales, *i)).keys(group.chunks[*i].1, &mut keys);
        cells.add(&keys, &classes[*i], &chunk.symbols);
    };
    let per_part = chunks.len().div_ceil(rayon::current_num_threads()).max(1);
    let count_part = |part: &[(usize, &UlpSymbols)]| {
        let mut cells = CellCounts::default();
        part.iter().for_each(|chunk| add(&mut cells, chunk));
        cells.histogram()
    };
    // In parallel; the sum does not depend on the order.
    chunks.par_chunks(per_part).map(count_part).reduce_with(|a, b| a.joined(&b)).unwrap_or_default()
}

/// Counts of symbols for the few cells that occur.
struct CellCounts {
    /// The number of each cell's counts, from 1 on. 0 if the cell does not occur.
    numbers: Vec<u16>,
    cells: Vec<(u16, [u32; ALPHABET])>,
}

impl Default for CellCounts {
    fn default() -> Self {
        Self { numbers: vec![0; 256 * KEYS], cells: Vec::new() }
    }
}

impl CellCounts {
    fn add(&mut self, keys: &[u8], classes: &[u8], symbols: &[u8]) {
        for ((key, class), symbol) in keys.iter().zip(classes).zip(symbols) {
            let cell = u16::from_be_bytes([*class, *key]);
            let number = &mut self.numbers[usize::from(cell)];
            if *number == 0 {
                self.cells.push((cell, [0; ALPHABET]));
                // The last class is never used.
                *number = narrow(self.cells.len(), "fewer cells than 2^16 occur");
            }
            self.cells[usize::from(*number) - 1].1[usize::from(*symbol)] += 1;
        }
    }

    fn histogram(mut self) -> Histogram {
        self.cells.sort_unstable_by_key(|(cell, _)| *cell);
        Histogram::of_rows(self.cells.iter().map(|(cell, counts)| (*cell, Row::new(counts))).collect())
    }
}
