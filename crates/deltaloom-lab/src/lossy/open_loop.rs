//! One step of a published method. It codes differences between originals; a reader decodes them
//! and adds them to its version, errors included.
//!
//! Like the methods, it omits tensors that are not floats of up to 32 bits, optimiser state and
//! other files. The sizes say so.

use std::path::Path;

use super::errors::{Errors, Tensor};
use super::published::{self, Method};
use super::reconstruction::{Reconstructed, Reconstruction, widened};
use super::report::{StepReport, Thresholds};
use super::tensors::{self, Named};
use deltaloom::__internals::{Element, check_cancelled, load_singles};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::DType;
use deltaloom::{Limits, Progress, Result};

/// Bytes that P3+ stores per step in addition to the tensors: average, least and greatest
/// threshold.
const DYNAMIC_BYTES: u64 = 12;

/// Codes a checkpoint, from the original and the reconstruction of the step before. Writes the
/// checkpoint that a reader then has into an empty folder.
pub(super) fn store(
    method: Method,
    number: u64,
    checkpoint: &Checkpoint,
    previous: Option<(&Checkpoint, &Checkpoint)>,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<(StepReport, Reconstructed)> {
    let previous = previous.map(|(original, held)| (Named::new(original), Named::new(held)));
    let members = checkpoint.members.iter().map(widened).collect();
    let mut out = Reconstruction::create(folder, checkpoint.layout, members)?;
    let mut report = StepReport::new(number, 0);
    let (mut errors, mut thresholds) = (Errors::default(), Thresholds::default());
    let mut published_bytes = if method == Method::P3Plus { DYNAMIC_BYTES } else { 0 };
    for (member, info) in checkpoint.tensors() {
        check_cancelled(progress)?;
        let bytes = checkpoint.read_tensor(member, info)?;
        progress.advance(info.len_bytes());
        let is_state = tensors::is_optimizer_state(&checkpoint.members[member].path, info);
        let Some(element) = Element::of(&info.dtype).filter(|_| !is_state) else {
            report.left_out_bytes += info.len_bytes();
            // Converted to FP32 like all floats, because the header says so.
            let bytes =
                Element::of(&info.dtype).map_or(bytes.clone(), |e| singles_bytes(&load_singles(e, &bytes)));
            out.push(member, &bytes)?;
            continue;
        };
        let original = load_singles(element, &bytes);
        let (before, held) = match &previous {
            Some((originals, held)) => {
                let same_shape = |dtype: DType| {
                    move |other: &deltaloom::tensor::TensorInfo| {
                        other.dtype == dtype && other.shape == info.shape
                    }
                };
                let before = originals.read(&info.name, same_shape(info.dtype.clone()))?;
                let held = held.read(&info.name, same_shape(DType::F32))?;
                (before.map(|b| load_singles(element, &b)), held.map(|b| load_singles(Element::F32, &b)))
            }
            None => (None, None),
        };
        let zeros = || vec![0.0; original.len()];
        let (before, held) = match (before, held) {
            (Some(before), Some(held)) => (before, held),
            _ => (zeros(), zeros()),
        };
        let difference: Vec<f32> = original.iter().zip(&before).map(|(cur, prev)| cur - prev).collect();
        let coded = published::encode(method, info, &difference)?;
        let decoded = published::decode(method, info, &coded.bytes, difference.len())?;
        let values: Vec<f32> = held.iter().zip(decoded).map(|(held, d)| held + d).collect();
        errors.add(&Tensor {
            original: &original,
            reconstructed: &values,
            original_before: &before,
            reconstructed_before: &held,
        });
        thresholds.push(coded.threshold);
        report.in_bytes += info.len_bytes();
        report.out_bytes += coded.bytes.len() as u64;
        report.elems += original.len() as u64;
        report.kept_elems += coded.kept as u64;
        published_bytes += coded.published_bytes;
        out.push(member, &singles_bytes(&values))?;
    }
    report.fp32_bytes = Some(4 * report.elems);
    report.published_bytes = Some(published_bytes);
    report.set_errors(&errors, &thresholds);
    Ok((report, out.finish(&Limits::default())?))
}

fn singles_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
