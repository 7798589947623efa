//! GGUF files, versions 2 and 3, as the ggml project documents them: metadata, and the numbers of
//! tensors. What they mean for a model is known in `model`, and for a tokenizer in `text`.

mod kind;
mod reader;
#[cfg(test)]
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::path::Path;

use deltaloom::checkpoint::{FileSource, ReadAt};
use deltaloom::{Error, Result};

pub(crate) use kind::Kind;

/// A GGUF file whose metadata was read. Its tensors are read when they are asked for.
pub struct Gguf {
    source: Box<dyn ReadAt>,
    header: Header,
}

/// A value of metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Also of booleans.
    Integer(u64),
    Number(f64),
    Text(String),
    Array(Array),
    /// Of a type that no setting here has.
    Other,
}

/// An array of metadata, which stays in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Array {
    kind: u32,
    count: u64,
    start: u64,
}

/// A tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) kind: Kind,
    /// Rows first.
    pub(crate) shape: Vec<u64>,
    /// In the file.
    start: u64,
    len_bytes: u64,
}

#[cfg(test)]
impl Tensor {
    /// Where its bytes begin in the file.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }
}

struct Header {
    values: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Tensor>,
}

impl Gguf {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Io`]; as [`Self::from_source`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_source(Box::new(FileSource::open(path)?)).map_err(|e| e.in_file(path))
    }

    /// Reads metadata.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what is no GGUF file, lies about its sizes, or has a tensor
    /// of a type that is not computed; [`Error::LimitExceeded`] for too much metadata.
    pub fn from_source(source: Box<dyn ReadAt>) -> Result<Self> {
        let header = reader::read(&*source)?;
        Ok(Self { source, header })
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.header.values.get(key)
    }

    /// A text, `None` if there is none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a value of another type; so for the functions below.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(unexpected(key, other)),
        }
    }

    pub(crate) fn integer(&self, key: &str) -> Result<Option<u64>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => Ok(Some(*number)),
            Some(other) => Err(unexpected(key, other)),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Number(number)) if number.is_finite() => Ok(Some(*number)),
            Some(other) => Err(unexpected(key, other)),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.array(key, reader::texts)
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.array(key, reader::integers)
    }

    fn array<T>(
        &self,
        key: &str,
        read: impl Fn(&dyn ReadAt, Array) -> Option<Result<Vec<T>>>,
    ) -> Result<Option<Vec<T>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) => {
                let found = read(&*self.source, *array);
                found.unwrap_or_else(|| Err(unexpected(key, &Value::Array(*array)))).map(Some)
            }
            Some(other) => Err(unexpected(key, other)),
        }
    }

    pub(crate) fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.header.tensors
    }

    /// The numbers of a tensor, row by row, as little-endian numbers of [`Kind::dtype`].
    pub(crate) fn numbers(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        tensor.kind.decode(reader::read_range(&*self.source, tensor.start, tensor.len_bytes)?)
    }
}

fn unexpected(key: &str, value: &Value) -> Error {
    wrong(format!("{key} is {value:?}"))
}

pub(crate) fn wrong(what: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("GGUF: {what}"))
}
