//! Chooses the codec and parameters of a group of chunks from costed histograms, by pure functions
//! of the bytes.
//! It encodes nothing; [`crate::codec`] does.

mod cells;
mod codes;
mod grid;
mod history;
mod magnitudes;
mod points;
mod preset;
mod samples;
mod tables;

use deltaloom_kernels::fields::{FieldSplit, MAX_MODELLED_BITS, common_zero_bits, count_tops};
use deltaloom_kernels::rans::ALPHABET;
use deltaloom_kernels::{Number, NumberKind, keys, tokens, ulp};
use rayon::prelude::*;

use crate::codec::{self, ChunkShape, Coding, GroupScales, HistoryKind, Material, Nibbles, UlpSymbols};
use crate::entropy::block::Lanes;
use crate::entropy::log2::{self, ONE_BIT};
use crate::entropy::rice;
use crate::entropy::rows::Row;
use crate::entropy::table::{self, Counts};
use crate::limits::{narrow, to_usize};
use crate::residual::scales::{self, Pair, Scales};
use crate::scratch::Scratch;

pub(crate) use history::GroupHistory;
pub use preset::Preset;
pub(crate) use samples::{chunk_cost, cost_with_companion, cost_without_companion, is_clearly_near};
pub use samples::{residual_cost, stand_alone_cost};
pub(crate) use tables::SetPool;
use tables::{Histogram, TableRequest};

/// Sparse is tried below one change in this many elements.
const SPARSE_BELOW: u64 = 16;
/// Smaller groups end before mixed contexts have learned anything.
const MIXED_FROM_ELEMS: u64 = 2048;
/// Elements of a sample of planes, and number of samples per group.
const SAMPLE_ELEMS: usize = 2048;
const SAMPLES: usize = 4;

/// Chunks of a tensor that are planned together.
pub(crate) struct GroupInput<'a> {
    pub(crate) number: Number,
    pub(crate) cols: usize,
    pub(crate) is_matrix: bool,
    pub(crate) chunks: Vec<Pair<'a>>,
    /// Whether there is a prediction. Otherwise it is all zero.
    pub(crate) is_predicted: bool,
    /// Whether its elements may be coded as words of 4-bit codes.
    pub(crate) may_have_nibbles: bool,
    /// Earlier states of its elements.
    pub(crate) history: Option<&'a GroupHistory>,
}

impl GroupInput<'_> {
    fn elems(&self) -> u64 {
        self.chunks.iter().map(|(target, _)| target.len() / self.number.bytes()).sum::<usize>() as u64
    }

    fn shape(&self, (target, _): Pair<'_>) -> ChunkShape {
        let rows = target.len() / self.number.bytes() / self.cols;
        ChunkShape { number: self.number, rows, cols: self.cols }
    }

    /// Chunks that are not equal to their prediction.
    fn changed_chunks(&self) -> Vec<(usize, Pair<'_>)> {
        self.chunks
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, (target, prediction))| target != prediction)
            .collect()
    }
}

/// How a group will be coded, before table sets are assigned.
#[derive(Debug)]
pub(crate) struct Draft {
    coding: Coding,
    tables: DraftTables,
    /// Per chunk, or empty.
    material: Vec<Option<Material>>,
    /// Per chunk. Empty if rows have none.
    row_scales: Vec<Vec<i32>>,
    /// Elements that differ from the prediction.
    pub(crate) changed: u64,
    /// Estimated bits of the chunks, in 1/65536.
    cost: u64,
}

/// The tables that a group needs.
#[derive(Debug)]
enum DraftTables {
    None,
    /// Tables that it may share with other groups.
    Shared(Box<TableRequest>),
    /// Counts for tables of its own.
    Own(Vec<Counts>),
}

/// A group that is ready to encode: its coding with the number of its table set.
#[derive(Debug)]
pub(crate) struct GroupPlan {
    pub(crate) coding: Coding,
    pub(crate) tables: Option<usize>,
    material: Vec<Option<Material>>,
    row_scales: Vec<Vec<i32>>,
    bytes_per_elem_q16: u64,
}

