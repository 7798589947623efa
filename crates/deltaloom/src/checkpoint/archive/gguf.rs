//! The tensors of a GGUF file, versions 2 and 3, as the ggml project documents them (docs/gguf.md).
//! Of the metadata it reads only the alignment. Blocks of quantised weights stay bytes.

use std::ops::Range;

use super::{File, Found};
use crate::checkpoint::gguf::BlockKind;
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::tensor::DType;

const MAGIC: [u8; 4] = *b"GGUF";
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// The key of the alignment, its default, and the largest that is accepted.
const ALIGNMENT_KEY: &[u8] = b"general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// The least bytes of a key with its value, and of the description of a tensor.
const LEAST_PAIR: u64 = 13;
const LEAST_TENSOR: u64 = 24;
/// The longest key or name.
const MAX_NAME_BYTES: u64 = 0xffff;
/// Arrays of arrays are allowed, and nobody writes them.
const MAX_DEPTH: u32 = 4;
/// Bytes that are read at a time.
const BLOCK_BYTES: u64 = 1 << 16;
/// Types of metadata.
const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// How the elements of a type are stored.
enum Stored {
    As(DType),
    /// Elements and bytes of a block.
    Blocks(u64, u64),
}

/// The tensors of the file.
pub(super) fn read(file: &File<'_>) -> Result<Vec<Found>> {
    let mut reader = Reader { file, at: 0, block: Vec::new(), block_start: 0 };
    let magic = reader.array()?;
    let version = reader.u32()?;
    if magic != MAGIC || !VERSIONS.contains(&version) {
        let what = if VERSIONS.contains(&version.swap_bytes()) { "is big-endian" } else { "is not known" };
        return Err(Error::corrupt(format!("version {version:#x} {what}")));
    }
    let (tensor_count, pair_count) = (reader.u64()?, reader.u64()?);
    Limits::check("the number of tensors", tensor_count, file.limits.tensors)?;
    reader.check_count(pair_count, LEAST_PAIR)?;
    let mut alignment = DEFAULT_ALIGNMENT;
    for _ in 0..pair_count {
        let key = reader.name()?;
        let kind = reader.u32()?;
        if key == ALIGNMENT_KEY && kind == U32 {
            alignment = reader.u32()?.into();
        } else {
            reader.skip_value(kind, 0)?;
        }
    }
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(Error::corrupt(format!("an alignment of {alignment} bytes")));
    }
    reader.check_count(tensor_count, LEAST_TENSOR)?;
    let mut found = (0..tensor_count).map(|_| reader.tensor()).collect::<Result<Vec<_>>>()?;
    let data = reader.at.next_multiple_of(alignment);
    for Found { name, place, .. } in &mut found {
        let is_aligned = place.start.is_multiple_of(alignment);
        let moved = data.checked_add(place.start).zip(data.checked_add(place.end));
        match moved.filter(|(_, end)| is_aligned && *end <= file.source.len_bytes()) {
            Some((start, end)) => *place = start..end,
            None => {
                let fault = if is_aligned { "ends behind the file" } else { "is not aligned" };
                return Err(Error::corrupt(format!(
                    "tensor {:?} {fault}",
                    String::from_utf8_lossy(name.as_bytes())
                )));
            }
        }
    }
    Ok(found)
}

struct Reader<'a> {
    file: &'a File<'a>,
    at: u64,
    block: Vec<u8>,
    block_start: u64,
}

