//! Tensors that a prediction of codes or numbers reads, and parts of them.

use std::ops::Range;

use super::{Block, Matrices, product};
use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::{MOST_HELD, Place, ReadInputs, cast, fields};
use crate::scratch::Scratch;
use crate::tensor::DType;

const MAX_DIMENSIONS: u64 = 16;

/// A tensor that a prediction reads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Operand {
    pub(crate) place: Place,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
}

impl Operand {
    pub(super) fn in_base(&self) -> Option<(&Option<String>, &DType, &[u64])> {
        match &self.place {
            Place::Base(name) => Some((name, &self.dtype, &self.shape)),
            Place::Own(_) => None,
        }
    }

    pub(super) fn own(&self) -> Option<(usize, &DType, &[u64])> {
        match self.place {
            Place::Own(tensor) => Some((tensor, &self.dtype, &self.shape)),
            Place::Base(_) => None,
        }
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        match &self.place {
            Place::Base(name) => {
                meta.push(0);
                fields::push_name(meta, name);
            }
            Place::Own(tensor) => {
                meta.push(1);
                push_varint(meta, *tensor as u64);
            }
        }
        push_text(meta, self.dtype.name());
        push_varint(meta, self.shape.len() as u64);
        self.shape.iter().for_each(|dim| push_varint(meta, *dim));
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        let place = match meta.u8()? {
            0 => Place::Base(fields::name(meta)?),
            1 => Place::Own(meta.size()?),
            _ => return Err(fields::bad("operand")),
        };
        let dtype = DType::from_name(meta.text()?);
        let dimensions = fields::within(meta, 0..=MAX_DIMENSIONS, "number of dimensions")?;
        let shape = (0..dimensions).map(|_| meta.varint()).collect::<Result<Vec<u64>>>()?;
        if dtype.bits().is_none() || product(&shape).is_none() {
            return Err(fields::bad("operand"));
        }
        Ok(Self { place, dtype, shape })
    }

    pub(super) fn element_bytes(&self) -> u64 {
        self.dtype.bits().unwrap_or(8) / 8
    }

    /// The numbers of a block of codes, row by row.
    pub(super) fn singles_of<'a>(
        &self,
        input: usize,
        size: Matrices,
        block: &Block,
        is_transposed: bool,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Vec<f32>> {
        let (rows, cols) =
            if is_transposed { (&block.cols, &block.rows) } else { (&block.rows, &block.cols) };
        let (all_rows, row_len) = if is_transposed { (size.cols, size.rows) } else { (size.rows, size.cols) };
        let region = Region {
            element_bytes: self.element_bytes(),
            row_len,
            rows: block.matrix * all_rows + rows.start..block.matrix * all_rows + rows.end,
            cols: cols.clone(),
        };
        let singles = singles(&self.dtype, &region.read(input, inputs)?);
        if !is_transposed {
            return Ok(singles);
        }
        let width = to_usize(cols.end - cols.start);
        Ok((0..width).flat_map(|col| singles.iter().skip(col).step_by(width).copied()).collect())
    }
}

/// A part of a matrix of elements that are stored row by row.
pub(in crate::predict) struct Region {
    pub(in crate::predict) element_bytes: u64,
    pub(in crate::predict) row_len: u64,
    pub(in crate::predict) rows: Range<u64>,
    pub(in crate::predict) cols: Range<u64>,
}

impl Region {
    pub(in crate::predict) fn read<'a>(
        &self,
        input: usize,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Scratch> {
        let row_bytes = self.row_len * self.element_bytes;
        let of_row = self.cols.start * self.element_bytes..self.cols.end * self.element_bytes;
        let width = to_usize(of_row.end - of_row.start);
        let rows = self.rows.end - self.rows.start;
        if of_row == (0..row_bytes) {
            let mut out = Scratch::of_len(width * to_usize(rows));
            inputs.read_into(input, self.rows.start * row_bytes, &mut out)?;
            return Ok(out);
        }
        let mut out = Scratch::of_len(width * to_usize(rows));
        if inputs.is_decoded(input) && rows * row_bytes <= MOST_HELD {
            let mut all = Scratch::of_len(to_usize(rows * row_bytes));
            inputs.read_into(input, self.rows.start * row_bytes, &mut all)?;
            let range = to_usize(of_row.start)..to_usize(of_row.end);
            let pairs = out.chunks_exact_mut(width.max(1)).zip(all.chunks_exact(to_usize(row_bytes)));
            pairs.for_each(|(out, row)| out.copy_from_slice(&row[range.clone()]));
            return Ok(out);
        }
        for (row, out) in self.rows.clone().zip(out.chunks_exact_mut(width.max(1))) {
            let start = row * row_bytes;
            out.copy_from_slice(&inputs.bytes(input, start + of_row.start..start + of_row.end)?);
        }
        Ok(out)
    }
}

/// Whether elements of this dtype are read as F32.
pub(super) fn has_singles(dtype: &DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8 | DType::I32) || cast::converts(dtype, &DType::F32)
}

/// Elements as F32.
pub(super) fn singles(dtype: &DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::U8 => bytes.iter().map(|byte| f32::from(*byte)).collect(),
        DType::I8 => bytes.iter().map(|byte| f32::from(byte.cast_signed())).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
        _ => {
            let size = to_usize(dtype.bits().unwrap_or(8) / 8);
            let mut wide = vec![0; bytes.len() / size * 4];
            cast::convert_into(dtype, &DType::F32, bytes, &mut wide);
            wide.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
    }
}
