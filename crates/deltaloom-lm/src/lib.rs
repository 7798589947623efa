//! Language models on packed weights: a transformer layer that asks for weights by role, and many
//! fine-tunes of one base served together.
//! It parses no containers and multiplies nothing itself: that is for `deltaloom` and
//! `deltaloom-compute`.

pub mod layer;
pub mod tenancy;
