//! Shrinks a model block by block. Each matrix is first fitted to the inputs that the student
//! gives it, so that it makes up for what was lost before it, and then changed; its new form
//! computes what the next matrix reads.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use deltaloom::{Error, Result};
use deltaloom_compute::{DenseMatrix, Run};
use deltaloom_lm::layer::{Batch, LayerWeights, MatrixRole, TenantId, VectorRole};

use crate::branches::quantise::{self, Rate};
use crate::branches::{Statistics, low_rank, sparsity};
use crate::forms::Form;
use crate::matrix::{Matrix, moments};
use crate::measure::Windows;
use crate::network::{Input, Network, Weights, batch, dense};

/// What is done to a matrix, in this order; each branch works on what those before it leave over.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Treatment {
    /// All elements become 0, and nothing else is done.
    pub is_dropped: bool,
    /// Two factors.
    pub low_rank: Option<LowRank>,
    /// A sparse part.
    pub sparse: Option<sparsity::Settings>,
    /// Whether the branch behind it gets what the sparse part leaves over. Otherwise the sparse
    /// part is all, and quantisation is that of its values.
    pub keep_unsparse: bool,
    /// Codes.
    pub quantise: Option<quantise::Settings>,
}

/// Two factors of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRank {
    /// How they are found.
    pub settings: low_rank::Settings,
    /// Whether the branches behind it get what it leaves over. Otherwise the factors are all, and
    /// quantisation is theirs.
    pub keep_residual: bool,
}

/// How blocks are done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Fits matrices to the inputs that the student gives them, with this damping; `None` does not.
    pub correct: Option<f64>,
}

/// A matrix of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its tensor.
    pub name: &'a str,
    /// Its layer.
    pub layer: usize,
    /// What it does there.
    pub role: MatrixRole,
    /// Rows and columns.
    pub shape: [usize; 2],
}

/// Applies a treatment to a matrix `[out, in]`; `None` keeps it.
pub(crate) fn treat(weights: &Matrix, inputs: &Statistics, treatment: &Treatment) -> Result<Option<Form>> {
    // Behind a matrix of zeros nothing is read.
    let is_unread = inputs.tokens > 0 && inputs.second_moment.values().iter().all(|value| *value == 0.0);
    if treatment.is_dropped || is_unread {
        return Ok(Some(Form::Zero));
    }
    let mut parts = Vec::new();
    let mut left = weights.clone();
    if let Some(LowRank { settings, keep_residual }) = &treatment.low_rank
        && let Some(form) = low_rank::factor(&left, inputs, settings)
    {
        match (&treatment.quantise, form) {
            (Some(quantise), Form::LowRank { left, right, rank }) if !keep_residual => {
                let [rows, cols] = [weights.rows(), weights.cols()];
                let factors = [left.matrix(rows, rank), right.matrix(rank, cols)];
                return quantised_factors(&factors, inputs, quantise).map(Some);
            }
            (_, form) if !keep_residual => return Ok(Some(form)),
            (Some(quantise), Form::LowRank { left: of_rows, right, rank })
                if matches!(quantise.rate, Rate::Step { .. }) =>
            {
                let [rows, cols] = [weights.rows(), weights.cols()];
                let factors = [of_rows.matrix(rows, rank), right.matrix(rank, cols)];
                let form = quantised_factors(&factors, inputs, quantise)?;
                left = without(&left, &form);
                parts.push(form);
            }
            (_, form) => {
                left = without(&left, &form);
                parts.push(form);
            }
        }
    }
    if let Some(settings) = &treatment.sparse {
        let form = sparsity::sparsify(&left, inputs, settings)?;
        if let (Some(settings), false) = (&treatment.quantise, treatment.keep_unsparse) {
            parts.push(quantised_values(form, settings)?);
            return Ok(Some(Form::sum(parts)));
        }
        left = without(&left, &form);
        parts.push(form);
    }
    if let Some(settings) = &treatment.quantise {
        parts.push(quantise::quantise(&left, inputs, settings)?);
    }
    Ok((!parts.is_empty()).then(|| Form::sum(parts)))
}

