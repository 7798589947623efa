//! One fine-tune of a family: its container, the form of each of its matrices, and its vectors.
//! Whether a matrix is in memory is not known here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::base::{Base, MatrixPlace, Named, VectorPlace};
use super::digest;
use deltaloom::{Error, Limits, Missing, ResolvedContainer, Result};
use deltaloom_compute::{Choice, DenseMatrix, Form, MatrixShape, PackedMatrix, PatchedVector};

/// A container opened against the base, or the base itself.
pub(super) struct Tenant {
    /// `None` for the base itself.
    resolved: Option<Arc<ResolvedContainer>>,
    /// Of its weights, from the digests that its container has of its tensors. That of the base is
    /// the base's.
    digest: Option<blake3::Hash>,
    /// The container that it was made from, if that is another one.
    original: Option<Arc<ResolvedContainer>>,
    matrices: BTreeMap<MatrixPlace, Slot>,
    /// In FP32. Those that do not differ are the base's.
    vectors: BTreeMap<VectorPlace, Arc<[f32]>>,
    vector_bytes: u64,
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

impl Loaded {
    /// Dense bytes of all that was decoded for it.
    pub(super) fn decoded_bytes(&self) -> u64 {
        self.decodes * dense_bytes(&self.matrix)
    }
}

/// Bytes of a matrix with all its elements.
pub(super) fn dense_bytes(matrix: &PackedMatrix) -> u64 {
    let shape = matrix.shape();
    (shape.rows * shape.cols * shape.weight.bytes()) as u64
}

impl Tenant {
    /// Finds all tensors and decodes the vectors.
    pub(super) fn open(resolved: ResolvedContainer, base: &Base) -> Result<Self> {
        let resolved = Arc::new(resolved);
        let mut matrices = BTreeMap::new();
        for (place, of_base) in &base.matrices {
            let name = &of_base.name;
            let direct = PackedMatrix::open(&resolved, name, Choice::Form(Form::Tiles))?;
            check_shape(name, direct.shape(), of_base.values.shape())?;
            matrices.insert(*place, Slot::new(name, direct));
        }
        let (mut vectors, mut vector_bytes) = (BTreeMap::new(), 0);
        for (place, of_base) in &base.vectors {
            let values = PatchedVector::open(&resolved, &of_base.name)?.values();
            if values.len() != of_base.values.len() {
                return Err(Error::InvalidArgument(format!(
                    "tensor {:?} has {} elements, not the {} of its base",
                    of_base.name,
                    values.len(),
                    of_base.values.len()
                )));
            }
            let is_of_base = values.iter().zip(&*of_base.values).all(|(a, b)| a.to_bits() == b.to_bits());
            vectors.insert(*place, if is_of_base { Arc::clone(&of_base.values) } else { values.into() });
            vector_bytes += if is_of_base { 0 } else { 4 * of_base.values.len() as u64 };
        }
        let digest = Some(digest_of(&resolved, base)?);
        Ok(Self { resolved: Some(resolved), digest, original: None, matrices, vectors, vector_bytes })
    }

    /// The base as a tenant, which takes no memory.
    pub(super) fn of_base(base: &Base) -> Result<Self> {
        let slot = |(place, matrix): (&MatrixPlace, &Named<DenseMatrix>)| {
            let direct = PackedMatrix::from_dense(&matrix.values, &matrix.values, Choice::Form(Form::Base))?;
            Ok((*place, Slot::new(&matrix.name, direct)))
        };
        let matrices = base.matrices.iter().map(slot).collect::<Result<_>>()?;
        let vectors = base.vectors.iter().map(|(place, vector)| (*place, Arc::clone(&vector.values)));
        let vectors = vectors.collect();
        Ok(Self { resolved: None, digest: None, original: None, matrices, vectors, vector_bytes: 0 })
    }

    pub(super) fn with_files(self, original: Arc<ResolvedContainer>) -> Self {
        Self { original: Some(original), ..self }
    }

    /// The container as it was given.
    fn given(&self) -> Option<&Arc<ResolvedContainer>> {
        self.original.as_ref().or(self.resolved.as_ref())
    }

