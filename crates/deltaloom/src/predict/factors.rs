//! Two factors in integers, and their bytes; docs/format.md sections 3.1 and 3.10.
//! How they were found is not known here.

use std::slice;

use deltaloom_kernels::Number;
use deltaloom_kernels::bits::{BitReader, BitWriter};
use deltaloom_kernels::drift::{DriftFactor, DriftRows};
pub(crate) use deltaloom_kernels::product::MAX_RANK as MAX_FACTORS_RANK;
use deltaloom_kernels::product::{ProductRule, RightFactor};

use super::drift::DriftFactors;
use crate::entropy::bytes::ByteReader;
use crate::error::{Error, Result};
use crate::limits::{narrow, to_usize};
use crate::scratch::Scratch;
use crate::tensor::ChunkGrid;

const MAX_PARAMETER: u32 = 31;
/// Largest unary part of a Rice code.
const MAX_UNARY: u32 = 255;

/// A matrix as `scale * left * right`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Factors {
    pub(crate) rule: ProductRule,
    pub(crate) scale: f32,
    pub(crate) rank: usize,
    /// Rows of `rank`.
    pub(crate) left: Vec<i32>,
    /// `rank` rows, each with one number per column of the matrix.
    pub(crate) right: Vec<i32>,
}

impl Factors {
    /// The bytes that [`Self::parse`] reads. Every number's magnitude is below 2^30.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let cols = self.right.len() / self.rank;
        let column = |k: usize| self.left.iter().skip(k).step_by(self.rank).copied();
        let left_parameters: Vec<u8> = (0..self.rank).map(|k| parameter(column(k))).collect();
        let right_parameters: Vec<u8> =
            self.right.chunks_exact(cols).map(|row| parameter(row.iter().copied())).collect();
        let mut out = vec![self.rule as u8];
        out.extend_from_slice(&self.scale.to_le_bytes());
        out.extend_from_slice(&left_parameters);
        out.extend_from_slice(&right_parameters);
        let mut bits = BitWriter::default();
        for row in self.left.chunks_exact(self.rank) {
            row.iter().zip(&left_parameters).for_each(|(value, k)| push(&mut bits, *value, *k));
        }
        for (row, k) in self.right.chunks_exact(cols).zip(&right_parameters) {
            row.iter().for_each(|value| push(&mut bits, *value, *k));
        }
        out.extend_from_slice(&bits.finish());
        out
    }

    /// Reads the factors of a matrix of `rows` and `cols`.
    pub(crate) fn parse(bytes: &[u8], rank: usize, rows: usize, cols: usize) -> Result<Self> {
        let bad = || Error::corrupt("factors are not well-formed");
        let mut reader = ByteReader::new(bytes, "the factors of a tensor");
        let rule = match reader.u8()? {
            0 => ProductRule::Sum,
            1 => ProductRule::RoundedProduct,
            _ => return Err(bad()),
        };
        let scale = f32::from_le_bytes(reader.array()?);
        if !(1..=MAX_FACTORS_RANK).contains(&rank) {
            return Err(bad());
        }
        let left_parameters = reader.take(rank)?;
        let right_parameters = reader.take(rank)?;
        let coded = reader.rest();
        let is_parameter = |k: &u8| u32::from(*k) <= MAX_PARAMETER;
        // A number takes at least one bit, so the bytes that exist bound the allocations.
        let needed = rows.checked_add(cols).and_then(|sum| sum.checked_mul(rank)).ok_or_else(bad)?;
        if needed > coded.len().saturating_mul(8)
            || !left_parameters.iter().chain(right_parameters).all(is_parameter)
        {
            return Err(bad());
        }
        let mut bits = BitReader::new(coded);
        let mut left = Vec::with_capacity(rows * rank);
        for _ in 0..rows {
            for k in left_parameters {
                left.push(take(&mut bits, *k).ok_or_else(bad)?);
            }
        }
        let mut right = Vec::with_capacity(rank * cols);
        for k in right_parameters {
            for _ in 0..cols {
                right.push(take(&mut bits, *k).ok_or_else(bad)?);
            }
        }
        bits.finish(0)?;
        Ok(Self { rule, scale, rank, left, right })
    }

    /// The right factor ready for predicting.
    pub(crate) fn right_factor(&self, number: Number) -> Result<RightFactor> {
        RightFactor::new(number, self.scale, &self.right, self.rank, self.right.len() / self.rank)
            .ok_or_else(|| Error::corrupt("the scale or size of the factors is not allowed"))
    }
}

