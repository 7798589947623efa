//! Dense matrices in memory, and products with rows of weights from any source. It knows nothing of
//! bases.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use deltaloom_kernels::dense::{self, Weights};
use deltaloom_kernels::isa::{Isa, isa};
use deltaloom_kernels::pairs::{self, Activations};
use deltaloom_kernels::sparse::transpose;

use crate::mode::Mode;
use crate::timing::{Phase, Run};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::{DType, TensorInfo};
use deltaloom::{Error, Result};

/// Bytes of a panel that is patched and then multiplied row by row. It stays in the fastest cache.
const PANEL_BYTES: usize = 16 << 10;
/// Panels of rows in place for each thread: few, and enough for threads that do not start together.
const PANELS_PER_THREAD: usize = 4;
/// Panels begin at a line of a cache.
const LINE_BYTES: usize = 64;

/// Types of weights that products support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// BF16.
    Bf16,
    /// FP32.
    F32,
}

impl WeightType {
    /// The type of a tensor.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a dtype other than BF16 and F32.
    pub fn of(info: &TensorInfo) -> Result<Self> {
        match info.dtype {
            DType::BF16 => Ok(Self::Bf16),
            DType::F32 => Ok(Self::F32),
            _ => Err(Error::InvalidArgument(format!(
                "tensor {:?} has dtype {}: products need BF16 or F32",
                info.name, info.dtype
            ))),
        }
    }

    /// Number of bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Rows of weights for the kernels.
    #[doc(hidden)]
    #[must_use]
    pub fn weights(self, bytes: &[u8]) -> Weights<'_> {
        match self {
            Self::Bf16 => Weights::Bf16(bytes),
            Self::F32 => Weights::F32(bytes),
        }
    }
}

/// Converts a dimension of a tensor whose bytes are in a file.
fn size(dimension: u64) -> usize {
    usize::try_from(dimension).expect("deltaloom requires 64-bit addresses")
}

/// Rows, columns and type of a matrix of weights, [out, in].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixShape {
    /// Number of rows, the length of a result.
    pub rows: usize,
    /// Number of columns, the length of an activation.
    pub cols: usize,
    /// Type of the elements.
    pub weight: WeightType,
}

impl MatrixShape {
    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the tensor has two dimensions and dtype BF16 or F32.
    pub fn of(info: &TensorInfo) -> Result<Self> {
        let weight = WeightType::of(info)?;
        match info.shape[..] {
            [rows, cols] => Ok(Self { rows: size(rows), cols: size(cols), weight }),
            _ => Err(Error::InvalidArgument(format!(
                "tensor {:?} has shape {:?}: a matrix needs two dimensions",
                info.name, info.shape
            ))),
        }
    }

    /// The shape of a vector as one row: norms and biases.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the tensor has one dimension and dtype BF16 or F32.
    pub fn row_of(info: &TensorInfo) -> Result<Self> {
        let weight = WeightType::of(info)?;
        match info.shape[..] {
            [cols] => Ok(Self { rows: 1, cols: size(cols), weight }),
            _ => Err(Error::InvalidArgument(format!(
                "tensor {:?} has shape {:?}: a vector needs one dimension",
                info.name, info.shape
            ))),
        }
    }

    /// Number of bytes of a row.
    #[must_use]
    pub fn row_bytes(self) -> usize {
        self.cols * self.weight.bytes()
    }

