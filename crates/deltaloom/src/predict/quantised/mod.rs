//! Codes of numbers, with scales: a tensor as the numbers that the codes of a reference stand for,
//! or as the codes of a reference's numbers; docs/format.md section 3.7.
//! It computes with a known layout and a known order of operations. [`crate::origin`] finds them.

mod groups;
mod operand;
mod packing;
mod values;

pub(crate) use groups::{Groups, Numbers};
pub(crate) use operand::Operand;
pub(in crate::predict) use operand::Region;
pub(crate) use packing::{Order, Packing};
pub(crate) use values::{NF4, Ties, Values};

use std::fmt;
use std::ops::Range;

use super::number::rounded;
use super::{Place, ReadInputs, cast, fields};
use crate::entropy::bytes::{ByteReader, push_zigzag};
use crate::error::Result;
use crate::limits::{narrow, to_usize};
use crate::scratch::Scratch;
use crate::tensor::{DType, TensorInfo};

/// Most scales of a number.
const MAX_SCALES: u64 = 2;

const TO_CODES: u8 = 1;
const TRANSPOSED: u8 = 2;
const SCALES_FIRST: u8 = 4;
const RECIPROCAL: u8 = 8;
const INDEXED: u8 = 16;

/// How codes and numbers belong together, and which of the two is predicted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quantised {
    /// Whether the tensor has the codes, and the reference the numbers.
    pub(crate) is_to_codes: bool,
    /// Whether the matrix of numbers is that of codes with rows and columns swapped.
    pub(crate) is_transposed: bool,
    /// Whether two scales are multiplied with each other before they are used.
    pub(crate) scales_first: bool,
    /// Whether a number is multiplied by the reciprocal of the scale, not divided by it.
    pub(crate) is_reciprocal: bool,
    pub(crate) reference: Operand,
    pub(crate) packing: Packing,
    pub(crate) values: Values,
    pub(crate) scales: Vec<Groups>,
    /// The code that stands for 0.
    pub(crate) zero: Option<Groups>,
    /// What is added to the product.
    pub(crate) bias: Option<Groups>,
    /// The row of groups of each row of codes, where a column has several.
    pub(crate) index: Option<Operand>,
    /// What the product, or quotient, is rounded to.
    pub(crate) rounding: super::Element,
    pub(crate) ties: Ties,
    /// The least and the greatest code, if codes are integers.
    pub(crate) range: (i64, i64),
}

/// The matrices of codes: how many there are, and their rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrices {
    pub(super) count: u64,
    pub(super) rows: u64,
    pub(super) cols: u64,
}

/// A part of a matrix of codes.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) matrix: u64,
    pub(super) rows: Range<u64>,
    pub(super) cols: Range<u64>,
}

impl Block {
    fn width(&self) -> usize {
        to_usize(self.cols.end - self.cols.start)
    }
}

impl Quantised {
    /// The operands, in the order of the record.
    fn operands(&self) -> impl Iterator<Item = &Operand> {
        let groups = self.scales.iter().chain(&self.zero).chain(&self.bias);
        std::iter::once(&self.reference).chain(groups.flat_map(Groups::operands)).chain(&self.index)
    }

    /// The operands that are in bases.
    pub(super) fn of_bases(&self) -> impl Iterator<Item = (&Option<String>, &DType, &[u64])> {
        self.operands().filter_map(Operand::in_base)
    }

    /// The operands that are in the same file: number, dtype and shape.
    pub(crate) fn own(&self) -> impl Iterator<Item = (usize, &DType, &[u64])> {
        self.operands().filter_map(Operand::own)
    }

    /// The same with other numbers for tensors of the same file.
    pub(crate) fn with_own(mut self, number: impl Fn(usize) -> usize) -> Self {
        let groups = self.scales.iter_mut().chain(&mut self.zero).chain(&mut self.bias);
        for operand in groups.flat_map(Groups::operands_mut).chain(&mut self.index) {
            if let Place::Own(own) = &mut operand.place {
                *own = number(*own);
            }
        }
        self
    }