/// The matrices of a tensor that products are added to. They have the same size and follow each
/// other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Products<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// 0 for a matrix that has no product.
    pub(crate) ranks: &'a [usize],
    /// Whether the payload says how long the factors of each matrix are.
    pub(crate) has_lengths: bool,
}

impl<'a> Products<'a> {
    /// One product, added to the whole tensor.
    pub(crate) fn of_matrix(grid: &ChunkGrid, rank: &'a usize) -> Self {
        let (rows, cols) = (to_usize(grid.rows), to_usize(grid.cols));
        Self { rows, cols, ranks: slice::from_ref(rank), has_lengths: false }
    }

    /// The factors of all matrices from their payload.
    fn parse(&self, payload: &[u8]) -> Result<Vec<Option<Factors>>> {
        if !self.has_lengths {
            let factors = |rank: &usize| Factors::parse(payload, *rank, self.rows, self.cols).map(Some);
            return self.ranks.iter().map(factors).collect();
        }
        let mut reader = ByteReader::new(payload, "the factors of a tensor");
        let factors = |rank: &usize| {
            if *rank == 0 {
                return Ok(None);
            }
            let len_bytes = reader.size()?;
            Factors::parse(reader.take(len_bytes)?, *rank, self.rows, self.cols).map(Some)
        };
        let factors = self.ranks.iter().map(factors).collect::<Result<Vec<_>>>()?;
        if reader.rest().is_empty() { Ok(factors) } else { Err(Error::corrupt("factors are too long")) }
    }
}

/// Factors in the form that predicting needs: for each matrix of a tensor, if it has any.
pub(crate) struct ReadyFactors {
    /// Rows of a matrix.
    rows: usize,
    row_bytes: usize,
    matrices: Vec<Option<Product>>,
}

/// The product that is added to a matrix.
enum Product {
    LowRank(Factors, RightFactor),
    Drift(DriftRows, DriftFactor),
}

impl ReadyFactors {
    /// `factors` are those of the matrices of `rows` and `cols` in order.
    pub(crate) fn new(
        number: Number,
        (rows, cols): (usize, usize),
        factors: Vec<Option<Factors>>,
    ) -> Result<Self> {
        let ready = |factors: Option<Factors>| {
            let ready =
                |factors: Factors| factors.right_factor(number).map(|right| Product::LowRank(factors, right));
            factors.map(ready).transpose()
        };
        let matrices = factors.into_iter().map(ready).collect::<Result<_>>()?;
        Ok(Self { rows, row_bytes: cols * number.bytes(), matrices })
    }

    /// The factors of the only matrix, of `rows` and `cols`.
    pub(crate) fn of_drift(
        number: Number,
        (rows, cols): (usize, usize),
        factors: &DriftFactors,
    ) -> Result<Self> {
        let (left, right) = factors.ready(number)?;
        let matrices = vec![Some(Product::Drift(left, right))];
        Ok(Self { rows, row_bytes: cols * number.bytes(), matrices })
    }

    pub(crate) fn parse(number: Number, products: &Products<'_>, payload: &[u8]) -> Result<Self> {
        Self::new(number, (products.rows, products.cols), products.parse(payload)?)
    }

    /// Turns elements of the reference into their prediction. `start` is the first one's byte in
    /// the tensor.
    pub(crate) fn apply(&self, start: u64, values: &mut [u8]) {
        if values.is_empty() {
            return;
        }
        let row_bytes = self.row_bytes as u64;
        let (first, before) = (to_usize(start / row_bytes), to_usize(start % row_bytes));
        let after = before + values.len();
        if before == 0 && after.is_multiple_of(self.row_bytes) {
            return self.apply_to_rows(first, values);
        }
        // Chunks end where rows of the grid do, and those may be parts of rows of a matrix.
        let mut rows = Scratch::of_len(after.next_multiple_of(self.row_bytes));
        rows.fill(0);
        rows[before..after].copy_from_slice(values);
        self.apply_to_rows(first, &mut rows);
        values.copy_from_slice(&rows[before..after]);
    }