    /// Number of bytes of all weights.
    #[must_use]
    pub fn len_bytes(self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Number of tokens of `x` and `y`, if they are [tokens, cols] and [tokens, rows].
    pub fn tokens(self, x: &[f32], y: &[f32]) -> Result<usize> {
        let tokens = x.len().checked_div(self.cols).unwrap_or_else(|| y.len() / self.rows.max(1));
        if tokens.checked_mul(self.cols) == Some(x.len()) && tokens.checked_mul(self.rows) == Some(y.len()) {
            return Ok(tokens);
        }
        Err(Error::InvalidArgument(format!(
            "activations of {} and results of {} numbers do not fit a matrix [{}, {}]",
            x.len(),
            y.len(),
            self.rows,
            self.cols
        )))
    }
}

/// A matrix in memory, row by row, in its own memory or in that of a checkpoint. Clones share it.
#[derive(Clone)]
pub struct DenseMatrix {
    shape: MatrixShape,
    held: Held,
}

#[derive(Clone)]
enum Held {
    Own(Arc<Vec<u8>>),
    Checkpoint { checkpoint: Arc<Checkpoint>, member: usize, info: Arc<TensorInfo> },
}

impl fmt::Debug for DenseMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenseMatrix").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl DenseMatrix {
    /// The matrix of absolute values.
    pub(crate) fn absolute(&self) -> Result<Self> {
        let element = self.shape.weight.bytes();
        let mut bytes = self.bytes().to_vec();
        bytes.iter_mut().skip(element - 1).step_by(element).for_each(|top| *top &= 0x7f);
        Self::new(self.shape.rows, self.shape.cols, self.shape.weight, bytes)
    }

    /// Creates a matrix of these little-endian bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless their number matches the shape.
    pub fn new(rows: usize, cols: usize, weight: WeightType, bytes: Vec<u8>) -> Result<Self> {
        let needed = rows.checked_mul(cols).and_then(|elems| elems.checked_mul(weight.bytes()));
        if needed != Some(bytes.len()) {
            let what = format!("{} bytes do not fill a matrix [{rows}, {cols}] of {weight:?}", bytes.len());
            return Err(Error::InvalidArgument(what));
        }
        Ok(Self { shape: MatrixShape { rows, cols, weight }, held: Held::Own(Arc::new(bytes)) })
    }

    /// A tensor of member `member` of a checkpoint whose files are in memory or mapped.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor that is not a matrix of BF16 or F32, and for a
    /// checkpoint that is neither in memory nor mapped.
    pub fn of_checkpoint(checkpoint: &Arc<Checkpoint>, member: usize, info: &TensorInfo) -> Result<Self> {
        Self::of_shape(checkpoint, member, info, MatrixShape::of(info)?)
    }

    /// The same for a tensor that is treated as having a shape of its size.
    pub(super) fn of_shape(
        checkpoint: &Arc<Checkpoint>,
        member: usize,
        info: &TensorInfo,
        shape: MatrixShape,
    ) -> Result<Self> {
        if checkpoint.in_memory(member, info).is_none_or(|bytes| bytes.len() != shape.len_bytes()) {
            let what = format!("tensor {:?} is not in memory: map its checkpoint first", info.name);
            return Err(Error::InvalidArgument(what));
        }
        let held =
            Held::Checkpoint { checkpoint: Arc::clone(checkpoint), member, info: Arc::new(info.clone()) };
        Ok(Self { shape, held })
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// Its bytes, row by row.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Own(bytes) => bytes,
            Held::Checkpoint { checkpoint, member, info } => {
                checkpoint.in_memory(*member, info).unwrap_or_default()
            }
        }
    }

    /// Its bytes for changes, if they are its own and no clone shares them.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.held {
            Held::Own(bytes) => Some(Arc::get_mut(bytes)?.as_mut_slice()),
            Held::Checkpoint { .. } => None,
        }
    }

    /// Bytes of some of its rows.
    pub fn rows(&self, rows: Range<usize>) -> &[u8] {
        &self.bytes()[rows.start * self.shape.row_bytes()..rows.end * self.shape.row_bytes()]
    }

    /// Whether both share the same memory.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.bytes(), other.bytes())
    }

    /// Computes `y` [tokens, rows] = `x` [tokens, cols] times the transposed matrix.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the lengths do not fit.
    pub fn matmul(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let tokens = self.shape.tokens(x, y)?;
        let rows_per_panel = rows_in_place(self.shape, tokens);
        let make = |rows, _: &mut Panel| Ok(Rows::Ready(self.rows(rows)));
        multiply_by(self.shape, rows_per_panel, tokens, x, y, run, &make)
    }
}

