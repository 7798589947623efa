//! Factors whose product lies within the bounds of as many elements as possible. Rows and columns
//! are solved in turn, each by weighted least squares.
//! It chooses no rank and rounds no factor.

use std::ops::Range;

use deltaloom_kernels::matrix::{self, Strided};
use deltaloom_kernels::product::ProductRule;

use super::algebra::{factorise, packed, solve_lower, solve_upper};
use super::{Matrix, Real};
use crate::error::Result;
use crate::progress::{Progress, check_cancelled};

/// Elements of a block of rows.
const BLOCK_ELEMS: usize = 1 << 16;
/// Columns whose pairs of factors are in memory at a time while rows are solved.
const PAIRED_COLS: usize = 1 << 10;

/// What a pass minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norm {
    /// The squares of the distances to the centres.
    Squares,
    /// Almost the largest distance in half widths: sixth powers, as weighted least squares with
    /// shortened steps.
    Sixth,
}

/// How a pass weighs elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    pub(super) rule: ProductRule,
    pub(super) norm: Norm,
    /// Added to every half width, as squares: what the factors cannot resolve anyway.
    pub(super) floor: f64,
}

/// A block of consecutive rows of the sample and its weights.
struct Block {
    centres: Vec<f64>,
    halves: Vec<f64>,
    products: Vec<f64>,
}

impl Block {
    fn new() -> Self {
        Self { centres: Vec::new(), halves: Vec::new(), products: Vec::new() }
    }

    /// Reads the bounds of rows.
    fn load(&mut self, matrix: &Matrix<'_>, rule: ProductRule, rows: Range<usize>) {
        let elems = rows.len() * matrix.cols;
        self.centres.resize(elems, 0.0);
        self.halves.resize(elems, 0.0);
        let outs = self.centres.chunks_exact_mut(matrix.cols).zip(self.halves.chunks_exact_mut(matrix.cols));
        for (row, (centres, halves)) in rows.zip(outs) {
            matrix.intervals(rule, row, centres, halves);
        }
    }

    /// Weights of the elements, and targets times weights.
    fn weigh(
        &mut self,
        pass: Pass,
        left: &[f64],
        real: &Real,
        weights: &mut Vec<f64>,
        weighted: &mut Vec<f64>,
    ) {
        let elems = self.centres.len();
        weights.resize(elems, 0.0);
        weighted.resize(elems, 0.0);
        let floor = pass.floor * pass.floor;
        let outs = weights.iter_mut().zip(weighted.iter_mut());
        let bounds = self.centres.iter().zip(&self.halves);
        if pass.norm == Norm::Squares {
            for ((weight, weighted), (centre, half)) in outs.zip(bounds) {
                *weight = 1.0 / (half * half + floor);
                *weighted = *weight * centre;
            }
            return;
        }
        self.products.clear();
        self.products.resize(elems, 0.0);
        let left = Strided::rows(left, real.rank);
        matrix::add_product(left, &real.right, real.rank, real.right.len() / real.rank, &mut self.products);
        for (((weight, weighted), (centre, half)), product) in outs.zip(bounds).zip(&self.products) {
            let inverse = 1.0 / (half * half + floor);
            let off = centre - product;
            // Fourth power of the distance in half widths, limited at both ends.
            let squared = (off * off * inverse).clamp(1e-6, 9.0);
            *weight = squared * squared * inverse;
            *weighted = *weight * (product + off * 0.2);
        }
    }
}

/// Buffers of weighted least squares.
struct Solver {
    rank: usize,
    weights: Vec<f64>,
    weighted: Vec<f64>,
    pairs: Vec<f64>,
    grams: Vec<f64>,
    sides: Vec<f64>,
}

impl Solver {
    fn new(rank: usize) -> Self {
        let empty = Vec::new;
        Self { rank, weights: empty(), weighted: empty(), pairs: empty(), grams: empty(), sides: empty() }
    }

