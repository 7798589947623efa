//! A matrix as signatures and norms of its rows, or of their pieces in blocks. Products are
//! estimated from Hamming distances. The matrix itself is not kept.

use std::f64::consts::PI;

use deltaloom_kernels::signature::{WORD_BITS, add_estimates};
use serde::Serialize;

use super::columns::squares;
use super::directions::{Directions, Projection, words_of};
use super::matrix::{Matrix, check_cols};
use deltaloom::{Error, Result};

/// The parts of a matrix that get a signature and a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pieces {
    /// Each row.
    Rows,
    /// Each row of each block. The signatures of a block are adjacent, and are compared with one of
    /// the activations.
    Blocks {
        /// Number of rows of a block.
        rows: usize,
        /// Number of columns of a block: elements of a piece.
        cols: usize,
    },
}

/// How a matrix is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashSettings {
    /// Bits of a signature: a multiple of 64 up to 1024.
    pub bits: usize,
    /// The parts that get a signature.
    pub pieces: Pieces,
    /// How directions are drawn.
    pub projection: Projection,
    /// Each seed draws different directions.
    pub seed: u64,
}

/// Signatures and norms of a matrix.
#[derive(Debug, Clone)]
pub struct HashedMatrix {
    rows: usize,
    cols: usize,
    block_rows: usize,
    piece: usize,
    directions: Directions,
    /// Blocks in order along the rows; within each, pieces from top to bottom.
    signatures: Vec<u64>,
    /// BF16, in the same order.
    norms: Vec<u16>,
    /// The cosine for each Hamming distance.
    cosines: Vec<f32>,
}

/// Signatures and norms of activations: for each token, those of its pieces.
#[derive(Debug, Clone)]
pub struct HashedActivations {
    tokens: usize,
    signatures: Vec<u64>,
    norms: Vec<f32>,
}

impl HashedMatrix {
    /// Hashes a matrix.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the bits are a multiple of 64 up to 1024, or if a block is
    /// empty or larger than the matrix.
    pub fn new(matrix: &Matrix, settings: &HashSettings) -> Result<Self> {
        let words = words_of(settings.bits)?;
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let (block_rows, piece) = match settings.pieces {
            Pieces::Rows => (rows, cols),
            Pieces::Blocks { rows: r, cols: c } if (1..=rows).contains(&r) && (1..=cols).contains(&c) => {
                (r, c)
            }
            Pieces::Blocks { rows: r, cols: c } => {
                return Err(Error::InvalidArgument(format!(
                    "blocks of {r} x {c} in a matrix of {rows} x {cols}"
                )));
            }
        };
        let directions = Directions::new(settings.projection, words, piece, settings.seed);
        let pieces = rows * cols.div_ceil(piece);
        let (mut signatures, mut norms) = (vec![0; pieces * words], Vec::with_capacity(pieces));
        let mut each_signature = signatures.chunks_exact_mut(words);
        for block in matrix.values().chunks(block_rows * cols) {
            for start in (0..cols).step_by(piece) {
                for row in block.chunks_exact(cols) {
                    let piece = &row[start..cols.min(start + piece)];
                    let norm = half::bf16::from_f64(squares(piece).sqrt());
                    if !norm.is_finite() {
                        return Err(Error::InvalidArgument(
                            "the weights are too large for a norm".to_owned(),
                        ));
                    }
                    norms.push(norm.to_bits());
                    if let Some(signature) = each_signature.next() {
                        directions.sign(piece, signature);
                    }
                }
            }
        }
        let bits = settings.bits;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
        // The sine of the complement is exactly zero in the middle and odd around it.
        let cosines = (0..=bits).map(|h| (PI * (0.5 - h as f64 / bits as f64)).sin() as f32).collect();
        Ok(Self { rows, cols, block_rows, piece, directions, signatures, norms, cosines })
    }

    /// Bits per weight, including its share of signature and norm (BF16). Directions come from the
    /// seed and are not counted.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        (self.signatures.len() * WORD_BITS + self.norms.len() * 16) as f64 / (self.rows * self.cols) as f64
    }

    /// Expected NMSE by the law of signatures if activations and weights are unrelated: pi^2 / 4 x
    /// dimensions of a signature / bits, 2.47 d / b.
    #[must_use]
    pub fn predicted_nmse(&self) -> f64 {
        let (whole, last) = (self.cols / self.piece, self.cols % self.piece);
        let squares = whole * self.piece * self.piece + last * last;
        let dims = squares as f64 / self.cols as f64;
        PI * PI / 4.0 * dims / (self.directions.words() * WORD_BITS) as f64
    }

    /// Hashes the rows of `x`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they do not have as many elements as the matrix has columns.
    pub fn hash(&self, x: &Matrix) -> Result<HashedActivations> {
        check_cols(self.cols, x)?;
        Ok(self.hash_values(x.values()))
    }

    /// The same for whole rows of finite numbers.
    pub(crate) fn hash_values(&self, values: &[f32]) -> HashedActivations {
        let words = self.directions.words();
        let (mut signatures, mut norms) = (Vec::new(), Vec::new());
        for row in values.chunks_exact(self.cols) {
            for piece in row.chunks(self.piece) {
                #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
                norms.push(squares(piece).sqrt() as f32);
                let start = signatures.len();
                signatures.resize(start + words, 0);
                self.directions.sign(piece, &mut signatures[start..]);
            }
        }
        HashedActivations { tokens: values.len() / self.cols, signatures, norms }
    }

    /// Adds the estimated product to `out`, which has a row for each token.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the sizes do not fit, because the activations were hashed for
    /// another matrix.
    pub fn add_estimate(&self, x: &HashedActivations, out: &mut [f32]) -> Result<()> {
        let words = self.directions.words();
        let pieces = self.cols.div_ceil(self.piece);
        let fits = x.norms.len() == x.tokens * pieces
            && x.signatures.len() == x.norms.len() * words
            && out.len() == x.tokens * self.rows;
        if !fits {
            return Err(Error::InvalidArgument("the activations were hashed for another matrix".to_owned()));
        }
        let mut start = 0;
        for first_row in (0..self.rows).step_by(self.block_rows) {
            let rows = self.block_rows.min(self.rows - first_row);
            for piece in 0..pieces {
                let signatures = &self.signatures[start * words..(start + rows) * words];
                let norms = &self.norms[start..start + rows];
                start += rows;
                for (token, out) in out.chunks_exact_mut(self.rows).enumerate() {
                    let place = token * pieces + piece;
                    let query = &x.signatures[place * words..][..words];
                    let out = &mut out[first_row..first_row + rows];
                    add_estimates(query, signatures, norms, &self.cosines, x.norms[place], out);
                }
            }
        }
        Ok(())
    }
}