/// Rows of a panel, in the form that their maker has.
pub enum Rows<'a> {
    /// In the matrix's own type, in place.
    Ready(&'a [u8]),
    /// In the matrix's own type, in the panel's bytes.
    Patched,
    /// In FP32, in the panel's numbers.
    Widened,
}

impl<'a> Rows<'a> {
    /// The rows in the matrix's own type, unless they are in FP32. The panel's memory has room for
    /// `len` bytes of them; it is not touched for rows in place.
    fn bytes(self, made: &'a mut Vec<u8>, len: usize) -> Option<&'a [u8]> {
        match self {
            Self::Ready(bytes) => Some(bytes),
            Self::Patched => Some(aligned(made, len)),
            Self::Widened => None,
        }
    }
}

/// Reusable memory for rows.
#[derive(Debug, Default)]
pub struct Panel {
    bytes: Vec<u8>,
    numbers: Vec<f32>,
    sums: Vec<f32>,
}

impl Panel {
    /// The first `len` bytes, with arbitrary contents.
    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        aligned(&mut self.bytes, len)
    }

    /// Writes rows that were made in it, or in place, as FP32.
    pub(super) fn widen(&mut self, made: Rows<'_>, shape: MatrixShape, out: &mut [f32]) {
        let Self { bytes, numbers, .. } = self;
        match made.bytes(bytes, out.len() * shape.weight.bytes()) {
            Some(bytes) => dense::widen(shape.weight.weights(bytes), out),
            None => out.copy_from_slice(&numbers[..out.len()]),
        }
    }

    /// The first `len` numbers, with arbitrary contents.
    pub(super) fn numbers(&mut self, len: usize) -> &mut [f32] {
        grown(&mut self.numbers, len)
    }
}

/// Most bytes of a panel that a thread keeps. The system clears the pages of fresh memory, which
/// takes longer than a small product.
const KEPT_BYTES: usize = 8 << 20;

thread_local! {
    static KEPT: RefCell<Panel> = RefCell::default();
}

/// A panel that the thread which drops it uses again.
struct KeptPanel(Panel);

impl KeptPanel {
    fn take() -> Self {
        // While a thread ends, its kept panel is already gone.
        Self(KEPT.try_with(RefCell::take).unwrap_or_default())
    }
}

impl Drop for KeptPanel {
    fn drop(&mut self) {
        let panel = std::mem::take(&mut self.0);
        let bytes = panel.bytes.capacity() + panel.numbers.capacity() * size_of::<f32>();
        if bytes <= KEPT_BYTES {
            // An error means that the thread ends, and the panel with it.
            KEPT.try_with(|kept| *kept.borrow_mut() = panel).unwrap_or_default();
        }
    }
}

/// Bytes from a line of a cache on: kernels read such rows faster.
fn aligned(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    let all = grown(buffer, len + LINE_BYTES);
    let start = all.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES);
    &mut all[start..start + len]
}

fn grown<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// Whether products are added in pair order: those of BF16 weights, unless another order is allowed
/// and faster.
fn are_in_pairs(shape: MatrixShape, run: &Run<'_>) -> bool {
    shape.weight == WeightType::Bf16 && (run.mode != Mode::Fast || isa() == Isa::Amx)
}

/// Whether products are added in another order than exact ones, so that sums may overflow where
/// theirs do not.
pub(super) fn may_overflow(shape: MatrixShape, run: &Run<'_>) -> bool {
    shape.weight == WeightType::Bf16 && !are_in_pairs(shape, run)
}

/// Number of rows of a panel for this many tokens.
pub fn panel_rows(shape: MatrixShape, tokens: usize) -> usize {
    let row_bytes = shape.row_bytes().max(1);
    // The data that the product of a panel reads again and again grows with the tokens.
    let rows = PANEL_BYTES * tokens.clamp(1, 8) / row_bytes;
    let at_once = rows_at_once(shape);
    (rows / at_once * at_once).clamp(at_once, shape.rows.max(at_once))
}

