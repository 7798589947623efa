//! Finds out whether the elements of a group lie on a grid: few distinct ones, or blocks that a
//! quantiser wrote.
//! A small sample decides whether a closer look pays. Then every element is proven.

use deltaloom_kernels::Number;
use deltaloom_kernels::bits::BitWriter;
use deltaloom_kernels::fields::{common_zero_bits, count_tops};
use rayon::prelude::*;

use super::points::{Block, Fitter, Kind};
use super::{Draft, DraftTables, GroupInput, SAMPLES, sample_ranges, window};
use crate::codec::grid::{ESCAPE, has_blocks, row_elems, split_of_numbers};
use crate::codec::{Coding, GridSymbols, Material, ValueGrid};
use crate::entropy::log2::{self, ONE_BIT};
use crate::entropy::table::{self, Counts};
use crate::limits::to_usize;
use crate::residual::scales::Pair;
use crate::scratch::Scratch;

const F32: Number = Number::float(8, 23);
/// In smaller groups, looking for blocks does not pay.
const LEAST_ELEMS: u64 = 1024;
/// Blocks of a sample, and how many of them must be on a grid.
const SAMPLE_BLOCKS: usize = 4;
const SAMPLE_FITS: usize = 3;
/// Elements that must be on a grid before longer blocks are tried.
const PIECE_ELEMS: usize = 16;
/// Approximate cost of a step.
const BITS_OF_NUMBER: u64 = 16;
/// Block sizes that quantisers use, in addition to whole rows of up to `LONGEST_ROW` elements.
const BLOCK_ELEMS: [usize; 5] = [256, 128, 64, 32, 16];
const LONGEST_ROW: usize = 1 << 16;

/// The cheapest grid, if there is one.
pub(super) fn draft(group: &GroupInput<'_>, changed: u64) -> Option<Draft> {
    let drafts = [palette_draft(group, changed), blocks_draft(group, changed)];
    drafts.into_iter().flatten().min_by_key(|draft| draft.cost)
}

/// Counts distinct elements, perhaps a few too few: enough to see that there are many.
struct Seen {
    places: [u64; 64],
    count: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self { places: [0; 64], count: 0 }
    }
}

impl Seen {
    fn add(&mut self, bits: u64) -> usize {
        // Multiplicative hashing to 12 bits (Knuth, TAOCP 6.4).
        let place = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        let word = &mut self.places[to_usize(place / 64) % 64];
        self.count += usize::from(*word >> (place % 64) & 1 == 0);
        *word |= 1 << (place % 64);
        self.count
    }
}

/// The distinct elements, in rising order. `None` if they are too many for a palette.
fn add_elements(palette: &mut Vec<u64>, number: Number, bytes: &[u8]) -> Option<()> {
    let mut last = None;
    for bits in bytes.chunks_exact(number.bytes()).map(load) {
        if last.replace(bits) != Some(bits)
            && let Err(place) = palette.binary_search(&bits)
        {
            if palette.len() == usize::from(ESCAPE) {
                return None;
            }
            palette.insert(place, bits);
        }
    }
    Some(())
}

fn load(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |x, byte| x << 8 | u64::from(*byte))
}

fn palette_draft(group: &GroupInput<'_>, changed: u64) -> Option<Draft> {
    let number = group.number;
    if number.bits() < 16 {
        return None;
    }
    let chunks = group.changed_chunks();
    let mut seen = Seen::default();
    for (_, (target, _)) in chunks.iter().step_by(chunks.len().div_ceil(SAMPLES).max(1)) {
        for elems in sample_ranges(target.len() / number.bytes()) {
            let bytes = &target[elems.start * number.bytes()..elems.end * number.bytes()];
            let mut elements = bytes.chunks_exact(number.bytes()).map(load);
            if elements.any(|bits| seen.add(bits) > usize::from(ESCAPE)) {
                return None;
            }
        }
    }
    let of_chunk = |(_, (target, _)): &(usize, Pair<'_>)| {
        let mut palette = Vec::new();
        add_elements(&mut palette, number, target)?;
        Some(palette)
    };
    let join = |mut a: Vec<u64>, b: Vec<u64>| {
        a.extend(b);
        a.sort_unstable();
        a.dedup();
        Some(a)
    };
    let palette = chunks.par_iter().map(of_chunk).try_reduce(Vec::new, join)?;
    // A single element is a constant, which needs no palette.
    if !(2..=usize::from(ESCAPE)).contains(&palette.len()) {
        return None;
    }
    let symbols_of = |(target, prediction): &Pair<'_>| {
        let mut symbols = Scratch::of_len(target.len() / number.bytes());
        for (symbol, bytes) in symbols.iter_mut().zip(target.chunks_exact(number.bytes())) {
            #[expect(clippy::cast_possible_truncation, reason = "a palette has at most 255 elements")]
            let to_symbol = |place: usize| place as u8;
            *symbol = palette.binary_search(&load(bytes)).map_or(ESCAPE, to_symbol);
        }
        (target != prediction).then(|| GridSymbols { symbols, ..GridSymbols::default() })
    };
    let points: Vec<Option<GridSymbols>> = group.chunks.par_iter().map(symbols_of).collect();
    let counts = count_symbols(&points);
    let listed_bits = palette.len() as u64 * u64::from(number.bits());
    let cost = table::own_table_cost(&counts) + listed_bits * ONE_BIT;
    Some(grid_draft(ValueGrid::Palette(palette), points, vec![counts], changed, cost))
}

