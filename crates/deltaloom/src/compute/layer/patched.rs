//! Vectors of a layer as a mask and values on their base, exact to the bit: norms and biases of fine-tunes.
//! Matrices are [`crate::compute::PackedMatrix`].

use std::sync::Arc;

use crate::bases::{ResolvedContainer, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::compute::dense::{MatrixShape, WeightType};
use crate::compute::forms::Bitmap;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::tensor::TensorInfo;

/// A vector that is made when it is asked for.
#[derive(Clone)]
pub(crate) struct PatchedVector {
    /// One row.
    shape: MatrixShape,
    stored: Stored,
}

#[derive(Clone)]
enum Stored {
    /// A tensor of a checkpoint that is in memory, as it is or with what is different.
    Base { checkpoint: Arc<Checkpoint>, member: usize, info: TensorInfo, changes: Option<Bitmap> },
    /// Where there is no base in memory, or so much is different that a mask would be larger.
    Own(Vec<u8>),
}

impl PatchedVector {
    /// A tensor of a container.
    pub(crate) fn open(resolved: &Arc<ResolvedContainer>, name: &str) -> Result<Self> {
        let number = resolved.container().find(name)?;
        let info = resolved.info(number);
        let shape = row_shape(info)?;
        let mut tuned = vec![0; to_usize(info.len_bytes())];
        resolved.read_into(number, &mut tuned)?;
        let base = resolved.references(number).iter().find_map(|reference| match reference {
            TensorSource::Plain { checkpoint, member, info: base, .. } if reference.is_like(info) => {
                Some((checkpoint, *member, base, checkpoint.in_memory(*member, base)?))
            }
            _ => None,
        });
        let Some((checkpoint, member, base_info, base)) = base else {
            return Ok(Self { shape, stored: Stored::Own(tuned) });
        };
        let changes = match base == tuned {
            true => None,
            false => {
                let mut bitmap = Bitmap::default();
                bitmap.push_row(shape, base, &tuned)?;
                bitmap.shrink();
                Some(bitmap)
            }
        };
        if changes.as_ref().is_some_and(|changes| changes.resident_bytes() >= tuned.len() as u64) {
            return Ok(Self { shape, stored: Stored::Own(tuned) });
        }
        let (checkpoint, info) = (Arc::clone(checkpoint), base_info.clone());
        Ok(Self { shape, stored: Stored::Base { checkpoint, member, info, changes } })
    }

    /// A tensor of a checkpoint that is in memory.
    pub(super) fn of_checkpoint(
        checkpoint: &Arc<Checkpoint>,
        member: usize,
        info: &TensorInfo,
    ) -> Result<Self> {
        let shape = row_shape(info)?;
        if checkpoint.in_memory(member, info).is_none() {
            let what = format!("tensor {:?} is not in memory: map its checkpoint first", info.name);
            return Err(Error::InvalidArgument(what));
        }
        let (checkpoint, info) = (Arc::clone(checkpoint), info.clone());
        Ok(Self { shape, stored: Stored::Base { checkpoint, member, info, changes: None } })
    }

    /// Its elements.
    pub(crate) fn values(&self) -> Vec<f32> {
        match &self.stored {
            Stored::Own(bytes) => widen(self.shape.weight, bytes),
            Stored::Base { checkpoint, member, info, changes } => {
                let base = checkpoint.in_memory(*member, info).unwrap_or_default();
                let Some(changes) = changes else { return widen(self.shape.weight, base) };
                let mut bytes = vec![0; base.len()];
                changes.rows_into(self.shape, 0..1, base, &mut bytes);
                widen(self.shape.weight, &bytes)
            }
        }
    }

    /// Bytes of memory that it takes, its base not counted.
    pub(crate) fn resident_bytes(&self) -> u64 {
        match &self.stored {
            Stored::Own(bytes) => bytes.len() as u64,
            Stored::Base { changes, .. } => changes.as_ref().map_or(0, Bitmap::resident_bytes),
        }
    }
}

fn row_shape(info: &TensorInfo) -> Result<MatrixShape> {
    let weight = WeightType::of(info)?;
    match info.shape[..] {
        [cols] => Ok(MatrixShape { rows: 1, cols: to_usize(cols), weight }),
        _ => Err(Error::InvalidArgument(format!(
            "tensor {:?} has the shape {:?}: a vector has one dimension",
            info.name, info.shape
        ))),
    }
}

fn widen(weight: WeightType, bytes: &[u8]) -> Vec<f32> {
    match weight {
        WeightType::Bf16 => {
            bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        WeightType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}
