//! Factored embeddings: rows of a few numbers and one projection. Tokens count by how often they
//! occur; a head also weighs directions by how large its inputs are there.

use super::Statistics;
use super::low_rank::Whitening;
use crate::matrix::{Eigen, Matrix};

/// Factors `[vocabulary, rank]` and `[rank, width]` of an embedding `[vocabulary, width]`, for any
/// rank: the projections are the first columns of what this holds.
pub struct Directions {
    /// Orthogonal directions of the weighted rows, the one with the most energy first.
    vectors: Matrix,
    /// The power of second moments that weighed columns, and its inverse.
    whitening: Option<[Matrix; 2]>,
}

impl Directions {
    /// Of an embedding, whose rows occur with these frequencies. With `inputs` it is a head, which
    /// reads them.
    #[must_use]
    pub fn new(embedding: &Matrix, frequencies: &[f64], inputs: Option<&Statistics>) -> Self {
        let whitening = inputs.map(|inputs| {
            let whitening = Whitening::new(inputs);
            [whitening.power(0.5), whitening.power(-0.5)]
        });
        let weighted = embedding.scaled_rows(frequencies.iter().map(|share| share.sqrt()));
        let weighted = match &whitening {
            Some([root, _]) => weighted.times(root),
            None => weighted,
        };
        let Eigen { vectors, .. } = weighted.transposed().times(&weighted).eigen();
        Self { vectors, whitening }
    }

    /// The factors of a rank.
    #[must_use]
    pub fn factors(&self, embedding: &Matrix, rank: usize) -> [Matrix; 2] {
        let vectors = self.vectors.first_cols(rank.min(self.vectors.cols()));
        let turned = vectors.transposed();
        match &self.whitening {
            Some([root, inverse]) => [embedding.times(&root.times(&vectors)), turned.times(inverse)],
            None => [embedding.times(&vectors), turned],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_matrices::{inputs, weights};
    use super::*;

    #[test]
    fn weights_of_rows_and_inputs_lower_the_error_they_name() {
        let (embedding, inputs) = (weights(300, 24), inputs(24));
        let frequencies: Vec<f64> = (1..=300).map(|rank| 1.0 / f64::from(rank)).collect();
        let even = vec![1.0; 300];
        let error = |directions: Directions| {
            let [rows, projection] = directions.factors(&embedding, 8);
            embedding.plus(-1.0, &rows.times(&projection))
        };
        let by_frequency = |error: &Matrix| {
            let error = error.scaled_rows(frequencies.iter().map(|share| share.sqrt()));
            error.dot(&error)
        };
        let plain = error(Directions::new(&embedding, &even, None));
        let weighted = error(Directions::new(&embedding, &frequencies, None));
        assert!(
            by_frequency(&weighted) < by_frequency(&plain) && plain.dot(&plain) < weighted.dot(&weighted)
        );
        let head = error(Directions::new(&embedding, &even, Some(&inputs)));
        assert!(inputs.distortion(&embedding, &head) < inputs.distortion(&embedding, &plain));
    }
}