fn grid_draft(
    grid: ValueGrid,
    points: Vec<Option<GridSymbols>>,
    counts: Vec<Counts>,
    changed: u64,
    cost: u64,
) -> Draft {
    let material = points.into_iter().map(|points| points.map(Material::Points)).collect();
    Draft { material, ..Draft::new(Coding::Grid(grid), DraftTables::Own(counts), changed, cost) }
}

fn count_symbols(points: &[Option<GridSymbols>]) -> Counts {
    let mut counts: Counts = [0; 256];
    let symbols = points.iter().flatten().flat_map(|points| points.symbols.iter());
    symbols.for_each(|symbol| counts[usize::from(*symbol)] += 1);
    counts
}

/// How the blocks of a group are made, according to a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    kind: Kind,
    block_elems: usize,
    /// The most frequent one.
    reach: u16,
}

impl GroupInput<'_> {
    fn row_elems(&self, chunk: Pair<'_>) -> usize {
        row_elems(&self.shape(chunk))
    }

    /// Blocks of a chunk, row by row.
    fn blocks<'b>(&self, chunk: Pair<'b>, block_elems: usize) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        let size = self.number.bytes();
        let row_elems = self.row_elems(chunk);
        let block_elems = block_elems.min(row_elems);
        chunk.0.chunks(row_elems * size).flat_map(move |row| row.chunks(block_elems * size))
    }
}

/// Evenly spaced blocks of the changed chunks.
fn sample_blocks<'b>(group: &'b GroupInput<'_>, block_elems: usize) -> Vec<&'b [u8]> {
    let chunks = group.changed_chunks();
    let (count, size) = (chunks.len(), group.number.bytes());
    let block = |i: usize| {
        let (_, chunk) = *chunks.get(i * count / SAMPLE_BLOCKS)?;
        let row_elems = group.row_elems(chunk);
        // A different place in the row and in the chunk each time.
        let row = (chunk.0.len() / (row_elems * size)) * (2 * i + 1) / (2 * SAMPLE_BLOCKS);
        // A whole block, if there is one.
        let in_row = row_elems / block_elems * (2 * i + 1) / (2 * SAMPLE_BLOCKS);
        let start = row * row_elems + in_row * block_elems;
        let end = (start + block_elems).min((row + 1) * row_elems);
        chunk.0.get(start * size..end * size)
    };
    (0..SAMPLE_BLOCKS).filter_map(block).collect()
}

/// Whether at least a quarter of the elements occur a second time.
fn is_repetitive(bytes: &[u8], number: Number) -> bool {
    let most = bytes.len() / number.bytes() * 3 / 4;
    let mut seen = Seen::default();
    bytes.chunks_exact(number.bytes()).all(|bytes| seen.add(load(bytes)) <= most)
}

/// How far the blocks of a sample reach, in steps.
struct Reaches {
    usual: u16,
    farthest: u16,
}

/// The reaches of a sample, if enough of it is on a grid.
fn sample_reaches(group: &GroupInput<'_>, kind: Kind, block_elems: usize) -> Option<Reaches> {
    let mut fitter = Fitter::new(group.number, kind);
    let mut reaches = Vec::new();
    let mut missed = 0;
    for bytes in sample_blocks(group, block_elems) {
        // Trying origins is expensive, and quantisers with origins have few levels.
        let is_worth_it = kind == Kind::Steps || is_repetitive(bytes, group.number);
        let found = if is_worth_it { fitter.fit(bytes, kind.reaches(), 1.0) } else { None };
        match found {
            Some(block) => reaches.push(block.reach),
            None => missed += 1,
        }
        if missed > SAMPLE_BLOCKS - SAMPLE_FITS {
            return None;
        }
    }
    // Constant blocks have no reach.
    let usual = reaches.iter().copied().filter(|reach| *reach > 0).max_by_key(|reach| {
        let same = reaches.iter().filter(|other| *other == reach).count();
        (same, *reach)
    })?;
    Some(Reaches { usual, farthest: reaches.into_iter().max().unwrap_or(usual) })
}