impl GroupPlan {
    pub(crate) fn row_scales(&self, chunk: usize) -> &[i32] {
        self.row_scales.get(chunk).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn material(&self, chunk: usize) -> Option<&Material> {
        self.material.get(chunk)?.as_ref()
    }

    pub(crate) fn estimated_bytes(&self, elems: usize) -> u64 {
        self.bytes_per_elem_q16.saturating_mul(elems as u64) >> log2::FRACTION_BITS
    }
}

impl Draft {
    fn new(coding: Coding, tables: DraftTables, changed: u64, cost: u64) -> Self {
        Self { coding, tables, material: Vec::new(), row_scales: Vec::new(), changed, cost }
    }

    fn sharing(coding: Coding, request: TableRequest, changed: u64, cost: u64) -> Self {
        Self::new(coding, DraftTables::Shared(Box::new(request)), changed, cost)
    }

    fn plain(changed: u64, cost: u64) -> Self {
        Self::new(Coding::Plain, DraftTables::None, changed, cost)
    }

    /// Its scales, if it has residuals of all elements.
    fn scales(&self) -> Option<Scales> {
        let Coding::Ulp(scales) = &self.coding else { return None };
        let cols = scales.cols.clone().unwrap_or_default();
        Some(Scales { offset: scales.offset, rows: self.row_scales.clone(), cols })
    }

    /// Its lowest possible cost, if other groups pay for its tables.
    fn cost_without_tables(&self) -> u64 {
        self.cost - self.request().map_or(0, |request| request.own.table_bits() * ONE_BIT)
    }

    /// Bits of states that hold nothing, of codings that differ in the number of their blocks and
    /// symbols. Estimated for chunks with equal numbers of changes, in 1/65536.
    fn cost_of_states(&self, group: &GroupInput<'_>) -> u64 {
        let chunks = (group.changed_chunks().len() as u64).max(1);
        let bytes = self.cost / ONE_BIT / 8 / chunks;
        let idle = match self.coding {
            Coding::Sparse(_) => {
                let symbols = to_usize(self.changed / chunks);
                // Half of the bytes for each block; about a fourth of them are raw bits. Lanes and
                // numbers of words are written twice, and the changes are counted.
                2 * Lanes::choose(symbols, bytes / 2).idle_bytes(bytes / 4, bytes / 4) + 4
            }
            Coding::Ulp(_) | Coding::History { .. } => {
                let raw = |material: &Option<Material>| match material {
                    Some(Material::Residuals(symbols)) => symbols.raw_bits,
                    _ => 0,
                };
                let raw_bytes = self.material.iter().map(raw).sum::<u64>() / 8 / chunks;
                let elems = to_usize(group.elems() / (group.chunks.len() as u64).max(1));
                let lanes = Lanes::choose_for_raw(elems, bytes, to_usize(raw_bytes));
                lanes.idle_bytes(bytes.saturating_sub(raw_bytes), raw_bytes)
            }
            _ => 0,
        };
        idle * chunks * 8 * ONE_BIT
    }

    fn rounding_cost(&self) -> u64 {
        self.request().map_or(0, |request| request.own.rounding_cost())
    }

