//! A whole fine-tune in each resident form: all matrices, and vectors. Layers are not run here, so
//! any model works.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Bases, Container, Limits, PackOptions, Progress, ResolvedContainer, Result, pack_to};
use deltaloom_compute::{Choice, Form, PackedMatrix};

/// Bytes of a model's fine-tune in addition to its base.
#[derive(Debug, Clone, Serialize)]
pub struct WholeModel {
    /// Bytes of the base.
    pub base_bytes: u64,
    /// Bytes of the container.
    pub packed_bytes: u64,
    /// Bytes of the matrices in each form. Tensors that are not BF16 or F32 matrices count fully in
    /// every form.
    pub form_bytes: Vec<(String, u64)>,
}

/// Packs a fine-tune against its base, whose files are in memory or mapped, and builds every form.
///
/// # Errors
/// Errors of packing; [`crate::Error::InvalidArgument`] for weights that a form cannot hold.
pub fn whole_model(base: Checkpoint, tuned: &Checkpoint, progress: &dyn Progress) -> Result<WholeModel> {
    let mut bases = Bases::default();
    bases.push_checkpoint(Path::new("base"), base);
    let mut container = Vec::new();
    let options = PackOptions::default().with_threads(rayon::current_num_threads());
    pack_to(tuned, &bases, &mut container, &options, progress)?;
    let packed_bytes = container.len() as u64;
    let container = Container::from_source(Path::new("tuned"), Box::new(container), &Limits::default())?;
    let resolved = Arc::new(ResolvedContainer::new(container, &bases)?);
    // Without other files, which a directory may contain as well.
    let base_bytes = resolved.tensors().map(TensorInfo::len_bytes).sum();
    let of_form = |form: Form| -> Result<u64> {
        let mut sum = 0;
        for info in resolved.tensors() {
            let choice = Choice::Form(form);
            sum += match PackedMatrix::open(&resolved, &info.name, choice) {
                Ok(matrix) => matrix.resident_bytes(),
                Err(_) if info.shape.len() != 2 => info.len_bytes(),
                Err(e) => return Err(e),
            };
        }
        Ok(sum)
    };
    let form_bytes = Form::ALL.into_iter().map(|form| Ok((form.name().to_owned(), of_form(form)?)));
    Ok(WholeModel { base_bytes, packed_bytes, form_bytes: form_bytes.collect::<Result<_>>()? })
}
