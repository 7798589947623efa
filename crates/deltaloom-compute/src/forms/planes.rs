//! A mask of the changed elements, their low bytes, and the top bytes of the few in which those
//! change: smaller than a bitmap with whole values.
//!
//! Bits are copied, so it can hold any value.

use std::ops::Range;

use deltaloom_kernels::patch::{self, RowShape, WORD_ELEMS, planes_rows, row_words};

use super::super::dense::MatrixShape;
use super::{fit, narrow_count, push_mask, vec_bytes};
use deltaloom::Result;

/// Differences by byte plane.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Planes {
    mask: Vec<u64>,
    tops: Vec<u64>,
    lows: Vec<u8>,
    highs: Vec<u8>,
    /// For every row: the number of changed elements and of top bytes before it.
    starts: Vec<[u32; 2]>,
    changed: usize,
}

impl Planes {
    /// Adds a row.
    pub(in super::super) fn push_row(&mut self, shape: MatrixShape, base: &[u8], tuned: &[u8]) -> Result<()> {
        self.starts.push([narrow_count(self.changed)?, narrow_count(self.highs.len())?]);
        let Self { mask, tops, lows, highs, changed, .. } = self;
        push_mask(shape, base, tuned, mask, |_, from, to| {
            if changed.is_multiple_of(WORD_ELEMS) {
                tops.push(0);
            }
            if let ([_, .., from], [low @ .., to]) = (from, to) {
                lows.extend_from_slice(low);
                if from != to {
                    tops[*changed / WORD_ELEMS] |= 1 << (*changed % WORD_ELEMS);
                    highs.push(*to);
                }
            }
            *changed += 1;
        });
        Ok(())
    }

    /// Frees unused memory.
    pub(in super::super) fn shrink(&mut self) {
        fit(&mut self.mask);
        fit(&mut self.tops);
        fit(&mut self.lows);
        fit(&mut self.highs);
        fit(&mut self.starts);
    }

    /// Number of bytes in memory.
    pub(in super::super) fn resident_bytes(&self) -> u64 {
        let masks = vec_bytes(&self.mask) + vec_bytes(&self.tops);
        masks + vec_bytes(&self.lows) + vec_bytes(&self.highs) + vec_bytes(&self.starts)
    }

    /// Number of bytes that this many changed elements would need, `tops` of which change in their
    /// top byte.
    pub(in super::super) fn bytes_for(shape: MatrixShape, changed: u64, tops: u64) -> u64 {
        let mask = shape.rows * row_words(shape.cols) * size_of::<u64>();
        let starts = shape.rows * size_of::<[u32; 2]>();
        let top_words = changed.div_ceil(WORD_ELEMS as u64) * size_of::<u64>() as u64;
        (mask + starts) as u64 + top_words + changed * (shape.weight.bytes() as u64 - 1) + tops
    }

    /// Writes some rows into `out`; `base` has these rows of the base.
    pub(in super::super) fn rows_into(
        &self,
        shape: MatrixShape,
        rows: Range<usize>,
        base: &[u8],
        out: &mut [u8],
    ) {
        let (words, bytes) = (row_words(shape.cols), shape.weight.bytes());
        let [changed, highs] = self.starts.get(rows.start).map_or([0, 0], |start| start.map(|n| n as usize));
        let planes = patch::Planes {
            mask: &self.mask[rows.start * words..rows.end * words],
            tops: &self.tops,
            first_top: changed,
            lows: &self.lows[changed * (bytes - 1)..],
            highs: &self.highs[highs..],
        };
        planes_rows(RowShape { cols: shape.cols, element_bytes: bytes }, base, planes, out);
    }
}