    /// Where an operand is among the inputs: those of bases come first.
    fn input_of(&self, operand: &Operand) -> usize {
        let mut before = self.operands().take_while(|other| !std::ptr::eq(*other, operand));
        if operand.own().is_some() {
            return self.of_bases().count() + before.filter(|other| other.own().is_some()).count();
        }
        before.by_ref().filter(|other| other.own().is_none()).count()
    }

    /// The rows of groups of the rows of a block.
    fn index_of<'a>(
        &self,
        index: &Operand,
        size: Matrices,
        block: &Block,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Vec<u64>> {
        let groups = self.scales.iter().chain(&self.zero).chain(&self.bias);
        let of_column = groups.filter(|groups| groups.rows < size.rows);
        let count = of_column.map(|groups| size.rows.div_ceil(groups.rows)).min().unwrap_or(u64::MAX);
        let mut bytes = Scratch::of_len(to_usize(block.rows.end - block.rows.start) * 4);
        inputs.read_into(self.input_of(index), block.rows.start * 4, &mut bytes)?;
        let group = |bytes: &[u8; 4]| {
            let group = u64::try_from(i32::from_le_bytes(*bytes)).ok().filter(|group| *group < count);
            group.ok_or_else(|| fields::bad("index of groups"))
        };
        bytes.as_chunks().0.iter().map(group).collect()
    }

    /// Numbers that are stored in the record, as pieces that take as much memory.
    pub(super) fn part_count(&self) -> usize {
        let groups = self.scales.iter().chain(&self.zero).chain(&self.bias);
        groups.map(Groups::number_count).sum::<usize>().div_ceil(8)
    }

    /// The matrices of codes, if the predicted tensor is `info`. `None` if codes and numbers are
    /// not equally many, or if words of codes are cut by rows or columns.
    pub(super) fn matrices(&self, info: &TensorInfo) -> Option<Matrices> {
        let (numbers, codes) = match self.is_to_codes {
            true => (&self.reference.shape[..], &info.shape[..]),
            false => (&info.shape[..], &self.reference.shape[..]),
        };
        let (count, rows, cols) = match *numbers {
            [] => (1, 1, 1),
            [cols] => (1, 1, cols),
            [ref leading @ .., rows, cols] => (product(leading)?, rows, cols),
        };
        let (rows, cols) = if self.is_transposed { (cols, rows) } else { (rows, cols) };
        let dtype = if self.is_to_codes { &info.dtype } else { &self.reference.dtype };
        let per_word = self.packing.per_word(dtype)?;
        let cut = if self.packing.by_columns { rows } else { cols };
        let elems = product(&[count, rows, cols])?;
        let fits =
            elems > 0 && product(codes)?.checked_mul(per_word) == Some(elems) && cut.is_multiple_of(per_word);
        fits.then_some(Matrices { count, rows, cols })
    }

    /// Whether a tensor can have this record.
    pub(crate) fn is_valid(&self, info: &TensorInfo) -> bool {
        let mut record = Vec::new();
        self.push_to(&mut record);
        Self::parse(&mut ByteReader::new(&record, "a predictor"), info).is_ok()
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        meta.push(
            flag(self.is_to_codes, TO_CODES)
                | flag(self.is_transposed, TRANSPOSED)
                | flag(self.scales_first, SCALES_FIRST)
                | flag(self.is_reciprocal, RECIPROCAL)
                | flag(self.index.is_some(), INDEXED),
        );
        self.reference.push_to(meta);
        self.packing.push_to(meta);
        self.values.push_to(meta);
        meta.push(fields::element_id(self.rounding));
        meta.push(self.ties.id());
        push_zigzag(meta, self.range.0);
        push_zigzag(meta, self.range.1);
        meta.push(
            narrow::<u8>(self.scales.len(), "there are at most two scales")
                | u8::from(self.zero.is_some()) << 4
                | u8::from(self.bias.is_some()) << 5,
        );
        self.scales.iter().chain(&self.zero).chain(&self.bias).for_each(|groups| groups.push_to(meta));
        self.index.iter().for_each(|index| index.push_to(meta));
    }

