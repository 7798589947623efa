//! One fine-tune of a family: its container, the form of each of its matrices, and its vectors.
//! Whether a matrix is in memory is not known here.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::base::Layer;
use crate::layer::{MatrixRole, VectorRole};
use deltaloom::{Error, ResolvedContainer, Result};
use deltaloom_compute::{Choice, Form, MatrixShape, PackedMatrix, PatchedVector};

/// A container opened against the base, layer by layer.
pub(super) struct Tenant {
    resolved: Arc<ResolvedContainer>,
    layers: Vec<TenantLayer>,
}

struct TenantLayer {
    matrices: BTreeMap<MatrixRole, Slot>,
    vectors: BTreeMap<VectorRole, PatchedVector>,
}

/// A matrix of the tenant.
pub(super) struct Slot {
    name: String,
    /// The matrix in the mapped container, or the base if it does not differ.
    direct: Arc<PackedMatrix>,
    /// Set when the matrix is first decoded.
    chosen: OnceLock<Chosen>,
}

/// A form, and its size in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    pub(super) form: Form,
    pub(super) bytes: u64,
}

/// A decoded matrix, and how often it was decoded for that.
pub(super) struct Loaded {
    pub(super) matrix: Arc<PackedMatrix>,
    pub(super) decodes: u64,
}

impl Tenant {
    /// Finds all tensors and decodes the vectors.
    pub(super) fn open(resolved: ResolvedContainer, layers: &[Layer]) -> Result<Self> {
        let resolved = Arc::new(resolved);
        let layers = layers.iter().map(|layer| TenantLayer::open(&resolved, layer)).collect::<Result<_>>()?;
        Ok(Self { resolved, layers })
    }

    pub(super) fn slot(&self, layer: usize, role: MatrixRole) -> Option<&Slot> {
        self.layers.get(layer)?.matrices.get(&role)
    }

    /// The known forms of matrices.
    pub(super) fn forms(&self) -> impl Iterator<Item = Form> {
        let slots = self.layers.iter().flat_map(|layer| layer.matrices.values());
        slots.filter_map(|slot| {
            if slot.direct.form() == Form::Base { Some(Form::Base) } else { Some(slot.chosen()?.form) }
        })
    }

    pub(super) fn vector(&self, layer: usize, role: VectorRole) -> Option<Vec<f32>> {
        self.layers.get(layer)?.vectors.get(&role).map(PatchedVector::values)
    }

    pub(super) fn vector_bytes(&self) -> u64 {
        let vectors = self.layers.iter().flat_map(|layer| layer.vectors.values());
        vectors.map(PatchedVector::resident_bytes).sum()
    }

    /// Decodes a matrix into the chosen form, or chooses one. A matrix that cannot have the form
    /// gets the next one that holds any bits, or else stays in the container.
    pub(super) fn load(&self, slot: &Slot, wanted: Choice) -> Result<Loaded> {
        let open = |choice| PackedMatrix::open_shared(&self.resolved, &slot.name, choice);
        if let Some(chosen) = slot.chosen.get() {
            return Ok(Loaded { matrix: Arc::new(open(Choice::Form(chosen.form))?), decodes: 1 });
        }
        if wanted == Choice::Form(Form::Tiles) {
            return Ok(Loaded { matrix: Arc::clone(&slot.direct), decodes: 0 });
        }
        // Choosing decodes once to count.
        let decodes = if matches!(wanted, Choice::Budget(_)) { 2 } else { 1 };
        match open(wanted) {
            Ok(matrix) if matrix.form() != Form::Tiles => {
                return Ok(Loaded { matrix: Arc::new(matrix), decodes });
            }
            Ok(_) | Err(Error::InvalidArgument(_) | Error::LimitExceeded { .. }) => {}
            Err(e) => return Err(e),
        }
        match open(Choice::Form(Form::Planes)) {
            Ok(matrix) => Ok(Loaded { matrix: Arc::new(matrix), decodes }),
            Err(Error::InvalidArgument(_)) => Ok(Loaded { matrix: Arc::clone(&slot.direct), decodes: 1 }),
            Err(e) => Err(e),
        }
    }
}

impl TenantLayer {
    fn open(resolved: &Arc<ResolvedContainer>, layer: &Layer) -> Result<Self> {
        let mut matrices = BTreeMap::new();
        for (role, base) in &layer.base {
            // The base has them all.
            let Some(name) = layer.names.matrix(*role) else { continue };
            let direct = PackedMatrix::open(resolved, name, Choice::Form(Form::Tiles))?;
            check_shape(name, direct.shape(), base.shape())?;
            let slot = Slot { name: name.to_owned(), direct: Arc::new(direct), chosen: OnceLock::new() };
            matrices.insert(*role, slot);
        }
        let open = |(role, name): (VectorRole, &str)| Ok((role, PatchedVector::open(resolved, name)?));
        let vectors = layer.names.vectors().map(open).collect::<Result<_>>()?;
        Ok(Self { matrices, vectors })
    }
}

fn check_shape(name: &str, found: MatrixShape, base: MatrixShape) -> Result<()> {
    if found == base {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "tensor {name:?} is [{}, {}] of {:?}, not [{}, {}] of {:?}: it must have the shape of its base",
        found.rows, found.cols, found.weight, base.rows, base.cols, base.weight
    )))
}

impl Slot {
    pub(super) fn direct(&self) -> &Arc<PackedMatrix> {
        &self.direct
    }

    /// Its form, if known.
    pub(super) fn chosen(&self) -> Option<Chosen> {
        self.chosen.get().copied()
    }

    /// Records the form of a decoded matrix.
    pub(super) fn choose(&self, matrix: &PackedMatrix) -> Chosen {
        let form = matrix.form();
        // Mapped containers are not counted.
        let bytes = if form == Form::Tiles { 0 } else { matrix.resident_bytes() };
        *self.chosen.get_or_init(|| Chosen { form, bytes })
    }
}
