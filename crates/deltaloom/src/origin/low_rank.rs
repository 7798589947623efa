//! Decides on a sample of rows whether a tensor is its reference plus products of small factors,
//! each added to a matrix that the tensor is or consists of, and has the factors found.
//! [`crate::lowrank`] finds them.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use deltaloom_kernels::Number;
use rayon::prelude::*;

use crate::bases::TensorSource;
use crate::entropy::bytes::push_varint;
use crate::error::Result;
use crate::limits::to_usize;
use crate::lowrank::{self, Rows, Shape};
use crate::predict::{Factors, LowRanks, MAX_MATRICES, OwnPayload, Predictor, ReadyFactors};
use crate::progress::Progress;
use crate::tensor::{ChunkGrid, TensorInfo};

use super::subject::Subject;
use super::{FoundPayload, Origin, reference_name};

/// A product changes nearly all weights that it moves by a ULP or more. If fewer than one in this
/// many differ, rounding has lost most moves, and the rest does not determine factors. Training
/// steps at a small rate are like that, and fitting them in vain took 15 times as long as packing
/// them.
const LEAST_CHANGED_OF: usize = 16;
/// Rows of a matrix of several that tell whether it has changed.
const ROWS_OF_MATRIX: u64 = 4;

/// A tensor as matrices of the same size that follow each other in it.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Of a matrix.
    shape: Shape,
    rows: u64,
    cols: u64,
    count: u64,
    /// Whether the only matrix is the chunk grid.
    is_grid: bool,
}

impl Layout {
    fn new(info: &TensorInfo, rows: u64, cols: u64) -> Option<Self> {
        let shape = Shape::new(info.number(), rows, cols)?;
        let count = info.elems() / rows / cols;
        (count <= MAX_MATRICES).then_some(Self { shape, rows, cols, count, is_grid: false })
    }

    /// Numbers of both factors for each rank.
    fn numbers(&self) -> u64 {
        self.rows + self.cols
    }
}

/// The matrices that products may have been added to. `grid` is the tensor's chunk grid.
fn layouts(info: &TensorInfo, grid: &ChunkGrid) -> Vec<Layout> {
    let of_grid = grid.is_matrix.then(|| Layout::new(info, grid.rows, grid.cols)).flatten();
    let mut layouts: Vec<Layout> =
        of_grid.map(|layout| Layout { is_grid: true, ..layout }).into_iter().collect();
    if let [first, second, .., last] = info.shape[..]
        && info.elems() > 0
    {
        let before_last = info.shape[info.shape.len() - 2];
        let inputs = info.elems() / first;
        // A matrix for each expert; a convolution, whose outputs are rows; and a convolution with a
        // pair of factors for each place of a square kernel, as in loralib.
        let of_kernel =
            (info.shape.len() == 4 && before_last == last).then_some((first * last, second * last));
        let sizes = [Some((before_last, last)), Some((first, inputs)), of_kernel];
        let others = sizes.into_iter().flatten().filter_map(|(rows, cols)| Layout::new(info, rows, cols));
        layouts.extend(others);
    }
    layouts
}

/// Whether enough elements of a sample differ from those of a reference.
fn score(number: Number, target: &[u8], reference: &[u8]) -> bool {
    let size = number.bytes();
    let changed = target.chunks_exact(size).zip(reference.chunks_exact(size)).filter(|(a, b)| a != b).count();
    changed * LEAST_CHANGED_OF >= target.len() / size
}

/// A tensor, its reference, and the matrices that both are.
#[derive(Clone, Copy)]
struct Pair<'a> {
    subject: Subject<'a>,
    reference: &'a TensorSource,
    layout: Layout,
}

impl Pair<'_> {
    /// Rows of one of the matrices.
    fn read(&self, matrix: u64, rows: Range<usize>) -> Result<Rows> {
        let row_bytes = self.layout.cols * self.subject.info().number().bytes() as u64;
        let offset = (matrix * self.layout.rows + rows.start as u64) * row_bytes;
        let len_bytes = to_usize(rows.len() as u64 * row_bytes);
        Ok((self.subject.read(offset, len_bytes)?, self.reference.read(offset, len_bytes)?))
    }

    /// About the rank of a product that one of the matrices seems to have; 0 if it is one of
    /// several and has hardly changed.
    fn expected_rank(&self, matrix: u64) -> Result<Option<usize>> {
        let Layout { shape, rows, count, .. } = self.layout;
        if count > 1 {
            let number = self.subject.info().number();
            let row = |i: u64| to_usize(i * rows / ROWS_OF_MATRIX);
            let (mut target, mut reference) = (Vec::new(), Vec::new());
            for i in 0..ROWS_OF_MATRIX {
                let read = self.read(matrix, row(i)..row(i) + 1)?;
                target.extend(read.0);
                reference.extend(read.1);
            }
            if !score(number, &target, &reference) {
                return Ok(Some(0));
            }
        }
        lowrank::expected_rank(shape, &|rows| self.read(matrix, rows))
    }

    /// The same of all matrices, in order.
    fn expected_ranks(&self) -> Result<Vec<Option<usize>>> {
        (0..self.layout.count).into_par_iter().map(|matrix| self.expected_rank(matrix)).collect()
    }

    /// The factors of the matrices for which they pay, if there are any.
    fn fit(
        &self,
        expected: &[Option<usize>],
        progress: &dyn Progress,
    ) -> Result<Option<Vec<Option<Factors>>>> {
        let of_one = |(matrix, expected): (usize, &Option<usize>)| {
            let Some(expected @ 1..) = expected else { return Ok(None) };
            let read = |rows: Range<usize>| self.read(matrix as u64, rows);
            lowrank::fit(self.layout.shape, *expected, &read, progress)
        };
        let found: Vec<Option<Factors>> =
            expected.par_iter().enumerate().map(of_one).collect::<Result<_>>()?;
        Ok(found.iter().any(Option::is_some).then_some(found))
    }
}