    /// Reads the record of the tensor `info`. All sizes fit each other.
    pub(super) fn parse(meta: &mut ByteReader<'_>, info: &TensorInfo) -> Result<Self> {
        let bad = fields::bad;
        let flags = meta.u8()?;
        if flags > 31 {
            return Err(bad("flag"));
        }
        let is_to_codes = flags & TO_CODES != 0;
        let reference = Operand::parse(meta)?;
        if reference.own().is_some() {
            return Err(bad("reference"));
        }
        let packing = Packing::parse(meta)?;
        let values = Values::parse(meta, packing)?;
        let rounding = fields::element(meta)?;
        let ties = Ties::of_id(meta.u8()?).ok_or_else(|| bad("rounding"))?;
        let range = (meta.zigzag()?, meta.zigzag()?);
        if range.0 > range.1 || range.0 < -(1 << 24) || range.1 > 1 << 24 {
            return Err(bad("range of codes"));
        }
        let counts = meta.u8()?;
        let scale_count = u64::from(counts & 15);
        if scale_count > MAX_SCALES || counts > 63 {
            return Err(bad("number of scales"));
        }
        let mut quantised = Self {
            is_to_codes,
            is_transposed: flags & TRANSPOSED != 0,
            scales_first: flags & SCALES_FIRST != 0,
            is_reciprocal: flags & RECIPROCAL != 0,
            reference,
            packing,
            values,
            scales: Vec::new(),
            zero: None,
            bias: None,
            index: None,
            rounding,
            ties,
            range,
        };
        let (codes, numbers) = match is_to_codes {
            true => (&info.dtype, &quantised.reference.dtype),
            false => (&quantised.reference.dtype, &info.dtype),
        };
        if !is_number(numbers) || !quantised.values.fit(quantised.packing, codes, is_to_codes) {
            return Err(bad("dtype"));
        }
        let size = quantised.matrices(info).ok_or_else(|| bad("shape"))?;
        let has_largest = is_to_codes && flags & INDEXED == 0;
        for _ in 0..scale_count {
            quantised.scales.push(Groups::parse(meta, size, has_largest)?);
        }
        if counts & 16 != 0 {
            quantised.zero = Some(Groups::parse(meta, size, false)?);
        }
        if counts & 32 != 0 {
            quantised.bias = Some(Groups::parse(meta, size, false)?);
        }
        if flags & INDEXED != 0 {
            let index = Operand::parse(meta)?;
            let has_rows = index.dtype == DType::I32 && product(&index.shape) == Some(size.rows);
            if !has_rows || size.count != 1 {
                return Err(bad("index of groups"));
            }
            quantised.index = Some(index);
        }
        Ok(quantised)
    }