fn without(weights: &Matrix, form: &Form) -> Matrix {
    weights.plus(-1.0, &form.matrix(weights.rows(), weights.cols()))
}

/// Codes for both factors `[out, rank]` and `[rank, in]`. The right one reads the inputs, the left
/// one what the right one gives.
pub(crate) fn quantised_factors(
    [left, right]: &[Matrix; 2],
    inputs: &Statistics,
    settings: &quantise::Settings,
) -> Result<Form> {
    // Columns of the left factor are as large as their rows of the right one, which have length 1
    // the other way round: one step is right for the right factor, and rows need no factors.
    let settings = quantise::Settings { rescale: false, ..settings.clone() };
    let (rank, cols) = (right.rows(), right.cols());
    let right = quantise::quantise(right, inputs, &settings.with_one_step())?;
    let of_right = right.matrix(rank, cols);
    if of_right.values().iter().all(|value| *value == 0.0) {
        return Ok(Form::Zero);
    }
    let second_moment = of_right.times(&inputs.second_moment).times(&of_right.transposed());
    let between = Statistics { second_moment, tokens: inputs.tokens };
    let left = quantise::quantise(left, &between, &settings)?;
    if left == Form::Zero {
        return Ok(left);
    }
    // A coder has tables for columns: those of both factors are singular vectors.
    let right = match right {
        Form::Quantised(codes) => codes.stored_turned(),
        form => form,
    };
    Ok(Form::LowRank { left: Box::new(left), right: Box::new(right), rank })
}

/// Codes for the values of a sparse part.
fn quantised_values(form: Form, settings: &quantise::Settings) -> Result<Form> {
    let Form::Sparse(sparse) = form else { return Ok(form) };
    let values = quantise::nearest(&sparse.values().matrix(1, sparse.count()), settings)?;
    Ok(Form::Sparse(sparse.with_values(values)))
}

/// Changes all matrices of the layers. `student` may have another embedding than `teacher`; it gets
/// the new forms. `treatment` says what is done to a matrix, `None` keeps it. `progress` gets the
/// number of matrices done.
///
/// # Errors
/// As the branches; errors of products, and of `progress`.
pub fn shrink_layers(
    teacher: &Network,
    student: &mut Network,
    calibration: &Windows,
    treatment: &dyn Fn(Place<'_>) -> Option<Treatment>,
    options: &Options,
    progress: &dyn Fn(usize) -> Result<()>,
) -> Result<BTreeMap<String, Form>> {
    let sequences: Vec<&[u32]> = calibration.iter().map(Vec::as_slice).collect();
    let batch = batch(&sequences)?;
    let mut of_teacher = teacher.embed(&sequences)?;
    let mut of_student = student.embed(&sequences)?;
    let mut forms = BTreeMap::new();
    let layers = teacher.parts().config.layers.len();
    // Layers behind the last one of which a matrix is fitted need no inputs.
    let mut fitted = 0;
    for layer in 0..layers {
        for (role, name) in teacher.parts().layers[layer].matrices() {
            let shape = teacher.shape(name)?;
            match treatment(Place { name, layer, role, shape }) {
                Some(treatment) if treatment.is_dropped => {
                    student.replace(name, shape, &vec![0.0; shape[0] * shape[1]])?;
                    forms.insert(name.to_owned(), Form::Zero);
                    progress(1)?;
                }
                Some(_) => fitted = layer + 1,
                None => {}
            }
        }
    }
    for layer in 0..fitted {
        let watched = teacher.weights(layer).watched();
        of_teacher = teacher.layer(layer, &batch, &of_teacher, &watched)?;
        let work = Work {
            weights: student.weights(layer),
            network: student,
            layer,
            wanted: watched.into_inputs(),
            treatment,
            options,
            progress,
            done: RefCell::default(),
            moments: RefCell::default(),
        };
        of_student = student.layer(layer, &batch, &of_student, &work)?;
        for (name, Done { form, matrix }) in work.done.into_inner() {
            student.put(&name, matrix);
            forms.insert(name, form);
        }
    }
    Ok(forms)
}

/// A matrix that was changed.
struct Done {
    form: Form,
    matrix: DenseMatrix,
}

/// The student's inputs of some matrices, and how they go with those of the teacher.
struct Moments {
    statistics: Statistics,
    /// Mean over tokens of the teacher's input times the student's, `x y^T`.
    cross: Option<Matrix>,
}

/// Weights of a layer that change when they are first used.
struct Work<'a> {
    weights: Weights<'a>,
    network: &'a Network,
    layer: usize,
    /// Inputs of the teacher's matrices.
    wanted: BTreeMap<Input, Vec<f32>>,
    treatment: &'a dyn Fn(Place<'_>) -> Option<Treatment>,
    options: &'a Options,
    progress: &'a dyn Fn(usize) -> Result<()>,
    done: RefCell<BTreeMap<String, Done>>,
    moments: RefCell<Option<(Input, Moments)>>,
}

