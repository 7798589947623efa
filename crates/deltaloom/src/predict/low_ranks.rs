//! A tensor of a base plus products, each added to a matrix that is a part of it;
//! docs/format.md section 3.10.
//! [`super::factors`] has the factors.

use std::fmt;

use super::factors::{MAX_FACTORS_RANK, Products};
use super::fields;
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::tensor::TensorInfo;

/// Most matrices that a tensor consists of.
pub(crate) const MAX_MATRICES: u64 = 1 << 16;

/// What the index says of the products.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LowRanks {
    /// `None` stands for the name of the predicted tensor.
    pub(crate) reference: Option<String>,
    /// Columns of every matrix.
    pub(crate) width: u64,
    /// Of the matrices in order; 0 if nothing is added.
    pub(crate) ranks: Vec<usize>,
}

impl LowRanks {
    /// The matrices of a tensor that fits, which `info` describes.
    pub(super) fn products(&self, info: &TensorInfo) -> Products<'_> {
        let rows = info.elems() / (self.width * self.ranks.len() as u64);
        let (rows, cols) = (to_usize(rows), to_usize(self.width));
        Products { rows, cols, ranks: &self.ranks, has_lengths: true }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        fields::push_name(meta, &self.reference);
        push_varint(meta, self.width);
        push_varint(meta, self.ranks.len() as u64);
        self.ranks.iter().for_each(|rank| push_varint(meta, *rank as u64));
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>, info: &TensorInfo) -> Result<Self> {
        let reference = fields::name(meta)?;
        let width = fields::within(meta, 1..=u64::MAX, "width")?;
        let count = fields::within(meta, 1..=MAX_MATRICES, "number of matrices")?;
        let elems = info.elems();
        let is_divided = width.checked_mul(count).is_some_and(|part| elems.is_multiple_of(part));
        if elems == 0 || !is_divided {
            return Err(fields::bad("width"));
        }
        let rank = |_| fields::within(meta, 0..=MAX_FACTORS_RANK as u64, "rank").map(to_usize);
        let ranks = (0..count).map(rank).collect::<Result<Vec<usize>>>()?;
        match ranks.iter().any(|rank| *rank > 0) {
            true => Ok(Self { reference, width, ranks }),
            false => Err(fields::bad("rank")),
        }
    }
}

impl fmt::Display for LowRanks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.ranks.iter().max().unwrap_or(&0);
        match self.ranks.len() {
            1 => write!(f, "rank {most}, rows of {}", self.width),
            count => write!(f, "rank up to {most}, {count} matrices, rows of {}", self.width),
        }
    }
}
