//! Students of fine-tunes as tenants of their base.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Bases, Container, Limits, PackOptions, Result, Silent, pack_to};
use deltaloom_lm::model::Parts;

use super::{new_tensor, open, wrong};

/// A base with a student of a fine-tune of it.
pub struct Tenant {
    /// The text of the base's `config.json`.
    pub config_text: String,
    /// The base in F32, in memory: students are F32, and tenants have the types of their base.
    pub base: Checkpoint,
    /// The student, packed against that.
    pub container: Container,
}

/// Makes a student of a fine-tune a tenant of its base, with the bits of [`open`].
///
/// # Errors
/// As [`open`]; [`Error::InvalidArgument`] if the student has other settings than its base; errors
/// of packing.
pub fn tenant(path: &Path, base: &Path) -> Result<Tenant> {
    let (text, student) = open(path, Some(base))?;
    let student = Parts::of_checkpoint(student, &text)?;
    let parts = Parts::open(base).map_err(|error| error.in_file(base))?;
    if student.config != parts.config {
        return wrong(path, "it has other settings than its base");
    }
    let mut bases = Bases::default();
    let wide = Arc::new(widened(&parts)?);
    bases.push_checkpoint(base, Arc::clone(&wide));
    let mut packed = Vec::new();
    pack_to(&widened(&student)?, &bases, &mut packed, &PackOptions::default(), &Silent)?;
    let container = Container::from_source(path, Box::new(packed), &Limits::default())?;
    drop(bases);
    let base = Arc::try_unwrap(wide).or_else(|_| widened(&parts))?;
    Ok(Tenant { base, config_text: parts.config_text, container })
}

/// The tensors of a model in F32.
fn widened(parts: &Parts) -> Result<Checkpoint> {
    let tensor = |(_, info): (usize, &TensorInfo)| {
        let bytes = parts.values(&info.name)?.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(new_tensor(info.name.clone(), DType::F32, info.shape.clone(), bytes))
    };
    let tensors = parts.checkpoint.weights().map(tensor).collect::<Result<_>>()?;
    let made = Checkpoint::from_tensors("model.safetensors", tensors, &BTreeMap::new(), &Limits::default())?;
    made.into_memory()
}
