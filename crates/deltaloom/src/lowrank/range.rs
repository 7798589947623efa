//! The rank of a difference and its row space, from products with random signs.
//! Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
//! algorithm 4.4.

use deltaloom_kernels::matrix::{self, Strided};
use deltaloom_kernels::product::ProductRule;

use super::algebra::{eigen, gram, orthonormalise};
use super::{Matrix, Real};
use crate::error::Result;
use crate::progress::{Progress, check_cancelled};

/// Directions in addition to the expected rank.
const OVERSAMPLING: usize = 8;
/// Number of directions of the first attempt.
const FIRST: usize = 24;
/// How far a singular value must be above the largest one that rounding alone causes.
const ABOVE_ROUNDING: f64 = 1.02;
/// Rows of a block.
const BLOCK_ROWS: usize = 32;

/// The result of a scan of the difference.
pub(super) struct Scan {
    /// A first pair of factors. The left one belongs to the rows of the sample.
    pub(super) factors: Real,
    /// Half width of the bounds of a median element.
    pub(super) middle_half: f64,
}

/// Finds the directions that rise above rounding. `None` if there are none, or more than
/// `max_rank`.
pub(super) fn scan(matrix: &Matrix<'_>, max_rank: usize, progress: &dyn Progress) -> Result<Option<Scan>> {
    let Some((whitening, middle_half)) = Whitening::new(matrix) else { return Ok(None) };
    // Approximate largest singular value of a matrix of independent numbers: Marchenko and Pastur.
    let edge = (matrix.rows as f64).sqrt() + (matrix.cols as f64).sqrt();
    let least = edge * ABOVE_ROUNDING;
    let mut directions = FIRST.min(matrix.rows).min(matrix.cols);
    loop {
        let (values, right) = row_space(matrix, &whitening, directions, progress)?;
        let rank = values.iter().take_while(|value| **value > least * least).count();
        if rank == 0 || rank > max_rank {
            return Ok(None);
        }
        if rank + OVERSAMPLING <= directions || directions == matrix.rows.min(matrix.cols) {
            let mut right = right[..rank * matrix.cols].to_vec();
            for row in right.chunks_exact_mut(matrix.cols) {
                row.iter_mut().zip(&whitening.cols).for_each(|(v, inverse)| *v /= inverse);
            }
            let factors = Real { rank, left: vec![0.0; matrix.rows * rank], right };
            return Ok(Some(Scan { factors, middle_half }));
        }
        directions = (2 * directions).min(matrix.rows).min(matrix.cols);
    }
}

/// Factors for rows and columns, so that what rounding leaves has a mean square of 1 in each.
/// Otherwise a few coarse rows would look like a direction.
struct Whitening {
    rows: Vec<f64>,
    cols: Vec<f64>,
}

impl Whitening {
    /// Also returns the median half width of a sample. `None` if no element has bounds.
    fn new(matrix: &Matrix<'_>) -> Option<(Self, f64)> {
        const SAMPLE_ROWS: usize = 16;
        let (mut centres, mut halves) = (vec![0.0; matrix.cols], vec![0.0; matrix.cols]);
        let (mut of_rows, mut of_cols) = (Vec::new(), vec![0.0; matrix.cols]);
        let mut sample = Vec::new();
        let stride = matrix.rows.div_ceil(SAMPLE_ROWS);
        for row in 0..matrix.rows {
            matrix.intervals(ProductRule::Sum, row, &mut centres, &mut halves);
            if row % stride == 0 {
                sample.extend(halves.iter().filter(|half| half.is_finite()));
            }
            halves.iter_mut().for_each(|half| *half = if half.is_finite() { *half * *half } else { 0.0 });
            let mean = halves.iter().sum::<f64>() / matrix.cols as f64;
            let inverse = if mean > 0.0 { 1.0 / mean } else { 0.0 };
            of_cols.iter_mut().zip(&halves).for_each(|(sum, half)| *sum += half * inverse);
            of_rows.push(inverse);
        }
        // Errors are evenly spread between the bounds: a third of the square of the half width.
        let count = matrix.rows as f64;
        let of_col = |sum: f64| if sum > 0.0 { (3.0 * count / sum).sqrt() } else { 1.0 };
        sample.sort_by(f64::total_cmp);
        let middle = *sample.get(sample.len() / 2)?;
        let rows = of_rows.into_iter().map(f64::sqrt).collect();
        Some((Self { rows, cols: of_cols.into_iter().map(of_col).collect() }, middle))
    }
}

