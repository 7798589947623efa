//! One way to read the texts of commands: a text file, or ids in a `.u16` or `.u32` file, with its
//! digest.

use std::path::Path;

use super::tokenizer::{Special, Tokenizer, read_small};
use deltaloom::{Error, Result};

/// Bytes of a file of text or ids.
const LARGEST_INPUT: u64 = 1 << 30;

/// Ids of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextInput {
    /// The ids.
    pub ids: Vec<u32>,
    /// Bytes of the text, if the file is a text.
    pub text_bytes: Option<u64>,
    /// BLAKE3-256 of the file.
    pub digest: blake3::Hash,
}

/// Whether a file has token ids by its name, so that reading it needs no tokenizer.
#[must_use]
pub fn has_ids(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "u16" || extension == "u32")
}

/// Reads ids from a file. One whose name ends in `.u16` or `.u32` has little-endian ids, which must
/// be below `rows`, the rows of the model's embedding. Any other is a text in UTF-8, for which the
/// model needs a tokenizer.
///
/// # Errors
/// The file cannot be read or is too large; an id has no row; the text is not UTF-8; there is no
/// tokenizer.
pub fn read_text_input(path: &Path, tokenizer: Option<&Tokenizer>, rows: usize) -> Result<TextInput> {
    let bytes = read_small(path, LARGEST_INPUT)?
        .ok_or_else(|| Error::io(path)(std::io::Error::new(std::io::ErrorKind::NotFound, "no such file")))?;
    let digest = blake3::hash(&bytes);
    let extension = path.extension().and_then(|extension| extension.to_str());
    let (ids, text_bytes) = match extension {
        Some("u16") => (ids_of(&bytes, rows, |id: [u8; 2]| u32::from(u16::from_le_bytes(id))), None),
        Some("u32") => (ids_of(&bytes, rows, u32::from_le_bytes), None),
        _ => (text_of(&bytes, tokenizer), Some(bytes.len() as u64)),
    };
    Ok(TextInput { ids: ids.map_err(|e| e.in_file(path))?, text_bytes, digest })
}

fn ids_of<const N: usize>(bytes: &[u8], rows: usize, id: impl Fn([u8; N]) -> u32) -> Result<Vec<u32>> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(Error::corrupt(format!("{} bytes are no whole number of ids of {N} bytes", bytes.len())));
    }
    let ids: Vec<u32> = chunks.iter().map(|bytes| id(*bytes)).collect();
    match ids.iter().zip(0_u64..).find(|(id, _)| **id as usize >= rows) {
        None => Ok(ids),
        Some((id, place)) => Err(Error::InvalidArgument(format!(
            "id {id} at position {place} is not below {rows}, the rows of the model's embedding"
        ))),
    }
}

fn text_of(bytes: &[u8], tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    let text = std::str::from_utf8(bytes).map_err(|e| Error::Corrupt {
        what: "this text is not UTF-8; a file of token ids has a name that ends in .u16 or .u32".to_owned(),
        offset: Some(e.valid_up_to() as u64),
    })?;
    let tokenizer = tokenizer.ok_or_else(|| {
        Error::InvalidArgument(
            "the model has no tokenizer.json: give token ids in a .u16 or .u32 file".to_owned(),
        )
    })?;
    tokenizer.encode(text, Special::Add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_must_be_whole_and_have_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let read = |name: &str, bytes: &[u8]| read_text_input(&write(name, bytes), None, 300);
        assert_eq!(read("a.u16", &[1, 0, 2, 1]).unwrap().ids, [1, 258]);
        assert_eq!(read("a.u32", &[1, 1, 0, 0]).unwrap().ids, [257]);
        assert_eq!(read("empty.u16", &[]).unwrap().ids, [0_u32; 0]);
        assert!(read("odd.u16", &[1, 0, 2]).unwrap_err().with_path().contains("no whole number"));
        assert!(read("large.u16", &[44, 1]).unwrap_err().with_path().contains("position 0"));
        assert!(read("text.txt", b"words").unwrap_err().with_path().contains("tokenizer.json"));
        assert!(read("text.txt", &[b'a', 0xff]).unwrap_err().with_path().contains("UTF-8"));
        assert!(read_text_input(folder.path(), None, 1).is_err());
        assert!(read_text_input(&folder.path().join("none.txt"), None, 1).is_err());
    }
}
