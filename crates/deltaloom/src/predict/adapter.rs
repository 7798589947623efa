//! A low-rank adapter, merged into its base operation by operation as adapter libraries do it;
//! docs/format.md section 3.2.
//! It computes a prediction from a known order of operations. [`crate::pack`] finds the order.
//!
//! LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.

use deltaloom_kernels::adapter;

use std::fmt;

use super::number::{Element, load_singles, store_singles_or};
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

impl Adapter {
    /// The tensors that it needs: `reference`, A and B.
    pub(super) fn references(&self, info: &TensorInfo, reference: TensorInfo) -> Vec<TensorInfo> {
        let (rows, cols) = match info.shape[..] {
            [rows, cols] if !self.merge.transposed => (rows, cols),
            [rows, cols] => (cols, rows),
            _ => (0, 0),
        };
        let factor = |name: &String, shape| TensorInfo::sized(name.clone(), self.dtype.dtype(), shape);
        let [a, b] = &self.factors;
        vec![reference, factor(a, vec![self.rank, cols]), factor(b, vec![rows, self.rank])]
    }

    /// U and V for some rows of the tensor, from the bytes of A and B. For a plain merge, `b` has
    /// only these rows. For a transposed one, `a` has all columns.
    pub(crate) fn factors(&self, a: &[u8], b: &[u8], rows: std::ops::Range<usize>) -> Factors {
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
        if self.merge.scale_first {
            factors.u.iter_mut().for_each(|u| *u *= self.scale);
        }
        factors
    }

    /// Turns rows of the reference into their prediction.
    pub(crate) fn apply(&self, element: Element, factors: &Factors, values: &mut [u8]) {
        let rank = to_usize(self.rank);
        let cols = factors.v.len() / rank;
        let mut update = vec![0.0; cols];
        for (u, row) in factors.u.chunks_exact(rank).zip(values.chunks_exact_mut(cols * element.bytes())) {
            adapter::product_row(u, &factors.v, self.merge.fused, &mut update);
            if let Some(product) = self.merge.product {
                update.iter_mut().for_each(|x| *x = rounded(*x, product));
            }
            if !self.merge.scale_first {
                update.iter_mut().for_each(|x| *x *= self.scale);
            }
            if let Some(to) = self.merge.update {
                update.iter_mut().for_each(|x| *x = rounded(*x, to));
            }
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

fn rounded(x: f32, element: Element) -> f32 {
    match element {
        Element::F32 => x,
        Element::BF16 => half::bf16::from_f32(x).to_f32(),
        Element::F16 => half::f16::from_f32(x).to_f32(),
    }
}
