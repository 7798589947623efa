//! The rank of a difference of two matrices, as far as it exceeds the noise of rounding.
//! It finds no factors.

/// Most rows and columns that are used. A part has the same rank as the whole, up to its own size.
pub(super) const SIDE: usize = 384;
/// Singular values count from this many times the largest one that rounding alone would cause (in
/// squares), since the base may have been rounded, too.
const ABOVE_NOISE: f64 = 3.0;
/// The least of them must be this many times larger than the next: training leaves singular values
/// of all sizes, but a factorisation leaves a gap.
const GAP: f64 = 2.0;
/// The remainder may be this many times the noise, since merges round more than once.
const LEFT: f64 = 4.0;
/// It may also be at most this share of the whole: changes about as large as rounding have no rank.
const PART_LEFT: f64 = 0.5;
/// Eigenvalues below this share of the largest are errors of the arithmetic.
const PRECISION: f64 = 1e-12;

/// A low-rank matrix plus noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LowRank {
    pub(super) rank: usize,
    /// Norm of the remainder over that of the noise.
    pub(super) residual: f64,
}

/// The rank of a row-major matrix whose elements have noise of variance `noise`. `None` unless it
/// is at most a quarter of full rank and explains everything but the noise.
pub(super) fn rank_of(matrix: &[f64], rows: usize, cols: usize, noise: f64) -> Option<LowRank> {
    let squares = eigenvalues(gram(matrix, rows, cols), rows);
    let largest = squares.first().copied().filter(|largest| *largest > 0.0)?;
    let (height, width) = (rows as f64, cols as f64);
    let edge = (ABOVE_NOISE * noise * (height.sqrt() + width.sqrt()).powi(2)).max(PRECISION * largest);
    let rank = squares.iter().take_while(|square| **square > edge).count();
    let sum = |squares: &[f64]| squares.iter().map(|square| square.max(0.0)).sum::<f64>();
    let (left, whole) = (sum(&squares[rank..]), sum(&squares));
    let of_noise = noise * height * width;
    let is_low = rank > 0 && 4 * rank <= rows.min(cols) && squares[rank - 1] > GAP * edge;
    let is_all = left <= PART_LEFT * whole && left <= LEFT * of_noise + PRECISION * height * largest;
    (is_low && is_all).then(|| LowRank { rank, residual: (left / of_noise.max(f64::MIN_POSITIVE)).sqrt() })
}

/// The products of every row with every row.
fn gram(matrix: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let row = |i: usize| &matrix[i * cols..(i + 1) * cols];
    let mut out = vec![0.0; rows * rows];
    for i in 0..rows {
        for j in 0..=i {
            let product = dot(row(i), row(j));
            (out[i * rows + j], out[j * rows + i]) = (product, product);
        }
    }
    out
}

/// Eight partial sums, in a fixed order.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.iter().sum::<f64>() + rest
}

/// Eigenvalues of a symmetric matrix, the largest first.
fn eigenvalues(matrix: Vec<f64>, side: usize) -> Vec<f64> {
    let (mut diagonal, mut beside) = tridiagonal(matrix, side);
    implicit_ql(&mut diagonal, &mut beside);
    diagonal.sort_by(|a, b| b.total_cmp(a));
    diagonal
}

/// Householder's reduction (Golub and Van Loan, Matrix Computations, 8.3.1). Returns the diagonal
/// and the elements next to it.
fn tridiagonal(mut matrix: Vec<f64>, side: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; side];
    let mut product = vec![0.0; side];
    for k in 0..side.saturating_sub(2) {
        let column: Vec<f64> = (k + 1..side).map(|i| matrix[k * side + i]).collect();
        let norm = dot(&column, &column).sqrt();
        if norm == 0.0 {
            continue;
        }
        let alpha = if column[0] > 0.0 { -norm } else { norm };
        let mut v = column;
        v[0] -= alpha;
        let square = dot(&v, &v);
        beside[k] = alpha;
        // A <- A - v w' - w v', with p = 2 A v / v'v and w = p - (p'v / v'v) v.
        let part = |i: usize| i * side + k + 1..(i + 1) * side;
        let p = &mut product[..v.len()];
        for (i, p) in p.iter_mut().enumerate() {
            *p = 2.0 * dot(&matrix[part(k + 1 + i)], &v) / square;
        }
        let along = dot(p, &v) / square;
        p.iter_mut().zip(&v).for_each(|(p, v)| *p -= along * v);
        for (i, (wi, vi)) in p.iter().zip(&v).enumerate() {
            let row = &mut matrix[part(k + 1 + i)];
            row.iter_mut().zip(v.iter().zip(p.iter())).for_each(|(a, (v, w))| *a -= vi * w + wi * v);
        }
    }
    if side >= 2 {
        beside[side - 2] = matrix[(side - 2) * side + side - 1];
    }
    ((0..side).map(|i| matrix[i * side + i]).collect(), beside)
}

