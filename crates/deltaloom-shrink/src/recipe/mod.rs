//! Recipes: what to shrink, by how much, and how, as YAML. `docs/recipes.md` has all fields.
//!
//! [`Recipe::read`] reads a file, [`Overrides`] puts the options of a program on top, and
//! [`Loaded::ready`] checks that nothing is missing. Every error has its line and its field.

mod check;
mod model;
mod overrides;
mod parse;
mod published;
mod shapes;

pub use deltaloom_lm::yaml::RecipeError;
pub use model::*;
pub use overrides::Overrides;
pub use parse::Loaded;
pub use published::published_rules;
pub use shapes::{Matrix, check_shapes};
