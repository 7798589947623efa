//! Recipes: what to shrink, by how much, and how, as YAML.
