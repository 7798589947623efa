//! The promise of [`Mode::Fast`], and how far a product is from it.

use deltaloom::Result;

use crate::dense::DenseMatrix;
use crate::timing::Run;

/// The promise of [`crate::Mode::Fast`]: element `i` of a product differs from the bit-exact one by
/// at most [`Self::LIMIT`] times `sum_j |x_j| (|w_ij| + |b_ij|)`. Here `w` is the matrix and `b`
/// its base.
///
/// The sum includes the base because its product is computed first. If a weight of the fine-tune is
/// far smaller than that of the base, the two parts cancel.
#[derive(Debug)]
pub struct Tolerance {
    tuned: DenseMatrix,
    base: DenseMatrix,
}

impl Tolerance {
    /// The largest error, as a fraction of the sum of absolute products.
    pub const LIMIT: f64 = 1e-5;

    /// Creates the tolerance for products with `tuned`, a fine-tune of `base`.
    ///
    /// # Errors
    /// None for valid matrices.
    pub fn new(base: &DenseMatrix, tuned: &DenseMatrix) -> Result<Self> {
        Ok(Self { tuned: tuned.absolute()?, base: base.absolute()? })
    }

    /// The largest error of `y` [tokens, rows] against the bit-exact product `exact` of the
    /// activations `x` [tokens, cols], as a fraction of the sums of absolute products. Equal bits
    /// and two NaNs have no error; otherwise a NaN has an infinite one.
    ///
    /// # Errors
    /// [`deltaloom::Error::InvalidArgument`] if the lengths do not fit.
    pub fn error(&self, x: &[f32], y: &[f32], exact: &[f32]) -> Result<f64> {
        let x: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        let (mut of_tuned, mut of_base) = (vec![0.0; y.len()], vec![0.0; y.len()]);
        self.tuned.matmul(&x, &mut of_tuned, &Run::default())?;
        self.base.matmul(&x, &mut of_base, &Run::default())?;
        let sums = of_tuned.iter().zip(&of_base).map(|(a, b)| f64::from(*a) + f64::from(*b));
        let errors = y.iter().zip(exact).zip(sums).map(|((y, exact), sum)| {
            if y.to_bits() == exact.to_bits() || (y.is_nan() && exact.is_nan()) {
                return 0.0;
            }
            let error = (f64::from(*y) - f64::from(*exact)).abs() / sum;
            if error.is_nan() { f64::INFINITY } else { error }
        });
        Ok(errors.fold(0.0, f64::max))
    }

    /// Whether an error keeps the promise.
    #[must_use]
    pub fn allows(error: f64) -> bool {
        error <= Self::LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::WeightType;

    fn row(values: [f32; 2]) -> DenseMatrix {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        DenseMatrix::new(1, 2, WeightType::F32, bytes).unwrap()
    }

    #[test]
    fn errors_are_fractions_of_all_absolute_products() {
        let tolerance = Tolerance::new(&row([-3.0, 1.0]), &row([1.0, -1.0])).unwrap();
        let error = |y: f32, exact: f32| tolerance.error(&[1.0, -2.0], &[y], &[exact]).unwrap();
        // 1 x (1 + 3) + 2 x (1 + 1) = 8.
        assert!((error(3.5, 3.0) - 0.5 / 8.0).abs() < 1e-12);
        assert_eq!(error(f32::NAN, f32::NAN).to_bits(), 0f64.to_bits());
        assert!(error(f32::NAN, 3.0).is_infinite() && !Tolerance::allows(error(f32::NAN, 3.0)));
        assert!(Tolerance::allows(1e-5) && !Tolerance::allows(1.1e-5));
        assert!(tolerance.error(&[1.0], &[1.0], &[1.0]).is_err());
    }
}
