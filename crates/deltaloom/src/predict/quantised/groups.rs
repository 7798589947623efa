//! Numbers that groups of codes share: scales, zeros and biases.

use std::fmt;

use super::operand::{Operand, Region, has_singles, singles};
use super::packing::Packing;
use super::values::{Values, finite};
use super::{Block, Matrices, Quantised, product};
use crate::entropy::bytes::{ByteReader, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::{ReadInputs, fields};
use crate::scratch::Scratch;
use crate::tensor::DType;

/// Numbers that groups of codes share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Groups {
    /// Rows and columns of codes that share one.
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    pub(crate) source: Numbers,
    /// Added to each.
    pub(crate) plus: f32,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Numbers {
    /// Elements of a tensor. One element is shared by all groups.
    Tensor { operand: Operand, packing: Packing, is_exponent: bool },
    /// In the record.
    Stored(Vec<f32>),
    /// Numbers of a table by their codes, times scales that `each` of them share.
    Nested { codes: Operand, table: Operand, scales: Operand, each: u64 },
    /// The greatest magnitudes of the reference's numbers.
    Largest,
}

/// Numbers of a table of nested scales.
const TABLE: u64 = 256;

impl Groups {
    pub(super) fn operands(&self) -> Vec<&Operand> {
        match &self.source {
            Numbers::Tensor { operand, .. } => vec![operand],
            Numbers::Nested { codes, table, scales, .. } => vec![codes, table, scales],
            Numbers::Stored(_) | Numbers::Largest => Vec::new(),
        }
    }

    pub(super) fn operands_mut(&mut self) -> Vec<&mut Operand> {
        match &mut self.source {
            Numbers::Tensor { operand, .. } => vec![operand],
            Numbers::Nested { codes, table, scales, .. } => vec![codes, table, scales],
            Numbers::Stored(_) | Numbers::Largest => Vec::new(),
        }
    }

    /// Numbers that are stored in the record.
    pub(super) fn number_count(&self) -> usize {
        if let Numbers::Stored(numbers) = &self.source { numbers.len() } else { 0 }
    }

    /// Groups in a column and in a row of matrices.
    fn grid(rows: u64, cols: u64, size: Matrices) -> (u64, u64) {
        (size.rows.div_ceil(rows), size.cols.div_ceil(cols))
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        push_varint(meta, self.rows);
        push_varint(meta, self.cols);
        match &self.source {
            Numbers::Tensor { operand, packing, is_exponent } => {
                meta.push(u8::from(*is_exponent));
                operand.push_to(meta);
                packing.push_to(meta);
            }
            Numbers::Stored(numbers) => {
                meta.push(2);
                push_varint(meta, numbers.len() as u64);
                numbers.iter().for_each(|number| meta.extend(number.to_le_bytes()));
            }
            Numbers::Nested { codes, table, scales, each } => {
                meta.push(3);
                [codes, table, scales].into_iter().for_each(|operand| operand.push_to(meta));
                push_varint(meta, *each);
            }
            Numbers::Largest => meta.push(4),
        }
        meta.extend(self.plus.to_le_bytes());
    }

    /// Reads groups of matrices. `has_largest` tells whether they may be the reference's largest.
    pub(super) fn parse(meta: &mut ByteReader<'_>, size: Matrices, has_largest: bool) -> Result<Self> {
        let bad = || fields::bad("group of codes");
        let rows = fields::within(meta, 1..=size.rows, "number of rows")?;
        let cols = fields::within(meta, 1..=size.cols, "number of columns")?;
        let (in_column, in_row) = Self::grid(rows, cols, size);
        let count = size.count * in_column * in_row;
        let source = match meta.u8()? {
            kind @ (0 | 1) => {
                let operand = Operand::parse(meta)?;
                let packing = Packing::parse(meta)?;
                let per_word = packing.per_word(&operand.dtype).ok_or_else(bad)?;
                let is_exponent = kind == 1;
                let has_numbers = match is_exponent {
                    true => packing.bits == 0 && operand.dtype.may_be_exponents(),
                    false => packing.bits != 0 || has_singles(&operand.dtype),
                };
                let found = product(&operand.shape).and_then(|words| words.checked_mul(per_word));
                let cut = if packing.by_columns { in_column } else { in_row };
                let is_one = packing.bits == 0 && found == Some(1);
                if !has_numbers || !(is_one || (found == Some(count) && cut.is_multiple_of(per_word))) {
                    return Err(bad());
                }
                Numbers::Tensor { operand, packing, is_exponent }
            }
            2 => {
                let stored = meta.varint()?;
                if stored != count && stored != 1 {
                    return Err(bad());
                }
                let mut numbers = Vec::new();
                for _ in 0..stored {
                    numbers.push(finite(meta)?);
                }
                Numbers::Stored(numbers)
            }
            3 => {
                let (codes, table) = (Operand::parse(meta)?, Operand::parse(meta)?);
                let scales = Operand::parse(meta)?;
                let each = fields::within(meta, 1..=1 << 32, "number of nested scales")?;
                let fits = |operand: &Operand, dtype: DType, elems: u64| {
                    operand.dtype == dtype && product(&operand.shape) == Some(elems)
                };
                if !fits(&codes, DType::U8, count)
                    || !fits(&table, DType::F32, TABLE)
                    || !fits(&scales, DType::F32, count.div_ceil(each))
                {
                    return Err(bad());
                }
                Numbers::Nested { codes, table, scales, each }
            }
            4 if has_largest && rows == 1 => Numbers::Largest,
            _ => return Err(bad()),
        };
        Ok(Self { rows, cols, source, plus: finite(meta)? })
    }

    /// The numbers of the groups that a block touches.
    pub(super) fn load<'a>(
        &self,
        quantised: &Quantised,
        size: Matrices,
        block: &Block,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Loaded> {
        let (in_column, in_row) = Self::grid(self.rows, self.cols, size);
        let rows = block.rows.start / self.rows..block.rows.end.div_ceil(self.rows);
        let cols = block.cols.start / self.cols..block.cols.end.div_ceil(self.cols);
        let part = |numbers: &[f32]| -> Vec<f32> {
            if numbers.len() == 1 {
                return vec![numbers[0]];
            }
            let row = |row: u64| {
                let start = (block.matrix * in_column + row) * in_row;
                &numbers[to_usize(start + cols.start)..to_usize(start + cols.end)]
            };
            rows.clone().flat_map(row).copied().collect()
        };
        let mut numbers = match &self.source {
            Numbers::Stored(numbers) => part(numbers),
            Numbers::Tensor { operand, packing, is_exponent } => {
                let input = quantised.input_of(operand);
                let elems = operand.shape.iter().product::<u64>();
                if elems == 1 && packing.bits == 0 {
                    let mut bytes = Scratch::of_len(to_usize(operand.element_bytes()));
                    inputs.read_into(input, 0, &mut bytes)?;
                    if *is_exponent { exponents(&bytes) } else { singles(&operand.dtype, &bytes) }
                } else {
                    let of_groups = Matrices { count: size.count, rows: in_column, cols: in_row };
                    let part = Block { matrix: block.matrix, rows: rows.clone(), cols: cols.clone() };
                    if *is_exponent {
                        let region = Region {
                            element_bytes: 1,
                            row_len: in_row,
                            rows: part.matrix * in_column + rows.start..part.matrix * in_column + rows.end,
                            cols: cols.clone(),
                        };
                        exponents(&region.read(input, inputs)?)
                    } else {
                        packing.values_of(
                            &Values::Numbers,
                            &operand.dtype,
                            input,
                            of_groups,
                            &part,
                            inputs,
                        )?
                    }
                }
            }
            Numbers::Nested { codes, table, scales, each } => {
                let first_row = block.matrix * in_column;
                let region = Region {
                    element_bytes: 1,
                    row_len: in_row,
                    rows: first_row + rows.start..first_row + rows.end,
                    cols: cols.clone(),
                };
                let codes = region.read(quantised.input_of(codes), inputs)?;
                let table = singles_from(quantised.input_of(table), 0..TABLE, inputs)?;
                let group = |row: u64, col: u64| (first_row + row) * in_row + col;
                let outer =
                    group(rows.start, cols.start) / each..group(rows.end - 1, cols.end - 1) / each + 1;
                let scales = singles_from(quantised.input_of(scales), outer.clone(), inputs)?;
                let places = rows.clone().flat_map(|row| cols.clone().map(move |col| (row, col)));
                let number = |(code, (row, col)): (&u8, (u64, u64))| {
                    table[usize::from(*code)] * scales[to_usize(group(row, col) / each - outer.start)]
                };
                codes.iter().zip(places).map(number).collect()
            }
            Numbers::Largest => {
                let whole = Block {
                    matrix: block.matrix,
                    rows: block.rows.clone(),
                    cols: cols.start * self.cols..(cols.end * self.cols).min(size.cols),
                };
                let reference = &quantised.reference;
                let input = quantised.input_of(reference);
                let all = reference.singles_of(input, size, &whole, quantised.is_transposed, inputs)?;
                // NaN is no number.
                let largest = |group: &[f32]| group.iter().fold(0f32, |most, x| most.max(x.abs()));
                let group = to_usize(self.cols);
                all.chunks(whole.width()).flat_map(|row| row.chunks(group).map(largest)).collect()
            }
        };
        numbers.iter_mut().for_each(|number| *number += self.plus);
        let width = to_usize(cols.end - cols.start);
        Ok(Loaded { numbers, width, first_row: rows.start, first_col: block.cols.start, expanded: None })
    }
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.rows, self.cols)
    }
}

