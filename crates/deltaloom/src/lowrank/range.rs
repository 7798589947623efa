//! The rank of a difference and its row space, from products with random signs.
//! Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
//! algorithm 4.4.

use deltaloom_kernels::bounds::Bounded;
use deltaloom_kernels::matrix::Strided;

use super::Real;
use super::algebra::{eigen, gram, orthonormalise};
use super::bounds::{Bounds, Whitening};
use crate::error::Result;
use crate::progress::{Progress, check_cancelled};

/// Directions in addition to the expected rank.
const OVERSAMPLING: usize = 8;
/// Number of directions of the first attempt, at least.
const FIRST: usize = 16;
/// How far a singular value must be above the largest one that rounding alone causes.
const ABOVE_ROUNDING: f64 = 1.02;

/// The result of a scan of the difference.
pub(super) struct Scan<T> {
    /// A first pair of factors.
    pub(super) factors: Real<T>,
    pub(super) whitening: Whitening<T>,
}

/// Finds the directions that rise above rounding. `None` if there are none, or more than
/// `max_rank`. `expected` is about how many there are.
pub(super) fn scan<T: Bounded>(
    bounds: &Bounds<T>,
    max_rank: usize,
    expected: usize,
    progress: &dyn Progress,
) -> Result<Option<Scan<T>>> {
    let (rows, cols) = (bounds.rows(), bounds.cols);
    let whitening = Whitening::new(bounds);
    let mut whitened = bounds.centres.clone();
    for (row, by_row) in whitened.chunks_exact_mut(cols).zip(&whitening.rows) {
        row.iter_mut().zip(&whitening.cols).for_each(|(x, by_col)| *x *= *by_row * *by_col);
    }
    // Approximate largest singular value of a matrix of independent numbers: Marchenko and Pastur.
    let edge = (rows as f64).sqrt() + (cols as f64).sqrt();
    let least = edge * ABOVE_ROUNDING;
    let most = rows.min(cols);
    let mut directions = (expected + OVERSAMPLING).max(FIRST).min(most);
    loop {
        let space = Space::of(&whitened, cols, directions, progress)?;
        let rank = space.values.iter().take_while(|value| **value > least * least).count();
        if rank == 0 || rank > max_rank {
            return Ok(None);
        }
        if rank + OVERSAMPLING <= directions || directions == most {
            let (mut left, mut right) = space.cut(rank);
            for (row, by_row) in left.chunks_exact_mut(rank).zip(&whitening.rows) {
                let inverse = if *by_row > T::default() { T::from(1.0) / *by_row } else { T::default() };
                row.iter_mut().for_each(|x| *x *= inverse);
            }
            for row in right.chunks_exact_mut(cols) {
                row.iter_mut().zip(&whitening.cols).for_each(|(v, by_col)| *v = *v / *by_col);
            }
            return Ok(Some(Scan { factors: Real { rank, left, right }, whitening }));
        }
        directions = (2 * directions).min(most);
    }
}

/// The largest directions of a matrix.
struct Space<T> {
    directions: usize,
    /// The matrix times `columns`, which has orthonormal columns; both have rows of `directions`.
    images: Vec<T>,
    columns: Vec<T>,
    /// Squares of the singular values, and how the images combine to them.
    values: Vec<f64>,
    vectors: Vec<f64>,
}

impl<T: Bounded> Space<T> {
    fn of(matrix: &[T], cols: usize, directions: usize, progress: &dyn Progress) -> Result<Self> {
        let rows = matrix.len() / cols;
        let mut columns = signs(cols * directions);
        let images_of = |columns: &[T]| {
            let mut images = vec![T::default(); rows * directions];
            T::add_product(Strided::rows(matrix, cols), columns, cols, directions, &mut images);
            images
        };
        let mut images = images_of(&columns);
        check_cancelled(progress)?;
        orthonormalise(&mut images, directions);
        columns.fill(T::default());
        let transposed = Strided::rows(matrix, cols).transposed();
        T::add_product(transposed, &images, rows, directions, &mut columns);
        check_cancelled(progress)?;
        orthonormalise(&mut columns, directions);
        let images = images_of(&columns);
        check_cancelled(progress)?;
        let (values, vectors) = eigen(&gram(&images, directions), directions);
        Ok(Self { directions, images, columns, values, vectors })
    }

    /// Factors of the first `rank` directions: rows of `rank`, and `rank` rows.
    fn cut(&self, rank: usize) -> (Vec<T>, Vec<T>) {
        let directions = self.directions;
        let turn: Vec<T> = (0..directions * rank)
            .map(|at| T::rounded(self.vectors[at % rank * directions + at / rank]))
            .collect();
        let mut left = vec![T::default(); self.images.len() / directions * rank];
        T::add_product(Strided::rows(&self.images, directions), &turn, directions, rank, &mut left);
        let cols = self.columns.len() / directions;
        let mut right = vec![T::default(); cols * rank];
        let turn = Strided::rows(&turn, rank).transposed();
        let columns: Vec<T> =
            (0..self.columns.len()).map(|at| self.columns[at % cols * directions + at / cols]).collect();
        T::add_product(turn, &columns, directions, cols, &mut right);
        (left, right)
    }
}

/// 1 and -1 from the bits of splitmix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom
/// number generators", OOPSLA 2014.
pub(super) fn signs<T: Bounded>(count: usize) -> Vec<T> {
    let mut state = 0u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        T::from(if (z ^ z >> 31) >> 63 == 0 { 1.0 } else { -1.0 })
    };
    (0..count).map(|_| next()).collect()
}
