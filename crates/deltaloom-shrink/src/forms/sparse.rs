//! Values at some places of a matrix.

use deltaloom::Result;
use serde::{Deserialize, Serialize};

use super::{Form, wrong};

/// Which places may have values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pattern {
    /// Any.
    Any,
    /// At most `keep` of each `of` columns that follow each other.
    NOfM {
        /// Number of places with values.
        keep: usize,
        /// Number of columns.
        of: usize,
    },
}

impl Pattern {
    /// Its name: `any`, or `2:4`.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Any => "any".to_owned(),
            Self::NOfM { keep, of } => format!("{keep}:{of}"),
        }
    }
}

/// A matrix with values at some places, and 0 elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Sparse {
    rows: usize,
    cols: usize,
    pattern: Pattern,
    /// A bit per element, rows from a byte on, the first column in the lowest bit.
    bits: Vec<u8>,
    /// The values as one row.
    values: Box<Form>,
    count: usize,
}

impl Sparse {
    /// A matrix `[rows, cols]` with a bit per element that has a value, and the values as one row.
    ///
    /// # Errors
    /// [`deltaloom::Error::InvalidArgument`] for another number of bits, for bits behind the last
    /// column, and for rows that do not follow the pattern.
    pub fn new(rows: usize, cols: usize, pattern: Pattern, bits: Vec<u8>, values: Form) -> Result<Self> {
        if rows.checked_mul(cols.div_ceil(8)) != Some(bits.len()) {
            return wrong(format!("{} bytes of bits for a matrix [{rows}, {cols}]", bits.len()));
        }
        let unused = u8::MAX.checked_shl(u32::try_from(cols % 8).unwrap_or(0)).unwrap_or(0);
        let of_row = cols.div_ceil(8).max(1);
        if !cols.is_multiple_of(8) && bits.chunks_exact(of_row).any(|row| row[of_row - 1] & unused != 0) {
            return wrong("a bit behind the last column is set");
        }
        let count = bits.iter().map(|byte| byte.count_ones() as usize).sum();
        let sparse = Self { rows, cols, pattern, bits, values: Box::new(values), count };
        if let Pattern::NOfM { keep, of } = pattern {
            let is_wrong = |row: usize| {
                let kept: Vec<bool> = (0..cols).map(|col| sparse.has(row, col)).collect();
                kept.chunks(of).any(|some| some.iter().filter(|kept| **kept).count() > keep)
            };
            if keep == 0 || of <= keep || (0..rows).any(is_wrong) {
                return wrong(format!("places of a sparse matrix are not {}", pattern.name()));
            }
        }
        Ok(sparse)
    }

    /// A matrix of the places with `true`, in bits.
    #[must_use]
    pub fn bits_of(kept: &[bool], cols: usize) -> Vec<u8> {
        let rows = kept.chunks_exact(cols.max(1));
        let byte = |some: &[bool]| some.iter().rev().fold(0, |byte, kept| byte << 1 | u8::from(*kept));
        rows.flat_map(|row| row.chunks(8).map(byte)).collect()
    }

    fn has(&self, row: usize, col: usize) -> bool {
        self.bits[row * self.cols.div_ceil(8) + col / 8] >> (col % 8) & 1 == 1
    }

    /// The same places with other values, as one row of as many.
    #[must_use]
    pub fn with_values(self, values: Form) -> Self {
        Self { values: Box::new(values), ..self }
    }

    /// Which places may have values.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Number of values.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn bits(&self) -> &[u8] {
        &self.bits
    }

    pub(crate) fn values(&self) -> &Form {
        &self.values
    }

    /// The matrix, row by row.
    #[must_use]
    pub fn decode(&self) -> Vec<f32> {
        let mut values = self.values.decode(1, self.count).into_iter();
        let places = (0..self.rows).flat_map(|row| (0..self.cols).map(move |col| (row, col)));
        places.map(|(row, col)| if self.has(row, col) { values.next().unwrap_or(0.0) } else { 0.0 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dense, FloatType};
    use super::*;

    fn values(values: &[f32]) -> Form {
        Form::Dense(Dense::new(FloatType::F32, values.to_vec()))
    }

    #[test]
    fn values_go_to_the_places_of_set_bits() {
        let kept = [
            true, false, false, false, false, false, false, false, true, false, false, true, false, false,
            false, false, false, false,
        ];
        let bits = Sparse::bits_of(&kept, 9);
        assert_eq!(bits, [1, 1, 4, 0]);
        let found = Sparse::new(2, 9, Pattern::Any, bits, values(&[1.0, 2.0, 3.0])).unwrap();
        let decoded = found.decode();
        assert_eq!((decoded[0], decoded[8], decoded[11], found.count()), (1.0, 2.0, 3.0, 3));
        assert_eq!(decoded.iter().filter(|value| **value == 0.0).count(), 15);
    }

    #[test]
    fn bits_that_do_not_fit_are_refused() {
        let two_of_four = Pattern::NOfM { keep: 2, of: 4 };
        assert!(Sparse::new(1, 8, two_of_four, vec![0b0101_0011], values(&[1.0; 4])).is_ok());
        assert!(Sparse::new(1, 8, two_of_four, vec![0b0111_0001], values(&[1.0; 4])).is_err());
        assert!(Sparse::new(1, 4, Pattern::Any, vec![0b1_0000], values(&[1.0])).is_err());
        assert!(Sparse::new(2, 4, Pattern::Any, vec![1], values(&[1.0])).is_err());
    }
}