    /// Fills `out` with the prediction of the tensor from byte `start` on.
    pub(super) fn predict<'a>(
        &self,
        info: &TensorInfo,
        start: u64,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.matrices(info).ok_or_else(|| fields::bad("shape"))?;
        let bytes = info.number().bytes() as u64;
        let wanted = start / bytes..(start + out.len() as u64) / bytes;
        if self.is_to_codes {
            self.predict_codes(info, size, wanted, inputs, out)
        } else {
            self.predict_numbers(info, size, wanted, inputs, out)
        }
    }

    fn predict_numbers<'a>(
        &self,
        info: &TensorInfo,
        size: Matrices,
        wanted: Range<u64>,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        // Rows of the tensor are columns of the codes if it is transposed.
        let (rows, cols) = if self.is_transposed { (size.cols, size.rows) } else { (size.rows, size.cols) };
        let element = info.number().bytes();
        for (matrix, part) in parts(&wanted, rows * cols) {
            let of_rows = part.start / cols..part.end.div_ceil(cols);
            let block = match self.is_transposed {
                true => Block { matrix, rows: 0..size.rows, cols: of_rows.clone() },
                false => Block { matrix, rows: of_rows.clone(), cols: 0..size.cols },
            };
            let numbers = self.numbers(size, &block, inputs)?;
            let mut singles = Scratch::of_len(to_usize(part.end - part.start) * 4);
            let first = part.start - of_rows.start * cols;
            for (place, single) in (to_usize(first)..).zip(singles.as_chunks_mut::<4>().0) {
                let place = match self.is_transposed {
                    true => place % to_usize(cols) * block.width() + place / to_usize(cols),
                    false => place,
                };
                *single = numbers[place].to_le_bytes();
            }
            let begin = to_usize(matrix * rows * cols + part.start - wanted.start) * element;
            let end = begin + to_usize(part.end - part.start) * element;
            cast::convert_into(&DType::F32, &info.dtype, &singles, &mut out[begin..end]);
        }
        Ok(())
    }

    /// The numbers that a block of codes stands for.
    fn numbers<'a>(
        &self,
        size: Matrices,
        block: &Block,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Vec<f32>> {
        let input = self.input_of(&self.reference);
        let mut numbers =
            self.packing.values_of(&self.values, &self.reference.dtype, input, size, block, inputs)?;
        let mut rows = GroupRows::new(self, size, block, inputs)?;
        for (row, numbers) in block.rows.clone().zip(numbers.chunks_exact_mut(block.width().max(1))) {
            rows.move_to(row);
            for (j, number) in numbers.iter_mut().enumerate() {
                let value = *number - rows.zero[j];
                let product = match self.scales.len() {
                    0 => value,
                    1 => value * rows.scales[0][j],
                    _ if self.scales_first => value * (rows.scales[0][j] * rows.scales[1][j]),
                    _ => value * rows.scales[0][j] * rows.scales[1][j],
                };
                let product = rounded(product, self.rounding);
                // Adding 0 would change the sign of -0.
                *number = if self.bias.is_some() { product + rows.bias[j] } else { product };
            }
        }
        Ok(numbers)
    }

    fn predict_codes<'a>(
        &self,
        info: &TensorInfo,
        size: Matrices,
        wanted: Range<u64>,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let per_word = self.packing.per_word(&info.dtype).unwrap_or(1);
        let word_bytes = info.number().bytes();
        // Words of a row of words, and rows of codes that each has.
        let (row_words, row_codes) = match self.packing.by_columns {
            true => (size.cols, per_word),
            false => (size.cols / per_word, 1),
        };
        let matrix_words = size.rows * size.cols / per_word;
        for (matrix, part) in parts(&wanted, matrix_words) {
            let word_rows = part.start / row_words..part.end.div_ceil(row_words);
            let rows = word_rows.start * row_codes..word_rows.end * row_codes;
            let block = Block { matrix, rows, cols: 0..size.cols };
            let codes = self.codes(&info.dtype, size, &block, inputs)?;
            let words = self.packing.words(&codes, block.width(), &info.dtype);
            let skipped = to_usize(part.start - word_rows.start * row_words) * word_bytes;
            let begin = to_usize(matrix * matrix_words + part.start - wanted.start) * word_bytes;
            let len = to_usize(part.end - part.start) * word_bytes;
            out[begin..begin + len].copy_from_slice(&words[skipped..skipped + len]);
        }
        Ok(())
    }

    /// The codes of a block.
    fn codes<'a>(
        &self,
        dtype: &DType,
        size: Matrices,
        block: &Block,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Vec<u8>> {
        let input = self.input_of(&self.reference);
        let numbers = self.reference.singles_of(input, size, block, self.is_transposed, inputs)?;
        let mut rows = GroupRows::new(self, size, block, inputs)?;
        let coder = self.values.coder(self.packing, dtype, self.ties, self.range);
        let mut codes = vec![0; numbers.len()];
        let width = block.width().max(1);
        let pairs = numbers.chunks_exact(width).zip(codes.chunks_exact_mut(width));
        for (row, (numbers, codes)) in block.rows.clone().zip(pairs) {
            rows.move_to(row);
            for (j, (number, code)) in numbers.iter().zip(codes).enumerate() {
                let mut quotient = if self.bias.is_some() { *number - rows.bias[j] } else { *number };
                let scales = rows.scales.iter().map(|scales| scales[j]);
                let divide =
                    |x: f32, scale: f32| if self.is_reciprocal { x * (1.0 / scale) } else { x / scale };
                if self.scales_first {
                    quotient = divide(quotient, scales.product());
                } else {
                    quotient = scales.fold(quotient, divide);
                }
                *code = coder.code(rounded(quotient, self.rounding), rows.zero[j]);
            }
        }
        Ok(codes)
    }
}