fn find_layout(group: &GroupInput<'_>) -> Option<Layout> {
    let row_elems = group.row_elems(*group.chunks.first()?);
    let whole_rows = Some(row_elems).filter(|elems| *elems <= LONGEST_ROW);
    let shorter = || BLOCK_ELEMS.into_iter().filter(|elems| *elems < row_elems);
    let try_layout = |kind: Kind, block_elems: usize| {
        let reaches = sample_reaches(group, kind, block_elems)?;
        // Approximate cost of an element. BF16 elements of two short blocks may look like one block
        // of many small steps.
        let levels = log2::log2(u64::from(reaches.farthest) * 2 + 1);
        let cost = levels + BITS_OF_NUMBER * ONE_BIT / block_elems as u64;
        Some((cost, Layout { kind, block_elems, reach: reaches.usual }))
    };
    let best = |kind: Kind, lengths: &mut dyn Iterator<Item = usize>| {
        let layouts = lengths.filter_map(|block_elems| try_layout(kind, block_elems));
        layouts.min_by_key(|(cost, _)| *cost)
    };
    let has_steps = sample_reaches(group, Kind::Steps, PIECE_ELEMS).is_some();
    let steps = has_steps.then(|| best(Kind::Steps, &mut whole_rows.into_iter().chain(shorter()))).flatten();
    let layouts = steps.into_iter().chain(best(Kind::Origins, &mut shorter()));
    layouts.min_by_key(|(cost, _)| *cost).map(|(_, layout)| layout)
}

fn blocks_draft(group: &GroupInput<'_>, changed: u64) -> Option<Draft> {
    if !has_blocks(group.number) || group.elems() < LEAST_ELEMS {
        return None;
    }
    let layout = find_layout(group)?;
    let fit = |chunk: &Pair<'_>| (chunk.0 != chunk.1).then(|| fit_chunk(group, *chunk, layout));
    let points: Vec<Option<GridSymbols>> = group.chunks.par_iter().map(fit).collect();
    let counts = count_symbols(&points);
    let escaped_bits = u64::from(counts[usize::from(ESCAPE)]) * u64::from(group.number.bits());
    let mut own_counts = vec![counts];
    let mut cost = table::own_table_cost(&own_counts[0]) + escaped_bits * ONE_BIT;
    let mut add_numbers = |numbers: fn(&GridSymbols) -> &[u8]| {
        let (lowest, counts, bits) = cost_numbers(&points, numbers)?;
        cost += bits;
        own_counts.push(counts);
        Some(lowest)
    };
    let lowest_step = add_numbers(|points| &points.steps)?;
    let lowest_origin = match layout.kind {
        Kind::Steps => None,
        Kind::Origins => Some(add_numbers(|points| &points.origins)?),
    };
    let grid = ValueGrid::Blocks { block_elems: layout.block_elems, lowest_step, lowest_origin };
    Some(grid_draft(grid, points, own_counts, changed, cost))
}

/// Steps or origins: their lowest modelled part, their counts, and what they cost.
fn cost_numbers(
    points: &[Option<GridSymbols>],
    numbers: fn(&GridSymbols) -> &[u8],
) -> Option<(u64, Counts, u64)> {
    let finest = split_of_numbers(0)?;
    let mut tops = vec![0; 1 << finest.top_bits()];
    let mut field_bits = 0;
    for numbers in points.iter().flatten().map(numbers) {
        count_tops(finest, numbers, &mut tops);
        let zero_bits = common_zero_bits(F32, numbers).min(finest.max_zero_bits());
        field_bits += (numbers.len() / F32.bytes()) as u64 * u64::from(finest.field_bits(zero_bits));
    }
    let (lowest, counts) = window(&tops);
    let escaped = u64::from(counts[usize::from(ESCAPE)]) * u64::from(finest.top_bits());
    let cost = table::own_table_cost(&counts) + (field_bits + escaped) * ONE_BIT;
    Some((lowest, counts, cost))
}

/// All blocks of a chunk. Elements without a grid are escapes.
fn fit_chunk(group: &GroupInput<'_>, chunk: Pair<'_>, layout: Layout) -> GridSymbols {
    let number = group.number;
    let mut fitter = Fitter::new(number, layout.kind);
    let mut points =
        GridSymbols { symbols: Scratch::of_len(chunk.0.len() / number.bytes()), ..Default::default() };
    let mut escapes = BitWriter::default();
    let mut places = points.symbols.iter_mut();
    let origin = (layout.kind == Kind::Origins).then_some(0.0);
    let mut block = Block { step: 1.0, origin, reach: 0 };
    for bytes in group.blocks(chunk, layout.block_elems) {
        let found = fitter.fit(bytes, &[layout.reach], block.step);
        match found.or_else(|| fitter.fit(bytes, layout.kind.reaches(), block.step)) {
            Some(found) => block = found,
            // The previous block is used: repeating its numbers costs least.
            None => fitter.symbols_with(&block),
        }
        for ((symbol, bits), place) in fitter.symbols().zip(&mut places) {
            *place = symbol;
            if symbol == ESCAPE {
                escapes.push(bits, number.bits());
            }
        }
        points.steps.extend(block.step.to_le_bytes());
        points.origins.extend(block.origin.map(f32::to_le_bytes).into_iter().flatten());
    }
    points.escapes = escapes.finish();
    points
}
