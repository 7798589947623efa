//! A matrix of a fine-tune in one of its resident forms, and the choice of a form. [`crate::dense`]
//! multiplies rows.

mod gather;
mod shared;
mod sizes;

pub use shared::{Segment, matmul_shared};
pub use sizes::Changes;

use std::ops::Range;
use std::sync::Arc;

use deltaloom_kernels::dense;
use half::bf16;
use serde::Serialize;

use crate::dense::{DenseMatrix, MatrixShape, Panel, Rows, multiply_by, panel_rows};
use crate::forms::{Bitmap, Csr, Planes, Tiles};
use crate::mode::Mode;
use crate::timing::{Phase, Run};
use deltaloom::{Error, ResolvedContainer, Result};
use shared::add_differences;

/// How a matrix is stored in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Form {
    /// Nothing stored: identical to the base.
    Base,
    /// The entropy-coded chunks of the container, decoded during the product: the smallest form.
    Tiles,
    /// Masks and the bytes that change.
    Planes,
    /// A mask and the values that change.
    Bitmap,
    /// Exact differences in compressed sparse rows.
    Csr,
    /// All elements.
    Dense,
}

impl Form {
    /// All forms that a caller can request.
    pub const ALL: [Self; 5] = [Self::Tiles, Self::Planes, Self::Bitmap, Self::Csr, Self::Dense];

    /// Name in reports and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Tiles => "tiles",
            Self::Planes => "planes",
            Self::Bitmap => "bitmap",
            Self::Csr => "csr",
            Self::Dense => "dense",
        }
    }
}

/// Which form a matrix gets. A matrix that does not differ from its base always gets
/// [`Form::Base`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// This form.
    Form(Form),
    /// The fastest form that needs at most this many bytes, including memory for a panel of rows.
    Budget(u64),
}

/// A matrix of at most so many bytes is decoded once, into memory, while its form is chosen.
const DECODED_ONCE_BYTES: usize = 64 << 20;

impl Choice {
    /// How often a matrix of this shape is decoded until it has a form.
    #[must_use]
    pub fn decodes(self, shape: MatrixShape) -> u64 {
        match self {
            Self::Form(Form::Tiles) => 0,
            Self::Budget(_) if shape.len_bytes() > DECODED_ONCE_BYTES => 2,
            Self::Form(_) | Self::Budget(_) => 1,
        }
    }
}

/// A matrix of a fine-tune, [out, in], that is multiplied without being in memory as a whole.
/// Clones share only base and container.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    shape: MatrixShape,
    base: Option<DenseMatrix>,
    stored: Stored,
}

#[derive(Debug, Clone)]
enum Stored {
    Base,
    Tiles(Tiles),
    Planes(Planes),
    Bitmap(Bitmap),
    Csr(Csr),
    Dense(DenseMatrix),
}

