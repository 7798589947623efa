//! Integer codes times steps.

use deltaloom::Result;
use half::f16;

use super::{Form, wrong};

/// Codes are from its negative to this.
pub const LARGEST_CODE: i8 = 127;

/// The steps of codes, before factors of rows and columns.
#[derive(Debug, Clone, PartialEq)]
pub enum Steps {
    /// One for the whole matrix.
    Matrix(f16),
    /// One for each row and each group of columns, `[rows, groups]`. The last group of a row may be
    /// shorter.
    Groups {
        /// Number of columns of a group.
        size: usize,
        /// Steps, row by row.
        steps: Vec<f16>,
    },
}

/// Everything that a code is multiplied with.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    pub(crate) steps: Steps,
    /// A factor of each column.
    pub(crate) columns: Option<Vec<f16>>,
    /// A factor of each row.
    pub(crate) rows: Option<Vec<f16>>,
}

impl From<Steps> for Scales {
    fn from(steps: Steps) -> Self {
        Self { steps, columns: None, rows: None }
    }
}

impl Scales {
    /// With a factor for each column.
    #[must_use]
    pub fn with_columns(self, columns: Option<Vec<f16>>) -> Self {
        Self { columns, ..self }
    }

    /// With a factor for each row.
    #[must_use]
    pub fn with_rows(self, rows: Option<Vec<f16>>) -> Self {
        Self { rows, ..self }
    }
}

/// A matrix of codes. An element is `((code * step) * factor of its column) * factor of its row`,
/// each product rounded to FP32.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    rows: usize,
    cols: usize,
    codes: Vec<i8>,
    scales: Scales,
}

/// The nearest FP16 number that is neither 0 nor infinite: a step is always positive.
#[must_use]
pub fn half(value: f64) -> f16 {
    f16::from_f64(value.clamp(f16::MIN_POSITIVE_SUBNORMAL.to_f64(), f16::MAX.to_f64()))
}

impl Quantised {
    /// A matrix `[rows, cols]` of codes, row by row.
    ///
    /// # Errors
    /// [`deltaloom::Error::InvalidArgument`] for another number of codes, steps or factors, for
    /// groups of 0 columns, for the code -128, and for steps and factors that are not finite.
    pub fn new(rows: usize, cols: usize, codes: Vec<i8>, scales: Scales) -> Result<Self> {
        if rows.checked_mul(cols) != Some(codes.len()) || codes.contains(&i8::MIN) {
            return wrong(format!("{} codes do not make a matrix [{rows}, {cols}]", codes.len()));
        }
        let numbers: &[f16] = match &scales.steps {
            Steps::Matrix(step) => std::slice::from_ref(step),
            Steps::Groups { size: 0, .. } => return wrong("a group of 0 columns"),
            Steps::Groups { size, steps } => {
                if rows.checked_mul(cols.div_ceil(*size)) != Some(steps.len()) {
                    return wrong(format!("{} steps for groups of {size} columns", steps.len()));
                }
                steps
            }
        };
        let factors = [(&scales.columns, cols), (&scales.rows, rows)];
        if factors.iter().any(|(factors, len)| factors.as_ref().is_some_and(|it| it.len() != *len)) {
            return wrong(format!("factors of rows or columns do not fit a matrix [{rows}, {cols}]"));
        }
        let factors = factors.iter().flat_map(|(factors, _)| factors.iter().flatten());
        if let Some(number) = numbers.iter().chain(factors).find(|number| !number.is_finite()) {
            return wrong(format!("a step or a factor is {number}"));
        }
        Ok(Self { rows, cols, codes, scales })
    }

    /// The same codes, where each row is divided by a positive number.
    #[must_use]
    pub fn with_rows_divided(mut self, by: &[f64]) -> Self {
        let rows = self.scales.rows.take();
        let factor = |(row, by): (usize, &f64)| {
            let known = rows.as_ref().and_then(|rows| rows.get(row)).map_or(1.0, |factor| factor.to_f64());
            half(known / by)
        };
        self.scales.rows = Some(by.iter().enumerate().take(self.rows).map(factor).collect());
        self
    }

    /// The same matrix, stored with rows as columns. With steps of groups it stays as it is.
    #[must_use]
    pub fn stored_turned(self) -> Form {
        let Scales { steps: Steps::Matrix(_), .. } = self.scales else { return Form::Quantised(self) };
        let of_col = |col: usize| self.codes.iter().skip(col).step_by(self.cols).copied();
        let codes = (0..self.cols).flat_map(of_col).collect();
        let Scales { steps, columns, rows } = self.scales;
        let scales = Scales { steps, columns: rows, rows: columns };
        Form::Turned(Box::new(Form::Quantised(Self { rows: self.cols, cols: self.rows, codes, scales })))
    }

    /// Codes, row by row.
    #[must_use]
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    pub(crate) fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The matrix, row by row.
    #[must_use]
    pub fn decode(&self) -> Vec<f32> {
        let Scales { steps, columns, rows } = &self.scales;
        let mut out = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks_exact(self.cols.max(1)).enumerate() {
            let of_row = rows.as_ref().map(|rows| rows[row].to_f32());
            for (col, code) in codes.iter().enumerate() {
                let step = match steps {
                    Steps::Matrix(step) => *step,
                    Steps::Groups { size, steps } => steps[row * self.cols.div_ceil(*size) + col / size],
                };
                let mut value = f32::from(*code) * step.to_f32();
                if let Some(columns) = columns {
                    value *= columns[col].to_f32();
                }
                if let Some(factor) = of_row {
                    value *= factor;
                }
                out.push(value);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_take_the_step_of_their_group_and_both_factors() {
        let steps = [0.5, 0.25, 1.0, 2.0].map(half).to_vec();
        let scales = Scales::from(Steps::Groups { size: 2, steps })
            .with_columns(Some([1.0, 2.0, 4.0].map(half).to_vec()))
            .with_rows(Some([1.0, -0.5].map(f16::from_f64).to_vec()));
        let found = Quantised::new(2, 3, vec![1, 1, 1, 127, -127, 3], scales).unwrap();
        assert_eq!(found.decode(), [0.5, 1.0, 1.0, -63.5, 127.0, -12.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let step = || Scales::from(Steps::Matrix(half(1.0)));
        assert!(Quantised::new(1, 2, vec![1], step()).is_err());
        assert!(Quantised::new(1, 1, vec![-128], step()).is_err());
        assert!(Quantised::new(usize::MAX, 2, vec![1], step()).is_err());
        assert!(Quantised::new(1, 1, vec![1], step().with_rows(Some(vec![]))).is_err());
        assert!(Quantised::new(1, 1, vec![1], Steps::Matrix(f16::INFINITY).into()).is_err());
        for size in [0, 2] {
            let groups = Steps::Groups { size, steps: vec![half(1.0); 2] };
            assert!(Quantised::new(1, 2, vec![1, 1], groups.into()).is_err());
        }
        assert!(half(0.0).to_f32() > 0.0 && half(1e9).is_finite());
    }
}