    fn request(&self) -> Option<&TableRequest> {
        match &self.tables {
            DraftTables::Shared(request) => Some(request),
            DraftTables::None | DraftTables::Own(_) => None,
        }
    }
}

/// The plan of a group whose payloads are patches.
pub(crate) fn draft_of_patches(patches: Vec<Option<Scratch>>) -> Draft {
    let bytes: u64 = patches.iter().flatten().map(|patch| patch.len() as u64).sum();
    let material = patches.into_iter().map(|patch| patch.map(Material::Payload)).collect();
    Draft { material, ..Draft::plain(0, bytes * 8 * ONE_BIT) }
}

/// Plans a group on its own.
pub(crate) fn draft(group: &GroupInput<'_>, preset: Preset) -> Draft {
    let symbols = if group.is_predicted { symbolise(group) } else { Vec::new() };
    let changed = changed_elems(group, &symbols);
    if changed == 0 {
        return Draft::plain(0, 0);
    }
    let mut best = Draft::plain(changed, plain_cost(group));
    let mut offer = |candidate: Option<Draft>| {
        if let Some(candidate) = candidate.filter(|candidate| candidate.cost < best.cost) {
            best = candidate;
        }
    };
    if group.is_predicted {
        let try_scales = preset.scales_from().is_some_and(|from| changed * 1024 >= from * group.elems());
        let ulp = best_ulp_draft(group, &symbols, group.is_matrix && try_scales, changed);
        let ulp_scales = ulp.scales();
        offer(Some(ulp));
        if let Some(history) = group.history {
            let absolute = history::absolute(group.number);
            let scales = ulp_scales.unwrap_or_else(|| absolute.clone());
            for (kind, scales) in [(HistoryKind::Changes, absolute), (HistoryKind::Residuals, scales)] {
                offer(Some(history::draft(group, history, &symbols, kind, scales, changed)));
            }
        }
        if let Coding::Ulp(_) | Coding::History { .. } = best.coding {
            best.material = symbols.into_iter().map(|chunk| chunk.map(Material::Residuals)).collect();
        }
    } else {
        offer(float_draft(group, true, changed));
        offer(codes::draft(group, changed));
        // Estimates are not exact to the byte, and a real grid is clearly better.
        if let Some(grid) = grid::draft(group, changed)
            && grid.cost + grid.cost / 32 < best.cost
        {
            best = grid;
        }
    }
    let scaled = magnitudes::draft(group, changed, best.cost);
    if let Some(scaled) = scaled.filter(|scaled| scaled.cost < best.cost) {
        best = scaled;
    }
    if changed * SPARSE_BELOW < group.elems() {
        let sparse = sparse_draft(group, scales::uniform(group.number, &group.chunks), changed);
        // Decoding a sparse chunk takes time only for its changes, which is worth a few bytes.
        let is_cheap = sparse.cost < best.cost + best.cost / 64;
        // Where little changes, states and rounded frequencies may be most of a block. What they
        // cost is known roughly.
        let with_overhead = |draft: &Draft| draft.cost + draft.cost_of_states(group) + draft.rounding_cost();
        if is_cheap || with_overhead(&sparse) < with_overhead(&best) / 16 * 15 {
            best = sparse;
        }
    }
    if group.may_have_nibbles && codec::nibbles::applies(group.number) {
        let nibbles = nibble_draft(group, changed);
        if nibbles.cost + nibbles.cost / 32 < best.cost {
            best = nibbles;
        }
    }
    if preset == Preset::Max && group.is_predicted && group.elems() >= MIXED_FROM_ELEMS {
        let mixed = mixed_draft(group, changed);
        if mixed.cost < best.cost_without_tables() {
            best = mixed;
        }
    }
    best
}

/// Assigns table sets to the groups of a window, in order.
pub(crate) fn finish(drafts: &mut Vec<Draft>, pool: &mut SetPool, elems: &[u64]) -> Vec<GroupPlan> {
    let requests: Vec<&TableRequest> = drafts.iter().filter_map(Draft::request).collect();
    let mut assigned = pool.assign(&requests).into_iter();
    let plan = |(draft, elems): (Draft, &u64)| {
        let tables = match draft.tables {
            DraftTables::None => None,
            DraftTables::Shared(_) => Some(assigned.next().expect("the pool assigns a set to every request")),
            DraftTables::Own(counts) => {
                let tables = counts.iter().map(table::normalise).collect();
                let first_keys = (1..=u8::MAX).take(counts.len().saturating_sub(1)).collect();
                Some(pool.push(table::TableSet::of_keys(first_keys, tables)))
            }
        };
        let bytes_per_elem_q16 = draft.cost / 8 / (*elems).max(1);
        let Draft { coding, material, row_scales, .. } = draft;
        GroupPlan { coding, tables, material, row_scales, bytes_per_elem_q16 }
    };
    drafts.drain(..).zip(elems).map(plan).collect()
}

/// Evenly spaced pieces of a run of elements: at most [`SAMPLES`] pieces of [`SAMPLE_ELEMS`]
/// elements.
fn sample_ranges(elems: usize) -> Vec<std::ops::Range<usize>> {
    if elems <= SAMPLES * SAMPLE_ELEMS {
        return std::iter::once(0..elems).collect();
    }
    let stride = (elems - SAMPLE_ELEMS) / (SAMPLES - 1);
    (0..SAMPLES).map(|i| i * stride..i * stride + SAMPLE_ELEMS).collect()
}

/// Estimated bits of planes, or of raw chunks if those are no larger, from samples of the changed
/// chunks.
fn plain_cost(group: &GroupInput<'_>) -> u64 {
    let size = group.number.bytes();
    let changed = group.changed_chunks();
    let stride = changed.len().div_ceil(SAMPLES);
    let sample = |(_, (target, prediction)): &(usize, Pair<'_>)| {
        let ranges = sample_ranges(target.len() / size).into_iter().step_by(SAMPLES);
        let cost = |r: std::ops::Range<usize>| {
            let bytes = r.start * size..r.end * size;
            let sampled =
                codec::planes_sample_cost(group.number, &target[bytes.clone()], &prediction[bytes.clone()]);
            (sampled, bytes.len() as u64)
        };
        ranges.map(cost).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    };
    let samples: Vec<(u64, u64)> = changed.iter().step_by(stride.max(1)).map(sample).collect();
    let (packed, sampled) = samples.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let bytes: u64 = changed.iter().map(|(_, (target, _))| target.len() as u64).sum();
    bytes * 8 * ONE_BIT / sampled.max(1) * packed
}

/// Elements that differ from the prediction. If there are symbols: those that are not 0.
fn changed_elems(group: &GroupInput<'_>, symbols: &[Option<UlpSymbols>]) -> u64 {
    let of_chunk = |(i, (target, prediction)): (usize, &Pair<'_>)| match symbols.get(i) {
        Some(Some(chunk)) => chunk.symbols.chunks(255).map(count_nonzero).sum(),
        Some(None) => 0,
        None => ulp::count_changed(group.number, target, prediction),
    };
    group.chunks.par_iter().enumerate().map(of_chunk).sum()
}

/// How many of at most 255 symbols are not 0. Counted in bytes, which is vectorised.
fn count_nonzero(symbols: &[u8]) -> u64 {
    symbols.iter().fold(0u8, |count, symbol| count + u8::from(*symbol != 0)).into()
}

/// Residuals of the changed chunks of a group, by chunk; `None` for the others.
fn symbolise(group: &GroupInput<'_>) -> Vec<Option<UlpSymbols>> {
    let of = |(target, prediction): &Pair<'_>| {
        (target != prediction).then(|| UlpSymbols::of(group.number, target, prediction))
    };
    group.chunks.par_iter().map(of).collect()
}

