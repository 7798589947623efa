//! The bounds of the elements of some rows, as fits weigh them.

use deltaloom_kernels::bounds::{Bounded, bounds};
use deltaloom_kernels::matrix::Scalar;
use deltaloom_kernels::product::ProductRule;

use super::Matrix;

/// Share of the middle half width that is added to every half width, as squares: what factors
/// cannot resolve anyway.
const FLOOR: f64 = 0.1;

/// Centres, and the inverses of the squares of half widths, in units of the middle half width. The
/// inverse is 0 where an element says nothing.
pub(super) struct Bounds<T> {
    pub(super) cols: usize,
    pub(super) centres: Vec<T>,
    pub(super) inverses: Vec<T>,
}

impl<T: Bounded> Bounds<T> {
    pub(super) fn new(matrix: &Matrix<'_>, rule: ProductRule, unit: f64) -> Self {
        let (mut centres, mut inverses) =
            (vec![T::default(); matrix.elems()], vec![T::default(); matrix.elems()]);
        let bytes = (matrix.target, matrix.reference);
        bounds(matrix.number, rule, bytes, T::rounded(1.0 / unit), &mut centres, &mut inverses);
        let floor = T::rounded(FLOOR * FLOOR);
        for half in &mut inverses {
            *half = T::from(1.0) / (*half * *half + floor);
        }
        Self { cols: matrix.cols, centres, inverses }
    }

    pub(super) fn rows(&self) -> usize {
        self.centres.len() / self.cols
    }

    /// The bounds of a range of elements.
    pub(super) fn part(&self, elems: std::ops::Range<usize>) -> (&[T], &[T]) {
        (&self.centres[elems.clone()], &self.inverses[elems])
    }
}

/// The median half width of a sample of the elements. `None` if none has bounds.
pub(super) fn middle_half(matrix: &Matrix<'_>) -> Option<f64> {
    const SAMPLE_ROWS: usize = 16;
    let rows = matrix.every(matrix.rows.div_ceil(SAMPLE_ROWS).max(1));
    let elems = rows.0.len() / matrix.number.bytes();
    let (mut centres, mut halves) = (vec![0.0f64; elems], vec![0.0; elems]);
    bounds(matrix.number, ProductRule::Sum, (&rows.0, &rows.1), 1.0, &mut centres, &mut halves);
    halves.retain(|half| half.is_finite());
    halves.sort_by(f64::total_cmp);
    halves.get(halves.len() / 2).copied().filter(|half| (1.0 / half).is_finite())
}

/// Factors for rows and columns, so that what rounding leaves has a mean square of 1 in each.
/// Otherwise a few coarse rows would look like a direction.
pub(super) struct Whitening<T> {
    pub(super) rows: Vec<T>,
    pub(super) cols: Vec<T>,
}

impl<T: Scalar> Whitening<T> {
    pub(super) fn new(bounds: &Bounds<T>) -> Self {
        let cols = bounds.cols;
        let (mut rows, mut of_cols, mut squares) = (Vec::new(), vec![0.0; cols], vec![0.0f64; cols]);
        for inverses in bounds.inverses.chunks_exact(cols) {
            for (square, inverse) in squares.iter_mut().zip(inverses) {
                let inverse: f64 = (*inverse).into();
                *square = if inverse > 0.0 { 1.0 / inverse } else { 0.0 };
            }
            let mean = squares.iter().sum::<f64>() / cols as f64;
            let inverse = if mean > 0.0 { 1.0 / mean } else { 0.0 };
            of_cols.iter_mut().zip(&squares).for_each(|(sum, square)| *sum += square * inverse);
            rows.push(T::rounded(inverse.sqrt()));
        }
        // Errors are evenly spread between the bounds: a third of the square of the half width.
        let count = rows.len() as f64;
        let of_col = |sum: f64| T::rounded(if sum > 0.0 { (3.0 * count / sum).sqrt() } else { 1.0 });
        Self { rows, cols: of_cols.into_iter().map(of_col).collect() }
    }
}
