//! A matrix and its counterpart in a base, from files or generated from a seed. Both are in memory,
//! and a container holds one relative to the other.

use std::path::Path;
use std::sync::Arc;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Bases, Container, Error, Limits, PackOptions, ResolvedContainer, Result, Silent, pack_to};
use deltaloom_compute::{Choice, DenseMatrix, Form, MatrixShape, PackedMatrix, WeightType};

/// Most elements of a generated matrix.
const MADE_ELEMS: usize = 1 << 30;
/// Number of matrices that an error lists.
const LISTED: usize = 12;

/// A matrix of a fine-tune, its base, and the container that leads from one to the other.
pub struct Pair {
    pub(super) source: String,
    pub(super) is_made: bool,
    pub(super) tensor: String,
    pub(super) base: DenseMatrix,
    pub(super) tuned: DenseMatrix,
    pub(super) container: Arc<ResolvedContainer>,
}

impl Pair {
    /// Generates approximately normal weights. The fraction `changed` is shifted by one ULP or a
    /// few, as a training step at a low rate does. The same seed gives the same weights.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty or too large matrix, or a fraction outside 0 to 1.
    pub fn made(rows: usize, cols: usize, weight: WeightType, changed: f64, seed: u64) -> Result<Self> {
        let elems = rows.checked_mul(cols).filter(|elems| (1..=MADE_ELEMS).contains(elems));
        let Some(elems) = elems else {
            return Err(Error::InvalidArgument(format!(
                "matrix [{rows}, {cols}]: must have between 1 and 2^30 elements"
            )));
        };
        if !(changed > 0.0 && changed <= 1.0) {
            return Err(Error::InvalidArgument(format!(
                "changed fraction {changed}: must be above 0 and at most 1"
            )));
        }
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut base = Vec::with_capacity(elems * weight.bytes());
        let mut tuned = Vec::with_capacity(elems * weight.bytes());
        for _ in 0..elems {
            let value = 0.02 * normal(&mut random);
            let word = random.next_u64();
            // The low bits decide whether an element moves, the others by how many ULPs.
            let step = if unit(word << 32) < changed { 1 + (word >> 34).trailing_zeros().min(3) } else { 0 };
            let is_up = (word >> 33) & 1 == 0;
            let moved = |bits: u32, unit: u32| {
                if is_up || bits << 1 < 16 * unit { bits + step * unit } else { bits - step * unit }
            };
            match weight {
                WeightType::Bf16 => {
                    let bits = u32::from(half::bf16::from_f32(value).to_bits()) << 16;
                    base.extend_from_slice(&bits.to_le_bytes()[2..]);
                    tuned.extend_from_slice(&moved(bits, 1 << 16).to_le_bytes()[2..]);
                }
                WeightType::F32 => {
                    base.extend_from_slice(&value.to_le_bytes());
                    tuned.extend_from_slice(&moved(value.to_bits(), 1).to_le_bytes());
                }
            }
        }
        let base = DenseMatrix::new(rows, cols, weight, base)?;
        let tuned = DenseMatrix::new(rows, cols, weight, tuned)?;
        let source = format!("made: {changed:.4} of weights change, seed {seed}");
        Self::packed(source, true, "weight".into(), base, tuned)
    }

    /// A tensor of a base, in memory or mapped, and of a container packed against it. Without a
    /// name it is the largest matrix that differs; `source` names both in the report.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor that is no matrix with a counterpart, or does not
    /// differ; what decoding gives.
    pub fn of_container(
        source: String,
        base: &Arc<Checkpoint>,
        container: Container,
        tensor: Option<&str>,
    ) -> Result<Self> {
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), Arc::clone(base));
        let container = Arc::new(ResolvedContainer::new(container, &bases)?);
        let infos: Vec<_> = container.tensors().cloned().collect();
        let pair = |info: &TensorInfo| {
            let number = container.find(&info.name)?;
            let tiles = PackedMatrix::open(&container, &info.name, Choice::Form(Form::Tiles))?;
            let of_base = match tiles.base() {
                Some(of_base) => of_base.clone(),
                None => counterpart(base, info)?,
            };
            let shape = tiles.shape();
            let mut tuned = vec![0; shape.len_bytes()];
            container.read_into(number, &mut tuned)?;
            Ok((own(&of_base)?, DenseMatrix::new(shape.rows, shape.cols, shape.weight, tuned)?))
        };
        let (tensor, base, tuned) = chosen(&infos, tensor, pair)?;
        Ok(Self { source, is_made: false, tensor, base, tuned, container })
    }

    /// The same of two checkpoints, both in memory or mapped.
    ///
    /// # Errors
    /// As [`Self::of_container`].
    pub fn of_checkpoints(
        source: String,
        base: &Arc<Checkpoint>,
        tuned: &Arc<Checkpoint>,
        tensor: Option<&str>,
    ) -> Result<Self> {
        let infos: Vec<_> = tuned.tensors().map(|(_, info)| info.clone()).collect();
        let pair = |info: &TensorInfo| Ok((counterpart(base, info)?, counterpart(tuned, info)?));
        let (tensor, base, tuned) = chosen(&infos, tensor, pair)?;
        Self::packed(source, false, tensor, own(&base)?, own(&tuned)?)
    }

    /// Packs the fine-tune against the base.
    fn packed(
        source: String,
        is_made: bool,
        tensor: String,
        base: DenseMatrix,
        tuned: DenseMatrix,
    ) -> Result<Self> {
        let limits = Limits::default();
        let file = |matrix: &DenseMatrix| {
            Checkpoint::from_bytes("weights.safetensors", safetensors(&tensor, matrix), &limits)
        };
        let mut bases = Bases::default();
        bases.push_checkpoint(Path::new("base"), file(&base)?);
        let mut out = Vec::new();
        pack_to(&file(&tuned)?, &bases, &mut out, &PackOptions::default(), &Silent)?;
        let container = Container::from_source(Path::new("packed"), Box::new(out), &limits)?;
        let container = Arc::new(ResolvedContainer::new(container, &bases)?);
        Ok(Self { source, is_made, tensor, base, tuned, container })
    }

    /// Number of elements that differ.
    pub(super) fn changed(&self) -> u64 {
        let size = self.base.shape().weight.bytes();
        let elements = self.base.bytes().chunks_exact(size).zip(self.tuned.bytes().chunks_exact(size));
        elements.filter(|(a, b)| a != b).count() as u64
    }

    /// Shape of both.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.base.shape()
    }
}

