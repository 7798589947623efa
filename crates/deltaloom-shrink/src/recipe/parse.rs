//! From text to a checked recipe.

use std::path::{Path, PathBuf};

use deltaloom::Result;
use deltaloom_lm::yaml::{self, Fault, Node, RecipeError, Value, typed};

use super::model::Recipe;
use super::{check, published};

/// A recipe that was read and checked.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its settings.
    pub recipe: Recipe,
    /// What it says without effect, or at a risk. Each has its line and its field.
    pub warnings: Vec<String>,
    /// The folder that paths in it are relative to.
    pub folder: PathBuf,
    path: PathBuf,
    pub(super) tree: Node,
}

impl Recipe {
    /// Reads the recipe at `path`, of at most 1 MiB. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`deltaloom::Error::Io`] if it cannot be read, [`deltaloom::Error::InvalidArgument`] for a
    /// [`RecipeError`].
    pub fn read(path: &Path) -> Result<Loaded> {
        let text = yaml::read(path)?;
        Ok(Self::parse(&text, path)?)
    }

    /// Reads a recipe from `text`. Errors name `path`, and paths in it are relative to the folder
    /// of `path`, which need not exist.
    ///
    /// # Errors
    /// What is not YAML, not a recipe, contradicts itself, or is not built yet.
    pub fn parse(text: &str, path: &Path) -> Result<Loaded, RecipeError> {
        let in_file = |fault: Fault| fault.in_file(path.to_owned());
        yaml::check_length(text).map_err(in_file)?;
        let mut tree = Node::parse(text).map_err(in_file)?;
        let notes = published::translate(&mut tree).map_err(in_file)?;
        version(&tree).map_err(in_file)?;
        let recipe: Recipe = typed(&tree).map_err(in_file)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut loaded = Loaded { recipe, warnings: Vec::new(), folder, path: path.to_owned(), tree };
        loaded.check()?;
        check::apply_mode(loaded.recipe.mode, &mut loaded.recipe.branches);
        let found = check::warnings(&loaded.recipe).into_iter().map(|fault| loaded.placed(fault));
        let warnings = notes.into_iter().map(in_file).chain(found).map(|warning| warning.to_string());
        loaded.warnings = warnings.collect();
        Ok(loaded)
    }
}

fn version(tree: &Node) -> Result<(), Fault> {
    match tree.get("version") {
        Some(Node { value: Value::Whole(1), .. }) => Ok(()),
        Some(node) => {
            let what = format!("found {}, and only version 1 is known", node.value.shown());
            Err(Fault::new("", what).at(node.line, "version"))
        }
        None => Err(Fault::new("", "missing").hint("begin with version: 1").at(1, "version")),
    }
}

impl Loaded {
    /// Checks that nothing is missing that a run needs: a teacher, and a size if the planner
    /// chooses.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready(&self) -> Result<(), RecipeError> {
        check::missing(&self.recipe).map_or(Ok(()), |fault| Err(self.placed(fault)))
    }

    /// Where a path of the recipe leads.
    #[must_use]
    pub fn path(&self, written: &str) -> PathBuf {
        self.folder.join(written)
    }

    /// An error about a dotted field, such as `branches.lra.rank`, for what is found out later.
    #[must_use]
    pub fn error(&self, field: &str, what: String, hint: Option<String>) -> RecipeError {
        self.placed(Fault { hint, ..Fault::new(field, what) })
    }

    /// Finds the first broken rule, in the order of the file.
    pub(super) fn check(&self) -> Result<(), RecipeError> {
        let faults = check::faults(&self.recipe).into_iter().map(|fault| self.placed(fault));
        faults.min_by_key(|error| error.line.unwrap_or(u64::MAX)).map_or(Ok(()), Err)
    }

    fn placed(&self, fault: Fault) -> RecipeError {
        let (line, field) = self.tree.place(&fault.field);
        Fault { line, field, ..fault }.in_file(self.path.clone())
    }
}