fn row_scales_of(scales: &Scales, chunk: usize) -> &[i32] {
    scales.rows.get(chunk).map_or(&[], Vec::as_slice)
}

fn group_scales(scales: &Scales) -> GroupScales {
    GroupScales {
        offset: scales.offset,
        has_rows: !scales.rows.is_empty(),
        cols: (!scales.cols.is_empty()).then(|| scales.cols.clone()),
    }
}

fn scales_cost(scales: &Scales) -> u64 {
    let mut bytes = Vec::new();
    for run in scales.rows.iter().chain(Some(&scales.cols)).filter(|run| !run.is_empty()) {
        rice::push_scales(&mut bytes, run);
    }
    bytes.len() as u64 * 8 * ONE_BIT
}

/// The cheaper of two kinds of scales: one for all elements, or by row and column if
/// `try_rows_and_cols` allows them.
fn best_ulp_draft(
    group: &GroupInput<'_>,
    symbols: &[Option<UlpSymbols>],
    try_rows_and_cols: bool,
    changed: u64,
) -> Draft {
    let uniform = scales::uniform(group.number, &group.chunks);
    if !try_rows_and_cols {
        return ulp_draft(group, symbols, uniform, changed);
    }
    let by_place = scales::rows_and_cols(group.number, group.cols, &group.chunks);
    let stride = group.chunks.len().div_ceil(SAMPLES);
    if stride == 1 {
        let drafts = [by_place, uniform].map(|scales| ulp_draft(group, symbols, scales, changed));
        let [by_place, uniform] = drafts;
        return if by_place.cost < uniform.cost { by_place } else { uniform };
    }
    // If their costs differ at all, they differ much, so a part of the chunks is enough to compare
    // them.
    let cost = |scales: &Scales| {
        let own = tables::fit(&count_ulps(group, symbols, scales, stride), None);
        own.cost * stride as u64 + scales_cost(scales)
    };
    let scales = if cost(&by_place) < cost(&uniform) { by_place } else { uniform };
    ulp_draft(group, symbols, scales, changed)
}

