//! What is wrong in a recipe, and where.

use std::fmt;
use std::path::PathBuf;

use deltaloom::Error;
use serde::de::{self, Expected, Unexpected};

/// An error of a recipe. An example of how it is shown:
/// `recipe.yaml:3: branches.lra.rnak: there is no such key; hint: did you mean rank?`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipeError {
    /// The recipe.
    pub path: PathBuf,
    /// Its line, counted from 1. `None` if the field is not in the file.
    pub line: Option<u64>,
    /// The field as it is written, with dots. Empty if the whole file is concerned.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for RecipeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for RecipeError {}

impl From<RecipeError> for Error {
    fn from(error: RecipeError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

/// An error before its file is known. `field` is dotted; `line` is 0 until the place is known.
#[derive(Debug, Default)]
pub struct Fault {
    /// Its line, from 1.
    pub line: u64,
    /// Its dotted name.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Fault {
    /// Without a place.
    #[must_use]
    pub fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into(), ..Self::default() }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Gives it a place, unless it has one.
    #[must_use]
    pub fn at(self, line: u64, field: &str) -> Self {
        if self.field.is_empty() { Self { line, field: field.to_owned(), ..self } } else { self }
    }

    /// Adds the file.
    #[must_use]
    pub fn in_file(self, path: PathBuf) -> RecipeError {
        let line = (self.line > 0).then_some(self.line);
        RecipeError { path, line, field: self.field, what: self.what, hint: self.hint }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self::new("", what.to_string())
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::new("", format!("{found} is out of range for {wanted}"))
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        let fault = Self::new("", "there is no such key");
        match nearest(found, known) {
            Some(name) => fault.hint(format!("did you mean {name}?")),
            None => fault.hint(format!("known here: {}", known.join(", "))),
        }
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        let fault = Self::new("", format!("{} is not one of {}", shown(found), known.join(", ")));
        match nearest(found, known) {
            Some(name) => fault.hint(format!("did you mean {name}?")),
            None => fault,
        }
    }
}

/// The known word that is most like `found`, if one is like it.
fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &&'a str| (strsim::damerau_levenshtein(found, name), *name);
    // One typing error in three letters still looks like the word that was meant.
    let near = |&(errors, name): &(usize, &'a str)| errors <= name.len().div_ceil(3);
    if found.len() > 64 {
        return None;
    }
    known.iter().map(distance).min().filter(near).map(|(_, name)| name)
}

/// A text of a recipe for a message: quoted, and cut if it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
