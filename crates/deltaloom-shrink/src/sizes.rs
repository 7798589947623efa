//! Where the bytes of a packed student are: by the place of their matrix in the model, and by what
//! they are in its form. Both splits add up to the packed file.

use std::collections::BTreeMap;
use std::path::Path;

use deltaloom::{Limits, Result, checkpoint::Checkpoint};
use deltaloom_lm::layer::MatrixRole;
use deltaloom_lm::model::{HEAD, Parts};
use serde::Serialize;

use crate::student::{self, MatrixRecord, Packed, WEIGHTS};

/// A place in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The embedding, and the head if it is another matrix.
    Embedding,
    /// Matrices of attention.
    Attention,
    /// Matrices of the MLP.
    Mlp,
    /// Tensors that stayed as they are.
    Kept,
    /// Names, tables and digests of the packed file.
    Index,
}

/// What numbers of a form are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Small integers.
    Codes,
    /// Steps of codes, and factors of their rows and columns.
    Steps,
    /// Which elements of a sparse matrix are not zero.
    Bits,
    /// Floats of low-rank factors.
    Factors,
    /// Other floats.
    Values,
    /// Tensors that stayed as they are.
    Kept,
    /// Names, tables and digests of the packed file.
    Index,
}

impl Place {
    /// As it is spelled in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Kept => "kept",
            Self::Index => "index",
        }
    }
}

impl Kind {
    /// As it is spelled in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Codes => "codes",
            Self::Steps => "steps",
            Self::Bits => "bits",
            Self::Factors => "factors",
            Self::Values => "values",
            Self::Kept => "kept",
            Self::Index => "index",
        }
    }

    /// By the rest of the name of a tensor behind that of its matrix, such as `.left.codes`.
    fn of(rest: &str) -> Self {
        let (path, end) = rest.rsplit_once('.').unwrap_or(("", rest));
        match end {
            "codes" => Self::Codes,
            "steps" | "columns" | "rows" => Self::Steps,
            "bits" => Self::Bits,
            _ if path.split('.').any(|part| part == "left" || part == "right") => Self::Factors,
            _ => Self::Values,
        }
    }
}

/// Bytes of a packed student.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Sizes {
    /// All of them.
    pub bytes: u64,
    /// By place in the model.
    pub by_place: BTreeMap<Place, u64>,
    /// By what they are in a form.
    pub by_kind: BTreeMap<Kind, u64>,
    /// Of each matrix that has a form.
    pub matrices: BTreeMap<String, u64>,
}

impl Sizes {
    /// Splits the bytes of a packed student. `parts` names the matrices of the model.
    #[must_use]
    pub fn new(parts: &Parts, matrices: &BTreeMap<String, MatrixRecord>, packed: &Packed) -> Self {
        let mut sizes = Self { bytes: packed.bytes, ..Self::default() };
        let mut payload = 0;
        for (name, bytes) in &packed.tensors {
            payload += bytes;
            let (place, kind) = match student::matrix_of(matrices, name) {
                Some(matrix) => {
                    *sizes.matrices.entry(matrix.to_owned()).or_default() += bytes;
                    (place(parts, matrix), Kind::of(&name[matrix.len()..]))
                }
                None => (Place::Kept, Kind::Kept),
            };
            *sizes.by_place.entry(place).or_default() += bytes;
            *sizes.by_kind.entry(kind).or_default() += bytes;
        }
        let index = packed.bytes.saturating_sub(payload);
        sizes.by_place.insert(Place::Index, index);
        sizes.by_kind.insert(Kind::Index, index);
        sizes
    }

    /// Packs the student in a folder, and splits its bytes. `base` is as for [`student::open`].
    ///
    /// # Errors
    /// As [`student::open`]; errors of packing.
    pub fn of_folder(path: &Path, base: Option<&Path>) -> Result<Self> {
        let (config, dense) = student::open(path, base)?;
        let parts = Parts::of_checkpoint(dense, &config)?;
        let matrices = student::describe(path)?.matrices;
        let weights = Checkpoint::open(&path.join(WEIGHTS), &Limits::default())?;
        Ok(Self::new(&parts, &matrices, &student::packed(&weights, &matrices)?))
    }
}

/// Where a matrix is.
fn place(parts: &Parts, matrix: &str) -> Place {
    let is_outside = matrix == HEAD || matrix == parts.globals.embedding;
    if is_outside || parts.globals.head.as_deref() == Some(matrix) {
        return Place::Embedding;
    }
    let mut of_layers = parts.layers.iter().flat_map(|names| names.matrices());
    match of_layers.find(|(_, name)| *name == matrix) {
        Some((MatrixRole::Up | MatrixRole::Gate | MatrixRole::Down, _)) => Place::Mlp,
        _ => Place::Attention,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_names() {
        for (rest, kind) in [
            (".codes", Kind::Codes),
            (".0.left.codes", Kind::Codes),
            (".right.steps", Kind::Steps),
            (".left.values", Kind::Factors),
            (".1.kept.values", Kind::Values),
            (".1.bits", Kind::Bits),
            (".values", Kind::Values),
        ] {
            assert_eq!(Kind::of(rest), kind, "{rest}");
        }
    }
}