/// Counts of symbols by key, of every `stride`th chunk.
fn count_ulps(
    group: &GroupInput<'_>,
    symbols: &[Option<UlpSymbols>],
    scales: &Scales,
    stride: usize,
) -> Histogram {
    let coding_scales = group_scales(scales);
    let chunks = symbols.iter().enumerate().filter_map(|(i, chunk)| Some((i, chunk.as_ref()?)));
    let counted: Vec<(usize, &UlpSymbols)> = chunks.step_by(stride).collect();
    let add = |counters: &mut [u32], (i, chunk): &(usize, &UlpSymbols)| {
        let rule = coding_scales.key_rule(&group.shape(group.chunks[*i]), row_scales_of(scales, *i));
        keys::count_pairs(&rule, group.chunks[*i].1, &chunk.symbols, counters);
    };
    // In parallel; the sum does not depend on the order.
    let per_part = counted.len().div_ceil(rayon::current_num_threads()).max(1);
    let count_part = |part: &[_]| tables::count(|counters| part.iter().for_each(|item| add(counters, item)));
    let parts = counted.par_chunks(per_part).map(count_part);
    parts.reduce_with(|a, b| a.joined(&b)).unwrap_or_default()
}

fn ulp_draft(group: &GroupInput<'_>, symbols: &[Option<UlpSymbols>], scales: Scales, changed: u64) -> Draft {
    counted_ulp_draft(count_ulps(group, symbols, &scales, 1), symbols, scales, changed)
}

/// The same, with the counts of the symbols by their keys.
fn counted_ulp_draft(
    histogram: Histogram,
    symbols: &[Option<UlpSymbols>],
    scales: Scales,
    changed: u64,
) -> Draft {
    let own = tables::fit(&histogram, None);
    let raw_bits: u64 = symbols.iter().flatten().map(|chunk| chunk.raw_bits).sum();
    let cost = own.cost + raw_bits * ONE_BIT + scales_cost(&scales);
    let request = TableRequest { histogram, gaps: None, own };
    let coding = Coding::Ulp(group_scales(&scales));
    Draft { row_scales: scales.rows, ..Draft::sharing(coding, request, changed, cost) }
}

