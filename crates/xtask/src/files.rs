//! Safetensors files in memory, for golden inputs and the demo weights. It writes regular headers;
//! callers pass odd ones as text.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A tensor to write.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    /// Its part of a header: compact JSON with the keys in the order of the format's own writer.
    pub(crate) fn entry(&self, begin: usize) -> String {
        let name = Value::from(self.name.as_str());
        let shape: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        let (dtype, shape, end) = (self.dtype, shape.join(","), begin + self.bytes.len());
        format!(r#"{name}:{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#)
    }
}

/// Writes a file of these tensors in this order, with its header padded with spaces to a multiple
/// of 8.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut begin = 0;
    let mut entries = Vec::new();
    for tensor in tensors {
        entries.push(tensor.entry(begin));
        begin += tensor.bytes.len();
    }
    let mut header = format!("{{{}}}", entries.join(","));
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    with_header(&header, tensors)
}

/// Writes a file with this header, whatever it contains.
pub(crate) fn with_header(header: &str, tensors: &[Tensor]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    tensors.iter().for_each(|tensor| out.extend(&tensor.bytes));
    out
}

/// Splits a file into header and data.
pub(crate) fn split(file: &[u8]) -> Result<(Value, &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>().context("no header length")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let (header, data) = rest.split_at_checked(length).context("the header is cut off")?;
    Ok((serde_json::from_slice(header)?, data))
}
