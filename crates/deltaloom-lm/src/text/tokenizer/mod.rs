//! `tokenizer.json` of Hugging Face, or the same made from a GGUF file: text to ids. The crate
//! `tokenizers` does the work; what could make it panic or take memory without bound is refused
//! before (`check.rs`). Decoding is our own (`detokenize.rs`).

mod check;
mod gguf;
mod special;

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::detokenize::Pieces;
use crate::gguf::Gguf;
use deltaloom::{Error, Limits, Result};
pub use special::SpecialTokens;

/// Bytes of a `tokenizer.json`. Gemma's, the largest known, has 33 MB.
const LARGEST_FILE: u64 = 64 << 20;
/// Bytes of a text that is turned into ids at once. The crate needs about 50 times that memory.
const LARGEST_TEXT: u64 = 64 << 20;

/// Whether ids that mark the start or end of a text are added around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// As the tokenizer does by default.
    Add,
    /// The text alone. Use it for what a chat template has rendered.
    Omit,
}

/// Reads a file of a model. It gets the file's name and the most bytes that it may have; `None`
/// means that there is no such file.
pub type ReadFile<'a> = &'a dyn Fn(&str, u64) -> Result<Option<Vec<u8>>>;

/// Turns text into ids, and knows the bytes of every id.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: Pieces,
    special: SpecialTokens,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("ids", &self.pieces.ids()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model. Of a folder: `tokenizer.json` and, if they are there,
    /// `tokenizer_config.json`, `generation_config.json` and `config.json`. Of a GGUF file: its
    /// metadata or, if that cannot be used, the files beside it.
    ///
    /// `rows` is the number of rows of the model's embedding.
    ///
    /// # Errors
    /// A file cannot be read, is damaged or too large, or needs what is not supported; an id has no
    /// row in the embedding.
    pub fn open(model: &Path, rows: usize) -> Result<Self> {
        Self::open_with(model, rows, &|_, _| Ok(None))
    }

    /// As [`Self::open`], but each file that `own` has replaces that of the folder: for a fine-tune
    /// whose container carries a tokenizer or a chat template of its own.
    ///
    /// # Errors
    /// As [`Self::open`], and those of `own`.
    pub fn open_with(model: &Path, rows: usize, own: ReadFile<'_>) -> Result<Self> {
        if !model.is_file() {
            return Self::open_folder(model, rows, own);
        }
        match (Self::of_gguf(&Gguf::open(model)?, rows), model.parent()) {
            (Err(_), Some(folder)) if folder.join("tokenizer.json").is_file() => {
                Self::open_folder(folder, rows, own)
            }
            (found, _) => found.map_err(|e| e.in_file(model)),
        }
    }

    /// The tokenizer in the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the kind of a tokenizer that is not supported; as
    /// [`Self::open`].
    pub fn of_gguf(file: &Gguf, rows: usize) -> Result<Self> {
        gguf::read(file, rows)
    }

    fn open_folder(folder: &Path, rows: usize, own: ReadFile<'_>) -> Result<Self> {
        let read = |name: &str, limit| match own(name, limit)? {
            None => read_small(&folder.join(name), limit),
            own => Ok(own),
        };
        let path = folder.join("tokenizer.json");
        let json = read("tokenizer.json", LARGEST_FILE)?.ok_or_else(|| {
            Error::io(&path)(std::io::Error::new(std::io::ErrorKind::NotFound, "no such file"))
        })?;
        let mut tokenizer = Self::from_json(&json, rows).map_err(|e| e.in_file(&path))?;
        tokenizer.special = SpecialTokens::open(&read, &tokenizer)?;
        Ok(tokenizer)
    }

    /// The tokenizer in the text of a `tokenizer.json`, without ids that start or end a text.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_json(json: &[u8], rows: usize) -> Result<Self> {
        Limits::check("bytes of tokenizer.json", json.len() as u64, LARGEST_FILE)?;
        let facts = check::check(json, rows)?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json))?
            .map_err(|e| Error::corrupt(format!("not a tokenizer: {e}")))?;
        // The caller decides how long a sequence is.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::corrupt(format!("not a tokenizer: {e}")))?;
        for (content, id) in &facts.added {
            if inner.token_to_id(content) != Some(*id) {
                return Err(Error::corrupt(format!("added token {content:?} cannot have id {id}")));
            }
        }
        let pieces = facts.decoding.pieces(&inner, &facts.added_ids(), &facts.special);
        Ok(Self { inner, pieces, special: SpecialTokens::default() })
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// The text is too long, or has what the tokenizer has no id for.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        Limits::check("bytes of a text", text.len() as u64, LARGEST_TEXT)?;
        let encoding = guarded(|| self.inner.encode_fast(text, special == Special::Add))?
            .map_err(|e| Error::InvalidArgument(format!("the tokenizer cannot encode this text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of a token, by its text in the vocabulary.
    #[must_use]
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes of every id.
    #[must_use]
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The ids that start and end texts.
    #[must_use]
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }
}

/// Turns a panic of the crate into an error. None is known that gets past [`check`]; this is for
/// those that are not.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|_| Error::corrupt("the tokenizer breaks a rule of the crate tokenizers"))
}

/// The bytes of a file, or `None` if there is none. At most `limit` bytes are read.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path)(e)),
    };
    if !file.metadata().map_err(Error::io(path))?.is_file() {
        return Err(Error::io(path)(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "this is not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Limits::check("bytes of a file", bytes.len() as u64, limit).map_err(|e| e.in_file(path))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