/// Rows of a panel for a product with rows in place. No buffer has to stay in a cache, so each
/// thread gets a few large panels.
fn rows_in_place(shape: MatrixShape, tokens: usize) -> usize {
    let least = panel_rows(shape, tokens);
    if !pays_threads(shape.rows.saturating_mul(shape.cols), tokens) {
        return shape.rows.max(least);
    }
    let panels = rayon::current_num_threads() * PANELS_PER_THREAD;
    shape.rows.div_ceil(panels).next_multiple_of(rows_at_once(shape)).max(least)
}

/// Rows that the kernels multiply at a time.
fn rows_at_once(shape: MatrixShape) -> usize {
    match shape.weight {
        WeightType::Bf16 => pairs::ROWS_AT_ONCE,
        WeightType::F32 => 16,
    }
}

/// The same with a number of rows per panel chosen by the caller.
pub fn multiply_by<'a>(
    shape: MatrixShape,
    rows_per_panel: usize,
    tokens: usize,
    x: &[f32],
    y: &mut [f32],
    run: &Run<'_>,
    make: &(dyn Fn(Range<usize>, &mut Panel) -> Result<Rows<'a>> + Sync),
) -> Result<()> {
    if tokens == 0 || shape.rows == 0 || shape.cols == 0 {
        y.fill(0.0);
        return Ok(());
    }
    let part = Part { x, y: &mut *y, make: Box::new(make) };
    multiply_parts(shape, rows_per_panel, vec![part], run)?;
    if !may_overflow(shape, run) {
        return Ok(());
    }
    redo_not_finite(shape, x, y, run, |x, y, run| multiply_by(shape, rows_per_panel, 1, x, y, run, make))
}

/// Makes rows of a matrix.
type MakeRows<'a, 'rows> = dyn Fn(Range<usize>, &mut Panel) -> Result<Rows<'rows>> + Sync + 'a;

/// Tokens that are multiplied with the same matrix.
pub(super) struct Part<'a, 'rows> {
    /// [tokens, cols], at least one token.
    pub(super) x: &'a [f32],
    /// [tokens, rows].
    pub(super) y: &'a mut [f32],
    pub(super) make: Box<MakeRows<'a, 'rows>>,
}

/// Multiplies several matrices of a shape panel by panel: what their rows have in common, such as
/// those of their base, is then read once.
pub(super) fn multiply_parts(
    shape: MatrixShape,
    rows_per_panel: usize,
    mut parts: Vec<Part<'_, '_>>,
    run: &Run<'_>,
) -> Result<()> {
    let columns: Vec<Columns<'_>> = parts.iter().map(|part| Columns::new(shape, part.x, run)).collect();
    let tokens_of = |y: &[f32]| y.len() / shape.rows;
    // One token is in order already.
    let buffer =
        |part: &Part<'_, '_>| if tokens_of(part.y) == 1 { Vec::new() } else { vec![0.0; part.y.len()] };
    let mut by_row: Vec<Vec<f32>> = parts.iter().map(buffer).collect();
    // Of each panel, the results of every part.
    let mut panels: Vec<Vec<&mut [f32]>> = Vec::new();
    panels.resize_with(shape.rows.div_ceil(rows_per_panel), Vec::new);
    let (mut makes, mut outs) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
    for Part { y, make, .. } in &mut parts {
        makes.push(&**make);
        outs.push(&mut **y);
    }
    let mut tokens = 0;
    for (y, by_row) in outs.iter_mut().zip(&mut by_row) {
        let of_part = tokens_of(y);
        tokens += of_part;
        let all = if of_part == 1 { &mut **y } else { &mut by_row[..] };
        panels.iter_mut().zip(all.chunks_mut(rows_per_panel * of_part)).for_each(|(panel, y)| panel.push(y));
    }
    in_panels(shape, tokens, panels.into_iter(), |(number, ys), panel| {
        let start = number * rows_per_panel;
        let rows = start..shape.rows.min(start + rows_per_panel);
        for ((columns, make), y) in columns.iter().zip(&makes).zip(ys) {
            let made = make(rows.clone(), panel)?;
            run.time(Phase::Multiply, || columns.multiply(shape, made, panel, y));
        }
        Ok(())
    })?;
    run.time(Phase::Finish, || {
        for (y, by_row) in outs.into_iter().zip(&by_row).filter(|(_, by_row)| !by_row.is_empty()) {
            transpose(by_row, shape.rows, tokens_of(y), y);
        }
    });
    Ok(())
}

