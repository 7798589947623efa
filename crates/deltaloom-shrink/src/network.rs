//! A model that runs with any weights: those of a teacher, or those of a student that is being
//! made, with the inputs of every matrix in sight.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use deltaloom::{Error, Missing, Result};
use deltaloom_compute::{DenseMatrix, Mode, Run, WeightType};
use deltaloom_lm::layer::{
    self, Batch, LayerNames, LayerWeights, MatrixRole, Sequence, TenantId, VectorRole,
};
use deltaloom_lm::model::{HEAD, Parts};

use crate::forms::Form;
use crate::matrix::Matrix;

/// A model with weights that can be replaced.
#[derive(Clone)]
pub struct Network {
    parts: Arc<Parts>,
    matrices: BTreeMap<String, DenseMatrix>,
    vectors: Arc<BTreeMap<String, Vec<f32>>>,
    /// The model that it is a fine-tune of.
    base: Option<Arc<Network>>,
}

/// What a matrix of a layer reads: matrices of one kind share their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Input {
    Attention,
    Output,
    FeedForward,
    Down,
}

impl Input {
    pub(crate) fn of(role: MatrixRole) -> Self {
        match role {
            MatrixRole::Output => Self::Output,
            MatrixRole::Up | MatrixRole::Gate => Self::FeedForward,
            MatrixRole::Down => Self::Down,
            _ => Self::Attention,
        }
    }
}

impl Network {
    /// The model itself.
    ///
    /// # Errors
    /// As [`Parts::values`]; [`Error::InvalidArgument`] for weights that are not BF16 or F32, and
    /// for NaN and infinities.
    pub fn new(parts: Arc<Parts>) -> Result<Self> {
        let (mut matrices, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        for names in &parts.layers {
            for (_, name) in names.matrices() {
                matrices.insert(name.to_owned(), matrix(&parts, name)?);
            }
            for (_, name) in names.vectors() {
                vectors.insert(name.to_owned(), finite(&parts, name)?);
            }
        }
        let norm = [Some(&parts.globals.final_norm), parts.globals.final_norm_bias.as_ref()];
        for name in norm.into_iter().flatten() {
            finite(&parts, name)?;
        }
        for name in [Some(&parts.globals.embedding), parts.globals.head.as_ref()].into_iter().flatten() {
            matrices.insert(name.clone(), matrix(&parts, name)?);
        }
        Ok(Self { parts, matrices, vectors: Arc::new(vectors), base: None })
    }

    /// The same model as a fine-tune of a base: its matrices are stored as what they add to those
    /// of the base.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the first tensor, by name, that only one of them has or that
    /// has other shapes; as [`Self::new`].
    pub fn with_base(self, base: Arc<Parts>) -> Result<Self> {
        if let Some(what) = difference(&shapes(&base), &shapes(&self.parts)) {
            return Err(Error::InvalidArgument(what));
        }
        Ok(Self { base: Some(Arc::new(Self::new(base)?)), ..self })
    }

    /// The model that it is a fine-tune of.
    #[must_use]
    pub fn base(&self) -> Option<&Self> {
        self.base.as_deref()
    }

    /// What the base has as this matrix, row by row.
    fn of_base(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let base = self.base().filter(|base| base.matrices.contains_key(name));
        base.map(|base| base.values(name)).transpose()
    }

    /// What a form of a matrix has to give if the matrix is to be `weights`: what these add to the
    /// matrix of the base. Without a base it is `weights`. [`Self::on_base`] is the way back.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn added(&self, name: &str, weights: Matrix) -> Result<Matrix> {
        Ok(match self.of_base(name)? {
            Some(base) => weights.plus(-1.0, &Matrix::of_f32(weights.rows(), weights.cols(), &base)),
            None => weights,
        })
    }

    /// A form of what a matrix adds to that of the base as a form of the matrix.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn on_base(&self, name: &str, form: Form) -> Result<Form> {
        Ok(match self.of_base(name)? {
            Some(base) => Form::sum(vec![Form::Base(base.into()), form]),
            None => form,
        })
    }

    /// Its settings and names.
    #[must_use]
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// Rows and columns of a matrix.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn shape(&self, name: &str) -> Result<[usize; 2]> {
        let shape = self.matrix(name)?.shape();
        Ok([shape.rows, shape.cols])
    }

    fn matrix(&self, name: &str) -> Result<&DenseMatrix> {
        let missing = || Error::not_found(Missing::Tensor, format!("matrix {name:?} of the model"));
        self.matrices.get(name).ok_or_else(missing)
    }

    /// Values of a matrix in FP32, row by row.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.matrix(name)?.bytes();
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// A matrix in FP64.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn wide(&self, name: &str) -> Result<Matrix> {
        let [rows, cols] = self.shape(name)?;
        Ok(Matrix::of_f32(rows, cols, &self.values(name)?))
    }

    /// Replaces a matrix, or unties the head: `name` is then [`HEAD`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of values.
    pub fn replace(&mut self, name: &str, [rows, cols]: [usize; 2], values: &[f32]) -> Result<()> {
        self.put(name, dense(rows, cols, values)?);
        Ok(())
    }

    /// The same for a matrix in FP32.
    pub(crate) fn put(&mut self, name: &str, matrix: DenseMatrix) {
        self.matrices.insert(name.to_owned(), matrix);
    }

    /// The name of the matrix that gives logits.
    #[must_use]
    pub fn head(&self) -> &str {
        let head = self.parts.globals.head.as_deref().unwrap_or(HEAD);
        if self.matrices.contains_key(head) { head } else { &self.parts.globals.embedding }
    }

    /// The first layer's input, for sequences from position 0 on.
    ///
    /// # Errors
    /// As [`Parts::embed`].
    pub fn embed(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        self.parts.embed(&self.values(&self.parts.globals.embedding)?, sequences)
    }

    /// A layer, whose output is the next layer's input.
    ///
    /// # Errors
    /// Errors of `weights`.
    pub(crate) fn layer(
        &self,
        number: usize,
        batch: &Batch,
        x: &[f32],
        weights: &dyn LayerWeights,
    ) -> Result<Vec<f32>> {
        layer::forward(&self.parts.config.layers[number], weights, batch, x, &run())
    }

    /// The weights of a layer.
    pub(crate) fn weights(&self, number: usize) -> Weights<'_> {
        Weights { network: self, names: &self.parts.layers[number], inputs: None }
    }

    /// The head's input `[tokens, width]` for sequences from position 0 on.
    ///
    /// # Errors
    /// As [`Self::embed`]; errors of products.
    pub fn hidden(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        self.finish(0, &batch(sequences)?, self.embed(sequences)?)
    }

    /// The head's input, from the input `x` of a layer on.
    pub(crate) fn finish(&self, layer: usize, batch: &Batch, mut x: Vec<f32>) -> Result<Vec<f32>> {
        for number in layer..self.parts.config.layers.len() {
            x = self.layer(number, batch, &x, &self.weights(number))?;
        }
        self.parts.final_norm(&x)
    }

    /// Logits `[tokens, vocabulary]` for what [`Self::hidden`] gives.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `hidden` has another width.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let head = self.matrix(self.head())?;
        let mut logits = vec![0.0; hidden.len() / self.parts.config.width * head.shape().rows];
        head.matmul(hidden, &mut logits, &run())?;
        Ok(logits)
    }
}