/// The scales, zeros and biases of a block, expanded row by row.
struct GroupRows<'a> {
    scales: Vec<Vec<f32>>,
    zero: Vec<f32>,
    bias: Vec<f32>,
    loaded: Vec<(&'a Groups, groups::Loaded)>,
    /// The first row, and the row of groups of each from there on.
    index: Option<(u64, Vec<u64>)>,
    rows: u64,
    scale_count: usize,
    has_zero: bool,
}

impl<'a> GroupRows<'a> {
    fn new<'b>(
        quantised: &'a Quantised,
        size: Matrices,
        block: &Block,
        inputs: &mut impl ReadInputs<'b>,
    ) -> Result<Self> {
        let groups = quantised.scales.iter().chain(&quantised.zero).chain(&quantised.bias);
        // An index may lead to any row of groups.
        let all = Block { rows: 0..size.rows, ..block.clone() };
        let mut load = |groups: &'a Groups| {
            let is_indexed = quantised.index.is_some() && groups.rows < size.rows;
            Ok((groups, groups.load(quantised, size, if is_indexed { &all } else { block }, inputs)?))
        };
        let loaded = groups.map(&mut load).collect::<Result<_>>()?;
        let index = match &quantised.index {
            Some(index) => Some((block.rows.start, quantised.index_of(index, size, block, inputs)?)),
            None => None,
        };
        let width = block.width();
        Ok(Self {
            scales: vec![vec![1.0; width]; quantised.scales.len()],
            zero: vec![0.0; width],
            bias: vec![0.0; width],
            loaded,
            index,
            rows: size.rows,
            scale_count: quantised.scales.len(),
            has_zero: quantised.zero.is_some(),
        })
    }

    fn move_to(&mut self, row: u64) {
        for (i, (groups, loaded)) in self.loaded.iter_mut().enumerate() {
            let out = match i {
                _ if i < self.scale_count => &mut self.scales[i],
                _ if self.has_zero && i == self.scale_count => &mut self.zero,
                _ => &mut self.bias,
            };
            let row = match &self.index {
                Some((first, index)) if groups.rows < self.rows => index[to_usize(row - first)] * groups.rows,
                _ => row,
            };
            loaded.expand(groups, row, out);
        }
    }
}

impl fmt::Display for Quantised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_to_codes { "codes" } else { "from codes" })?;
        write!(f, " {}", self.values.name(self.packing))?;
        if self.index.is_some() {
            f.write_str(", rows by index")?;
        }
        for groups in &self.scales {
            write!(f, ", scales of {groups}")?;
        }
        Ok(())
    }
}

/// The matrices that a range of places touches, with the part of each.
fn parts(wanted: &Range<u64>, matrix: u64) -> Vec<(u64, Range<u64>)> {
    let touched = wanted.start / matrix..wanted.end.div_ceil(matrix);
    let part = |i: u64| {
        let (start, end) = (wanted.start.max(i * matrix), wanted.end.min((i + 1) * matrix));
        (i, start - i * matrix..end - i * matrix)
    };
    touched.map(part).collect()
}

/// Whether a tensor of numbers can have this dtype.
fn is_number(dtype: &DType) -> bool {
    super::Element::of(dtype).is_some()
}

pub(super) fn product(sizes: &[u64]) -> Option<u64> {
    sizes.iter().try_fold(1u64, |n, size| n.checked_mul(*size)).filter(|n| *n < 1 << 56)
}

#[cfg(test)]
mod tests;