    /// The digest of its weights.
    pub(super) fn digest(&self, base: &Base) -> Result<blake3::Hash> {
        self.digest.map_or_else(|| base.digest(), Ok)
    }

    /// Number of matrices that differ from those of the base.
    pub(super) fn changed_matrices(&self) -> usize {
        self.matrices.values().filter(|slot| slot.direct.form() != Form::Base).count()
    }

    /// Its file, if that has changed or cannot be asked.
    pub(super) fn changed_file(&self) -> Option<PathBuf> {
        let container = self.given()?.container();
        container.check_unchanged().is_err().then(|| container.path().to_owned())
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.resolved.as_ref().is_some_and(|resolved| resolved.find(name).is_ok())
    }

    pub(super) fn file(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(resolved) = self.given() else { return Ok(None) };
        // A file that is not weights is one tensor with the name of the file.
        let Ok(number) = resolved.find(name) else { return Ok(None) };
        Limits::check("bytes of a file", resolved.info(number).len_bytes(), limit)?;
        let bytes = resolved.read(number)?;
        resolved.check(number, &bytes)?;
        Ok(Some(bytes))
    }

    pub(super) fn is_base(&self) -> bool {
        self.resolved.is_none()
    }

    pub(super) fn slot(&self, place: MatrixPlace) -> Option<&Slot> {
        self.matrices.get(&place)
    }

    /// The known forms of matrices.
    pub(super) fn forms(&self) -> impl Iterator<Item = Form> {
        self.matrices.values().filter_map(|slot| {
            if slot.direct.form() == Form::Base { Some(Form::Base) } else { Some(slot.chosen()?.form) }
        })
    }

    pub(super) fn vector(&self, place: VectorPlace) -> Option<&[f32]> {
        self.vectors.get(&place).map(|values| &**values)
    }

    /// Bytes of the vectors that are not the base's.
    pub(super) fn vector_bytes(&self) -> u64 {
        self.vector_bytes
    }

    /// Decodes a matrix into the chosen form, or chooses one. A matrix that cannot have the form
    /// gets the next one that holds any bits, or else stays in the container.
    pub(super) fn load(&self, slot: &Slot, wanted: Choice) -> Result<Loaded> {
        let Some(resolved) = &self.resolved else {
            return Ok(Loaded { matrix: Arc::clone(&slot.direct), decodes: 0 });
        };
        let open = |choice| PackedMatrix::open_shared(resolved, &slot.name, choice);
        if let Some(chosen) = slot.chosen.get() {
            return Ok(Loaded { matrix: Arc::new(open(Choice::Form(chosen.form))?), decodes: 1 });
        }
        if wanted == Choice::Form(Form::Tiles) {
            return Ok(Loaded { matrix: Arc::clone(&slot.direct), decodes: 0 });
        }
        let decodes = wanted.decodes(slot.direct.shape());
        match open(wanted) {
            Ok(matrix) if matrix.form() != Form::Tiles => {
                return Ok(Loaded { matrix: Arc::new(matrix), decodes });
            }
            Ok(_) | Err(Error::InvalidArgument(_) | Error::LimitExceeded { .. }) => {}
            Err(e) => return Err(e),
        }
        match open(Choice::Form(Form::Planes)) {
            Ok(matrix) => Ok(Loaded { matrix: Arc::new(matrix), decodes: decodes + 1 }),
            Err(Error::InvalidArgument(_)) => Ok(Loaded { matrix: Arc::clone(&slot.direct), decodes }),
            Err(e) => Err(e),
        }
    }
}

fn digest_of(resolved: &ResolvedContainer, base: &Base) -> Result<blake3::Hash> {
    let names = base.names();
    let digests = names.iter().map(|name| {
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the fine-tune"));
        resolved.container().digest(resolved.find(name)?).ok_or_else(missing)
    });
    let digests = digests.collect::<Result<Vec<_>>>()?;
    Ok(digest::of_weights(names.into_iter().zip(digests)))
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
    fn new(name: &str, direct: PackedMatrix) -> Self {
        Self { name: name.to_owned(), direct: Arc::new(direct), chosen: OnceLock::new() }
    }

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
