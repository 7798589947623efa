//! Matrices of finite numbers in single precision: weights, and activations with one row per token.
//! It multiplies only for the reference in double precision.

use deltaloom::__internals::{Element, load_singles, to_usize};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Missing, Result};

use super::directions::normals;

/// Rows of finite F32 numbers, one after another; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// Creates a matrix of these elements.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are none, their number does not match the shape, or any
    /// is NaN or infinite.
    pub fn new(rows: usize, cols: usize, values: Vec<f32>) -> Result<Self> {
        let wrong = |what: String| Err(Error::InvalidArgument(what));
        if rows == 0 || cols == 0 {
            return wrong(format!("a matrix of {rows} x {cols} has no elements"));
        }
        if rows.checked_mul(cols) != Some(values.len()) {
            return wrong(format!("a matrix of {rows} x {cols} cannot have {} elements", values.len()));
        }
        if let Some(place) = values.iter().position(|v| !v.is_finite()) {
            let (row, col) = (place / cols, place % cols);
            return wrong(format!(
                "element [{row}, {col}] is {}; only finite numbers have an angle",
                values[place]
            ));
        }
        Ok(Self { rows, cols, values })
    }

    /// Independent normal numbers with the standard deviation `deviation`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are none, or more than 2^31.
    pub fn normal(rows: usize, cols: usize, deviation: f32, seed: u64) -> Result<Self> {
        let count = rows.checked_mul(cols).filter(|count| *count <= 1 << 31);
        let count =
            count.ok_or_else(|| Error::InvalidArgument(format!("too many numbers: {rows} x {cols}")))?;
        Self::new(rows, cols, normals(seed).take(count).map(|v| v * deviation).collect())
    }

    /// Reads a tensor of two dimensions; without a name, the one with the most elements.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if it is not a matrix of finite F32, BF16 or
    /// F16 numbers; [`Error::Io`].
    pub fn read(checkpoint: &Checkpoint, name: Option<&str>) -> Result<(String, Self)> {
        let is_matrix = |info: &TensorInfo| info.shape.len() == 2 && Element::of(&info.dtype).is_some();
        let found = match name {
            Some(name) => checkpoint.tensors().find(|(_, info)| info.name == name),
            None => {
                let matrices = checkpoint.tensors().filter(|(_, info)| is_matrix(info));
                matrices.reduce(|most, next| if elems(next.1) > elems(most.1) { next } else { most })
            }
        };
        let what = || name.map_or_else(|| "a matrix".to_owned(), |name| format!("tensor {name:?}"));
        let (member, info) = found.ok_or_else(|| Error::not_found(Missing::Tensor, what()))?;
        let (Some(element), [rows, cols]) = (Element::of(&info.dtype), &info.shape[..]) else {
            return Err(Error::InvalidArgument(format!(
                "tensor {:?} is {} of shape {:?}; a matrix of F32, BF16 or F16 is needed",
                info.name, info.dtype, info.shape
            )));
        };
        let bytes = checkpoint.read_tensor(member, info)?;
        let matrix = Self::new(to_usize(*rows), to_usize(*cols), load_singles(element, &bytes))
            .map_err(|e| Error::InvalidArgument(format!("tensor {:?}: {e}", info.name)))?;
        Ok((info.name.clone(), matrix))
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements, row by row.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Iterates over the rows.
    pub fn each_row(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.cols)
    }

    /// Exchanges rows and columns.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let column = |c: usize| self.values[c..].iter().step_by(self.cols).copied();
        Self { rows: self.cols, cols: self.rows, values: (0..self.cols).flat_map(column).collect() }
    }

    /// Subtracts another matrix of the same shape, rounded to F32.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the shapes differ, or a difference is too large.
    pub fn less(&self, other: &Self) -> Result<Self> {
        if (self.rows, self.cols) != (other.rows, other.cols) {
            return Err(Error::InvalidArgument(format!(
                "the shapes differ: {} x {} and {} x {}",
                self.rows, self.cols, other.rows, other.cols
            )));
        }
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a - b).collect();
        Self::new(self.rows, self.cols, values)
    }

    /// Computes the product with each row of `x` in double precision: a row of results for each.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the rows of `x` do not have as many elements as this matrix
    /// has columns.
    pub fn exact_product(&self, x: &Self) -> Result<Vec<f64>> {
        self.check_activations(x)?;
        let dot = |row: &[f32], x: &[f32]| {
            row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>()
        };
        Ok(x.each_row().flat_map(|x| self.each_row().map(move |row| dot(row, x))).collect())
    }

    /// Checks that `x` has a number for each column.
    pub(super) fn check_activations(&self, x: &Self) -> Result<()> {
        check_cols(self.cols, x)
    }
}

/// Checks that activations have a number for each column.
pub(super) fn check_cols(cols: usize, x: &Matrix) -> Result<()> {
    if x.cols == cols {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "activations have {} numbers, but the matrix has {cols} columns",
        x.cols
    )))
}

fn elems(info: &TensorInfo) -> u64 {
    info.shape.iter().fold(1, |n, d| n.saturating_mul(*d))
}
