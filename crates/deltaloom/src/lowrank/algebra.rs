//! Linear algebra of matrices as small as a rank: Cholesky factors, solutions, eigenvectors. All in
//! plain double arithmetic with one order of operations.
//! Large products are in deltaloom-kernels. Sources: Golub and Van Loan, "Matrix Computations",
//! sections 4.2, 8.3 and 8.4.

use deltaloom_kernels::matrix::{Scalar, Strided};

/// Index of element (i, j), j <= i, of a symmetric matrix whose lower half is stored by rows.
pub(super) fn packed(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// Replaces a packed symmetric matrix by its Cholesky factor. If a pivot is not clearly above 0,
/// its row is dropped, and its solution is 0.
pub(super) fn factorise(matrix: &mut [f64], n: usize) {
    for i in 0..n {
        let diagonal = matrix[packed(i, i)];
        for j in 0..=i {
            let mut sum = matrix[packed(i, j)];
            for k in 0..j {
                sum -= matrix[packed(i, k)] * matrix[packed(j, k)];
            }
            matrix[packed(i, j)] = if i == j {
                if sum > diagonal * 1e-14 { sum.sqrt() } else { f64::INFINITY }
            } else {
                sum / matrix[packed(j, j)]
            };
        }
    }
}

/// Solves `L x = b` in place.
pub(super) fn solve_lower(factor: &[f64], b: &mut [f64]) {
    for i in 0..b.len() {
        let mut sum = b[i];
        for k in 0..i {
            sum -= factor[packed(i, k)] * b[k];
        }
        b[i] = sum / factor[packed(i, i)];
    }
}

/// Solves `L^T x = b` in place.
pub(super) fn solve_upper(factor: &[f64], b: &mut [f64]) {
    for i in (0..b.len()).rev() {
        let mut sum = b[i];
        for k in i + 1..b.len() {
            // A dropped row is infinite on its diagonal only, and its solution is 0.
            sum -= factor[packed(k, i)] * b[k];
        }
        b[i] = sum / factor[packed(i, i)];
    }
}

/// The packed products of the columns, from rows of `n` elements.
pub(super) fn gram<T: Scalar>(rows: &[T], n: usize) -> Vec<f64> {
    let mut sums = vec![T::default(); n * n];
    T::add_product(Strided::rows(rows, n).transposed(), rows, rows.len() / n, n, &mut sums);
    (0..n).flat_map(|i| sums[i * n..=i * n + i].iter().map(|sum| (*sum).into())).collect()
}

/// The same with rows times `lengths`.
pub(super) fn weighted_gram<T: Scalar>(rows: &[T], n: usize, lengths: &[T]) -> Vec<f64> {
    let pairs = rows.chunks_exact(n).zip(lengths);
    let rows: Vec<T> = pairs.flat_map(|(row, length)| row.iter().map(|x| *x * *length)).collect();
    gram(&rows, n)
}

/// The inverse of a packed symmetric matrix, by rows. What [`factorise`] drops is 0.
pub(super) fn inverse<T: Scalar>(gram: &[f64], n: usize) -> Vec<T> {
    let mut factor = gram.to_vec();
    factorise(&mut factor, n);
    let mut out = Vec::with_capacity(n * n);
    for i in 0..n {
        let mut row = vec![0.0; n];
        row[i] = 1.0;
        solve_lower(&factor, &mut row);
        solve_upper(&factor, &mut row);
        out.extend(row.into_iter().map(T::rounded));
    }
    out
}

/// Eigenvalues of a packed symmetric matrix, the largest first, and their eigenvectors as rows. By
/// Householder reflections and QL with implicit shifts.
pub(super) fn eigen(matrix: &[f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    let (mut diagonal, mut beside) = tridiagonal(matrix, n, &mut vectors);
    implicit_ql(&mut diagonal, &mut beside, &mut vectors);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| diagonal[*j].total_cmp(&diagonal[*i]));
    let values = order.iter().map(|i| diagonal[*i]).collect();
    let vectors = order.iter().flat_map(|i| &vectors[i * n..(i + 1) * n]).copied().collect();
    (values, vectors)
}

/// Reflects a packed symmetric matrix until only its diagonal and the elements beside it are left:
/// element i of the second result is right of element i of the diagonal. The reflections are
/// applied to `vectors`, too.
fn tridiagonal(matrix: &[f64], n: usize, vectors: &mut [f64]) -> (Vec<f64>, Vec<f64>) {
    let mut a: Vec<f64> =
        (0..n * n).map(|at| matrix[packed((at / n).max(at % n), (at / n).min(at % n))]).collect();
    let mut beside = vec![0.0; n];
    let (mut v, mut w) = (vec![0.0; n], vec![0.0; n]);
    for k in 0..n.saturating_sub(1) {
        // The reflection that turns row k behind its diagonal into one number.
        v.fill(0.0);
        v[k + 1..].copy_from_slice(&a[k * n + k + 1..(k + 1) * n]);
        let length = dot(&v, &v).sqrt();
        beside[k] = if v[k + 1] > 0.0 { -length } else { length };
        v[k + 1] -= beside[k];
        let square = dot(&v, &v);
        if square == 0.0 {
            continue;
        }
        let scale = 2.0 / square;
        for i in k + 1..n {
            w[i] = scale * dot(&a[i * n + k + 1..(i + 1) * n], &v[k + 1..]);
        }
        let half = scale / 2.0 * dot(&w[k + 1..], &v[k + 1..]);
        w[k + 1..].iter_mut().zip(&v[k + 1..]).for_each(|(w, v)| *w -= half * v);
        for i in k + 1..n {
            let (of_v, of_w) = (v[i], w[i]);
            let row = a[i * n + k + 1..(i + 1) * n].iter_mut();
            row.zip(v[k + 1..].iter().zip(&w[k + 1..])).for_each(|(a, (v, w))| *a -= of_v * w + of_w * v);
        }
        w.fill(0.0);
        for i in k + 1..n {
            let of_v = v[i];
            w.iter_mut().zip(&vectors[i * n..(i + 1) * n]).for_each(|(w, x)| *w += of_v * x);
        }
        for i in k + 1..n {
            let of_v = scale * v[i];
            vectors[i * n..(i + 1) * n].iter_mut().zip(&w).for_each(|(x, w)| *x -= of_v * w);
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), beside)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}

/// The length of (x, y), from operations that give the same bits everywhere, which `hypot` does
/// not. Squares of sums of squares of f32 do not overflow.
fn root_of_squares(x: f64, y: f64) -> f64 {
    (x * x + y * y).sqrt()
}

/// QL with implicit shifts on a symmetric tridiagonal matrix (EISPACK's imtql2). Replaces
/// `diagonal` by the eigenvalues. The rotations are applied to the rows of `vectors`, too.
fn implicit_ql(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64]) {
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
            let r = root_of_squares(g, 1.0);
            g = diagonal[m] - diagonal[l] + beside[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut is_cut = false;
            for i in (l..m).rev() {
                let (f, b) = (s * beside[i], c * beside[i]);
                let r = root_of_squares(f, g);
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
                let (upper, lower) = vectors[i * side..(i + 2) * side].split_at_mut(side);
                for (x, y) in upper.iter_mut().zip(lower) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
            }
            if !is_cut {
                diagonal[l] -= p;
                beside[l] = g;
                beside[m] = 0.0;
            }
        }
    }
}

