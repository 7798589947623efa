//! The rank of a difference and its row space, from products with random signs.
//! Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithm 4.4.

use deltaloom_kernels::matrix::{self, Strided};
use deltaloom_kernels::product::ProductRule;

use super::algebra::{eigen, gram, orthonormalise};
use super::{Matrix, Real};

/// Directions beyond the rank that is looked for.
const OVERSAMPLING: usize = 8;
/// Directions tried first.
const FIRST: usize = 24;
/// How far a singular value must be above the largest that rounding alone makes.
const ABOVE_ROUNDING: f64 = 1.02;
/// Rows of a block.
const BLOCK_ROWS: usize = 32;

/// What a look at the difference gives.
pub(super) struct Scan {
    /// A first pair of factors; the left one is of the rows that were looked at.
    pub(super) factors: Real,
    /// Half width of the bounds of a middling element.
    pub(super) middle_half: f64,
}

/// Finds the directions that rise above rounding. `None` when there are none, or more than `max_rank`.
pub(super) fn scan(matrix: &Matrix<'_>, rows: &[usize], max_rank: usize) -> Option<Scan> {
    let (whitening, middle_half) = Whitening::new(matrix, rows)?;
    // The largest singular value of a matrix of independent numbers is about this: Marchenko and Pastur.
    let edge = (rows.len() as f64).sqrt() + (matrix.cols as f64).sqrt();
    let least = edge * ABOVE_ROUNDING;
    let mut directions = FIRST.min(rows.len()).min(matrix.cols);
    loop {
        let (values, right) = row_space(matrix, rows, &whitening, directions);
        let rank = values.iter().take_while(|value| **value > least * least).count();
        if rank == 0 || rank > max_rank {
            return None;
        }
        if rank + OVERSAMPLING <= directions || directions == rows.len().min(matrix.cols) {
            let mut right = right[..rank * matrix.cols].to_vec();
            for row in right.chunks_exact_mut(matrix.cols) {
                row.iter_mut().zip(&whitening.cols).for_each(|(v, inverse)| *v /= inverse);
            }
            let factors = Real { rank, left: vec![0.0; rows.len() * rank], right };
            return Some(Scan { factors, middle_half });
        }
        directions = (2 * directions).min(rows.len()).min(matrix.cols);
    }
}

/// What rows and columns are multiplied with, so that what rounding leaves has a mean square of 1 in each of them: else a few coarse rows would look
/// like a direction.
struct Whitening {
    rows: Vec<f64>,
    cols: Vec<f64>,
}

impl Whitening {
    /// With the middle half width of a sample. `None` where nothing has bounds.
    fn new(matrix: &Matrix<'_>, rows: &[usize]) -> Option<(Self, f64)> {
        const SAMPLE_ROWS: usize = 16;
        let (mut centres, mut halves) = (vec![0.0; matrix.cols], vec![0.0; matrix.cols]);
        let (mut of_rows, mut of_cols) = (Vec::new(), vec![0.0; matrix.cols]);
        let mut sample = Vec::new();
        let stride = rows.len().div_ceil(SAMPLE_ROWS);
        for (at, row) in rows.iter().enumerate() {
            matrix.intervals(ProductRule::Sum, *row, &mut centres, &mut halves);
            if at % stride == 0 {
                sample.extend(halves.iter().filter(|half| half.is_finite()));
            }
            halves.iter_mut().for_each(|half| *half = if half.is_finite() { *half * *half } else { 0.0 });
            let mean = halves.iter().sum::<f64>() / matrix.cols as f64;
            let inverse = if mean > 0.0 { 1.0 / mean } else { 0.0 };
            of_cols.iter_mut().zip(&halves).for_each(|(sum, half)| *sum += half * inverse);
            of_rows.push(inverse);
        }
        // Errors are evenly spread between the bounds: a third of the square of the half width.
        let count = rows.len() as f64;
        let of_col = |sum: f64| if sum > 0.0 { (3.0 * count / sum).sqrt() } else { 1.0 };
        sample.sort_by(f64::total_cmp);
        let middle = *sample.get(sample.len() / 2)?;
        let rows = of_rows.into_iter().map(f64::sqrt).collect();
        Some((Self { rows, cols: of_cols.into_iter().map(of_col).collect() }, middle))
    }
}