/// The pairs for which factors may be found. Both samples are the usual ones.
fn pairs<'a>(
    subject: Subject<'a>,
    sample: &[u8],
    reference: &'a TensorSource,
    reference_sample: &[u8],
    grid: &ChunkGrid,
) -> impl Iterator<Item = Pair<'a>> + use<'a> {
    let info = subject.info();
    let has_changed = score(info.number(), sample, reference_sample);
    // Of many matrices, few may have changed, which each of them tells.
    let layouts = layouts(info, grid).into_iter().filter(move |layout| has_changed || layout.count > 1);
    layouts.map(move |layout| Pair { subject, reference, layout })
}

/// Whether a tensor looks like `reference` plus products. Both samples are the usual ones.
pub(super) fn looks(
    subject: Subject<'_>,
    sample: &[u8],
    reference: &TensorSource,
    reference_sample: &[u8],
    grid: &ChunkGrid,
) -> Result<bool> {
    for pair in pairs(subject, sample, reference, reference_sample, grid) {
        if pair.expected_ranks()?.iter().any(|rank| rank.is_some_and(|rank| rank > 0)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The prediction of a tensor from `reference` and products, if that costs less. Both samples are
/// the usual ones, and `grid` is the tensor's chunk grid.
pub(super) fn fit(
    subject: Subject<'_>,
    sample: &[u8],
    reference: &TensorSource,
    reference_sample: &[u8],
    grid: &ChunkGrid,
    progress: &dyn Progress,
) -> Result<Option<Origin>> {
    let mut tried = Vec::new();
    for pair in pairs(subject, sample, reference, reference_sample, grid) {
        let expected = pair.expected_ranks()?;
        let numbers: u64 = expected.iter().flatten().map(|rank| *rank as u64 * pair.layout.numbers()).sum();
        let matrices = expected.iter().flatten().count() as u64;
        tried.push((matrices * pair.layout.rows * pair.layout.cols, numbers, pair, expected));
    }
    // First what leaves the fewest elements open, then what does so with the fewest numbers.
    tried.sort_by_key(|(elems, numbers, ..)| (Reverse(*elems), *numbers));
    for (_, _, pair, expected) in tried {
        if let Some(factors) = pair.fit(&expected, progress)? {
            return origin(&pair, factors).map(Some);
        }
    }
    Ok(None)
}

/// A prediction from factors. At least one matrix has some.
fn origin(pair: &Pair<'_>, factors: Vec<Option<Factors>>) -> Result<Origin> {
    let (info, layout) = (pair.subject.info(), pair.layout);
    let reference = reference_name(info, pair.reference);
    let (predictor, payload) = match &factors[..] {
        [Some(factors)] if layout.is_grid => {
            (Predictor::LowRank { reference, rank: factors.rank }, factors.to_bytes())
        }
        _ => {
            let mut payload = Vec::new();
            for factors in factors.iter().flatten() {
                let bytes = factors.to_bytes();
                push_varint(&mut payload, bytes.len() as u64);
                payload.extend(bytes);
            }
            let ranks = factors.iter().map(|factors| factors.as_ref().map_or(0, |factors| factors.rank));
            let products = LowRanks { reference, width: layout.cols, ranks: ranks.collect() };
            (Predictor::LowRanks(Box::new(products)), payload)
        }
    };
    let size = (to_usize(layout.rows), to_usize(layout.cols));
    let ready = Arc::new(OwnPayload::Factors(ReadyFactors::new(info.number(), size, factors)?));
    let references = vec![pair.reference.clone()];
    let mut origin = Origin::coded(predictor, references).with_reference_digests()?;
    origin.own_payload = Some(FoundPayload { bytes: payload.into(), ready });
    Ok(origin)
}
