//! The part of a GGUF file before its data. Every length is compared with the bytes that are left
//! before anything is allocated.

use std::collections::BTreeMap;

use super::kind::Kind;
use super::{Array, Header, Tensor, Value, wrong};
use deltaloom::checkpoint::ReadAt;
use deltaloom::{Error, Limits, Result};

const MAGIC: &[u8] = b"GGUF";
/// Arrays of arrays are allowed, and nobody writes them.
const MAX_DEPTH: u32 = 4;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Bytes of a key or a name.
const MAX_NAME: u64 = 0xffff;
/// Bytes that are read at a time.
const BLOCK: u64 = 1 << 16;
/// Types of metadata.
const INT32: u32 = 5;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Reads the part before the data.
pub(super) fn read(source: &dyn ReadAt) -> Result<Header> {
    let mut reader = Reader::new(source, 0);
    if reader.take(4)? != MAGIC {
        return Err(wrong("it does not begin as one"));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(wrong(format!("version {version:#x} is not known")));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    let limits = Limits::default();
    Limits::check("the number of tensors", tensor_count, limits.tensors)?;
    let mut values = BTreeMap::new();
    for _ in 0..value_count {
        let (key, kind) = (reader.name()?, reader.u32()?);
        let value = reader.value(kind)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(wrong(format!("{key:?} comes twice")));
        }
    }
    let alignment = match values.get("general.alignment") {
        None => 32,
        Some(Value::Integer(alignment)) if alignment.is_power_of_two() && *alignment <= MAX_ALIGNMENT => {
            *alignment
        }
        Some(other) => return Err(wrong(format!("an alignment of {other:?}"))),
    };
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let (name, tensor) = reader.tensor(alignment)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(wrong(format!("tensor {name:?} comes twice")));
        }
    }
    let data = reader.at.next_multiple_of(alignment);
    place(&mut tensors, data, source.len_bytes())?;
    Ok(Header { values, tensors })
}

/// Moves tensors, which count from the start of the data, to their places in the file. They must
/// not overlap: many that share bytes would take more memory than the file has.
fn place(tensors: &mut BTreeMap<String, Tensor>, data: u64, file_bytes: u64) -> Result<()> {
    let mut places: Vec<(&String, &mut Tensor)> = tensors.iter_mut().collect();
    places.sort_by_key(|(_, tensor)| (tensor.start, tensor.len_bytes));
    let mut end_before = 0;
    for (name, tensor) in places {
        let start = data.checked_add(tensor.start);
        let end = start.and_then(|start| start.checked_add(tensor.len_bytes));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end <= file_bytes)) else {
            return Err(wrong(format!("tensor {name:?} ends behind the file")));
        };
        if start < end_before {
            return Err(wrong(format!("tensor {name:?} overlaps another one")));
        }
        (tensor.start, end_before) = (start, end);
    }
    Ok(())
}

/// The texts of an array.
pub(super) fn texts(source: &dyn ReadAt, array: Array) -> Option<Result<Vec<String>>> {
    let mut reader = Reader::new(source, array.start);
    // Each was seen when the file was opened, so the count is no larger than the file.
    (array.kind == STRING).then(|| (0..array.count).map(|_| reader.text(u64::MAX)).collect())
}

/// The 32-bit integers of an array.
pub(super) fn integers(source: &dyn ReadAt, array: Array) -> Option<Result<Vec<i32>>> {
    let mut reader = Reader::new(source, array.start);
    let mut next = || reader.array().map(i32::from_le_bytes);
    (array.kind == INT32).then(|| (0..array.count).map(|_| next()).collect())
}

struct Reader<'a> {
    source: &'a dyn ReadAt,
    at: u64,
    block: Vec<u8>,
    block_start: u64,
}

impl<'a> Reader<'a> {
    fn new(source: &'a dyn ReadAt, at: u64) -> Self {
        Self { source, at, block: Vec::new(), block_start: 0 }
    }

