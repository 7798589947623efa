//! A low-rank adapter, merged into its base operation by operation as adapter libraries do it;
//! docs/format.md section 3.2.
//! It computes a prediction from a known order of operations. [`crate::origin`] finds the order.
//!
//! LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.

use deltaloom_kernels::adapter;

use std::fmt;
use std::ops::Range;

use super::fields;
use super::number::{Element, load_singles, rounded, store_singles_or};
use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::tensor::TensorInfo;

/// Highest rank of an adapter.
pub(crate) const MAX_RANK: u64 = 1024;

/// How an adapter was merged.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adapter {
    /// Name of the tensor it was added to. `None` stands for the tensor's own name.
    pub reference: Option<String>,
    /// Names of the factors: A of shape (rank, inputs), B of shape (outputs, rank).
    pub factors: [String; 2],
    /// Columns of B.
    pub rank: u64,
    /// Scale of the product.
    pub scale: f32,
    /// The order of operations.
    pub merge: Merge,
    pub(crate) dtype: Element,
}

/// The order of operations of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Merge {
    /// Products and sums are rounded together.
    pub fused: bool,
    /// B is scaled before the product, not the product after it.
    pub scale_first: bool,
    /// The tensor is stored as (inputs, outputs).
    pub transposed: bool,
    pub(crate) product: Option<Element>,
    pub(crate) update: Option<Element>,
}

/// The factors of a tensor, or of some of its rows, stored row by row: U (rows, rank) and V (rank,
/// columns).
pub(crate) struct Factors {
    pub(crate) u: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Merge {
    /// Scales the left matrix, if that comes first.
    pub(crate) fn prepare(&self, u: &mut [f32], scale: f32) {
        if self.scale_first {
            u.iter_mut().for_each(|u| *u *= scale);
        }
    }

    /// What is added to a row, from the row of the left matrix and the right matrix.
    pub(crate) fn update_row(&self, u: &[f32], v: &[f32], scale: f32, update: &mut [f32]) {
        adapter::product_row(u, v, self.fused, update);
        if let Some(product) = self.product {
            update.iter_mut().for_each(|x| *x = rounded(*x, product));
        }
        if !self.scale_first {
            update.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(to) = self.update {
            update.iter_mut().for_each(|x| *x = rounded(*x, to));
        }
    }
}

impl Adapter {
    /// Name, dtype and shape of A (0) or B (1), if the predicted tensor is `info`.
    pub(super) fn factor(&self, which: usize, info: &TensorInfo) -> TensorInfo {
        let (rows, cols) = match info.shape[..] {
            [rows, cols] if !self.merge.transposed => (rows, cols),
            [rows, cols] => (cols, rows),
            _ => (0, 0),
        };
        let shape = if which == 0 { vec![self.rank, cols] } else { vec![rows, self.rank] };
        TensorInfo::sized(self.factors[which].clone(), self.dtype.dtype(), shape)
    }

    /// The bytes of A and B that some rows of the tensor need: all of V, which is in A, and the
    /// rows of U from B; or the reverse, which needs all of both.
    pub(super) fn parts(&self, rows: &Range<u64>, info: &TensorInfo) -> [Range<u64>; 2] {
        let [a, b] = [0, 1].map(|which| self.factor(which, info).len_bytes());
        let row_bytes = self.rank * self.dtype.bytes() as u64;
        let of_b = if self.merge.transposed { 0..b } else { rows.start * row_bytes..rows.end * row_bytes };
        [0..a, of_b]
    }

    /// U and V for some rows of the tensor, from the bytes of A and B. For a plain merge, `b` has
    /// only these rows. For a transposed one, `a` has all columns.
    pub(crate) fn factors(&self, a: &[u8], b: &[u8], rows: Range<usize>) -> Factors {
        let rank = to_usize(self.rank);
        let (a, b) = (load_singles(self.dtype, a), load_singles(self.dtype, b));
        let mut factors = if self.merge.transposed {
            let width = a.len() / rank;
            let u = rows.flat_map(|row| a.iter().skip(row).step_by(width).copied()).collect();
            let v = (0..rank).flat_map(|k| b.iter().skip(k).step_by(rank).copied()).collect();
            Factors { u, v }
        } else {
            Factors { u: b, v: a }
        };
        self.merge.prepare(&mut factors.u, self.scale);
        factors
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        fields::push_name(meta, &self.reference);
        self.factors.iter().for_each(|name| push_text(meta, name));
        meta.push(fields::element_id(self.dtype));
        push_varint(meta, self.rank);
        meta.extend(self.scale.to_le_bytes());
        let Merge { fused, scale_first, transposed, product, update } = self.merge;
        meta.push(u8::from(fused) | u8::from(scale_first) << 1 | u8::from(transposed) << 2);
        meta.extend([product, update].map(|rounding| rounding.map_or(0, fields::element_id)));
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        let reference = fields::name(meta)?;
        let mut factor = || fields::name(meta)?.ok_or_else(|| fields::bad("name of a factor"));
        let factors = [factor()?, factor()?];
        let dtype = fields::element(meta)?;
        let rank = fields::within(meta, 1..=MAX_RANK, "rank")?;
        let scale = f32::from_le_bytes(meta.array()?);
        fields::finite(scale.into(), "scale")?;
        let flags = meta.u8()?;
        if flags > 7 {
            return Err(fields::bad("flag"));
        }
        let (product, update) = (fields::rounding(meta)?, fields::rounding(meta)?);
        let merge = Merge {
            fused: flags & 1 != 0,
            scale_first: flags & 2 != 0,
            transposed: flags & 4 != 0,
            product,
            update,
        };
        Ok(Self { reference, factors, rank, scale, merge, dtype })
    }

    /// Turns rows of the reference into their prediction.
    pub(crate) fn apply(&self, element: Element, factors: &Factors, values: &mut [u8]) {
        let rank = to_usize(self.rank);
        let cols = factors.v.len() / rank;
        let mut update = vec![0.0; cols];
        for (u, row) in factors.u.chunks_exact(rank).zip(values.chunks_exact_mut(cols * element.bytes())) {
            self.merge.update_row(u, &factors.v, self.scale, &mut update);
            let reference = load_singles(element, row);
            let sums = reference.iter().zip(&update).map(|(x, update)| x + update);
            let fallback = row.to_vec();
            store_singles_or(element, sums, &fallback, row);
        }
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}, scale {}", self.rank, self.scale)
    }
}
