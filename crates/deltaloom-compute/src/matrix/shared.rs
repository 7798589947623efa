//! Products of many fine-tunes of one base: one product of the base for all of them, plus the
//! sparse differences of each. It knows segments of tokens, not tenants.

use deltaloom_kernels::sparse::{Differences, add_products, token_contiguous, transpose};
use rayon::prelude::*;

use super::{Form, PackedMatrix};
use crate::dense::{
    DenseMatrix, MatrixShape, Panel, Part, may_overflow, multiply_parts, panel_rows, pays_threads,
    redo_not_finite,
};
use crate::forms::Csr;
use crate::mode::Mode;
use crate::timing::{Phase, Run};
use deltaloom::{Error, Result};

/// Consecutive tokens that belong to one fine-tune, and its matrix.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Number of tokens.
    pub tokens: usize,
    /// The matrix that multiplies them.
    pub matrix: &'a PackedMatrix,
}

/// Computes `y` [tokens, rows] = `x` [tokens, cols] times the transposed matrix of each token's
/// segment.
///
/// Segments share one product of the base if their matrix is the base or, in fast mode, has sparse
/// differences from it. All others are multiplied separately.
///
/// # Errors
/// [`Error::InvalidArgument`] if a matrix does not have the base's shape, or lengths do not fit;
/// errors of decoding tiles.
pub fn matmul_shared(
    base: &DenseMatrix,
    segments: &[Segment<'_>],
    x: &[f32],
    y: &mut [f32],
    run: &Run<'_>,
) -> Result<()> {
    let shape = base.shape();
    let tokens = shape.tokens(x, y)?;
    if segments.iter().any(|segment| segment.matrix.shape() != shape) {
        return Err(Error::InvalidArgument(format!(
            "a matrix does not have the shape of its base, {shape:?}"
        )));
    }
    if segments.iter().try_fold(0usize, |sum, segment| sum.checked_add(segment.tokens)) != Some(tokens) {
        return Err(Error::InvalidArgument(format!("the segments do not add up to {tokens} tokens")));
    }
    if y.is_empty() || shape.cols == 0 {
        y.fill(0.0);
        return Ok(());
    }
    let shares = |segment: &Segment<'_>| {
        let is_of_base = segment.matrix.base().is_some_and(|other| other.is_same(base));
        let is_sparse = run.mode == Mode::Fast && segment.matrix.form() == Form::Csr;
        is_of_base && (is_sparse || segment.matrix.form() == Form::Base)
    };
    base_product(base, segments, shares, x, y, run)?;

    let (mut sparse, mut others) = (Vec::new(), Vec::new());
    let (mut x_rest, mut y_rest) = (x, y);
    for segment in segments.iter().filter(|segment| segment.tokens > 0) {
        let x = x_rest.split_off(..segment.tokens * shape.cols).unwrap_or_default();
        let y = y_rest.split_off_mut(..segment.tokens * shape.rows).unwrap_or_default();
        match segment.matrix.csr() {
            Some(csr) if shares(segment) => sparse.push((csr, segment.matrix, x, y)),
            _ if shares(segment) => {}
            _ => others.push((segment.matrix, x, y)),
        }
    }
    let add = |(csr, matrix, x, y)| add_differences(csr, matrix, x, y, run);
    if sparse.len() > 1 && pays_threads(shape.rows.saturating_mul(shape.cols), tokens) {
        sparse.into_par_iter().try_for_each(add)?;
    } else {
        sparse.into_iter().try_for_each(add)?;
    }
    multiply_in_turn(shape, others, run)
}