    /// Moves on by some bytes, which must exist, and belong to what is read at all.
    fn advance(&mut self, count: u64) -> Result<u64> {
        let start = self.at;
        let end = start.checked_add(count).filter(|end| *end <= self.source.len_bytes());
        let end = end.ok_or_else(|| wrong("it ends before its data"))?;
        Limits::check("the metadata of a GGUF file in bytes", end, Limits::default().header_bytes)?;
        self.at = end;
        Ok(start)
    }

    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let start = self.advance(count)?;
        if start < self.block_start || self.at > self.block_start + self.block.len() as u64 {
            let end = self.at.max((start + BLOCK).min(self.source.len_bytes()));
            self.block = read_range(self.source, start, end - start)?;
            self.block_start = start;
        }
        let place = |at: u64| usize::try_from(at - self.block_start).unwrap_or(usize::MAX);
        self.block.get(place(start)..place(self.at)).ok_or_else(|| wrong("it is too large"))
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

    fn name(&mut self) -> Result<String> {
        self.text(MAX_NAME)
    }

    fn text(&mut self, most: u64) -> Result<String> {
        let length = self.u64()?;
        Limits::check("a name in bytes", length, most)?;
        String::from_utf8(self.take(length)?.to_vec()).map_err(|_| wrong("a name or text is not UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        let natural = |number: i64| u64::try_from(number).map_or(Value::Other, Value::Integer);
        Ok(match kind {
            0 | 7 => Value::Integer(self.array::<1>()?[0].into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            INT32 => natural(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Number(f32::from_le_bytes(self.array()?).into()),
            10 => Value::Integer(self.u64()?),
            11 => natural(i64::from_le_bytes(self.array()?)),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            STRING => {
                let length = self.u64()?;
                // Names of authors and the like may have any bytes.
                Value::Text(String::from_utf8_lossy(self.take(length)?).into_owned())
            }
            ARRAY => Value::Array(self.skip_array(0)?),
            _ => {
                self.skip(kind, 0)?;
                Value::Other
            }
        })
    }

    fn skip_array(&mut self, depth: u32) -> Result<Array> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let array = Array { kind, count, start: self.at };
        match size(kind) {
            Some(size) => {
                let bytes = count.checked_mul(size).ok_or_else(|| wrong("it ends before its data"))?;
                self.advance(bytes)?;
            }
            // Each takes at least a byte, so this ends with the file.
            None => (0..count).try_for_each(|_| self.skip(kind, depth + 1))?,
        }
        Ok(array)
    }

    fn skip(&mut self, kind: u32, depth: u32) -> Result<()> {
        match (size(kind), kind) {
            (Some(size), _) => _ = self.advance(size)?,
            (None, STRING) => {
                let length = self.u64()?;
                self.advance(length)?;
            }
            (None, ARRAY) if depth < MAX_DEPTH => _ = self.skip_array(depth)?,
            _ => return Err(wrong(format!("a value of type {kind} is not known"))),
        }
        Ok(())
    }

    /// The description of a tensor. Its place counts from the start of the data.
    fn tensor(&mut self, alignment: u64) -> Result<(String, Tensor)> {
        let name = self.name()?;
        let dims = self.u32()?;
        if dims > MAX_DIMS {
            return Err(wrong(format!("tensor {name:?} has {dims} dimensions")));
        }
        let mut shape = (0..dims).map(|_| self.u64()).collect::<Result<Vec<u64>>>()?;
        // The first is the one whose elements are adjacent.
        shape.reverse();
        let kind = Kind::of(self.u32()?, &name)?;
        let start = self.u64()?;
        if !start.is_multiple_of(alignment) {
            return Err(wrong(format!("tensor {name:?} is not aligned")));
        }
        let row = kind.bytes(shape.last().copied().unwrap_or(1));
        let row = row.ok_or_else(|| wrong(format!("a row of tensor {name:?} ends within a block")))?;
        let rows = &shape[..shape.len().saturating_sub(1)];
        let len_bytes = rows.iter().try_fold(row, |bytes, size| bytes.checked_mul(*size));
        let len_bytes = len_bytes.ok_or_else(|| wrong(format!("tensor {name:?} ends behind the file")))?;
        Ok((name, Tensor { kind, shape, start, len_bytes }))
    }
}

/// Bytes of a value of metadata that has a fixed size.
fn size(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// Bytes of the source, which has them.
pub(super) fn read_range(source: &dyn ReadAt, start: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| wrong("it is too large"))?];
    source.read_at(start, &mut bytes).map_err(|e| Error::InvalidArgument(format!("GGUF: {e}")))?;
    Ok(bytes)
}
