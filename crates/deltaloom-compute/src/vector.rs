//! Vectors of a layer as a mask and values on top of their base, exact to the bit: norms and biases
//! of fine-tunes. Matrices are [`crate::PackedMatrix`].

use std::sync::Arc;

use deltaloom_kernels::dense::widen;

use crate::DenseMatrix;
use crate::dense::MatrixShape;
use crate::forms::Bitmap;
use crate::matrix::base_of;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{ResolvedContainer, Result};

/// A vector that is built on demand.
#[derive(Clone)]
pub struct PatchedVector {
    /// One row.
    shape: MatrixShape,
    stored: Stored,
}

#[derive(Clone)]
enum Stored {
    /// In a checkpoint in memory, unchanged or with differences.
    Base { base: DenseMatrix, changes: Option<Bitmap> },
    /// Without a base in memory, or with so many differences that a mask would be larger.
    Own(Vec<u8>),
}

impl PatchedVector {
    /// Opens a tensor of a container.
    pub fn open(resolved: &Arc<ResolvedContainer>, name: &str) -> Result<Self> {
        let number = resolved.find(name)?;
        let info = resolved.info(number);
        let shape = MatrixShape::row_of(info)?;
        let tuned = resolved.read(number)?;
        let Some(base) = base_of(resolved, number, shape) else {
            return Ok(Self { shape, stored: Stored::Own(tuned) });
        };
        if base.bytes() == tuned {
            return Ok(Self { shape, stored: Stored::Base { base, changes: None } });
        }
        let mut changes = Bitmap::default();
        changes.push_row(shape, base.bytes(), &tuned)?;
        changes.shrink();
        let is_smaller = changes.resident_bytes() < tuned.len() as u64;
        let changes = Some(changes);
        let stored = if is_smaller { Stored::Base { base, changes } } else { Stored::Own(tuned) };
        Ok(Self { shape, stored })
    }

    /// Opens a tensor of a checkpoint in memory.
    pub fn of_checkpoint(checkpoint: &Arc<Checkpoint>, member: usize, info: &TensorInfo) -> Result<Self> {
        let shape = MatrixShape::row_of(info)?;
        let base = DenseMatrix::of_shape(checkpoint, member, info, shape)?;
        Ok(Self { shape, stored: Stored::Base { base, changes: None } })
    }

    /// Its elements.
    pub fn values(&self) -> Vec<f32> {
        let mut patched = Vec::new();
        let bytes = match &self.stored {
            Stored::Own(bytes) => bytes,
            Stored::Base { base, changes: None } => base.bytes(),
            Stored::Base { base, changes: Some(changes) } => {
                patched.resize(base.bytes().len(), 0);
                changes.rows_into(self.shape, 0..1, base.bytes(), &mut patched);
                &patched
            }
        };
        let mut values = vec![0.0; self.shape.cols];
        widen(self.shape.weight.weights(bytes), &mut values);
        values
    }

    /// Bytes of memory without its base.
    pub fn resident_bytes(&self) -> u64 {
        match &self.stored {
            Stored::Own(bytes) => bytes.len() as u64,
            Stored::Base { changes, .. } => changes.as_ref().map_or(0, Bitmap::resident_bytes),
        }
    }
}
