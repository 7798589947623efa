//! Files of settings in YAML, read under limits. Every error has its line and its field.
//!
//! It knows no setting: [`Node`] is the document, and [`typed`] turns it into types.

mod fault;
mod tree;
mod typed;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

pub use fault::{Fault, RecipeError};
pub use tree::{Node, Value};
pub use typed::typed;

use deltaloom::{Access, Error, Result};

/// Largest file in bytes.
const LIMIT: u64 = 1 << 20;

const TOO_LONG: &str = "longer than 1 MiB";

/// Reads the text of the file at `path`, of at most 1 MiB.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::InvalidArgument`] if it is too long or not UTF-8.
pub fn read(path: &Path) -> Result<String> {
    let failed = |source| Error::Io { path: path.to_owned(), access: Access::Read, source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes)).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        // What is too long may be cut inside a character.
        let what = if error.as_bytes().len() as u64 > LIMIT { TOO_LONG } else { "not UTF-8" };
        Fault::new("", what).in_file(path.to_owned()).into()
    })
}

/// Refuses a text that is too long.
///
/// # Errors
/// More than 1 MiB.
pub fn check_length(text: &str) -> Result<(), Fault> {
    if text.len() as u64 > LIMIT { Err(Fault::new("", TOO_LONG)) } else { Ok(()) }
}