    fn apply_to_rows(&self, mut first: usize, mut values: &mut [u8]) {
        while !values.is_empty() {
            let (matrix, row) = (first / self.rows, first % self.rows);
            let rows = (values.len() / self.row_bytes).min(self.rows - row);
            let (now, later) = values.split_at_mut(rows * self.row_bytes);
            match &self.matrices[matrix] {
                Some(Product::LowRank(factors, right)) => {
                    let rank = factors.rank;
                    right.predict(factors.rule, &factors.left[row * rank..(row + rows) * rank], now);
                }
                Some(Product::Drift(left, right)) => right.predict(left, row, now),
                None => {}
            }
            (first, values) = (first + rows, later);
        }
    }
}

/// The parameter with which the numbers take the fewest bits.
fn parameter(values: impl Iterator<Item = i32> + Clone) -> u8 {
    let largest = values.clone().map(fold).max().unwrap_or(0);
    let least = (u32::BITS - largest.leading_zeros()).saturating_sub(MAX_UNARY.ilog2() + 1);
    // Codes are shortest if the quotients are about 1. The neighbours of that parameter are tried,
    // too.
    let mean = values.clone().map(|value| u64::from(fold(value))).sum::<u64>()
        / values.clone().count().max(1) as u64;
    let near = (u64::BITS - mean.leading_zeros()).saturating_sub(1);
    let bits_with =
        |k: &u32| values.clone().map(|value| u64::from(fold(value) >> k) + 1 + u64::from(*k)).sum::<u64>();
    let tried = [near.saturating_sub(1), near, near + 1].map(|k| k.clamp(least, MAX_PARAMETER));
    let best = tried.into_iter().min_by_key(bits_with).unwrap_or(least);
    narrow(best, "at most MAX_PARAMETER")
}

fn fold(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)).cast_unsigned()
}

fn push(bits: &mut BitWriter, value: i32, parameter: u8) {
    let u = fold(value);
    let mut ones = u >> parameter;
    while ones >= 32 {
        bits.push(u64::from(u32::MAX), 32);
        ones -= 32;
    }
    bits.push((1 << ones) - 1, ones + 1);
    bits.push((u & ((1 << parameter) - 1)).into(), parameter.into());
}

fn take(bits: &mut BitReader<'_>, parameter: u8) -> Option<i32> {
    let mut ones = 0;
    loop {
        let next = bits.clone().take(32);
        let run = (!next).trailing_zeros().min(32);
        ones += run;
        bits.take(run);
        if ones > MAX_UNARY {
            return None;
        }
        if run < 32 {
            bits.take(1);
            break;
        }
    }
    let u = u64::from(ones) << parameter | bits.take(parameter.into());
    let u = u32::try_from(u).ok()?;
    Some((u >> 1).cast_signed() ^ -(u & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(rows in 0usize..20, cols in 1usize..20, rank in 1usize..5, values in prop::collection::vec((any::<i32>(), 2u32..32), 1..50)) {
            let value = |i: usize| values[i % values.len()].0 >> values[i % values.len()].1;
            let factors = Factors {
                rule: ProductRule::RoundedProduct, scale: 0.25, rank,
                left: (0..rows * rank).map(value).collect(), right: (0..rank * cols).map(|i| value(i * 3 + 1)).collect(),
            };
            let bytes = factors.to_bytes();
            prop_assert_eq!(&Factors::parse(&bytes, rank, rows, cols).unwrap(), &factors);
            prop_assert!(Factors::parse(&bytes[..bytes.len() - 1], rank, rows, cols).is_err());
            prop_assert!(Factors::parse(&[&bytes[..], &[0]].concat(), rank, rows, cols).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100), rank in 0usize..4, rows in 0usize..10, cols in 1usize..10) {
            let bytes = [&[0, 0, 0, 0, 62][..], &bytes].concat();
            if let Ok(factors) = Factors::parse(&bytes, rank, rows, cols) {
                prop_assert_eq!((factors.left.len(), factors.right.len()), (rows * factors.rank, factors.rank * cols));
            }
        }
    }

    #[test]
    fn hostile_sizes_do_not_allocate() {
        let factors = Factors { rule: ProductRule::Sum, scale: 1.0, rank: 1, left: vec![1], right: vec![1] };
        let bytes = factors.to_bytes();
        for (rows, cols) in [(usize::MAX, 1), (usize::MAX / 2, 1), (1, 1 << 40)] {
            assert!(Factors::parse(&bytes, 1, rows, cols).is_err());
        }
    }
}
