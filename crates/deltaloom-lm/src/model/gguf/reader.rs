//! Metadata and tensors of a GGUF file in memory, versions 2 and 3, as the ggml project documents
//! them. Every length is compared with the bytes that are left before anything is allocated.

use std::collections::BTreeMap;
use std::ops::Range;

use deltaloom::{Error, Result};

const MAGIC: &[u8] = b"GGUF";
/// Arrays of arrays are allowed, and nobody writes them.
const MAX_DEPTH: u32 = 4;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A value of metadata. Of arrays, only the number of elements is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer(u64),
    Number(f64),
    Text(String),
    Array(u64),
    /// Of a type that no setting here has.
    Other,
}

/// A tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    /// As numbers of `ggml_type`.
    pub(super) kind: u32,
    /// Rows first.
    pub(super) shape: Vec<u64>,
    /// From the start of the data.
    pub(super) start: u64,
}

/// The part before the data.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// Where the data begins.
    pub(super) data: u64,
}

/// Reads the part before the data.
pub(super) fn read(bytes: &[u8]) -> Result<Header> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != MAGIC {
        return Err(wrong("it does not begin as one".to_owned()));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(wrong(format!("version {version:#x} is not known")));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    let mut header = Header { values: BTreeMap::new(), tensors: BTreeMap::new(), data: 0 };
    for _ in 0..value_count {
        let (key, kind) = (reader.text()?, reader.u32()?);
        let value = reader.value(kind, 0)?;
        if header.values.insert(key.clone(), value).is_some() {
            return Err(wrong(format!("{key:?} comes twice")));
        }
    }
    let alignment = match header.values.get("general.alignment") {
        None => 32,
        Some(Value::Integer(alignment)) if alignment.is_power_of_two() && *alignment <= MAX_ALIGNMENT => {
            *alignment
        }
        Some(other) => return Err(wrong(format!("an alignment of {other:?}"))),
    };
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let dims = reader.u32()?;
        if dims > MAX_DIMS {
            return Err(wrong(format!("tensor {name:?} has {dims} dimensions")));
        }
        let mut shape = (0..dims).map(|_| reader.u64()).collect::<Result<Vec<u64>>>()?;
        // The first is the one whose elements are adjacent.
        shape.reverse();
        let (kind, start) = (reader.u32()?, reader.u64()?);
        if !start.is_multiple_of(alignment) {
            return Err(wrong(format!("tensor {name:?} is not aligned")));
        }
        if header.tensors.insert(name.clone(), Tensor { kind, shape, start }).is_some() {
            return Err(wrong(format!("tensor {name:?} comes twice")));
        }
    }
    header.data = (reader.at as u64).next_multiple_of(alignment);
    Ok(header)
}

/// The bytes of a tensor of this length.
pub(super) fn data<'a>(bytes: &'a [u8], header: &Header, tensor: &Tensor, len: u64) -> Option<&'a [u8]> {
    let start = header.data.checked_add(tensor.start)?;
    let range: Range<usize> = usize::try_from(start).ok()?..usize::try_from(start.checked_add(len)?).ok()?;
    bytes.get(range)
}

pub(super) fn wrong(what: String) -> Error {
    Error::InvalidArgument(format!("GGUF: {what}"))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| wrong("it ends before its data".to_owned()))?;
        self.at += taken.len();
        Ok(taken)
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

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| wrong("a name is not UTF-8".to_owned()))
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 | 7 => Value::Integer(self.array::<1>()?[0].into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => u64::try_from(i32::from_le_bytes(self.array()?)).map_or(Value::Other, Value::Integer),
            6 => Value::Number(f32::from_le_bytes(self.array()?).into()),
            10 => Value::Integer(self.u64()?),
            11 => u64::try_from(i64::from_le_bytes(self.array()?)).map_or(Value::Other, Value::Integer),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            1 => self.take(1).map(|_| Value::Other)?,
            3 => self.take(2).map(|_| Value::Other)?,
            8 => {
                let length = self.u64()?;
                // Tokens and templates may have any bytes.
                Value::Text(String::from_utf8_lossy(self.take(length)?).into_owned())
            }
            9 if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Each takes at least a byte, so this ends with the file.
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
                Value::Array(count)
            }
            _ => return Err(wrong(format!("a value of type {kind} is not known"))),
        })
    }
}