/// The squares of the largest singular values of the whitened difference, and an equal number of
/// rows of length 1 that span its row space.
fn row_space(
    matrix: &Matrix<'_>,
    whitening: &Whitening,
    directions: usize,
    progress: &dyn Progress,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut columns = signs(matrix.cols * directions);
    for _ in 0..2 {
        let mut images = vec![0.0; matrix.rows * directions];
        images_of(matrix, whitening, &columns, directions, progress, &mut images)?;
        orthonormalise(&mut images, directions);
        columns.fill(0.0);
        add_preimages(matrix, whitening, &images, directions, progress, &mut columns)?;
        orthonormalise(&mut columns, directions);
    }
    let mut images = vec![0.0; matrix.rows * directions];
    images_of(matrix, whitening, &columns, directions, progress, &mut images)?;
    let (values, vectors) = eigen(&gram(&images, directions), directions);
    let mut right = vec![0.0; directions * matrix.cols];
    // Row k is the sum of the columns, weighted with eigenvector k.
    let columns: Vec<f64> =
        (0..columns.len()).map(|at| columns[at % matrix.cols * directions + at / matrix.cols]).collect();
    matrix::add_product(Strided::rows(&vectors, directions), &columns, directions, matrix.cols, &mut right);
    Ok((values, right))
}

/// The difference times `columns`, which has one row of `directions` for every column of the
/// matrix.
fn images_of(
    matrix: &Matrix<'_>,
    whitening: &Whitening,
    columns: &[f64],
    directions: usize,
    progress: &dyn Progress,
    images: &mut [f64],
) -> Result<()> {
    for_blocks(matrix, whitening, progress, |start, count, differences| {
        let images = &mut images[start * directions..][..count * directions];
        matrix::add_product(
            Strided::rows(differences, matrix.cols),
            columns,
            matrix.cols,
            directions,
            images,
        );
    })
}

/// Adds the transposed difference times `images`.
fn add_preimages(
    matrix: &Matrix<'_>,
    whitening: &Whitening,
    images: &[f64],
    directions: usize,
    progress: &dyn Progress,
    columns: &mut [f64],
) -> Result<()> {
    for_blocks(matrix, whitening, progress, |start, count, differences| {
        let images = &images[start * directions..][..count * directions];
        let differences = Strided::rows(differences, matrix.cols).transposed();
        matrix::add_product(differences, images, count, directions, columns);
    })
}

/// Calls `f` with the first row, the number of rows, and the differences of each block.
fn for_blocks(
    matrix: &Matrix<'_>,
    whitening: &Whitening,
    progress: &dyn Progress,
    mut f: impl FnMut(usize, usize, &[f64]),
) -> Result<()> {
    let mut differences = vec![0.0; BLOCK_ROWS * matrix.cols];
    let mut halves = vec![0.0; matrix.cols];
    for start in (0..matrix.rows).step_by(BLOCK_ROWS) {
        check_cancelled(progress)?;
        let rows = start..(start + BLOCK_ROWS).min(matrix.rows);
        let count = rows.len();
        for (row, differences) in rows.zip(differences.chunks_exact_mut(matrix.cols)) {
            matrix.intervals(ProductRule::Sum, row, differences, &mut halves);
            let by_row = whitening.rows[row];
            differences.iter_mut().zip(&whitening.cols).for_each(|(d, by_col)| *d *= by_row * by_col);
        }
        f(start, count, &differences[..count * matrix.cols]);
    }
    Ok(())
}

/// 1 and -1 from the bits of splitmix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom
/// number generators", OOPSLA 2014.
fn signs(count: usize) -> Vec<f64> {
    let mut state = 0u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ z >> 31) >> 63 == 0 { 1.0 } else { -1.0 }
    };
    (0..count).map(|_| next()).collect()
}