/// Words of 4-bit codes, code by code: all of them, or those that changed.
fn nibble_draft(group: &GroupInput<'_>, changed: u64) -> Draft {
    let split = |(target, prediction): &Pair<'_>| match target == prediction {
        true => Default::default(),
        false => (codec::nibbles::split(target), codec::nibbles::split(prediction)),
    };
    let codes: Vec<(Scratch, Scratch)> = group.chunks.par_iter().map(split).collect();
    let codes = GroupInput {
        number: codec::nibbles::number(),
        cols: 1,
        is_matrix: false,
        chunks: codes.iter().map(|(target, prediction)| (&**target, &**prediction)).collect(),
        ..*group
    };
    let symbols = symbolise(&codes);
    let changed_codes = changed_elems(&codes, &symbols);
    let scales = || Scales { offset: 0, rows: Vec::new(), cols: Vec::new() };
    let all = ulp_draft(&codes, &symbols, scales(), changed);
    let some = sparse_draft(&codes, scales(), changed_codes);
    let (draft, kind) = if some.cost < all.cost { (some, Nibbles::Changed) } else { (all, Nibbles::All) };
    Draft { coding: Coding::Nibbles(kind), changed, ..draft }
}

fn sparse_draft(group: &GroupInput<'_>, scales: Scales, changed: u64) -> Draft {
    let number = group.number;
    let coding_scales = group_scales(&scales);
    let mut gaps = [0; ALPHABET];
    let mut raw_bits = 0;
    let histogram = tables::count(|counters| {
        for (_, chunk) in group.changed_chunks() {
            let positions = ulp::changed_positions(number, chunk.0, chunk.1);
            for gap in codec::gaps(&positions) {
                let token = tokens::token(u64::from(gap));
                gaps[usize::from(token.symbol)] += 1;
                raw_bits += u64::from(token.raw_bits);
            }
            let changed = codec::changed_symbols(number, chunk.0, chunk.1, &positions);
            raw_bits += changed.raw_bits;
            let keys = coding_scales.key_rule(&group.shape(chunk), &[]).keys_at(chunk.1, &positions);
            keys.iter().zip(&*changed.symbols).for_each(|(key, symbol)| {
                counters[usize::from(*key) * ALPHABET + usize::from(*symbol)] += 1;
            });
        }
    });
    let gaps = Row::new(&gaps);
    let own = tables::fit(&histogram, Some(&gaps));
    let cost = own.cost + raw_bits * ONE_BIT;
    let request = TableRequest { histogram, gaps: Some(gaps), own };
    Draft::sharing(Coding::Sparse(coding_scales), request, changed, cost)
}

/// Chunks coded in mixed contexts. Their size is known only after encoding them.
fn mixed_draft(group: &GroupInput<'_>, changed: u64) -> Draft {
    let encode = |pair: &Pair<'_>| {
        (pair.0 != pair.1).then(|| Scratch::from(codec::encode_mixed(&group.shape(*pair), pair.0, pair.1)))
    };
    let payloads: Vec<Option<Scratch>> = group.chunks.par_iter().map(encode).collect();
    let bytes: u64 = payloads.iter().flatten().map(|payload| payload.len() as u64).sum();
    let material = payloads.into_iter().map(|payload| payload.map(Material::Payload)).collect();
    let draft = Draft::new(Coding::Mixed, DraftTables::None, changed, bytes * 8 * ONE_BIT);
    Draft { material, ..draft }
}

/// The best split of stand-alone elements, if the number type has one.
fn float_draft(group: &GroupInput<'_>, has_signs: bool, changed: u64) -> Option<Draft> {
    let number = group.number;
    let max_bits: u8 = match number.kind() {
        NumberKind::Float => number.mantissa_bits().min(MAX_MODELLED_BITS) as u8,
        _ => 0,
    };
    let finest = FieldSplit::new(number, max_bits.into(), 0)?;
    let chunks = group.changed_chunks();
    let count_chunk = |(_, (target, _)): &(usize, Pair<'_>)| {
        let mut tops = vec![0; 1 << finest.top_bits()];
        count_tops(finest, target, &mut tops);
        (tops, common_zero_bits(number, target))
    };
    let add = |a: (Vec<u32>, u32), b: (Vec<u32>, u32)| {
        (a.0.iter().zip(&b.0).map(|(x, y)| x + y).collect(), a.1.min(b.1))
    };
    let (mut tops, zero_bits) = chunks.par_iter().map(count_chunk).reduce_with(add)?;
    let mut best: Option<Draft> = None;
    for modelled_bits in (0..=max_bits).rev() {
        let (lowest, counts) = window(&tops);
        let split = FieldSplit::new(number, modelled_bits.into(), lowest)?;
        let elems: u64 = tops.iter().map(|c| u64::from(*c)).sum();
        let field_bits =
            elems * u64::from(split.field_bits(zero_bits.min(split.max_zero_bits())) - u32::from(!has_signs));
        let escape_bits = u64::from(counts[ALPHABET - 1]) * u64::from(split.top_bits());
        let cost = table::own_table_cost(&counts) + (field_bits + escape_bits) * ONE_BIT;
        if best.as_ref().is_none_or(|best| cost < best.cost) {
            let coding = Coding::Float { modelled_bits, lowest };
            best = Some(Draft::new(coding, DraftTables::Own(vec![counts]), changed, cost));
        }
        tops = tops.chunks(2).map(|pair| pair.iter().sum()).collect();
    }
    best
}