/// Squares of the largest singular values of the whitened difference, and as many rows of length 1 that span its row space.
fn row_space(
    matrix: &Matrix<'_>,
    rows: &[usize],
    whitening: &Whitening,
    directions: usize,
) -> (Vec<f64>, Vec<f64>) {
    let mut columns = signs(matrix.cols * directions);
    for _ in 0..2 {
        let mut images = vec![0.0; rows.len() * directions];
        images_of(matrix, rows, whitening, &columns, directions, &mut images);
        orthonormalise(&mut images, directions);
        columns.fill(0.0);
        add_preimages(matrix, rows, whitening, &images, directions, &mut columns);
        orthonormalise(&mut columns, directions);
    }
    let mut images = vec![0.0; rows.len() * directions];
    images_of(matrix, rows, whitening, &columns, directions, &mut images);
    let (values, vectors) = eigen(&gram(&images, directions), directions);
    let mut right = vec![0.0; directions * matrix.cols];
    // Row k is the sum of the columns with the weights of eigenvector k.
    let columns: Vec<f64> =
        (0..columns.len()).map(|at| columns[at % matrix.cols * directions + at / matrix.cols]).collect();
    matrix::add_product(Strided::rows(&vectors, directions), &columns, directions, matrix.cols, &mut right);
    (values, right)
}

/// The difference times `columns`, which has a row of `directions` for every column of the matrix.
fn images_of(
    matrix: &Matrix<'_>,
    rows: &[usize],
    whitening: &Whitening,
    columns: &[f64],
    directions: usize,
    images: &mut [f64],
) {
    for_blocks(matrix, rows, whitening, |start, count, differences| {
        let images = &mut images[start * directions..][..count * directions];
        matrix::add_product(
            Strided::rows(differences, matrix.cols),
            columns,
            matrix.cols,
            directions,
            images,
        );
    });
}

/// Adds the transposed difference times `images`.
fn add_preimages(
    matrix: &Matrix<'_>,
    rows: &[usize],
    whitening: &Whitening,
    images: &[f64],
    directions: usize,
    columns: &mut [f64],
) {
    for_blocks(matrix, rows, whitening, |start, count, differences| {
        let images = &images[start * directions..][..count * directions];
        let differences = Strided::rows(differences, matrix.cols).transposed();
        matrix::add_product(differences, images, count, directions, columns);
    });
}

/// Calls `f` with the first place, the number of rows and the differences of each block.
fn for_blocks(
    matrix: &Matrix<'_>,
    rows: &[usize],
    whitening: &Whitening,
    mut f: impl FnMut(usize, usize, &[f64]),
) {
    let mut differences = vec![0.0; BLOCK_ROWS * matrix.cols];
    let mut halves = vec![0.0; matrix.cols];
    for (block, rows) in rows.chunks(BLOCK_ROWS).enumerate() {
        for (row, differences) in rows.iter().zip(differences.chunks_exact_mut(matrix.cols)) {
            matrix.intervals(ProductRule::Sum, *row, differences, &mut halves);
        }
        let start = block * BLOCK_ROWS;
        for (differences, by_row) in
            differences.chunks_exact_mut(matrix.cols).zip(&whitening.rows[start..][..rows.len()])
        {
            differences.iter_mut().zip(&whitening.cols).for_each(|(d, by_col)| *d *= by_row * by_col);
        }
        f(start, rows.len(), &differences[..rows.len() * matrix.cols]);
    }
}

/// 1 and -1, as the bits of splitmix64 fall: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
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
