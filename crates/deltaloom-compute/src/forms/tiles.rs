//! Entropy-coded tiles: the unchanged chunks of a container, decoded one by one during the product.
//! The smallest form, and the slowest with few tokens.

use std::ops::Range;
use std::sync::Arc;

use super::super::dense::MatrixShape;
use deltaloom::{ResolvedContainer, Result};

/// A tensor of a container.
#[derive(Clone)]
pub(in super::super) struct Tiles {
    resolved: Arc<ResolvedContainer>,
    number: usize,
}

impl std::fmt::Debug for Tiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiles").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Tiles {
    pub(in super::super) fn new(resolved: Arc<ResolvedContainer>, number: usize) -> Self {
        Self { resolved, number }
    }

    /// Number of rows that are decoded together; the last tile may have fewer.
    pub(in super::super) fn rows_per_tile(&self) -> usize {
        self.resolved.rows_per_chunk(self.number)
    }

    /// Number of bytes of the coded tiles.
    pub(in super::super) fn resident_bytes(&self) -> u64 {
        self.resolved.packed_bytes(self.number)
    }

    /// Decodes some rows into `out`; nothing is wasted if they are those of a tile.
    pub(in super::super) fn rows_into(
        &self,
        shape: MatrixShape,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        self.resolved.read_part_into(self.number, (rows.start * shape.row_bytes()) as u64, out)
    }
}
