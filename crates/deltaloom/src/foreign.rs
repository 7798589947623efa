//! Kinds of files that are not what a reader wants, recognised by their first bytes.
//! It reads no files.

use std::fmt;

/// Bytes that are looked at: up to the magic of a tar archive, and the first names of a zip
/// archive.
pub(crate) const START_BYTES: u64 = 512;
/// The first bytes of a container.
pub(crate) const CONTAINER_MAGIC: [u8; 8] = *b"\x89LOOM\r\n\x1a";

/// A kind of file other than the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Foreign {
    /// An empty file.
    Empty,
    /// The placeholder that Git LFS keeps for a large file.
    LfsPointer,
    /// A web page, such as an error or a login page.
    Html,
    /// For example the answer of an object store.
    Xml,
    /// For example the answer of a server, or a configuration.
    Json,
    /// The list of the shards of a checkpoint.
    ShardIndex,
    /// A safetensors file where a container is expected.
    Safetensors,
    /// A container where a safetensors file is expected.
    Container,
    /// GGUF, or GGML before it.
    Gguf,
    /// A model in ONNX.
    Onnx,
    /// Written by `torch.save`, or TorchScript.
    TorchArchive,
    /// Written by `torch.save` of older versions, or any other pickle.
    Pickle,
    /// A NumPy array.
    Npy,
    /// An archive of NumPy arrays.
    Npz,
    /// HDF5, as Keras writes it.
    Hdf5,
    /// A graph, a saved model or a Lite model of TensorFlow.
    TensorFlow,
    /// Any other zip archive.
    Zip,
    /// A tar archive.
    Tar,
    /// Compressed by gzip.
    Gzip,
    /// Compressed by zstd.
    Zstd,
    /// Compressed by xz.
    Xz,
    /// Compressed by bzip2.
    Bzip2,
}

/// The kind of file that a reader expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// A safetensors file.
    Safetensors,
    /// A container.
    Container,
    /// The configuration of an adapter.
    AdapterConfig,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "a safetensors file",
            Self::Container => "a deltaloom container",
            Self::AdapterConfig => "the configuration of an adapter",
        })
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file",
            Self::LfsPointer => "a Git LFS pointer",
            Self::Html => "an HTML page",
            Self::Xml => "XML text",
            Self::Json => "JSON text",
            Self::ShardIndex => "the index of a sharded checkpoint",
            Self::Safetensors => "a safetensors checkpoint",
            Self::Container => "a deltaloom container",
            Self::Gguf => "a GGUF model",
            Self::Onnx => "an ONNX model",
            Self::TorchArchive => "a PyTorch archive",
            Self::Pickle => "a Python pickle, as old PyTorch files are",
            Self::Npy => "a NumPy array",
            Self::Npz => "a NumPy archive",
            Self::Hdf5 => "an HDF5 file, as Keras models are",
            Self::TensorFlow => "a TensorFlow model",
            Self::Zip => "a zip archive",
            Self::Tar => "a tar archive",
            Self::Gzip => "a file compressed by gzip",
            Self::Zstd => "a file compressed by zstd",
            Self::Xz => "a file compressed by xz",
            Self::Bzip2 => "a file compressed by bzip2",
        })
    }
}

impl Foreign {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::LfsPointer => "Git LFS pointer",
            Self::Html => "HTML",
            Self::Xml => "XML",
            Self::Json => "JSON",
            Self::ShardIndex => "index",
            Self::Safetensors => "safetensors",
            Self::Container => "deltaloom",
            Self::Gguf => "GGUF",
            Self::Onnx => "ONNX",
            Self::TorchArchive => "PyTorch",
            Self::Pickle => "pickle",
            Self::Npy | Self::Npz => "NumPy",
            Self::Hdf5 => "HDF5",
            Self::TensorFlow => "TensorFlow",
            Self::Zip => "zip",
            Self::Tar => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }

    /// What a file is that begins like this.
    pub(crate) fn of(start: &[u8]) -> Option<Self> {
        if start.is_empty() {
            return Some(Self::Empty);
        }
        // First, since the length of a header may look like the magic of anything.
        if begins_as_safetensors(start) {
            return Some(Self::Safetensors);
        }
        let by_magic = MAGICS.iter().find(|(magic, _)| start.starts_with(magic));
        by_magic
            .map(|(_, kind)| *kind)
            .or_else(|| of_zip(start))
            .or_else(|| of_text(start))
            .or_else(|| is_pickle(start).then_some(Self::Pickle))
            .or_else(|| (start.get(257..262) == Some(b"ustar")).then_some(Self::Tar))
            .or_else(|| (start.get(4..8) == Some(b"TFL3")).then_some(Self::TensorFlow))
            .or_else(|| of_protobuf(start))
    }

    /// Whether it holds weights, or stands for weights, in a form that cannot be read. Asked where
    /// any file is allowed.
    #[must_use]
    pub fn is_weights(self) -> bool {
        matches!(
            self,
            Self::LfsPointer
                | Self::Safetensors
                | Self::Container
                | Self::Gguf
                | Self::Onnx
                | Self::TorchArchive
                | Self::Pickle
                | Self::Npy
                | Self::Npz
                | Self::Hdf5
                | Self::TensorFlow
        )
    }
}

