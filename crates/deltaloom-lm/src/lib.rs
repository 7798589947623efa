//! Language models on packed weights: a transformer layer that asks for weights by role, and many
//! fine-tunes of one base served together.
//!
//! `deltaloom` parses the containers, and `deltaloom-compute` multiplies.

pub mod context;
pub mod engine;
pub mod evaluate;
pub mod generate;
pub mod gguf;
pub mod layer;
pub mod model;
pub mod sample;
pub mod tenancy;
pub mod text;
pub mod yaml;
