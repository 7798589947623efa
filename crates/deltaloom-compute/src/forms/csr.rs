//! Compressed sparse rows of exact differences in FP32: four bytes per changed element of a 16-bit
//! matrix, eight for FP32, and the ends of the rows.
//!
//! A difference is one or a few entries that lead from the base's value to the new one without
//! rounding. Numbers that are not finite have no difference.

use std::ops::Range;

use deltaloom_kernels::sparse::{
    self, Differences, NARROW_COLS, Narrow, Wide, narrow, narrow_parts, wide, wide_parts,
};

use super::super::dense::{MatrixShape, WeightType};
use super::{fit, narrow_count, vec_bytes};
use deltaloom::{Error, Result};

/// Differences as entries of rows.
#[derive(Debug, Clone)]
pub(in super::super) struct Csr {
    entries: Entries,
    /// A 0, then the end of the entries of every row and block of columns.
    ends: Vec<u32>,
    /// Number of blocks of columns.
    blocks: usize,
}

#[derive(Debug, Clone)]
enum Entries {
    Narrow(Vec<Narrow>),
    Wide(Vec<Wide>),
}

impl Csr {
    /// Starts without rows.
    pub(in super::super) fn new(shape: MatrixShape) -> Self {
        let (entries, blocks) = match shape.weight {
            WeightType::Bf16 => (Entries::Narrow(Vec::new()), shape.cols.div_ceil(NARROW_COLS)),
            WeightType::F32 => (Entries::Wide(Vec::new()), 1),
        };
        Self { entries, ends: vec![0], blocks }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a changed element is not finite.
    pub(in super::super) fn push_row(&mut self, shape: MatrixShape, base: &[u8], tuned: &[u8]) -> Result<()> {
        let not_finite =
            || Error::InvalidArgument("form `csr` cannot represent NaN or infinite weights".into());
        match &mut self.entries {
            Entries::Narrow(entries) => {
                let block = NARROW_COLS * shape.weight.bytes();
                for (base, tuned) in base.chunks(block).zip(tuned.chunks(block)) {
                    let (base, tuned) = (base.as_chunks::<2>().0, tuned.as_chunks::<2>().0);
                    for (col, (from, to)) in (0u16..).zip(base.iter().zip(tuned)).filter(|(_, (a, b))| a != b)
                    {
                        let number = |bytes: &[u8; 2]| f32::from_le_bytes([0, 0, bytes[0], bytes[1]]);
                        narrow_parts(number(from), number(to), |value| entries.push(narrow(col, value)))
                            .ok_or_else(not_finite)?;
                    }
                    self.ends.push(narrow_count(entries.len())?);
                }
            }
            Entries::Wide(entries) => {
                let (base, tuned) = (base.as_chunks::<4>().0, tuned.as_chunks::<4>().0);
                for (col, (from, to)) in (0u32..).zip(base.iter().zip(tuned)).filter(|(_, (a, b))| a != b) {
                    let (from, to) = (f32::from_le_bytes(*from), f32::from_le_bytes(*to));
                    wide_parts(from, to, |value| entries.push(wide(col, value))).ok_or_else(not_finite)?;
                }
                self.ends.push(narrow_count(entries.len())?);
            }
        }
        Ok(())
    }

    /// Frees unused memory.
    pub(in super::super) fn shrink(&mut self) {
        match &mut self.entries {
            Entries::Narrow(entries) => fit(entries),
            Entries::Wide(entries) => fit(entries),
        }
        fit(&mut self.ends);
    }

    /// Number of bytes in memory.
    pub(in super::super) fn resident_bytes(&self) -> u64 {
        let entries = match &self.entries {
            Entries::Narrow(entries) => vec_bytes(entries),
            Entries::Wide(entries) => vec_bytes(entries),
        };
        entries + vec_bytes(&self.ends)
    }

    /// Number of bytes that this many entries would need.
    pub(in super::super) fn bytes_for(shape: MatrixShape, entries: u64) -> u64 {
        let empty = Self::new(shape);
        let entry = match empty.entries {
            Entries::Narrow(_) => size_of::<Narrow>(),
            Entries::Wide(_) => size_of::<Wide>(),
        };
        ((shape.rows * empty.blocks + 1) * size_of::<u32>()) as u64 + entries * entry as u64
    }

    /// Number of entries for a changed element, if it can have any.
    pub(in super::super) fn entries_for(weight: WeightType, from: &[u8], to: &[u8]) -> Option<u64> {
        let mut entries = 0;
        match (weight, from, to) {
            (WeightType::Bf16, &[a, b], &[c, d]) => {
                let (from, to) = (f32::from_le_bytes([0, 0, a, b]), f32::from_le_bytes([0, 0, c, d]));
                narrow_parts(from, to, |_| entries += 1)?;
            }
            (_, from, to) => {
                let number = |bytes: &[u8]| Some(f32::from_le_bytes(bytes.try_into().ok()?));
                wide_parts(number(from)?, number(to)?, |_| entries += 1)?;
            }
        }
        Some(entries)
    }

    /// The entries of some rows.
    pub(in super::super) fn differences(&self, rows: Range<usize>) -> Differences<'_> {
        let ends = &self.ends[rows.start * self.blocks..=rows.end * self.blocks];
        match &self.entries {
            Entries::Narrow(entries) => Differences::Narrow { entries, ends },
            Entries::Wide(entries) => Differences::Wide { entries, ends },
        }
    }

    /// Patches some rows of the base, in FP32, to those of the matrix.
    pub(in super::super) fn patch(&self, shape: MatrixShape, rows: Range<usize>, numbers: &mut [f32]) {
        sparse::patch_rows(self.differences(rows), shape.cols, numbers);
    }
}