/// Multiplies each matrix with its tokens. Those whose rows can be made in small panels go side by
/// side: a panel of the base is read once and patched for each in turn.
fn multiply_in_turn<'a>(
    shape: MatrixShape,
    parts: Vec<(&'a PackedMatrix, &'a [f32], &'a mut [f32])>,
    run: &'a Run<'a>,
) -> Result<()> {
    let (mut small, large): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|(matrix, _, _)| matrix.rows_at_once() == 1);
    large.into_iter().try_for_each(|(matrix, x, y)| matrix.matmul_patched(x, y, run))?;
    if small.is_empty() {
        return Ok(());
    }
    let rows = panel_rows(shape, 1);
    let parts = small.iter_mut().map(|(matrix, x, y)| {
        let matrix = *matrix;
        Part { x, y, make: Box::new(move |rows, panel: &mut Panel| matrix.make_rows(rows, panel, run)) }
    });
    multiply_parts(shape, rows, parts.collect(), run)?;
    if !may_overflow(shape, run) {
        return Ok(());
    }
    small.into_iter().try_for_each(|(matrix, x, y)| {
        redo_not_finite(shape, x, y, run, |x, y, run| matrix.matmul_patched(x, y, run))
    })
}

/// The base's product for the tokens of all segments that share it.
fn base_product(
    base: &DenseMatrix,
    segments: &[Segment<'_>],
    shares: impl Fn(&Segment<'_>) -> bool,
    x: &[f32],
    y: &mut [f32],
    run: &Run<'_>,
) -> Result<()> {
    let shape = base.shape();
    if segments.iter().all(&shares) {
        return base.matmul(x, y, run);
    }
    // Places of the tokens that share it.
    let mut places = Vec::new();
    let mut start = 0;
    for segment in segments {
        if shares(segment) {
            places.extend(start..start + segment.tokens);
        }
        start += segment.tokens;
    }
    if places.is_empty() {
        return Ok(());
    }
    let gathered: Vec<f32> = run.time(Phase::Load, || {
        places.iter().flat_map(|place| &x[place * shape.cols..][..shape.cols]).copied().collect()
    });
    let mut products = vec![0.0; places.len() * shape.rows];
    base.matmul(&gathered, &mut products, run)?;
    run.time(Phase::Finish, || {
        for (place, product) in places.iter().zip(products.chunks_exact(shape.rows)) {
            y[place * shape.rows..][..shape.rows].copy_from_slice(product);
        }
    });
    Ok(())
}

/// Adds the differences of a matrix, which are these entries, to products of the base.
pub(super) fn add_differences(
    csr: &Csr,
    matrix: &PackedMatrix,
    x: &[f32],
    y: &mut [f32],
    run: &Run<'_>,
) -> Result<()> {
    let shape = matrix.shape();
    let tokens = y.len() / shape.rows;
    let columns = run.time(Phase::Load, || token_contiguous(x, shape.cols));
    let all = 0..shape.rows;
    if tokens == 1 {
        run.time(Phase::Multiply, || add_products(csr.differences(all), 1, &columns, y));
    } else {
        let mut by_row = vec![0.0; y.len()];
        run.time(Phase::Load, || transpose(y, tokens, shape.rows, &mut by_row));
        run.time(Phase::Multiply, || in_row_panels(csr, tokens, &columns, &mut by_row));
        run.time(Phase::Finish, || transpose(&by_row, shape.rows, tokens, y));
    }
    redo_not_finite(shape, x, y, run, |x, y, run| matrix.matmul_patched(x, y, run))
}

/// Number of rows that a thread processes at a time.
const ROWS: usize = 256;

fn in_row_panels(csr: &Csr, tokens: usize, columns: &[f32], by_row: &mut [f32]) {
    let rows = by_row.len() / tokens;
    let panel = |(number, y): (usize, &mut [f32])| {
        let start = number * ROWS;
        let differences: Differences<'_> = csr.differences(start..start + y.len() / tokens);
        add_products(differences, tokens, columns, y);
    };
    if !pays_threads(rows, columns.len()) {
        return panel((0, by_row));
    }
    by_row.par_chunks_mut(ROWS * tokens).enumerate().for_each(panel);
}