/// Recomputes tokens whose results are not all finite, in the exact order. A sum in another order
/// may overflow on the way, but NaNs and infinities must be those of the dense product.
pub(super) fn redo_not_finite(
    shape: MatrixShape,
    x: &[f32],
    y: &mut [f32],
    run: &Run<'_>,
    redo: impl Fn(&[f32], &mut [f32], &Run<'_>) -> Result<()>,
) -> Result<()> {
    let exact = Run { mode: Mode::Exact, ..*run };
    let mut tokens = x.chunks_exact(shape.cols).zip(y.chunks_exact_mut(shape.rows));
    tokens.try_for_each(|(x, y)| if y.iter().all(|y| y.is_finite()) { Ok(()) } else { redo(x, y, &exact) })
}

/// Whether threads share the work of a product of this many elements with this many tokens.
pub(super) fn pays_threads(elems: usize, tokens: usize) -> bool {
    const SHARED_WORK: usize = 1 << 19;
    elems.saturating_mul(tokens) >= SHARED_WORK && rayon::current_num_threads() > 1
}

/// Calls `each` with the results of every panel, on all threads if that pays off.
fn in_panels<Y: Send>(
    shape: MatrixShape,
    tokens: usize,
    parts: impl ExactSizeIterator<Item = Y> + Send,
    each: impl Fn((usize, Y), &mut Panel) -> Result<()> + Sync,
) -> Result<()> {
    use rayon::prelude::*;
    if parts.len() == 1 || !pays_threads(shape.rows.saturating_mul(shape.cols), tokens) {
        let mut panel = KeptPanel::take();
        return parts.enumerate().try_for_each(|part| each(part, &mut panel.0));
    }
    let parts: Vec<_> = parts.enumerate().collect();
    parts.into_par_iter().try_for_each_init(KeptPanel::take, |panel, part| each(part, &mut panel.0))
}

/// Activations in the form that the kernels of a product read.
enum Columns<'a> {
    /// For the order of lanes.
    Numbers(&'a [f32]),
    /// For pair order.
    Pairs(Activations),
}

impl<'a> Columns<'a> {
    fn new(shape: MatrixShape, x: &'a [f32], run: &Run<'_>) -> Self {
        if are_in_pairs(shape, run) {
            Self::Pairs(run.time(Phase::Load, || Activations::new(x, shape.cols, run.mode.parts())))
        } else {
            Self::Numbers(x)
        }
    }

    /// Products of the rows of a panel: `y` is [rows, tokens].
    fn multiply(&self, shape: MatrixShape, made: Rows<'_>, panel: &mut Panel, y: &mut [f32]) {
        let cols = shape.cols;
        let Panel { bytes, numbers, sums } = panel;
        match self {
            Self::Numbers(x) => {
                let rows = y.len() * cols / x.len();
                match made.bytes(bytes, rows * shape.row_bytes()) {
                    Some(bytes) => dense::products(shape.weight.weights(bytes), cols, x, y),
                    None => dense::products(Weights::Numbers(&numbers[..rows * cols]), cols, x, y),
                }
            }
            Self::Pairs(x) => {
                let rows = y.len() / x.tokens();
                let len = rows * shape.row_bytes();
                let weights = match made {
                    Rows::Ready(weights) => weights,
                    Rows::Patched => aligned(bytes, len),
                    Rows::Widened => {
                        let narrowed = aligned(bytes, len);
                        dense::narrow(&numbers[..rows * cols], narrowed);
                        narrowed
                    }
                };
                pairs::products(weights, x, sums, y);
            }
        }
    }
}
