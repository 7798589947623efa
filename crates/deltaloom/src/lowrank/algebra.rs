//! Linear algebra of matrices as small as a rank: Cholesky factors, solutions, eigenvectors. All in
//! plain double arithmetic with one order of operations.
//! Large products are in deltaloom-kernels. Sources: Golub and Van Loan, "Matrix Computations",
//! sections 4.2 and 8.5.

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
pub(super) fn gram(rows: &[f64], n: usize) -> Vec<f64> {
    let mut gram = vec![0.0; packed(n, 0)];
    for row in rows.chunks_exact(n) {
        for i in 0..n {
            for j in 0..=i {
                gram[packed(i, j)] += row[i] * row[j];
            }
        }
    }
    gram
}

/// Eigenvalues of a packed symmetric matrix, the largest first, and their eigenvectors as rows. By
/// cyclic Jacobi rotations.
pub(super) fn eigen(matrix: &[f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    const SWEEPS: usize = 30;
    let mut a: Vec<f64> =
        (0..n * n).map(|at| matrix[packed((at / n).max(at % n), (at / n).min(at % n))]).collect();
    let mut vectors: Vec<f64> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    for _ in 0..SWEEPS {
        let mut is_done = true;
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p * n + q];
                if off.abs() <= 1e-16 * (a[p * n + p] * a[q * n + q]).abs().sqrt() || off == 0.0 {
                    continue;
                }
                is_done = false;
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let cosine = 1.0 / (t * t + 1.0).sqrt();
                let sine = t * cosine;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (cosine * x - sine * y, sine * x + cosine * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (cosine * x - sine * y, sine * x + cosine * y);
                    let (x, y) = (vectors[p * n + k], vectors[q * n + k]);
                    (vectors[p * n + k], vectors[q * n + k]) = (cosine * x - sine * y, sine * x + cosine * y);
                }
            }
        }
        if is_done {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|i| a[i * n + i]).collect();
    let vectors = order.iter().flat_map(|i| vectors[i * n..(i + 1) * n].to_vec()).collect();
    (values, vectors)
}

/// Replaces rows of `n` elements by rows whose columns are orthonormal and span the same space.
/// Uses a Cholesky factor of their products, twice.
pub(super) fn orthonormalise(rows: &mut [f64], n: usize) {
    for _ in 0..2 {
        let mut factor = gram(rows, n);
        factorise(&mut factor, n);
        rows.chunks_exact_mut(n).for_each(|row| solve_lower(&factor, row));
    }
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
    fn eigenvectors_are_orthonormal_and_give_the_matrix_back() {
        let n = 6;
        let matrix = gram(&sample(n, 8), n);
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