impl Work<'_> {
    fn moments(&self, input: Input, x: &[f32], width: usize) -> Result<Moments> {
        let statistics = Statistics::of(x, width)?;
        let tokens = statistics.tokens.max(1) as f64;
        let cross = match (self.options.correct, self.wanted.get(&input)) {
            // Where nothing has changed yet, there is nothing to make up for.
            (Some(_), Some(wanted)) if wanted != x => {
                Some(moments(wanted, width, x, width)?.scaled(1.0 / tokens))
            }
            _ => None,
        };
        Ok(Moments { statistics, cross })
    }

    fn change(&self, name: &str, role: MatrixRole, x: &[f32], run: &Run<'_>, y: &mut [f32]) -> Result<()> {
        let shape = self.network.shape(name)?;
        let [rows, cols] = shape;
        let place = Place { name, layer: self.layer, role, shape };
        let Some(treatment) = (self.treatment)(place).filter(|treatment| !treatment.is_dropped) else {
            return self.weights.matmul(role, &Batch::default(), x, y, run);
        };
        let input = Input::of(role);
        let mut kept = self.moments.borrow_mut();
        if kept.as_ref().is_none_or(|(other, _)| *other != input) {
            *kept = Some((input, self.moments(input, x, cols)?));
        }
        let Some((_, Moments { statistics, cross })) = kept.as_ref() else { return Ok(()) };
        let weights = self.network.wide(name)?;
        let weights = match (cross, self.options.correct) {
            (Some(cross), Some(damping)) => corrected(&weights, statistics, cross, damping),
            _ => weights,
        };
        let form = treat(&self.network.added(name, weights)?, statistics, &treatment)
            .map_err(|error| Error::InvalidArgument(format!("tensor {name:?}: {error}")))?;
        (self.progress)(1)?;
        let Some(form) = form else {
            return self.weights.matmul(role, &Batch::default(), x, y, run);
        };
        let form = self.network.on_base(name, form)?;
        let matrix = dense(rows, cols, &form.decode(rows, cols))?;
        matrix.matmul(x, y, run)?;
        self.done.borrow_mut().insert(name.to_owned(), Done { form, matrix });
        Ok(())
    }
}

impl LayerWeights for Work<'_> {
    fn matmul(&self, role: MatrixRole, _: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let name = self.weights.name(role)?;
        self.change(name, role, x, run, y)
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        self.weights.vector(role, tenant)
    }
}

/// The weights whose outputs for the student's inputs come nearest to those of `weights` for the
/// teacher's: `W (C + l I) (H + l I)^-1`. With much damping they stay as they are.
fn corrected(weights: &Matrix, inputs: &Statistics, cross: &Matrix, damping: f64) -> Matrix {
    let moment = &inputs.second_moment;
    let more = damping * moment.mean_diagonal();
    let unit = Statistics::unknown(moment.rows()).second_moment;
    match moment.plus(more, &unit).inverse() {
        Some(inverse) => weights.times(&cross.plus(more, &unit)).times(&inverse),
        None => weights.clone(),
    }
}