    /// Solves the sums of [`add`] into rows of `rank`.
    fn solve(&mut self, out: &mut [f64]) {
        let (rank, packed_len) = (self.rank, packed(self.rank, 0));
        let systems = self.grams.chunks_exact_mut(packed_len).zip(self.sides.chunks_exact_mut(rank));
        for (out, (gram, side)) in out.chunks_exact_mut(rank).zip(systems) {
            // A row without weight keeps its old values.
            if (0..rank).any(|k| gram[packed(k, k)] > 0.0) {
                factorise(gram, rank);
                solve_lower(gram, side);
                solve_upper(gram, side);
                out.copy_from_slice(side);
            }
        }
    }

    /// Adds the sums of all rows, whose weights are known, with the pairs of some columns at a
    /// time.
    fn add_rows(&mut self, right: &[f64], cols: usize) {
        let packed_len = packed(self.rank, 0);
        matrix::add_product(Strided::rows(&self.weighted, cols), right, cols, self.rank, &mut self.sides);
        for (at, right) in right.chunks(PAIRED_COLS * self.rank).enumerate() {
            fill_pairs(right, self.rank, &mut self.pairs);
            let weights = Strided { values: &self.weights[at * PAIRED_COLS..], ..Strided::rows(&[], cols) };
            matrix::add_product(weights, &self.pairs, right.len() / self.rank, packed_len, &mut self.grams);
        }
    }

    fn clear(&mut self, systems: usize) {
        self.grams.clear();
        self.grams.resize(systems * packed(self.rank, 0), 0.0);
        self.sides.clear();
        self.sides.resize(systems * self.rank, 0.0);
    }
}

/// Products of the pairs of `factors` in rows of `rank`.
fn fill_pairs(factors: &[f64], rank: usize, pairs: &mut Vec<f64>) {
    pairs.clear();
    for row in factors.chunks_exact(rank) {
        for i in 0..rank {
            pairs.extend(row[..=i].iter().map(|other| row[i] * other));
        }
    }
}

/// The right factor with its columns as rows.
fn transposed(right: &[f64], rank: usize) -> Vec<f64> {
    let cols = right.len() / rank;
    (0..right.len()).map(|at| right[at % rank * cols + at / rank]).collect()
}

/// Number of rows that are solved together.
pub(super) fn rows_per_block(cols: usize) -> usize {
    (BLOCK_ELEMS / cols).max(4).next_multiple_of(4)
}

/// Solves the rows and then, if requested, all columns.
pub(super) fn pass(
    matrix: &Matrix<'_>,
    pass: Pass,
    real: &mut Real,
    with_columns: bool,
    progress: &dyn Progress,
) -> Result<()> {
    let (rank, cols) = (real.rank, matrix.cols);
    let packed_len = packed(rank, 0);
    let mut block = Block::new();
    let (mut by_row, mut by_col) = (Solver::new(rank), Solver::new(rank));
    let right = transposed(&real.right, rank);
    if with_columns {
        by_col.clear(cols);
    }
    let per_block = rows_per_block(cols);
    let mut left = std::mem::take(&mut real.left);
    for (at, left) in left.chunks_mut(per_block * rank).enumerate() {
        check_cancelled(progress)?;
        let rows = at * per_block..at * per_block + left.len() / rank;
        block.load(matrix, pass.rule, rows.clone());
        block.weigh(pass, left, real, &mut by_row.weights, &mut by_row.weighted);
        by_row.clear(rows.len());
        by_row.add_rows(&right, cols);
        by_row.solve(left);
        if with_columns {
            block.weigh(pass, left, real, &mut by_col.weights, &mut by_col.weighted);
            fill_pairs(left, rank, &mut by_col.pairs);
            let weights = Strided::rows(&by_col.weights, cols).transposed();
            let weighted = Strided::rows(&by_col.weighted, cols).transposed();
            matrix::add_product(weights, &by_col.pairs, rows.len(), packed_len, &mut by_col.grams);
            matrix::add_product(weighted, left, rows.len(), rank, &mut by_col.sides);
        }
    }
    real.left = left;
    if with_columns {
        let mut right = right;
        by_col.solve(&mut right);
        real.right = transposed(&right, cols);
    }
    Ok(())
}
