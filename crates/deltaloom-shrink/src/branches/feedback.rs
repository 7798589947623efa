//! Error feedback: weights are changed column by column, and what a column loses is made up for by
//! the columns behind it (Frantar et al., 2022, arXiv 2210.17323 and 2301.00774).

use crate::matrix::Matrix;
use rayon::prelude::*;

/// A row while it is changed: `row[..col]` is done.
pub(super) struct Row<'a> {
    pub(super) values: &'a mut [f64],
    root: &'a Matrix,
}

impl Row<'_> {
    /// Sets the value of a column, and corrects the columns behind it.
    pub(super) fn set(&mut self, col: usize, value: f64) {
        let of_col = &self.root.row(col)[col..];
        let error = (self.values[col] - value) / of_col[0];
        self.values[col] = value;
        if error != 0.0 {
            let behind = self.values[col + 1..].iter_mut().zip(&of_col[1..]);
            behind.for_each(|(value, root)| *value -= error * root);
        }
    }
}

/// Calls `each` for every row, on all threads. `root` is [`Matrix::inverse_root`] of the second
/// moment of inputs.
pub(super) fn rows<T: Send>(
    weights: &mut Matrix,
    root: &Matrix,
    each: impl Fn(usize, Row<'_>) -> T + Sync,
) -> Vec<T> {
    let cols = weights.cols().max(1);
    let rows = weights.values_mut().par_chunks_exact_mut(cols).enumerate();
    rows.map(|(number, values)| each(number, Row { values, root })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_columns_make_up_for_a_loss() {
        // Both inputs are always equal, but for a little.
        let moment = Matrix::new(2, 2, vec![1.0, 1.0, 1.0, 1.0]).unwrap().damped(1e-9);
        let mut weights = Matrix::new(1, 2, vec![0.4, 0.8]).unwrap();
        rows(&mut weights, &moment.inverse_root().unwrap(), |_, mut row| row.set(0, 0.0));
        assert_eq!(weights.at(0, 0), 0.0);
        assert!((weights.at(0, 1) - 1.2).abs() < 1e-6);
    }
}
