//! How codes are packed into words.

use super::operand::{Region, singles};
use super::values::Values;
use super::{Block, Matrices};
use crate::entropy::bytes::ByteReader;
use crate::error::Result;
use crate::limits::{narrow, to_usize};
use crate::predict::{ReadInputs, fields};
use crate::tensor::DType;

/// In 32-bit words in the order of AWQ, field n has the code of this column.
const AWQ_COLUMNS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The order of the codes of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    LowFirst,
    HighFirst,
    /// That of AWQ.
    Interleaved,
}

/// How codes are packed into elements of the tensor of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing {
    /// Bits of a code; 0 if each element is one.
    pub(crate) bits: u8,
    pub(crate) order: Order,
    /// Whether codes of a word follow each other in a column, not in a row.
    pub(crate) by_columns: bool,
}

impl Packing {
    pub(crate) const ELEMENTS: Self = Self { bits: 0, order: Order::LowFirst, by_columns: false };

    /// Codes of an element. `None` if elements of that dtype cannot be packed so.
    pub(crate) fn per_word(self, dtype: &DType) -> Option<u64> {
        if self.bits == 0 {
            return Some(1);
        }
        let bits = match dtype {
            DType::U8 | DType::I8 => 8,
            DType::U32 | DType::I32 => 32,
            _ => return None,
        };
        let is_possible = self.order != Order::Interleaved || (bits, self.bits) == (32, 4);
        is_possible.then_some(bits / u64::from(self.bits))
    }

    /// Where the lowest bit of each code of a word is, in the order of the codes.
    fn shifts(self, dtype: &DType) -> Vec<u32> {
        let count = to_usize(self.per_word(dtype).unwrap_or(1));
        let field = |code: usize| match self.order {
            Order::LowFirst => code,
            Order::HighFirst => count - 1 - code,
            Order::Interleaved => AWQ_COLUMNS.iter().position(|column| *column == code).unwrap_or(0),
        };
        let bits = usize::from(self.bits);
        (0..count).map(|code| narrow(bits * field(code), "a word has at most 32 bits")).collect()
    }

    pub(super) fn push_to(self, meta: &mut Vec<u8>) {
        let order = match self.order {
            Order::LowFirst => 0,
            Order::HighFirst => 1,
            Order::Interleaved => 2,
        };
        meta.extend([self.bits, order, u8::from(self.by_columns)]);
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        let [bits, order, axis] = meta.array()?;
        let order = match order {
            0 => Order::LowFirst,
            1 => Order::HighFirst,
            2 => Order::Interleaved,
            _ => return Err(fields::bad("order of codes")),
        };
        if !matches!(bits, 0 | 2 | 4 | 8) || axis > 1 || (bits == 0 && (order != Order::LowFirst || axis > 0))
        {
            return Err(fields::bad("packing of codes"));
        }
        Ok(Self { bits, order, by_columns: axis == 1 })
    }

    /// What the codes of a block stand for, row by row.
    pub(super) fn values_of<'a>(
        self,
        values: &Values,
        dtype: &DType,
        input: usize,
        size: Matrices,
        block: &Block,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Vec<f32>> {
        let per_word = self.per_word(dtype).unwrap_or(1);
        let (rows, cols) = (&block.rows, &block.cols);
        // The words that hold the block, and what they hold.
        let (row_len, word_rows, word_cols) = match self.by_columns {
            true => (size.cols, rows.start / per_word..rows.end.div_ceil(per_word), cols.clone()),
            false => (size.cols / per_word, rows.clone(), cols.start / per_word..cols.end.div_ceil(per_word)),
        };
        let word_bytes = dtype.bits().unwrap_or(8) / 8;
        let before = block.matrix * size.rows * size.cols / per_word / row_len.max(1);
        let region = Region {
            element_bytes: word_bytes,
            row_len,
            rows: before + word_rows.start..before + word_rows.end,
            cols: word_cols.clone(),
        };
        let words = region.read(input, inputs)?;
        if self.bits == 0 {
            return Ok(singles(dtype, &words));
        }
        let table = values.table(self.bits);
        let (shifts, mask) = (self.shifts(dtype), (1u32 << self.bits) - 1);
        let word_width = to_usize(word_cols.end - word_cols.start);
        let width = to_usize(cols.end - cols.start);
        let (skipped_rows, skipped_cols) = match self.by_columns {
            true => (rows.start - word_rows.start * per_word, 0),
            false => (0, cols.start - word_cols.start * per_word),
        };
        let value = |row: usize, col: usize, part: usize| {
            let at = (row * word_width + col) * to_usize(word_bytes);
            table[to_usize(u64::from(word_at(&words[at..at + to_usize(word_bytes)]) >> shifts[part] & mask))]
        };
        let count = to_usize(rows.end - rows.start);
        let per_word = to_usize(per_word);
        let mut out = Vec::with_capacity(count * width);
        for row in 0..count {
            let row = row + to_usize(skipped_rows);
            out.extend((0..width).map(|col| {
                let col = col + to_usize(skipped_cols);
                match self.by_columns {
                    true => value(row / per_word, col, row % per_word),
                    false => value(row, col / per_word, col % per_word),
                }
            }));
        }
        Ok(out)
    }

    /// Words of rows of codes, which are whole rows of words.
    pub(super) fn words(self, codes: &[u8], width: usize, dtype: &DType) -> Vec<u8> {
        if self.bits == 0 {
            return codes.to_vec();
        }
        let shifts = self.shifts(dtype);
        let (count, mask) = (shifts.len(), (1u32 << self.bits) - 1);
        let word_bytes = to_usize(dtype.bits().unwrap_or(8) / 8);
        let of_word = |codes: &mut dyn Iterator<Item = u8>| {
            codes.zip(&shifts).fold(0u32, |word, (code, shift)| word | (u32::from(code) & mask) << shift)
        };
        let mut out = Vec::with_capacity(codes.len() / count * word_bytes);
        let mut push = |word: u32| out.extend_from_slice(&word.to_le_bytes()[..word_bytes]);
        if self.by_columns {
            for rows in codes.chunks_exact(count * width.max(1)) {
                (0..width).for_each(|col| push(of_word(&mut rows[col..].iter().step_by(width).copied())));
            }
        } else {
            codes.chunks_exact(count).for_each(|codes| push(of_word(&mut codes.iter().copied())));
        }
        out
    }
}

fn word_at(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}