/// The numbers of some groups.
pub(super) struct Loaded {
    numbers: Vec<f32>,
    /// Groups of a row.
    width: usize,
    first_row: u64,
    /// The first column of codes.
    first_col: u64,
    /// The row of groups that was expanded last.
    expanded: Option<u64>,
}

impl Loaded {
    /// The number of each code of a row.
    pub(super) fn expand(&mut self, groups: &Groups, row: u64, out: &mut [f32]) {
        let of_groups = row / groups.rows;
        if self.expanded.replace(of_groups) == Some(of_groups) {
            return;
        }
        if let [number] = self.numbers[..] {
            out.fill(number);
            return;
        }
        let start = to_usize(of_groups - self.first_row) * self.width;
        let numbers = &self.numbers[start..start + self.width];
        let mut left = groups.cols - self.first_col % groups.cols;
        let mut rest = out;
        for number in numbers {
            let (now, later) = rest.split_at_mut(rest.len().min(to_usize(left)));
            now.fill(*number);
            (rest, left) = (later, groups.cols);
        }
    }
}

/// Powers of two by their exponents; 255 is NaN.
fn exponents(bytes: &[u8]) -> Vec<f32> {
    let power = |byte: &u8| match byte {
        255 => f32::NAN,
        // The exponent of F32 has no room for 2^-127 but as a subnormal.
        0 => f32::from_bits(1 << 22),
        byte => f32::from_bits(u32::from(*byte) << 23),
    };
    bytes.iter().map(power).collect()
}

/// Elements of an F32 tensor.
fn singles_from<'a>(
    input: usize,
    elems: std::ops::Range<u64>,
    inputs: &mut impl ReadInputs<'a>,
) -> Result<Vec<f32>> {
    let mut bytes = Scratch::of_len(to_usize((elems.end - elems.start) * 4));
    inputs.read_into(input, elems.start * 4, &mut bytes)?;
    Ok(singles(&DType::F32, &bytes))
}
