//! Matrices of small integers around 0, as lossy quantisers write them: how much the columns differ
//! in size decides which of them share a table; docs/adr/0074.
//! It finds the classes of columns. The codes are residuals of 0, whose keys are the classes.

use deltaloom_kernels::{Number, NumberKind};

use super::tables::Histogram;
use super::{
    Draft, GroupInput, count_ulps, counted_ulp_draft, sample_ranges, scales_cost, symbolise, tables,
};
use crate::codec::Material;
use crate::entropy::log2::{ONE_BIT, log2};
use crate::limits::narrow;
use crate::residual::scales::Scales;

/// Classes for each octave of the mean size of a column, of which this many are joined. More
/// classes fit better, and name themselves in more bits for each column.
const CLASSES_PER_OCTAVE: u64 = 6;
const JOINED_CLASSES: [i32; 5] = [1, 2, 3, 6, i32::MAX];
/// Columns of which a mean is below 2^-24 have the same class, 0.
const LEAST_OCTAVE: u64 = 24;
/// Codes whose mean size in a sample is larger are not small: words of flags or of smaller codes.
const MOST_MEAN: u64 = 24;

/// Whether numbers may be small integers: those of 8 bits that are no floats.
pub(super) fn may_be_codes(number: Number) -> bool {
    number.kind() != NumberKind::Float && number.bits() == 8
}

/// The cheapest classes of columns. `None` if the elements are not small integers.
pub(super) fn draft(group: &GroupInput<'_>, changed: u64) -> Option<Draft> {
    if !may_be_codes(group.number) || !group.is_matrix || !has_small_codes(group) {
        return None;
    }
    let symbols = symbolise(group);
    let classes = classes_of(&column_sizes(group));
    let histogram = count_ulps(group, &symbols, &scales_of(&classes), 1);
    let joined = JOINED_CLASSES.map(|joined| {
        let histogram = histogram.with_keys(|key| key_of(i32::from(key) / joined));
        let classes: Vec<i32> = classes.iter().map(|class| class / joined).collect();
        with_fewer_classes(&histogram, classes)
    });
    let (_, histogram, classes) = joined.into_iter().min_by_key(|(cost, ..)| *cost)?;
    let draft = counted_ulp_draft(histogram, &symbols, scales_of(&classes), changed);
    let material = symbols.into_iter().map(|chunk| chunk.map(Material::Residuals)).collect();
    Some(Draft { material, ..draft })
}

/// The size of an 8-bit code.
fn size_of(code: u8) -> u64 {
    code.cast_signed().unsigned_abs().into()
}

fn has_small_codes(group: &GroupInput<'_>) -> bool {
    let chunks = group.changed_chunks();
    let middle = chunks.get(chunks.len() / 2);
    middle.is_some_and(|(_, (target, _))| {
        let ranges = sample_ranges(target.len());
        let sampled = ranges.iter().flat_map(|range| &target[range.clone()]);
        let (sum, count) = sampled.fold((0, 0), |(sum, count), code| (sum + size_of(*code), count + 1));
        sum <= MOST_MEAN * count
    })
}

/// Per column the sum of the sizes of its codes, and how many codes it has.
fn column_sizes(group: &GroupInput<'_>) -> Vec<(u64, u64)> {
    let mut sizes = vec![(0, 0); group.cols];
    for (_, (target, _)) in group.changed_chunks() {
        for row in target.chunks(group.cols) {
            for (size, code) in sizes.iter_mut().zip(row) {
                *size = (size.0 + size_of(*code), size.1 + 1);
            }
        }
    }
    sizes
}

/// The class of each column: the logarithm of its mean size. Zeros go below all others.
fn classes_of(sizes: &[(u64, u64)]) -> Vec<i32> {
    let class = |(sum, count): &(u64, u64)| {
        let octaves = (log2(*sum) + LEAST_OCTAVE * ONE_BIT).saturating_sub(log2(*count));
        let class = (octaves * CLASSES_PER_OCTAVE + ONE_BIT / 2) / ONE_BIT;
        (*sum > 0).then(|| narrow(class, "a mean is at most 2^7"))
    };
    let classes: Vec<Option<i32>> = sizes.iter().map(class).collect();
    let least: i32 = classes.iter().flatten().min().copied().unwrap_or(0);
    classes.into_iter().map(|class| class.unwrap_or((least - 1).max(0))).collect()
}

fn key_of(class: i32) -> u16 {
    narrow(class, "classes are keys")
}

/// Joins classes that share a table, so that fewer bits name them. Returns the estimated cost, raw
/// bits aside, and the counts by class.
fn with_fewer_classes(histogram: &Histogram, mut classes: Vec<i32>) -> (u64, Histogram, Vec<i32>) {
    let fit = tables::fit(histogram, None);
    let mut rows = Vec::new();
    for run in fit.runs {
        let served = |class: &i32| run.cells.contains(&key_of(*class));
        let mut of_run: Vec<i32> = classes.iter().copied().filter(served).collect();
        of_run.sort_unstable();
        let Some(median) = of_run.get(of_run.len() / 2) else { continue };
        classes.iter_mut().filter(|class| served(class)).for_each(|class| *class = *median);
        rows.push((key_of(*median), run.row));
    }
    (fit.cost + scales_cost(&scales_of(&classes)), Histogram::of_rows(rows), classes)
}

/// Scales that give each column its class as key. Without any if there is one class.
fn scales_of(classes: &[i32]) -> Scales {
    let first = classes.first().copied().unwrap_or(0);
    if classes.iter().all(|class| *class == first) {
        return Scales { offset: -first, rows: Vec::new(), cols: Vec::new() };
    }
    let cols = classes.iter().map(|class| -class).collect();
    Scales { offset: 0, rows: Vec::new(), cols }
}
