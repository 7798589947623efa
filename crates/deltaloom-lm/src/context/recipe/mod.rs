//! Recipes: what tokens attend to, layer by layer, as YAML. docs/context.md has all fields.
//!
//! It only reads and checks the file. [`super::resolve`] finds the layers and makes plans.

mod change;
mod rope;
mod select;

use std::path::{Path, PathBuf};

use deltaloom::Result;
use serde::{Deserialize, Serialize};

use crate::model::Extend;
use crate::yaml::{self, Fault, Node, RecipeError, typed};
pub use change::{Change, GainSetting, Law, Map, MapKind, NormSetting, Place, ReachSetting, ScaleSetting};
pub use rope::{By, Rope, RopeKind, RopeNumbers};
pub use select::{Frozen, Measure, Of, RandomLayers, Select, Selection, Sensitivity};

/// Reads a word, or a section with keys. A word is a section with only its first key.
macro_rules! word_or_section {
    ($name:ident, $word:ty) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Either;
                impl<'de> serde::de::Visitor<'de> for Either {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a word, or a section with keys")
                    }

                    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<$name, E> {
                        use serde::de::IntoDeserializer as _;
                        let word: serde::de::value::StrDeserializer<'_, E> = word.into_deserializer();
                        Ok($name::of_word(<$word>::deserialize(word)?))
                    }

                    fn visit_map<M: serde::de::MapAccess<'de>>(self, map: M) -> Result<$name, M::Error> {
                        $name::of_section(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }
                deserializer.deserialize_any(Either)
            }
        }
    };
}

use word_or_section;

/// A recipe as it is written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Recipe {
    /// Version of this schema: 1.
    pub context: u64,
    /// What reports call it; the name of the file, where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Number of tokens that are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// Number of tokens that the model was trained for, where its configuration does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<u64>,
    /// How a table of positions goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<TableSetting>,
    /// For all layers.
    pub default: Change,
    /// For some layers; later entries win.
    pub layers: Vec<Entry>,
    /// Selections of as many other layers, to compare with one that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controls: Option<Controls>,
}

/// How a table of positions goes on behind its last row, up to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TableSetting {
    /// The rule.
    pub extend: Extend,
}

/// A change of some layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Entry {
    /// Which layers.
    pub select: Select,
    /// Their positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<Rope>,
    /// Their map of positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Map>,
    /// What they see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<ReachSetting>,
    /// The factor of their queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleSetting>,
    /// The norm of their queries and keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<NormSetting>,
}

impl Entry {
    /// What it changes.
    #[must_use]
    pub fn change(&self) -> Change {
        let Self { rope, map, reach, scale, qk_norm, .. } = self.clone();
        Change { rope, map, reach, scale, qk_norm }
    }
}

/// Whether other layers are measured, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Controls {
    /// Random layers, as many.
    Random,
    /// No.
    None,
}

/// A recipe that was read, with its file.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its settings.
    pub recipe: Recipe,
    path: PathBuf,
    tree: Node,
}

impl Recipe {
    /// Reads the recipe at `path`, of at most 1 MiB.
    ///
    /// # Errors
    /// [`deltaloom::Error::Io`] if it cannot be read; [`deltaloom::Error::InvalidArgument`] for a
    /// [`RecipeError`].
    pub fn read(path: &Path) -> Result<Loaded> {
        Ok(Self::parse(&yaml::read(path)?, path)?)
    }

    /// Reads a recipe from `text`. Errors name `path`, and paths in it are relative to its folder.
    ///
    /// # Errors
    /// What is not YAML, not a recipe, or contradicts itself.
    pub fn parse(text: &str, path: &Path) -> Result<Loaded, RecipeError> {
        let in_file = |fault: Fault| fault.in_file(path.to_owned());
        yaml::check_length(text).map_err(in_file)?;
        let tree = Node::parse(text).map_err(in_file)?;
        let recipe: Self = typed(&tree).map_err(in_file)?;
        let loaded = Loaded { recipe, path: path.to_owned(), tree };
        loaded.check()?;
        Ok(loaded)
    }

    /// Whether every layer stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.default == Change::default() && self.layers.is_empty() && self.positions.is_none()
    }
}

impl Loaded {
    /// What reports call it.
    #[must_use]
    pub fn name(&self) -> String {
        let stem = || self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.recipe.name.clone().unwrap_or_else(stem)
    }

    /// Where a path of the recipe leads.
    #[must_use]
    pub fn path(&self, written: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(written)
    }

    /// An error about a dotted field.
    #[must_use]
    pub fn error(&self, field: &str, what: impl Into<String>) -> RecipeError {
        self.placed(Fault::new(field, what))
    }

    fn placed(&self, fault: Fault) -> RecipeError {
        // Entries of lists have no name in the tree: the line is that of the list.
        let (line, _) = self.tree.place(fault.field.split('[').next().unwrap_or_default());
        Fault { line, ..fault }.in_file(self.path.clone())
    }

    fn check(&self) -> Result<(), RecipeError> {
        let Recipe { context, target, trained, positions, default, layers, .. } = &self.recipe;
        match context {
            1 => {}
            0 => return Err(self.placed(Fault::new("context", "missing").hint("begin with context: 1"))),
            other => return Err(self.error("context", format!("found {other}, and only version 1 is known"))),
        }
        for (field, number) in [("target", target), ("trained", trained)] {
            if let Some(number) = number
                && !(1..=1 << 31).contains(number)
            {
                return Err(self.error(field, format!("{number} tokens: from 1 to 2^31")));
            }
        }
        if positions.is_some() && target.is_none() {
            return Err(self.error("positions.extend", "how far is not said: it needs `target`"));
        }
        let in_section = |section: &str, fault: Fault| {
            let field = format!("{section}.{}", fault.field);
            self.placed(Fault { field, ..fault })
        };
        default.check().map_err(|fault| in_section("default", fault))?;
        for (number, entry) in layers.iter().enumerate() {
            let section = format!("layers[{number}]");
            entry.select.check().map_err(|fault| in_section(&section, fault))?;
            let change = entry.change();
            change.check().map_err(|fault| in_section(&section, fault))?;
            if change == Change::default() {
                return Err(self.error(&section, "changes nothing: rope, map, reach, scale or qk_norm"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