/// The 255 adjacent values that occur most often, as symbols, and all others as the escape.
fn window(tops: &[u32]) -> (u64, Counts) {
    let direct = (ALPHABET - 1).min(tops.len());
    let mut inside: u64 = tops[..direct].iter().map(|c| u64::from(*c)).sum();
    let total: u64 = tops.iter().map(|c| u64::from(*c)).sum();
    let (mut best, mut lowest) = (inside, 0);
    for start in 1..=tops.len() - direct {
        inside = inside - u64::from(tops[start - 1]) + u64::from(tops[start + direct - 1]);
        if inside > best {
            (best, lowest) = (inside, start);
        }
    }
    let mut counts = [0; ALPHABET];
    counts[..direct].copy_from_slice(&tops[lowest..lowest + direct]);
    counts[ALPHABET - 1] += narrow::<u32>(total - best, "fewer elements than 2^32 in a group");
    (lowest as u64, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_covers_what_occurs_most() {
        let mut tops = vec![0u32; 2048];
        tops[3] = 1;
        tops[900..1100].fill(10);
        let (lowest, counts) = window(&tops);
        assert_eq!(counts.iter().sum::<u32>(), 2001);
        assert_eq!(counts[255], 1);
        assert!((845..=900).contains(&lowest), "{lowest}");
        assert_eq!(window(&[5; 256]).1[255], 5);
    }

    #[test]
    fn a_few_changes_among_many_elements_are_sparse() {
        // Exponents say where changes are, so that residuals of all elements have less entropy.
        let prediction: Vec<u8> = (0..1 << 17).flat_map(|i: u32| [0x40, 0x38 + (i % 8) as u8]).collect();
        let mut target = prediction.clone();
        (0..66).for_each(|k| target[16 * ((k * k * 7919 + k * 31) & 0x3fff)] ^= 1);
        let group = GroupInput {
            number: Number::float(8, 7),
            cols: 512,
            is_matrix: true,
            chunks: vec![(&target[..], &prediction[..])],
            is_predicted: true,
            may_have_nibbles: false,
            history: None,
        };
        let draft = draft(&group, Preset::Default);
        assert!(matches!(draft.coding, Coding::Sparse(_)), "{:?}", draft.coding);
        let ulps = ulp_draft(&group, &symbolise(&group), scales::uniform(group.number, &group.chunks), 66);
        assert!(ulps.cost < draft.cost, "{} {}", ulps.cost, draft.cost);
    }

    #[test]
    fn samples_are_inside_and_bounded() {
        for elems in [0, 1, SAMPLES * SAMPLE_ELEMS, SAMPLES * SAMPLE_ELEMS + 1, 1 << 20] {
            let ranges = sample_ranges(elems);
            assert!(
                ranges.iter().all(|r| r.end <= elems)
                    && ranges.iter().map(|r| r.len()).sum::<usize>() <= SAMPLES * SAMPLE_ELEMS
            );
        }
    }
}