/// Replaces rows of `n` elements by rows whose columns are orthonormal and span the same space.
/// Uses a Cholesky factor of their products, twice.
pub(super) fn orthonormalise<T: Scalar>(rows: &mut Vec<T>, n: usize) {
    (0..2).for_each(|_| straighten(rows, n));
}

/// The same by a Cholesky factor once: the columns are orthonormal as far as they were independent.
pub(super) fn straighten<T: Scalar>(rows: &mut Vec<T>, n: usize) {
    let mut factor = gram(rows, n);
    factorise(&mut factor, n);
    // Column i of the inverse of L^T is row i of that of L.
    let mut turn = vec![T::default(); n * n];
    for i in 0..n {
        let mut column = vec![0.0; n];
        column[i] = 1.0;
        solve_lower(&factor, &mut column);
        turn[i * n..(i + 1) * n].iter_mut().zip(column).for_each(|(out, x)| *out = T::rounded(x));
    }
    let mut out = vec![T::default(); rows.len()];
    T::add_product(Strided::rows(rows, n), &turn, n, n, &mut out);
    *rows = out;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(n: usize, count: usize) -> Vec<f64> {
        (0..n * count).map(|i| ((i * i * 7 + i * 13) % 101) as f64 - 50.0).collect()
    }

    #[test]
    fn solutions_solve() {
        let n = 5;
        let matrix = gram(&sample(n, 9), n);
        let mut factor = matrix.clone();
        factorise(&mut factor, n);
        let mut x = vec![1.0, -2.0, 3.0, 0.5, 7.0];
        solve_lower(&factor, &mut x);
        solve_upper(&factor, &mut x);
        for (i, b) in [1.0, -2.0, 3.0, 0.5, 7.0].into_iter().enumerate() {
            let sum: f64 = (0..n).map(|j| matrix[packed(i.max(j), i.min(j))] * x[j]).sum();
            assert!((sum - b).abs() < 1e-9, "{i} {sum} {b}");
        }
    }

    #[test]
    fn a_dependent_column_gets_nothing() {
        let rows = [1.0, 2.0, 0.5, 1.0, 3.0, 6.0];
        let mut factor = gram(&rows, 2);
        factorise(&mut factor, 2);
        let mut x = [2.0, 4.0];
        solve_lower(&factor, &mut x);
        solve_upper(&factor, &mut x);
        assert_eq!(x[1], 0.0);
        assert!((x[0] - 2.0 / 10.25).abs() < 1e-12);
    }

    #[test]
    fn eigenvalues_are_those_of_known_matrices() {
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        close(eigen(&[2.0, 1.0, 2.0], 2).0, &[3.0, 1.0]);
        close(eigen(&[0.0; 6], 3).0, &[0.0; 3]);
        // The second difference of n points has the eigenvalues 2 - 2 cos(k pi / (n + 1)).
        let side = 40;
        let of = |i: usize, j: usize| [2.0, -1.0].get(i - j).copied().unwrap_or(0.0);
        let matrix: Vec<f64> = (0..side).flat_map(|i| (0..=i).map(move |j| of(i, j))).collect();
        let expected: Vec<f64> = (1..=40u32)
            .rev()
            .map(|k| 2.0 - 2.0 * (f64::from(k) * std::f64::consts::PI / 41.0).cos())
            .collect();
        close(eigen(&matrix, side).0, &expected);
    }

    #[test]
    fn eigenvectors_are_orthonormal_and_give_the_matrix_back() {
        // The last one has dependent columns.
        [(1, 3), (2, 5), (6, 8), (23, 30), (9, 4)].into_iter().for_each(|(n, count)| check_eigen(n, count));
    }

    fn check_eigen(n: usize, count: usize) {
        let matrix = gram(&sample(n, count), n);
        let (values, vectors) = eigen(&matrix, n);
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        for i in 0..n {
            for j in 0..n {
                let dot: f64 = (0..n).map(|k| vectors[i * n + k] * vectors[j * n + k]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
                let back: f64 = (0..n).map(|k| values[k] * vectors[k * n + i] * vectors[k * n + j]).sum();
                assert!((back - matrix[packed(i.max(j), i.min(j))]).abs() < 1e-9 * values[0]);
            }
        }
    }
}