impl PackedMatrix {
    /// Opens a tensor of a container. Forms other than tiles and dense need its base in memory, or
    /// mapped: see [`deltaloom::checkpoint::Checkpoint::into_mapped`].
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] for a tensor that is not a matrix of BF16 or
    /// F32, or whose base is not in memory; [`Error::LimitExceeded`] for a budget that no form
    /// fits; errors of decoding.
    pub fn open(resolved: &Arc<ResolvedContainer>, name: &str, choice: Choice) -> Result<Self> {
        Self::open_among(resolved, name, choice, false)
    }

    /// The same for one of many fine-tunes that are multiplied in turn. They share the memory for a
    /// panel, so it does not count. A bitmap is preferred to dense, because it is read faster than
    /// all weights of each.
    pub fn open_shared(resolved: &Arc<ResolvedContainer>, name: &str, choice: Choice) -> Result<Self> {
        Self::open_among(resolved, name, choice, true)
    }

    fn open_among(
        resolved: &Arc<ResolvedContainer>,
        name: &str,
        choice: Choice,
        is_shared: bool,
    ) -> Result<Self> {
        let number = resolved.find(name)?;
        let shape = MatrixShape::of(resolved.info(number))?;
        let base = base_of(resolved, number, shape);
        if resolved.is_identical(number)
            && let Some(base) = base
        {
            return Ok(Self { shape, base: Some(base), stored: Stored::Base });
        }
        let tiles = Tiles::new(Arc::clone(resolved), number);
        let from_tiles = |rows: Range<usize>, out: &mut [u8]| tiles.rows_into(shape, rows, out);
        let rows_per_read = tiles.rows_per_tile();
        let source = Source { shape, base, rows_per_read, read: &from_tiles, is_shared };
        let is_chosen_in_memory = matches!(choice, Choice::Budget(_)) && choice.decodes(shape) == 1;
        let built = if is_chosen_in_memory {
            let mut decoded = vec![0; shape.len_bytes()];
            source.read_all(&mut decoded)?;
            let from_memory = |rows: Range<usize>, out: &mut [u8]| {
                out.copy_from_slice(&decoded[rows.start * shape.row_bytes()..rows.end * shape.row_bytes()]);
                Ok(())
            };
            Source { read: &from_memory, ..source }.build(Some(&tiles), choice)
        } else {
            source.build(Some(&tiles), choice)
        };
        built.map_err(|e| match e {
            Error::InvalidArgument(what) => Error::InvalidArgument(format!("tensor {name:?}: {what}")),
            other => other,
        })
    }

    /// Builds a matrix from a dense one and a base of the same shape. It cannot be tiles, which
    /// only containers have.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_dense(base: &DenseMatrix, tuned: &DenseMatrix, choice: Choice) -> Result<Self> {
        let shape = tuned.shape();
        if base.shape() != shape {
            let what = format!("a matrix {shape:?} does not fit a base {:?}", base.shape());
            return Err(Error::InvalidArgument(what));
        }
        let read = |rows: Range<usize>, out: &mut [u8]| {
            out.copy_from_slice(tuned.rows(rows));
            Ok(())
        };
        let rows_per_read = panel_rows(shape, 1);
        let base = Some(base.clone());
        Source { shape, base, rows_per_read, read: &read, is_shared: false }.build(None, choice)
    }

    /// Rows, columns and type.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// Its form.
    #[must_use]
    pub fn form(&self) -> Form {
        match self.stored {
            Stored::Base => Form::Base,
            Stored::Tiles(_) => Form::Tiles,
            Stored::Planes(_) => Form::Planes,
            Stored::Bitmap(_) => Form::Bitmap,
            Stored::Csr(_) => Form::Csr,
            Stored::Dense(_) => Form::Dense,
        }
    }

    /// Its base, if it is in memory.
    #[must_use]
    pub fn base(&self) -> Option<&DenseMatrix> {
        self.base.as_ref()
    }

    /// Bytes of memory without its base.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        match &self.stored {
            Stored::Base => 0,
            Stored::Tiles(tiles) => tiles.resident_bytes(),
            Stored::Planes(planes) => planes.resident_bytes(),
            Stored::Bitmap(bitmap) => bitmap.resident_bytes(),
            Stored::Csr(csr) => csr.resident_bytes(),
            Stored::Dense(_) => self.shape.len_bytes() as u64,
        }
    }

    /// Computes `y` [tokens, rows] = `x` [tokens, cols] times the transposed matrix, summed in
    /// FP32.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the lengths do not fit; errors of decoding tiles.
    pub fn matmul(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        match (&self.stored, &self.base) {
            (Stored::Csr(_), Some(base)) if run.mode == Mode::Fast => {
                let tokens = self.shape.tokens(x, y)?;
                matmul_shared(base, &[Segment { tokens, matrix: self }], x, y, run)
            }
            _ => self.matmul_patched(x, y, run),
        }
    }

    /// The same with activations and results in BF16; sums are still FP32.
    ///
    /// # Errors
    /// As [`Self::matmul`].
    pub fn matmul_bf16(&self, x: &[bf16], y: &mut [bf16], run: &Run<'_>) -> Result<()> {
        let wide: Vec<f32> = run.time(Phase::Load, || x.iter().map(|x| x.to_f32()).collect());
        let mut sums = vec![0.0; y.len()];
        self.matmul(&wide, &mut sums, run)?;
        run.time(Phase::Finish, || y.iter_mut().zip(&sums).for_each(|(y, sum)| *y = bf16::from_f32(*sum)));
        Ok(())
    }

    /// Adds the matrix's sparse differences times `x` to `y` [tokens, rows], which holds the
    /// product of the base and `x`. This is the part of a fast product that is not shared. Needs
    /// form CSR.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the lengths do not fit, or for another form.
    pub fn add_differences(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let Some(csr) = self.csr() else {
            return Err(Error::InvalidArgument(format!(
                "form `{}` has no sparse differences",
                self.form().name()
            )));
        };
        if self.shape.tokens(x, y)? == 0 || y.is_empty() {
            return Ok(());
        }
        add_differences(csr, self, x, y, run)
    }

    /// The sparse differences from the base.
    pub(super) fn csr(&self) -> Option<&Csr> {
        if let Stored::Csr(csr) = &self.stored { Some(csr) } else { None }
    }

    /// Builds panels of the fine-tune's rows and multiplies them.
    pub(super) fn matmul_patched(&self, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let shape = self.shape;
        let tokens = shape.tokens(x, y)?;
        let rows = panel_rows(shape, tokens).next_multiple_of(self.rows_at_once());
        multiply_by(shape, rows, tokens, x, y, run, &|rows, panel| self.make_rows(rows, panel, run))
    }

    /// Panels are a multiple of so many rows: whole tiles.
    pub(super) fn rows_at_once(&self) -> usize {
        if let Stored::Tiles(tiles) = &self.stored { tiles.rows_per_tile() } else { 1 }
    }

    /// Makes some rows of the fine-tune.
    pub(super) fn make_rows(&self, rows: Range<usize>, panel: &mut Panel, run: &Run<'_>) -> Result<Rows<'_>> {
        let shape = self.shape;
        let base = |rows| Ok::<_, Error>(self.base.as_ref().ok_or_else(no_base)?.rows(rows));
        let len_bytes = rows.len() * shape.row_bytes();
        match &self.stored {
            Stored::Dense(matrix) => return Ok(Rows::Ready(matrix.rows(rows))),
            Stored::Base => return base(rows).map(Rows::Ready),
            Stored::Csr(csr) => {
                let (base, numbers) = (base(rows.clone())?, panel.numbers(rows.len() * shape.cols));
                run.time(Phase::Patch, || {
                    dense::widen(shape.weight.weights(base), numbers);
                    csr.patch(shape, rows, numbers);
                });
                return Ok(Rows::Widened);
            }
            Stored::Planes(planes) => {
                let (base, out) = (base(rows.clone())?, panel.bytes(len_bytes));
                run.time(Phase::Patch, || planes.rows_into(shape, rows, base, out));
            }
            Stored::Bitmap(bitmap) => {
                let (base, out) = (base(rows.clone())?, panel.bytes(len_bytes));
                run.time(Phase::Patch, || bitmap.rows_into(shape, rows, base, out));
            }
            Stored::Tiles(tiles) => {
                run.time(Phase::Decode, || tiles.rows_into(shape, rows, panel.bytes(len_bytes)))?;
            }
        }
        Ok(Rows::Patched)
    }
}

