//! The safetensors header: names, dtypes, shapes and places of tensors, checked.
//! It reads headers only and never writes one: headers are carried along as they are.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::source::ReadAt;
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::tensor::{DType, TensorInfo};

/// Bytes before the header: its length.
pub(crate) const LENGTH_BYTES: u64 = 8;
/// The name under which a header has its texts.
pub(super) const METADATA: &str = "__metadata__";
/// First bytes of a lossy step, see docs/lossy.md. As the length of a header they would be far too
/// large.
pub const LOSSY_MAGIC: [u8; 8] = *b"\x89LOSSY\r\n";

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// All entries in file order. A map would silently drop one of two equal names.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// The tensors of a header in the order of their places. Sizes follow from dtype and shape, no
/// tensors overlap or leave a hole, and names are unique.
///
/// # Errors
/// [`Error::Corrupt`] or [`Error::LimitExceeded`].
pub fn parse_header(json: &[u8], limits: &Limits) -> Result<Vec<TensorInfo>> {
    Limits::check("a safetensors header in bytes", json.len() as u64, limits.header_bytes)?;
    let Entries(entries) =
        serde_json::from_slice(json).map_err(|e| Error::corrupt(format!("safetensors header: {e}")))?;
    Limits::check("the number of tensors", entries.len() as u64, limits.tensors)?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        Limits::check("the number of dimensions", entry.shape.len() as u64, limits.dimensions)?;
        let (begin, end) = entry.data_offsets;
        let dtype = DType::from_name(&entry.dtype);
        if begin > end {
            return Err(Error::corrupt(format!(
                "tensor {name:?} ends at {end}, before its begin at {begin}"
            )));
        }
        let tensor = TensorInfo { name, dtype, shape: entry.shape, begin, end };
        tensor.check_size()?;
        tensors.push(tensor);
    }
    tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    let mut names = HashSet::with_capacity(tensors.len());
    let mut expected = 0;
    for tensor in &tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(Error::corrupt(format!("two tensors are named {:?}", tensor.name)));
        }
        if tensor.begin != expected {
            let fault = if tensor.begin < expected {
                "overlaps the tensor before it"
            } else {
                "leaves a hole before it"
            };
            return Err(Error::corrupt(format!(
                "tensor {:?} {fault} (begins at {}, expected {expected})",
                tensor.name, tensor.begin
            )));
        }
        expected = tensor.end;
    }
    Ok(tensors)
}

/// Reads and checks the header of a safetensors file, and checks that its data has the length that
/// the header says. Also returns the number of bytes behind the data. Files with such a tail exist,
/// and loaders that map files ignore it.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Truncated`], [`Error::LimitExceeded`], or what reading gives (named
/// `path`).
pub(crate) fn read_header(
    source: &dyn ReadAt,
    path: &std::path::Path,
    limits: &Limits,
) -> Result<(Vec<u8>, Vec<TensorInfo>, u64)> {
    let available = source.len_bytes();
    let truncated = |what, needed| Error::Truncated { what, needed, available };
    if available < LENGTH_BYTES {
        return Err(truncated("the length of the safetensors header", LENGTH_BYTES));
    }
    let mut length = [0; 8];
    source.read_at(0, &mut length).map_err(Error::io(path))?;
    if length == LOSSY_MAGIC {
        return Err(Error::Lossy);
    }
    let header_bytes = u64::from_le_bytes(length);
    // Nobody ever wrote a header of terabytes.
    let what = if header_bytes >> 40 == 0 {
        "a safetensors header in bytes"
    } else {
        "not a safetensors file: the length of a header that its first 8 bytes give"
    };
    Limits::check(what, header_bytes, limits.header_bytes)?;
    let data_offset = LENGTH_BYTES + header_bytes;
    if data_offset > available {
        return Err(truncated("the safetensors header", data_offset));
    }
    let mut json = vec![0; to_usize(header_bytes)];
    source.read_at(LENGTH_BYTES, &mut json).map_err(Error::io(path))?;
    let tensors = parse_header(&json, limits)?;
    let data_bytes = tensors.last().map_or(0, |last| last.end);
    let needed =
        data_offset.checked_add(data_bytes).ok_or_else(|| Error::corrupt("tensor offsets overflow"))?;
    let tail_bytes =
        available.checked_sub(needed).ok_or_else(|| truncated("the data of the tensors", needed))?;
    Ok((json, tensors, tail_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Vec<TensorInfo>> {
        parse_header(json.as_bytes(), &Limits::default())
    }

    fn fault(json: &str) -> String {
        parse(json).unwrap_err().to_string()
    }

    #[test]
    fn faults_are_named() {
        let tensor = |name: &str, range: &str| {
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":{range}}}"#)
        };
        assert!(
            fault(&format!("{{{},{}}}", tensor("a", "[0,4]"), tensor("b", "[3,7]"))).contains("overlaps")
        );
        assert!(fault(&format!("{{{},{}}}", tensor("a", "[0,4]"), tensor("b", "[5,9]"))).contains("hole"));
        assert!(fault(&format!("{{{}}}", tensor("a", "[1,5]"))).contains("hole"));
        assert!(
            fault(&format!("{{{},{}}}", tensor("a", "[0,4]"), tensor("a", "[4,8]"))).contains("two tensors")
        );
        assert!(fault(&format!("{{{}}}", tensor("a", "[0,5]"))).contains("does not take bytes"));
        assert!(fault(&format!("{{{}}}", tensor("a", "[4,0]"))).contains("before its begin"));
        assert!(fault(&format!("{{{}}}", tensor("a", "[0,-1]"))).contains("header"));
        assert!(
            fault(r#"{"a":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#)
                .contains("does not take")
        );
        assert!(
            fault(r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#)
                .contains("dimensions")
        );
        assert!(fault("[]").contains("header"));
        assert!(fault("{} x").contains("header"));
    }

    #[test]
    fn odd_but_legal_headers() {
        assert_eq!(parse("{}  ").unwrap(), vec![]);
        let tensors = parse(
            r#"{"__metadata__":{"k":"v"},"b":{"dtype":"F4","shape":[2,2],"data_offsets":[4,6]},"a\n/..":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
                "empty":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},"new":{"dtype":"F3_X","shape":[9],"data_offsets":[6,10]}}"#,
        )
        .unwrap();
        let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a\n/..", "empty", "b", "new"]);
    }

    #[test]
    fn files_end_no_earlier_than_their_tensors() {
        let file = |data: usize| {
            let json = br#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
            [&(json.len() as u64).to_le_bytes()[..], json, &vec![1; data]].concat()
        };
        let read = |bytes: Vec<u8>| read_header(&bytes, std::path::Path::new("x"), &Limits::default());
        let (_, tensors, tail_bytes) = read(file(4)).unwrap();
        assert_eq!((tensors.len(), tail_bytes), (1, 0));
        assert_eq!(read(file(9)).unwrap().2, 5);
        assert!(matches!(read(file(3)), Err(Error::Truncated { .. })));
        assert!(matches!(read(file(4)[..20].to_vec()), Err(Error::Truncated { .. })));
        assert!(matches!(read(vec![0; 7]), Err(Error::Truncated { .. })));
        assert!(matches!(read(vec![0xff; 64]), Err(Error::LimitExceeded { .. })));
    }
}
