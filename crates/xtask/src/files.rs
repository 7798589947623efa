//! Safetensors files, PyTorch archives and GGUF files in memory, for golden inputs and the demo
//! weights. It writes regular headers; callers pass odd ones as text.

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

/// Writes an archive as `torch.save` does for a dict of tensors: a zip archive of stored files,
/// each followed by its size. The checksums of files are left out.
pub(crate) fn torch_archive(tensors: &[Tensor]) -> Vec<u8> {
    let storages = tensors.iter().enumerate();
    let mut files = vec![("archive/data.pkl".to_owned(), pickle(tensors))];
    files.extend(storages.map(|(key, tensor)| (format!("archive/data/{key}"), tensor.bytes.clone())));
    files.push(("archive/version".to_owned(), b"3\n".to_vec()));
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in &files {
        let offset = four(out.len());
        let sizes = [four(0), four(data.len()), four(data.len())].concat();
        let lengths = [two(name.len()), two(0)].concat();
        // Version, flags, method, time and date.
        let fields = [0, 0, 8, 8, 0, 0, 0, 0, 0, 0];
        out.extend([&b"PK\x03\x04"[..], &fields, &[0; 12], &lengths, name.as_bytes(), data].concat());
        out.extend([&b"PK\x07\x08"[..], &sizes].concat());
        directory.extend([&b"PK\x01\x02\0\0"[..], &fields, &sizes, &lengths, &[0; 10], &offset].concat());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (out.len(), two(files.len()));
    out.extend(&directory);
    out.extend(
        [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &four(directory.len()), &four(start), &[0; 2]].concat(),
    );
    out
}

/// The pickle of a dict of tensors, each of which is all of a storage.
fn pickle(tensors: &[Tensor]) -> Vec<u8> {
    let text = |text: &str| [b"X", &four(text.len())[..], text.as_bytes()].concat();
    let int = |int: usize| [b"J", &four(int)[..]].concat();
    let tuple = |numbers: &[usize]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| int(*number)).collect();
        [b"(", &numbers[..], b"t"].concat()
    };
    let mut out = b"\x80\x02}(".to_vec();
    for (key, tensor) in tensors.iter().enumerate() {
        let class = match tensor.dtype {
            "BF16" => "BFloat16",
            "U8" => "Byte",
            _ => "Float",
        };
        let strides: Vec<usize> =
            (0..tensor.shape.len()).map(|dim| tensor.shape[dim + 1..].iter().product()).collect();
        out.extend(
            [text(&tensor.name), b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(), text("storage")].concat(),
        );
        out.extend(format!("ctorch\n{class}Storage\n").as_bytes());
        let elems = tensor.shape.iter().product();
        out.extend([text(&key.to_string()), text("cpu"), int(elems), b"tQ".to_vec(), int(0)].concat());
        out.extend([tuple(&tensor.shape), tuple(&strides)].concat());
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

/// Writes a GGUF file with this metadata: a number of keys, and the bytes of them and their values.
/// A tensor of U8 is one of Q8_0, whose blocks of 32 elements take 34 bytes.
pub(crate) fn gguf((keys, metadata): (u64, &[u8]), tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend([tensors.len() as u64, keys].map(u64::to_le_bytes).concat());
    out.extend(metadata);
    let mut offset = 0u64;
    for tensor in tensors {
        let (kind, (elems, bytes)) = match tensor.dtype {
            "U8" => (8u32, (32, 34)),
            "BF16" => (30, (1, 1)),
            _ => (0, (1, 1)),
        };
        out.extend([&(tensor.name.len() as u64).to_le_bytes()[..], tensor.name.as_bytes()].concat());
        out.extend(four(tensor.shape.len()));
        for (i, dim) in tensor.shape.iter().rev().enumerate() {
            let dim = if i == 0 { dim / bytes * elems } else { *dim };
            out.extend((dim as u64).to_le_bytes());
        }
        out.extend([&kind.to_le_bytes()[..], &offset.to_le_bytes()].concat());
        offset += (tensor.bytes.len() as u64).next_multiple_of(32);
    }
    for tensor in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&tensor.bytes);
    }
    out
}

fn four(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or_default().to_le_bytes()
}

fn two(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or_default().to_le_bytes()
}
