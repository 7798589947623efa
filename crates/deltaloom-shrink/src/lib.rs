//! Makes a language model smaller and measures what that costs: low rank, factored embeddings,
//! sparsity and quantisation, chosen by the divergence of real bytes. Everything here is lossy;
//! `deltaloom` stays exact.

pub mod ablation;
pub mod attribution;
pub mod branches;
pub mod data;
pub mod forms;
pub mod matrix;
pub mod measure;
pub mod network;
pub mod pipeline;
pub mod recipe;
pub mod run;
pub mod sizes;
pub mod student;
pub mod synthetic;