/// Writes some rows.
type ReadRows<'a> = dyn Fn(Range<usize>, &mut [u8]) -> Result<()> + 'a;
/// Receives a row of the base and the row of the matrix.
type PushRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

fn no_base() -> Error {
    Error::InvalidArgument("the base of this matrix is not in memory: open it as a mapped checkpoint".into())
}

/// The reference of a tensor as a matrix of this shape, if the reference has the same dtype and
/// shape and is in memory.
pub(super) fn base_of(
    resolved: &ResolvedContainer,
    number: usize,
    shape: MatrixShape,
) -> Option<DenseMatrix> {
    let (checkpoint, member, info) = resolved.plain_reference(number)?;
    DenseMatrix::of_shape(checkpoint, member, info, shape).ok()
}

/// A matrix that is read once, some rows at a time.
struct Source<'a> {
    shape: MatrixShape,
    base: Option<DenseMatrix>,
    rows_per_read: usize,
    read: &'a ReadRows<'a>,
    is_shared: bool,
}

impl Source<'_> {
    fn build(self, tiles: Option<&Tiles>, choice: Choice) -> Result<PackedMatrix> {
        let form = match choice {
            Choice::Form(form) => form,
            Choice::Budget(bytes) => self.fastest_within(bytes, tiles)?,
        };
        let shape = self.shape;
        let mut is_changed = false;
        let mut push_rows = |push: &mut PushRow<'_>| {
            self.for_rows(|base, tuned| {
                is_changed |= base != tuned;
                push(base, tuned)
            })
        };
        let mut stored = match form {
            Form::Tiles => {
                let tiles = tiles.ok_or_else(|| {
                    Error::InvalidArgument("form `tiles` requires a packed container".into())
                })?;
                return Ok(PackedMatrix { shape, base: self.base, stored: Stored::Tiles(tiles.clone()) });
            }
            Form::Dense => {
                let mut bytes = vec![0; shape.len_bytes()];
                self.read_all(&mut bytes)?;
                let matrix = DenseMatrix::new(shape.rows, shape.cols, shape.weight, bytes)?;
                return Ok(PackedMatrix { shape, base: self.base, stored: Stored::Dense(matrix) });
            }
            Form::Base => {
                push_rows(&mut |_, _| Ok(()))?;
                Stored::Base
            }
            Form::Planes => {
                let mut planes = Planes::default();
                push_rows(&mut |base, tuned| planes.push_row(shape, base, tuned))?;
                Stored::Planes(planes)
            }
            Form::Bitmap => {
                let mut bitmap = Bitmap::default();
                push_rows(&mut |base, tuned| bitmap.push_row(shape, base, tuned))?;
                Stored::Bitmap(bitmap)
            }
            Form::Csr => {
                let mut csr = Csr::new(shape);
                push_rows(&mut |base, tuned| csr.push_row(shape, base, tuned))?;
                Stored::Csr(csr)
            }
        };
        match (&mut stored, is_changed) {
            (Stored::Base, true) => {
                return Err(Error::InvalidArgument(
                    "this matrix differs from its base, so form `base` cannot represent it".into(),
                ));
            }
            (_, false) => stored = Stored::Base,
            (Stored::Planes(planes), _) => planes.shrink(),
            (Stored::Bitmap(bitmap), _) => bitmap.shrink(),
            (Stored::Csr(csr), _) => csr.shrink(),
            _ => {}
        }
        Ok(PackedMatrix { shape, base: self.base, stored })
    }

    fn read_all(&self, bytes: &mut [u8]) -> Result<()> {
        let step = (self.rows_per_read * self.shape.row_bytes()).max(1);
        bytes.chunks_mut(step).enumerate().try_for_each(|(number, out)| {
            let start = number * self.rows_per_read;
            (self.read)(start..(start + self.rows_per_read).min(self.shape.rows), out)
        })
    }

    /// Calls `each` with every row of the base and the row of the matrix.
    fn for_rows(&self, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let base = self.base.as_ref().ok_or_else(no_base)?;
        let row_bytes = self.shape.row_bytes().max(1);
        let mut tuned = vec![0; self.rows_per_read * self.shape.row_bytes()];
        for start in (0..self.shape.rows).step_by(self.rows_per_read) {
            let rows = start..(start + self.rows_per_read).min(self.shape.rows);
            let tuned = &mut tuned[..rows.len() * self.shape.row_bytes()];
            (self.read)(rows.clone(), tuned)?;
            let rows = base.rows(rows).chunks_exact(row_bytes).zip(tuned.chunks_exact(row_bytes));
            rows.into_iter().try_for_each(|(base, tuned)| each(base, tuned))?;
        }
        Ok(())
    }

    /// The fastest form that fits, together with a panel.
    fn fastest_within(&self, budget: u64, tiles: Option<&Tiles>) -> Result<Form> {
        let shape = self.shape;
        let elems = (shape.rows * shape.cols) as u64;
        let tile_bytes = (self.rows_per_read * shape.row_bytes()) as u64;
        let mut sizes = Vec::new();
        if self.base.is_some() {
            let changes = self.count()?;
            if changes.elems == 0 {
                return Ok(Form::Base);
            }
            let panel = if self.is_shared { 0 } else { panel_rows(shape, 1) * shape.row_bytes() };
            let panel = panel as u64;
            // If they are sparse enough, multiplying the differences is faster than patching rows,
            // and the product of the base is shared.
            let is_sparse = changes.entries.is_some_and(|entries| entries * 5 <= elems);
            let mut forms = [(Form::Csr, 0), (Form::Dense, 0), (Form::Bitmap, panel), (Form::Planes, panel)];
            if self.is_shared && changes.elems * 2 <= elems {
                forms.swap(1, 2);
            }
            for (form, panel) in forms.into_iter().filter(|(form, _)| *form != Form::Csr || is_sparse) {
                sizes.extend(changes.resident_bytes(shape, form).map(|bytes| (form, bytes + panel)));
            }
        } else {
            sizes.push((Form::Dense, shape.len_bytes() as u64));
        }
        sizes.extend(tiles.map(|tiles| (Form::Tiles, tiles.resident_bytes() + tile_bytes)));
        if let Some((form, _)) = sizes.iter().find(|(_, bytes)| *bytes <= budget) {
            return Ok(*form);
        }
        Err(Error::LimitExceeded {
            what: "the size of the matrix and a panel of it in its smallest form",
            found: sizes.iter().map(|(_, bytes)| *bytes).min().unwrap_or(0),
            limit: budget,
        })
    }

    fn count(&self) -> Result<Changes> {
        let mut changes = Changes::none();
        self.for_rows(|base, tuned| {
            changes.add(self.shape.weight, base, tuned);
            Ok(())
        })?;
        Ok(changes)
    }
}