const MAGICS: [(&[u8], Foreign); 14] = [
    (&CONTAINER_MAGIC, Foreign::Container),
    (b"GGUF", Foreign::Gguf),
    (b"lmgg", Foreign::Gguf),
    (b"fmgg", Foreign::Gguf),
    (b"tjgg", Foreign::Gguf),
    (b"\x93NUMPY", Foreign::Npy),
    (b"\x89HDF\r\n\x1a\n", Foreign::Hdf5),
    (b"\x1f\x8b\x08", Foreign::Gzip),
    (b"\x28\xb5\x2f\xfd", Foreign::Zstd),
    (b"\xfd7zXZ\0", Foreign::Xz),
    (b"BZh", Foreign::Bzip2),
    (b"version https://git-lfs.github.com/spec/", Foreign::LfsPointer),
    (b"version https://hawser.github.com/spec/", Foreign::LfsPointer),
    (b"model_checkpoint_path: ", Foreign::TensorFlow),
];

/// A header length below 4 GiB, then the start of a JSON object.
fn begins_as_safetensors(start: &[u8]) -> bool {
    let json = start.get(8..).unwrap_or_default();
    start.get(4..8) == Some(&[0; 4]) && json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

/// A zip archive by the name of its first file.
fn of_zip(start: &[u8]) -> Option<Foreign> {
    if start.starts_with(b"PK\x05\x06") {
        return Some(Foreign::Zip);
    }
    if !start.starts_with(b"PK\x03\x04") {
        return None;
    }
    let length = start.get(26..28).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let name = start.get(30..).unwrap_or_default();
    let name = String::from_utf8_lossy(&name[..length.min(name.len())]);
    // Files that torch.save and TorchScript put into the one folder of their archives.
    let of_torch = ["data.pkl", "constants.pkl", "version", "byteorder", ".format_version"];
    let inner = name.split_once('/').map(|(_, inner)| inner);
    Some(match inner {
        _ if name.ends_with(".npy") => Foreign::Npz,
        Some(inner) if of_torch.contains(&inner) => Foreign::TorchArchive,
        Some(inner) if inner.starts_with("data/") || inner.starts_with("code/") => Foreign::TorchArchive,
        _ => Foreign::Zip,
    })
}

fn of_text(start: &[u8]) -> Option<Foreign> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let lower = String::from_utf8_lossy(text).to_ascii_lowercase();
    let begins = |words: &[&str]| words.iter().any(|word| lower.starts_with(word));
    let is_xml = begins(&["<?xml", "<error>", "<error "]);
    if begins(&["<!doctype html", "<html", "<head", "<body", "<script"])
        || (is_xml || lower.starts_with("<!--")) && lower.contains("<html")
    {
        return Some(Foreign::Html);
    }
    if is_xml {
        return Some(Foreign::Xml);
    }
    let mut json = lower.bytes().filter(|byte| !byte.is_ascii_whitespace());
    match (json.next(), json.next()) {
        (Some(b'{'), Some(b'"')) if lower.contains("\"weight_map\"") => Some(Foreign::ShardIndex),
        (Some(b'{'), Some(b'"' | b'}')) | (Some(b'['), Some(b'{' | b'"' | b'[')) => Some(Foreign::Json),
        _ => None,
    }
}

/// A protocol with a magic, then an opcode, none of which is zero.
fn is_pickle(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, opcode, ..] if *opcode != 0)
}

/// Messages of Protocol Buffers have no magic. They are recognised by several consecutive fields
/// that only such a model has.
fn of_protobuf(start: &[u8]) -> Option<Foreign> {
    let mut fields = Fields(start);
    match fields.next()? {
        // ModelProto: ir_version, then texts about its producer, then the graph or its operators.
        Field { number: 1, value: Value::Varint(1..=64) } => {
            let mut texts = 0;
            loop {
                match fields.next()? {
                    Field { number: 2..=4 | 6, value: Value::Bytes(text) } if is_printable(text) => {
                        texts += 1
                    }
                    Field { number: 5, value: Value::Varint(_) } => {}
                    Field { number: 7 | 8, value: Value::Bytes(_) } if texts > 0 => {
                        return Some(Foreign::Onnx);
                    }
                    // The first node of a graph.
                    Field { number: 7, value: Value::Bytes([0x0a, ..]) } => return Some(Foreign::Onnx),
                    // SavedModel: the schema's version, then a graph that begins with its meta
                    // information.
                    Field { number: 2, value: Value::Bytes([0x0a, ..]) } if texts == 0 => {
                        return Some(Foreign::TensorFlow);
                    }
                    _ => return None,
                }
            }
        }
        // GraphDef: a node, with a name and an operation.
        Field { number: 1, value: Value::Bytes(node) } => {
            let mut node = Fields(node);
            let mut text = |number| match node.next() {
                Some(Field { number: found, value: Value::Bytes(text) }) if found == number => Some(text),
                _ => None,
            };
            let (name, operation) = (text(1)?, text(2)?);
            let is_known =
                [&b"Const"[..], b"Placeholder", b"VariableV2", b"VarHandleOp"].contains(&operation);
            (is_printable(name) && is_known).then_some(Foreign::TensorFlow)
        }
        Field { .. } => None,
    }
}

