//! A safetensors file made of tensors that stay where they are.
//! It writes the header that safetensors 0.8 writes, and joins the sources behind it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::safetensors::{LENGTH_BYTES, METADATA};
use super::source::ReadAt;
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::tensor::{DType, TensorInfo};

/// Dtypes in the order of safetensors, whose files hold them from the last to the first.
const ORDER: [&str; 22] = [
    "BOOL",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "C64",
    "F64",
    "I64",
    "U64",
];

/// A tensor for [`super::Checkpoint::from_tensors`].
#[derive(Clone)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: DType,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<u64>,
    /// Its bytes: elements in row-major order, little endian, without gaps.
    pub source: Arc<dyn ReadAt>,
}

/// The bytes of the file: a header, then the sources in order.
pub(super) struct Image {
    /// Where each source begins, and its bytes. The header is the first.
    parts: Vec<(u64, Arc<dyn ReadAt>)>,
    len_bytes: u64,
}

impl Image {
    pub(super) fn new(
        mut tensors: Vec<NewTensor>,
        metadata: &BTreeMap<String, String>,
        limits: &Limits,
    ) -> Result<Self> {
        Limits::check("the number of tensors", tensors.len() as u64, limits.tensors)?;
        let rank = |tensor: &NewTensor| ORDER.iter().position(|name| *name == tensor.dtype.name());
        if let Some(odd) = tensors.iter().find(|tensor| rank(tensor).is_none()) {
            let (name, dtype) = (&odd.name, &odd.dtype);
            return Err(Error::InvalidArgument(format!("tensor {name:?}: safetensors has no dtype {dtype}")));
        }
        tensors.sort_by(|a, b| rank(b).cmp(&rank(a)).then_with(|| a.name.cmp(&b.name)));
        let header = header(&place(&tensors)?, metadata)?;
        Limits::check("a safetensors header in bytes", header.len() as u64, limits.header_bytes)?;
        let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        debug_assert_eq!(head.len() as u64, LENGTH_BYTES + header.len() as u64);
        let sources = std::iter::once(Arc::new(head) as Arc<dyn ReadAt>);
        let mut len_bytes = 0;
        let mut parts = Vec::with_capacity(tensors.len() + 1);
        for source in sources.chain(tensors.into_iter().map(|tensor| tensor.source)) {
            let begin = len_bytes;
            // The places of all tensors were added up without an overflow.
            len_bytes += source.len_bytes();
            if len_bytes > begin {
                parts.push((begin, source));
            }
        }
        Ok(Self { parts, len_bytes })
    }

    /// The number of the part that has the byte at `offset`.
    fn part_at(&self, offset: u64) -> usize {
        self.parts.partition_point(|(begin, _)| *begin <= offset).saturating_sub(1)
    }
}

impl ReadAt for Image {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (begin, source) in &self.parts[self.part_at(offset)..] {
            if buffer.is_empty() {
                break;
            }
            let at = offset - begin;
            let (part, rest) = buffer.split_at_mut(buffer.len().min(to_usize(source.len_bytes() - at)));
            source.read_at(at, part)?;
            (offset, buffer) = (offset + part.len() as u64, rest);
        }
        Ok(())
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        if range.is_empty() {
            return (range.end <= self.len_bytes).then_some(&[]);
        }
        let (begin, source) = self.parts.get(self.part_at(range.start))?;
        if range.end - begin > source.len_bytes() {
            return None;
        }
        source.slice(range.start - begin..range.end - begin)
    }
}

/// Places the tensors one after another, and checks their names and sizes.
fn place(tensors: &[NewTensor]) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::with_capacity(tensors.len());
    let mut begin = 0u64;
    let placed = tensors.iter().map(|tensor| {
        let NewTensor { name, dtype, shape, source } = tensor;
        if name == METADATA {
            return Err(Error::InvalidArgument(format!("a tensor cannot be named {METADATA:?}")));
        }
        if !names.insert(name) {
            return Err(Error::InvalidArgument(format!("two tensors are named {name:?}")));
        }
        let end = begin.checked_add(source.len_bytes());
        let end =
            end.ok_or_else(|| Error::InvalidArgument("the tensors take more than 2^64 bytes".to_owned()))?;
        let info = TensorInfo { name: name.clone(), dtype: dtype.clone(), shape: shape.clone(), begin, end };
        let len_bytes = source.len_bytes();
        info.check_size().map_err(|_| {
            let fault =
                format!("tensor {name:?}: {dtype} of shape {shape:?} does not take {len_bytes} bytes");
            Error::InvalidArgument(fault)
        })?;
        begin = end;
        Ok(info)
    });
    placed.collect()
}

/// The header in JSON, with spaces behind it so that the tensors begin at a multiple of 8 bytes.
fn header(tensors: &[TensorInfo], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let header = Header { tensors, metadata };
    let mut json = serde_json::to_vec(&header).map_err(|e| Error::InvalidArgument(e.to_string()))?;
    json.resize(json.len().next_multiple_of(to_usize(LENGTH_BYTES)), b' ');
    Ok(json)
}

struct Header<'a> {
    tensors: &'a [TensorInfo],
    metadata: &'a BTreeMap<String, String>,
}

#[derive(serde::Serialize)]
struct Entry<'a> {
    dtype: &'a str,
    shape: &'a [u64],
    data_offsets: (u64, u64),
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for TensorInfo { name, dtype, shape, begin, end } in self.tensors {
            let entry = Entry { dtype: dtype.name(), shape, data_offsets: (*begin, *end) };
            map.serialize_entry(name, &entry)?;
        }
        map.end()
    }
}
