//! Factors whose product lies within the bounds of as many elements as possible. Rows and columns
//! take steps in turn, each along the gradient of weighted least squares as the products of the
//! other factor shape it, and as far as is best for that row or column.
//! It chooses no rank and rounds no factor.

use deltaloom_kernels::bounds::Bounded;
use deltaloom_kernels::matrix::{Norm, Scalar, Strided};

use super::Real;
use super::algebra::{inverse, weighted_gram};
use super::bounds::{Bounds, Whitening};
use crate::error::Result;
use crate::progress::{Progress, check_cancelled};

/// Elements of a block of rows.
const BLOCK_ELEMS: usize = 1 << 16;
/// Steps that rows take from a start of their own.
const STEPS: [Norm; 7] =
    [Norm::Squares, Norm::Squares, Norm::Sixth, Norm::Sixth, Norm::Sixth, Norm::Sixth, Norm::Sixth];

/// Number of rows that are worked on together.
pub(super) fn rows_per_block(cols: usize) -> usize {
    (BLOCK_ELEMS / cols).max(4).next_multiple_of(4)
}

/// A step of all rows and then one of all columns. `products` is working memory.
pub(super) fn pass<T: Bounded>(
    bounds: &Bounds<T>,
    norm: Norm,
    whitening: &Whitening<T>,
    real: &mut Real<T>,
    products: &mut Vec<T>,
    progress: &dyn Progress,
) -> Result<()> {
    let (rank, cols) = (real.rank, bounds.cols);
    let per_block = rows_per_block(cols);
    products.clear();
    products.resize(bounds.centres.len(), T::default());
    let mut gradient = vec![T::default(); rank * cols];
    let mut rows = Left::new(&real.right, cols, whitening);
    let blocks = products.chunks_mut(per_block * cols).zip(real.left.chunks_mut(per_block * rank));
    for (at, (products, left)) in blocks.enumerate() {
        check_cancelled(progress)?;
        let elems = at * per_block * cols..at * per_block * cols + products.len();
        let bounds = bounds.part(elems);
        T::add_product(Strided::rows(left, rank), &real.right, rank, cols, products);
        rows.step(bounds, norm, left, products);
        rows.weigh(bounds, norm, products);
        let left = Strided::rows(&*left, rank);
        T::add_product(left.transposed(), &rows.weighted, products.len() / cols, cols, &mut gradient);
    }
    let by_rows = weighted_gram(&real.left, rank, &whitening.rows);
    let mut direction = vec![T::default(); rank * cols];
    T::add_product(Strided::rows(&inverse(&by_rows, rank), rank), &gradient, rank, cols, &mut direction);
    let (mut along, mut squares) = (vec![T::default(); cols], vec![T::default(); cols]);
    let mut change = Vec::new();
    for (at, products) in products.chunks_mut(per_block * cols).enumerate() {
        check_cancelled(progress)?;
        let elems = at * per_block * cols..at * per_block * cols + products.len();
        rows.weigh(bounds.part(elems), norm, products);
        change.clear();
        change.resize(products.len(), T::default());
        let left = &real.left[at * per_block * rank..][..products.len() / cols * rank];
        T::add_product(Strided::rows(left, rank), &direction, rank, cols, &mut change);
        let weights = rows.weights.chunks_exact(cols).zip(rows.weighted.chunks_exact(cols));
        for ((weights, weighted), change) in weights.zip(change.chunks_exact(cols)) {
            T::add_length_sums(weights, weighted, change, &mut along, &mut squares);
        }
    }
    for (along, square) in along.iter_mut().zip(&squares) {
        *along = if *square > T::default() { *along / *square } else { T::default() };
    }
    for (right, direction) in real.right.chunks_exact_mut(cols).zip(direction.chunks_exact(cols)) {
        let steps = direction.iter().zip(&along);
        right.iter_mut().zip(steps).for_each(|(right, (direction, length))| *right += *direction * *length);
    }
    Ok(())
}

