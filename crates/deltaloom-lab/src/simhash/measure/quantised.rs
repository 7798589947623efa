//! Symmetric quantisation of a matrix to 2, 4 or 8 bits with a scale per row or group, for
//! comparison with hashed products.
//!
//! Scales are searched for the least squared error of the weights; activations are unchanged.

use deltaloom_kernels::dense::{Weights, products};
use deltaloom_kernels::quantised::{BLOCK, CodeBits, pack_block, widen_codes};

use crate::simhash::Matrix;

/// Scales to try, in 1/32 of the one that maps the largest weight to the largest code.
const TRIED: std::ops::RangeInclusive<u16> = 8..=32;

/// A quantised matrix; rows are padded with zeros to whole blocks.
pub(super) struct Quantised {
    width: CodeBits,
    rows: usize,
    elems: usize,
    group: usize,
    row_codes: usize,
    codes: Vec<u8>,
    /// BF16.
    scales: Vec<u16>,
}

impl Quantised {
    /// Quantises with one scale per `group` weights of a row, which is a multiple of [`BLOCK`], or
    /// per row.
    pub(super) fn new(matrix: &Matrix, width: CodeBits, group: Option<usize>) -> Self {
        let row_codes = matrix.cols().next_multiple_of(BLOCK);
        let group = group.unwrap_or(row_codes);
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in matrix.each_row() {
            for weights in row.chunks(group) {
                let scale = best_scale(weights, width);
                scales.push(scale.to_bits());
                for block in weights.chunks(BLOCK) {
                    let code = |i: usize| block.get(i).map_or(0, |w| code_of(*w, scale.to_f32(), width));
                    pack_block(width, &std::array::from_fn(code), &mut codes);
                }
            }
        }
        Self { width, rows: matrix.rows(), elems: matrix.values().len(), group, row_codes, codes, scales }
    }

    /// Bits per weight, including its share of scales and padding.
    pub(super) fn bits_per_weight(&self) -> f64 {
        (self.codes.len() * 8 + self.scales.len() * 16) as f64 / self.elems as f64
    }

    /// Adds the product with each row of `x` to `out`. A row of weights is widened once for all
    /// tokens.
    pub(super) fn add_product(&self, x: &Matrix, out: &mut [f32]) {
        let (mut weights, mut sums) = (vec![0.0; self.row_codes], vec![0.0; x.rows()]);
        let row_bytes = self.row_codes * self.width.bits() / 8;
        let rows =
            self.codes.chunks_exact(row_bytes).zip(self.scales.chunks(self.row_codes.div_ceil(self.group)));
        for (i, (codes, scales)) in rows.enumerate() {
            widen_codes(self.width, codes, scales, self.group, &mut weights);
            products(Weights::Numbers(&weights[..x.cols()]), x.cols(), x.values(), &mut sums);
            out.chunks_exact_mut(self.rows).zip(&sums).for_each(|(out, sum)| out[i] += sum);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to the codes")]
fn code_of(weight: f32, scale: f32, width: CodeBits) -> i8 {
    let largest = f32::from(width.largest());
    if scale > 0.0 { (weight / scale).round().clamp(-largest, largest) as i8 } else { 0 }
}

/// The scale with the least squared error; the largest of equal ones.
fn best_scale(weights: &[f32], width: CodeBits) -> half::bf16 {
    let most = weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
    let whole = most / f32::from(width.largest());
    let error = |scale: half::bf16| {
        let scale = scale.to_f32();
        let squares = weights.iter().map(|w| {
            let error = f64::from(*w) - f64::from(code_of(*w, scale, width)) * f64::from(scale);
            error * error
        });
        squares.sum::<f64>()
    };
    let tried = TRIED.rev().map(|part| half::bf16::from_f32(whole * f32::from(part) / 32.0));
    let best = tried.map(|scale| (error(scale), scale)).reduce(|a, b| if b.0 < a.0 { b } else { a });
    best.map_or(half::bf16::ZERO, |(_, scale)| scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simhash::Dense;

    fn product(quantised: &Quantised, x: &Matrix) -> Vec<f32> {
        let mut out = vec![0.0; quantised.rows * x.rows()];
        quantised.add_product(x, &mut out);
        out
    }

    #[test]
    fn weights_are_off_by_half_a_step_at_most_where_none_is_clipped() {
        let weights = Matrix::normal(6, 70, 0.02, 1).unwrap();
        // Unit vectors return the weights.
        let units = (0..70).flat_map(|i| (0..70).map(move |j| if i == j { 1.0 } else { 0.0 })).collect();
        let units = Matrix::new(70, 70, units).unwrap();
        let largest = weights.values().iter().fold(0.0f32, |most, w| most.max(w.abs()));
        let quantised = Quantised::new(&weights, CodeBits::Eight, Some(32));
        let columns = product(&quantised, &units);
        for (j, column) in columns.chunks_exact(6).enumerate() {
            for (i, found) in column.iter().enumerate() {
                let weight = weights.values()[i * 70 + j];
                // Half a step of the largest possible scale, plus the rounding of a BF16 scale.
                assert!((found - weight).abs() <= largest * (0.5 / 127.0 + 1.0 / 256.0), "{found} {weight}");
            }
        }
    }

    #[test]
    fn errors_of_normal_weights_are_those_of_good_quantisers() {
        let (weights, x) =
            (Matrix::normal(64, 320, 0.02, 1).unwrap(), Matrix::normal(16, 320, 1.0, 2).unwrap());
        let exact = weights.exact_product(&x).unwrap();
        let energy: f64 = exact.iter().map(|y| y * y).sum();
        let nmse = |width, group| {
            let found = product(&Quantised::new(&weights, width, group), &x);
            found.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>() / energy
        };
        // For normal numbers the best three levels leave 0.19, the best fifteen equidistant ones
        // 0.012 (Max, 1960).
        assert!((0.17..0.21).contains(&nmse(CodeBits::Two, None)), "{}", nmse(CodeBits::Two, None));
        assert!((0.009..0.016).contains(&nmse(CodeBits::Four, None)), "{}", nmse(CodeBits::Four, None));
        assert!(nmse(CodeBits::Four, Some(32)) < nmse(CodeBits::Four, None));
        assert!(nmse(CodeBits::Eight, None) < 1e-4, "{}", nmse(CodeBits::Eight, None));
        assert!(Dense::new(&weights).unwrap().bits_per_weight() == 32.0);
        let bits = |width, group| Quantised::new(&weights, width, group).bits_per_weight();
        assert_eq!([bits(CodeBits::Two, None), bits(CodeBits::Four, Some(32))], [2.05, 4.5]);
    }

    #[test]
    fn zeros_and_tiny_weights_are_codes_too() {
        let weights = Matrix::new(2, 3, vec![0.0, 0.0, 0.0, 1e-45, -1e-45, 0.0]).unwrap();
        let x = Matrix::new(1, 3, vec![1.0, 2.0, 3.0]).unwrap();
        assert!(product(&Quantised::new(&weights, CodeBits::Four, None), &x).iter().all(|y| y.abs() < 1e-40));
    }
}