impl Reader<'_> {
    /// Moves on by some bytes, which must exist and belong to the part before the data.
    fn advance(&mut self, count: u64) -> Result<Range<u64>> {
        let available = self.file.source.len_bytes();
        let end = self.at.checked_add(count).filter(|end| *end <= available);
        let end = end.ok_or_else(|| Error::corrupt("it ends before its data"))?;
        Limits::check("the metadata of a GGUF file in bytes", end, self.file.limits.header_bytes)?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    /// The next bytes, at most as many as a name has.
    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let range = self.advance(count)?;
        let block_end = self.block_start + self.block.len() as u64;
        if range.start < self.block_start || range.end > block_end {
            let end = range.end.max((range.start + BLOCK_BYTES).min(self.file.source.len_bytes()));
            self.block = self.file.read(range.start..end)?;
            self.block_start = range.start;
        }
        let start = to_usize(range.start - self.block_start);
        Ok(&self.block[start..start + to_usize(count)])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self) -> Result<Vec<u8>> {
        let length = self.u64()?;
        Limits::check("a name in bytes", length, MAX_NAME_BYTES)?;
        self.take(length).map(<[u8]>::to_vec)
    }

    /// Checks that so many things of at least `least` bytes each can follow.
    fn check_count(&self, count: u64, least: u64) -> Result<()> {
        let left = self.file.source.len_bytes() - self.at;
        if count.checked_mul(least).is_none_or(|bytes| bytes > left) {
            return Err(Error::corrupt(format!("it is too short for {count} keys or tensors")));
        }
        Ok(())
    }

    fn skip_value(&mut self, kind: u32, depth: u32) -> Result<()> {
        match (size_of_value(kind), kind) {
            (Some(size), _) => _ = self.advance(size)?,
            (None, STRING) => {
                let length = self.u64()?;
                self.advance(length)?;
            }
            (None, ARRAY) if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                match size_of_value(kind) {
                    Some(size) => {
                        self.check_count(count, size)?;
                        self.advance(count * size)?;
                    }
                    // Texts and arrays have at least the 8 bytes of their length.
                    None => {
                        self.check_count(count, 8)?;
                        (0..count).try_for_each(|_| self.skip_value(kind, depth + 1))?;
                    }
                }
            }
            _ => return Err(Error::corrupt(format!("a value of type {kind} is not known"))),
        }
        Ok(())
    }

    /// The description of a tensor. Its place counts from the start of the data.
    fn tensor(&mut self) -> Result<Found> {
        let name = String::from_utf8(self.name()?).map_err(|_| Error::corrupt("a name is not UTF-8"))?;
        let dims = self.u32()?;
        Limits::check("the number of dimensions", dims.into(), self.file.limits.dimensions)?;
        let mut shape = (0..dims).map(|_| self.u64()).collect::<Result<Vec<u64>>>()?;
        // The first is the one whose elements are adjacent.
        shape.reverse();
        let (kind, start) = (self.u32()?, self.u64()?);
        let stored = stored(kind)
            .ok_or_else(|| Error::corrupt(format!("tensor {name:?} has type {kind}, which is not known")))?;
        let dtype = match stored {
            Stored::As(dtype) => dtype,
            Stored::Blocks(elems, bytes) => {
                let row = shape.last_mut().filter(|row| row.is_multiple_of(elems));
                let row =
                    row.ok_or_else(|| Error::corrupt(format!("tensor {name:?} has parts of blocks")))?;
                *row = (*row / elems).saturating_mul(bytes);
                DType::U8
            }
        };
        let elem_bytes = dtype.bits().unwrap_or(8) / 8;
        let len_bytes = shape.iter().try_fold(elem_bytes, |n, dim| n.checked_mul(*dim));
        let end = len_bytes.and_then(|len_bytes| start.checked_add(len_bytes));
        let end = end.ok_or_else(|| Error::corrupt(format!("tensor {name:?} has no size")))?;
        Ok(Found { name, dtype, shape, place: start..end })
    }
}

/// Bytes of a value of metadata that has a fixed size.
fn size_of_value(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// The types of `ggml_type` in ggml.h, with the sizes of their blocks.
fn stored(kind: u32) -> Option<Stored> {
    if let Some(kind) = BlockKind::of_type(kind) {
        return Some(Stored::Blocks(kind.numbers() as u64, kind.bytes() as u64));
    }
    Some(match kind {
        0 => Stored::As(DType::F32),
        1 => Stored::As(DType::F16),
        24 => Stored::As(DType::I8),
        25 => Stored::As(DType::I16),
        26 => Stored::As(DType::I32),
        27 => Stored::As(DType::I64),
        28 => Stored::As(DType::F64),
        30 => Stored::As(DType::BF16),
        // Q8_K.
        15 => Stored::Blocks(256, 292),
        // IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ3_S, IQ2_S, IQ1_M.
        16 => Stored::Blocks(256, 66),
        17 => Stored::Blocks(256, 74),
        18 => Stored::Blocks(256, 98),
        19 => Stored::Blocks(256, 50),
        21 => Stored::Blocks(256, 110),
        22 => Stored::Blocks(256, 82),
        29 => Stored::Blocks(256, 56),
        // TQ1_0, TQ2_0, MXFP4, NVFP4.
        34 => Stored::Blocks(256, 54),
        35 => Stored::Blocks(256, 66),
        39 => Stored::Blocks(32, 17),
        40 => Stored::Blocks(64, 36),
        _ => return None,
    })
}