/// Finds the named tensor, or the largest matrix that differs, with its counterpart.
fn chosen(
    infos: &[TensorInfo],
    name: Option<&str>,
    pair: impl Fn(&TensorInfo) -> Result<(DenseMatrix, DenseMatrix)>,
) -> Result<(String, DenseMatrix, DenseMatrix)> {
    let mut matrices: Vec<_> = infos.iter().filter(|info| MatrixShape::of(info).is_ok()).collect();
    // The first of the largest.
    matrices.sort_by_key(|info| std::cmp::Reverse(info.len_bytes()));
    if let Some(name) = name {
        let info = infos.iter().find(|info| info.name == name);
        let info = info.filter(|info| info.len_bytes() > 0 && MatrixShape::of(info).is_ok());
        let Some(info) = info else {
            let what =
                if infos.iter().any(|info| info.name == name) { "is not a" } else { "does not exist as a" };
            return Err(Error::InvalidArgument(format!(
                "tensor {name:?} {what} matrix of BF16 or F32; {}",
                listed(&matrices)
            )));
        };
        let (base, tuned) = pair(info)?;
        if base.bytes() == tuned.bytes() {
            let what = format!("tensor {name:?} equals the base; there is nothing to compare");
            return Err(Error::InvalidArgument(what));
        }
        return Ok((info.name.clone(), base, tuned));
    }
    for info in matrices.iter().filter(|info| info.len_bytes() > 0) {
        // A matrix without a counterpart is not compared.
        let Ok((base, tuned)) = pair(info) else { continue };
        if base.bytes() != tuned.bytes() {
            return Ok((info.name.clone(), base, tuned));
        }
    }
    Err(Error::InvalidArgument(format!(
        "no matrix differs from its counterpart in the base; {}",
        listed(&matrices)
    )))
}

fn listed(matrices: &[&TensorInfo]) -> String {
    if matrices.is_empty() {
        return "there is no matrix".into();
    }
    let names: Vec<_> =
        matrices.iter().take(LISTED).map(|info| format!("{} {:?}", info.name, info.shape)).collect();
    let more = match matrices.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the matrices are {}{more}", names.join(", "))
}

/// The tensor of a mapped checkpoint with the name, dtype and shape of another.
fn counterpart(checkpoint: &Arc<Checkpoint>, of: &TensorInfo) -> Result<DenseMatrix> {
    let is_it = |(_, info): &(usize, &TensorInfo)| info.name == of.name && info.same_type(of);
    let Some((member, info)) = checkpoint.tensors().find(is_it) else {
        let what = format!("the base has no tensor {:?} of {} {:?}", of.name, of.dtype, of.shape);
        return Err(Error::InvalidArgument(what));
    };
    DenseMatrix::of_checkpoint(checkpoint, member, info)
}

/// Copies the matrix, so that all matrices have the same memory layout.
fn own(matrix: &DenseMatrix) -> Result<DenseMatrix> {
    let shape = matrix.shape();
    DenseMatrix::new(shape.rows, shape.cols, shape.weight, matrix.bytes().to_vec())
}

/// Writes a safetensors file with one tensor.
fn safetensors(name: &str, matrix: &DenseMatrix) -> Vec<u8> {
    let shape = matrix.shape();
    let dtype = match shape.weight {
        WeightType::Bf16 => "BF16",
        WeightType::F32 => "F32",
    };
    let entry = serde_json::json!({
        name: { "dtype": dtype, "shape": [shape.rows, shape.cols], "data_offsets": [0, matrix.bytes().len()] },
    });
    let header = entry.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), matrix.bytes()].concat()
}

/// Maps the upper half of a word to 0 to 1.
fn unit(word: u64) -> f64 {
    f64::from((word >> 32) as u32) / 4_294_967_296.0
}

/// Approximately normal: the sum of twelve uniform numbers.
pub(super) fn normal(random: &mut Xoshiro256PlusPlus) -> f32 {
    let mut sum = -6.0;
    for _ in 0..3 {
        let word = random.next_u64();
        for part in word.to_le_bytes().as_chunks::<2>().0 {
            sum += f32::from(u16::from_le_bytes(*part)) / 65536.0;
        }
    }
    sum
}