/// Finds rows of the left factor for a right one.
pub(super) struct Left<'a, T> {
    rank: usize,
    cols: usize,
    right: &'a [T],
    /// The right factor with its columns as rows, and that with whitened columns.
    columns: Vec<T>,
    whitened: Vec<T>,
    /// Of the products of the rows of the right factor with whitened columns.
    inverse: Vec<T>,
    weights: Vec<T>,
    weighted: Vec<T>,
    change: Vec<T>,
}

impl<'a, T: Bounded> Left<'a, T> {
    pub(super) fn new(right: &'a [T], cols: usize, whitening: &Whitening<T>) -> Self {
        let rank = right.len() / cols;
        let columns = transposed(right, rank);
        let mut whitened = columns.clone();
        for (column, by_col) in whitened.chunks_exact_mut(rank).zip(&whitening.cols) {
            column.iter_mut().for_each(|x| *x *= *by_col * *by_col);
        }
        let inverse = inverse(&weighted_gram(&columns, rank, &whitening.cols), rank);
        let empty = Vec::new;
        Self {
            rank,
            cols,
            right,
            columns,
            whitened,
            inverse,
            weights: empty(),
            weighted: empty(),
            change: empty(),
        }
    }

    /// Rows of the left factor for these bounds.
    pub(super) fn solve(&mut self, bounds: &Bounds<T>) -> Vec<T> {
        let mut left = self.times(&bounds.centres, &self.whitened);
        let mut products = vec![T::default(); bounds.centres.len()];
        T::add_product(Strided::rows(&left, self.rank), self.right, self.rank, self.cols, &mut products);
        let bounds = bounds.part(0..bounds.centres.len());
        for norm in STEPS {
            self.step(bounds, norm, &mut left, &mut products);
        }
        left
    }

    /// Rows of the left factor that were found for another right one, after a step for this one.
    pub(super) fn improved(&mut self, bounds: &Bounds<T>, mut left: Vec<T>) -> Vec<T> {
        let mut products = vec![T::default(); bounds.centres.len()];
        T::add_product(Strided::rows(&left, self.rank), self.right, self.rank, self.cols, &mut products);
        self.step(bounds.part(0..bounds.centres.len()), Norm::Sixth, &mut left, &mut products);
        left
    }

    /// A step of some rows, whose products with the right factor are known.
    pub(super) fn step(&mut self, bounds: (&[T], &[T]), norm: Norm, left: &mut [T], products: &mut [T]) {
        let (rank, cols) = (self.rank, self.cols);
        self.weigh(bounds, norm, products);
        let direction = self.times(&self.weighted, &self.columns);
        self.change.clear();
        self.change.resize(products.len(), T::default());
        T::add_product(Strided::rows(&direction, rank), self.right, rank, cols, &mut self.change);
        let rows = left.chunks_exact_mut(rank).zip(products.chunks_exact_mut(cols));
        for (row, (left, products)) in rows.enumerate() {
            let elems = row * cols..(row + 1) * cols;
            let change = &self.change[elems.clone()];
            let length = T::length(&self.weights[elems.clone()], &self.weighted[elems], change);
            T::add_multiple(left, length, &direction[row * rank..][..rank]);
            T::add_multiple(products, length, change);
        }
    }

    fn weigh(&mut self, bounds: (&[T], &[T]), norm: Norm, products: &[T]) {
        self.weights.resize(products.len(), T::default());
        self.weighted.resize(products.len(), T::default());
        T::weigh(norm, bounds, products, &mut self.weights, &mut self.weighted);
    }

    /// Rows of elements times columns of the right factor, as it is whitened, times the inverse.
    fn times(&self, rows: &[T], columns: &[T]) -> Vec<T> {
        let (rank, cols) = (self.rank, self.cols);
        let mut sums = vec![T::default(); rows.len() / cols * rank];
        T::add_product(Strided::rows(rows, cols), columns, cols, rank, &mut sums);
        let mut out = vec![T::default(); sums.len()];
        T::add_product(Strided::rows(&sums, rank), &self.inverse, rank, rank, &mut out);
        out
    }
}

/// A matrix of `rows` rows with its columns as rows.
pub(super) fn transposed<T: Scalar>(matrix: &[T], rows: usize) -> Vec<T> {
    let cols = matrix.len() / rows;
    (0..matrix.len()).map(|at| matrix[at % rows * cols + at / rows]).collect()
}