fn is_printable(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

/// The fields of a message. The last one may be cut off.
struct Fields<'a>(&'a [u8]);

struct Field<'a> {
    number: u64,
    value: Value<'a>,
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_or(self.0.len(), |length| length.min(self.0.len()));
                let (bytes, rest) = self.0.split_at(length);
                self.0 = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some(Field { number: tag >> 3, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beginnings as the named programs write them.
    #[test]
    fn kinds_are_told_by_their_first_bytes() {
        let zip = |name: &str| {
            let length = u16::try_from(name.len()).unwrap().to_le_bytes();
            [
                &b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..],
                &length,
                &[0; 2],
                name.as_bytes(),
            ]
            .concat()
        };
        let mut tar = vec![0; 512];
        tar[..5].copy_from_slice(b"a.bin");
        tar[257..263].copy_from_slice(b"ustar\0");
        let onnx: &[u8] = b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:\xc0\x10\x0a\x20\x0a\x05input";
        let cases: &[(&[u8], Option<Foreign>)] = &[
            (b"", Some(Foreign::Empty)),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:9", Some(Foreign::LfsPointer)),
            (b"<!DOCTYPE html><html>", Some(Foreign::Html)),
            (b"\xef\xbb\xbf \n<HTML lang=en>", Some(Foreign::Html)),
            (b"<?xml version=\"1.0\"?><!DOCTYPE html PUBLIC \"x\"><html>", Some(Foreign::Html)),
            (b"<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code>", Some(Foreign::Xml)),
            (b"{\"error\":\"Repository not found\"}", Some(Foreign::Json)),
            (b"[ {\"a\": 1}", Some(Foreign::Json)),
            (b"{\n  \"metadata\": {\"total_size\": 5},\n  \"weight_map\": {", Some(Foreign::ShardIndex)),
            (b"GGUF\x03\0\0\0\x01", Some(Foreign::Gguf)),
            (b"tjgg\x03\0\0\0", Some(Foreign::Gguf)),
            (onnx, Some(Foreign::Onnx)),
            (b"\x08\x03:\x90\x01\x0a\x10\x0a\x01x", Some(Foreign::Onnx)),
            (b"\x08\x01\x12\xc0\xa3\x02\x0a\x91\x02\x12", Some(Foreign::TensorFlow)),
            (b"\x0a\x20\x0a\x05input\x12\x0bPlaceholder*\x0a", Some(Foreign::TensorFlow)),
            (b"\x1c\0\0\0TFL3\x14\0", Some(Foreign::TensorFlow)),
            (&zip("archive/data.pkl"), Some(Foreign::TorchArchive)),
            (&zip("model/code/__torch__.py"), Some(Foreign::TorchArchive)),
            (&zip("weights.npy"), Some(Foreign::Npz)),
            (&zip("metadata.json"), Some(Foreign::Zip)),
            (b"PK\x05\x06\0\0", Some(Foreign::Zip)),
            (b"PK\x03\x04", Some(Foreign::Zip)),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", Some(Foreign::Pickle)),
            (b"\x80\x04\x95\x10\0\0\0\0\0\0\0", Some(Foreign::Pickle)),
            (&tar, Some(Foreign::Tar)),
            (b"\x1f\x8b\x08\0", Some(Foreign::Gzip)),
            (b"\x28\xb5\x2f\xfd\x24", Some(Foreign::Zstd)),
            (b"\x93NUMPY\x01\0", Some(Foreign::Npy)),
            (b"\x89HDF\r\n\x1a\n\0", Some(Foreign::Hdf5)),
            (b"\x89LOOM\r\n\x1a\x03\0", Some(Foreign::Container)),
            // Lengths of headers that look like magics: 640 is a pickle's, 1032 an ONNX model's.
            (b"\x80\x02\0\0\0\0\0\0{\"a\":", Some(Foreign::Safetensors)),
            (b"\x08\x04\0\0\0\0\0\0 {", Some(Foreign::Safetensors)),
            (b"\x80\x02\0\0\0\0\0\0[", None),
            (b"just some notes, and nothing else", None),
            (b"{ not json }", None),
            (&[0xff; 100], None),
            (&[0; 300], None),
            (b"\x08", None),
            (b"\x08\x07\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (start, kind) in cases {
            assert_eq!(Foreign::of(start), *kind, "{}", start.escape_ascii());
            // Every shorter beginning is tried as well; it need not be recognised.
            (0..start.len()).for_each(|end| _ = Foreign::of(&start[..end]));
        }
    }
}