/// Shapes of all tensors by name.
fn shapes(parts: &Parts) -> BTreeMap<&str, &[u64]> {
    parts.checkpoint.weights().map(|(_, info)| (info.name.as_str(), &info.shape[..])).collect()
}

/// The first tensor in which a base and a fine-tune of it differ, in words.
fn difference(base: &BTreeMap<&str, &[u64]>, tuned: &BTreeMap<&str, &[u64]>) -> Option<String> {
    let names: BTreeSet<&str> = base.keys().chain(tuned.keys()).copied().collect();
    names.into_iter().find_map(|name| match (base.get(name), tuned.get(name)) {
        (Some(base), Some(tuned)) if base == tuned => None,
        (Some(base), Some(tuned)) => {
            Some(format!("tensor {name:?} is {base:?}, and {tuned:?} in the teacher"))
        }
        (Some(_), None) => Some(format!("it has a tensor {name:?}, and the teacher has none")),
        (None, _) => Some(format!("it has no tensor {name:?}, and the teacher has one")),
    })
}

/// Products that have the same bits everywhere.
fn run() -> Run<'static> {
    Run::new(Mode::Exact)
}

/// In FP32 whatever its type: exact products of BF16 weights take three times as long.
fn matrix(parts: &Parts, name: &str) -> Result<DenseMatrix> {
    match parts.shape(name)? {
        [rows, cols] => dense(to_usize(*rows), to_usize(*cols), &finite(parts, name)?),
        shape => Err(Error::InvalidArgument(format!("tensor {name:?} has shape {shape:?}: no matrix"))),
    }
}

/// Values of a tensor, none of which is NaN or infinite.
fn finite(parts: &Parts, name: &str) -> Result<Vec<f32>> {
    let values = parts.values(name)?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::InvalidArgument(format!(
            "tensor {name:?} has {} at element {at}: such a model cannot be measured",
            values[at]
        ))),
    }
}

fn to_usize(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// A matrix in FP32.
pub(crate) fn dense(rows: usize, cols: usize, values: &[f32]) -> Result<DenseMatrix> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    DenseMatrix::new(rows, cols, WeightType::F32, bytes)
}

/// Sequences from position 0 on.
pub(crate) fn batch(sequences: &[&[u32]]) -> Result<Batch> {
    let sequence = |ids: &&[u32]| Sequence { tenant: TenantId::ONLY, tokens: ids.len(), position: 0 };
    Batch::new(sequences.iter().map(sequence).collect())
}

/// The weights of a layer, and what its matrices read.
pub(crate) struct Weights<'a> {
    network: &'a Network,
    names: &'a LayerNames,
    inputs: Option<RefCell<BTreeMap<Input, Vec<f32>>>>,
}

impl Weights<'_> {
    /// Keeps the inputs of all matrices.
    pub(crate) fn watched(self) -> Self {
        Self { inputs: Some(RefCell::default()), ..self }
    }

    /// The inputs that were kept.
    pub(crate) fn into_inputs(self) -> BTreeMap<Input, Vec<f32>> {
        self.inputs.map(RefCell::into_inner).unwrap_or_default()
    }

    pub(crate) fn name(&self, role: MatrixRole) -> Result<&str> {
        let missing = || Error::not_found(Missing::Tensor, format!("a matrix {role:?} of the layer"));
        self.names.matrix(role).ok_or_else(missing)
    }
}

impl LayerWeights for Weights<'_> {
    fn matmul(&self, role: MatrixRole, _: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        if let Some(inputs) = &self.inputs {
            inputs.borrow_mut().entry(Input::of(role)).or_insert_with(|| x.to_vec());
        }
        self.network.matrix(self.name(role)?)?.matmul(x, y, run)
    }

    fn vector(&self, role: VectorRole, _: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        let name = self.names.vector(role);
        Ok(name.and_then(|name| self.network.vectors.get(name)).map(|values| Cow::Borrowed(&values[..])))
    }
}