/// QL with implicit shifts on a symmetric tridiagonal matrix (EISPACK's imtql1). Replaces
/// `diagonal` by the eigenvalues.
fn implicit_ql(diagonal: &mut [f64], beside: &mut [f64]) {
    const MAX_ROUNDS: usize = 50;
    let side = diagonal.len();
    for l in 0..side {
        for _ in 0..MAX_ROUNDS {
            let is_small = |m: &usize| {
                let size = diagonal[*m].abs() + diagonal[*m + 1].abs();
                beside[*m].abs() <= f64::EPSILON * size
            };
            let m = (l..side - 1).find(is_small).unwrap_or(side - 1);
            if m == l {
                break;
            }
            let mut g = (diagonal[l + 1] - diagonal[l]) / (2.0 * beside[l]);
            let r = g.hypot(1.0);
            g = diagonal[m] - diagonal[l] + beside[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut is_cut = false;
            for i in (l..m).rev() {
                let (f, b) = (s * beside[i], c * beside[i]);
                let r = f.hypot(g);
                beside[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= p;
                    beside[m] = 0.0;
                    is_cut = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                g = diagonal[i + 1] - p;
                let turned = (diagonal[i] - g) * s + 2.0 * c * b;
                p = s * turned;
                diagonal[i + 1] = g + p;
                g = c * turned - b;
            }
            if !is_cut {
                diagonal[l] -= p;
                beside[l] = g;
                beside[m] = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Approximately normal, of variance 1.
    fn normals(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(state >> 32).unwrap()) / 2f64.powi(32)
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0).collect()
    }

    fn product(rows: usize, cols: usize, rank: usize) -> Vec<f64> {
        let (left, right) = (normals(rows * rank, 1), normals(rank * cols, 2));
        let element = |i: usize, j: usize| (0..rank).map(|k| left[i * rank + k] * right[k * cols + j]).sum();
        (0..rows * cols).map(|at| element(at / cols, at % cols)).collect()
    }

    #[test]
    fn eigenvalues_are_those_of_known_matrices() {
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        close(eigenvalues(vec![2.0, 1.0, 1.0, 2.0], 2), &[3.0, 1.0]);
        // The second difference of n points has the eigenvalues 2 - 2 cos(k pi / (n + 1)).
        let side = 40;
        let element = |at: usize| match (at / side).abs_diff(at % side) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        let expected: Vec<f64> = (1..=40u32)
            .rev()
            .map(|k| 2.0 - 2.0 * (f64::from(k) * std::f64::consts::PI / 41.0).cos())
            .collect();
        close(eigenvalues((0..side * side).map(element).collect(), side), &expected);
        // The sum of squares equals that of the matrix.
        let matrix = normals(30 * 50, 3);
        let sum: f64 = eigenvalues(gram(&matrix, 30, 50), 30).iter().sum();
        assert!((sum / dot(&matrix, &matrix) - 1.0).abs() < 1e-12);
        assert_eq!(eigenvalues(vec![0.0; 9], 3), [0.0; 3]);
    }

    #[test]
    fn rank_stands_out_of_noise() {
        let (rows, cols) = (96, 160);
        for rank in [1, 5, 16] {
            let mut matrix = product(rows, cols, rank);
            matrix.iter_mut().zip(normals(rows * cols, 4)).for_each(|(x, noise)| *x += 0.05 * noise);
            let found = rank_of(&matrix, rows, cols, 0.05 * 0.05).unwrap();
            assert_eq!(found.rank, rank);
            assert!((0.8..1.1).contains(&found.residual), "{}", found.residual);
        }
        let exact = rank_of(&product(rows, cols, 3), rows, cols, 1e-30).unwrap();
        assert_eq!(exact.rank, 3);
    }

    #[test]
    fn full_rank_noise_and_nothing_have_none() {
        let matrix = normals(96 * 96, 5);
        assert_eq!(rank_of(&matrix, 96, 96, 1e-4), None);
        assert_eq!(rank_of(&matrix, 96, 96, 1.0), None);
        assert_eq!(rank_of(&product(96, 96, 40), 96, 96, 1e-4), None);
        assert_eq!(rank_of(&vec![0.0; 96 * 96], 96, 96, 1e-4), None);
        assert_eq!(rank_of(&[], 0, 0, 1.0), None);
    }
}
