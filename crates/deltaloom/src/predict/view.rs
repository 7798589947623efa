//! A view: a tensor as pieces of tensors of bases or of the same file, which may have another
//! shape, dtype, or order of rows and columns; docs/format.md section 3.5.
//! It does not look for pieces; [`crate::origin`] does.

use std::fmt;
use std::ops::Range;

use super::{Input, Place, ReadInputs, cast, fields};
use crate::entropy::bytes::{ByteReader, push_varint, push_zigzag};
use crate::error::Result;
use crate::limits::to_usize;
use crate::scratch::Scratch;
use crate::tensor::{DType, TensorInfo};

/// Most references of a view.
pub(crate) const MAX_VIEWED: usize = 4096;
/// Most pieces of a view.
pub(crate) const MAX_PIECES: usize = 1 << 20;
const MAX_DIMENSIONS: u64 = 16;
/// In the byte of the dtype: the pieces give the tensor with its last two dimensions swapped.
const TRANSPOSED: u8 = 0x80;
/// In the byte of a reference: its last two dimensions are swapped; it is in the same file.
const REFERENCE_TRANSPOSED: u8 = 1;
const REFERENCE_OWN: u8 = 2;
/// A reference in a container is decoded whole for a chunk that needs columns of it, up to so many
/// bytes. A writer takes no columns of larger ones.
pub(crate) const MOST_HELD: u64 = 8 << 20;
/// More pieces of a reference in a container are not read one by one.
const MANY_PIECES: usize = 8;
/// Pieces of one reference are read at once if what lies between them is at most this many times as
/// much.
const READ_AT_ONCE: u64 = 8;

/// A tensor as pieces of others.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    /// The dtype of all references.
    dtype: DType,
    /// Whether it is another dtype than the tensor's own.
    is_cast: bool,
    /// Whether the pieces give the tensor with its last two dimensions swapped.
    is_transposed: bool,
    /// Those of bases come first.
    references: Vec<Viewed>,
    /// Elements of the unit in which pieces are counted.
    unit: u64,
    /// They follow each other and fill the tensor.
    pieces: Vec<Piece>,
    /// Where each piece ends in the tensor, in units.
    ends: Vec<u64>,
}

/// A reference of a view.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Viewed {
    pub(crate) place: Place,
    pub(crate) shape: Vec<u64>,
    /// Whether it is read as if its last two dimensions were swapped.
    pub(crate) is_transposed: bool,
}

impl Viewed {
    fn is_own(&self) -> bool {
        matches!(self.place, Place::Own(_))
    }
}

/// A run of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Number of a reference. `None` for zeros.
    pub(crate) source: Option<usize>,
    /// Where it starts in the reference.
    pub(crate) start: u64,
    pub(crate) count: u64,
}

impl View {
    /// A view of a tensor of dtype `own`, or, if `is_transposed`, of that tensor with its last two
    /// dimensions swapped. Its pieces are given in elements and fill the tensor. References of
    /// bases come before others.
    pub(crate) fn new(
        own: &DType,
        is_transposed: bool,
        dtype: DType,
        references: Vec<Viewed>,
        pieces: &[Piece],
    ) -> Self {
        let is_cast = *own != dtype;
        let sizes = pieces.iter().flat_map(|piece| [piece.start, piece.count]);
        let unit = sizes.fold(0, greatest_common_divisor).max(1);
        let in_units =
            |piece: &Piece| Piece { start: piece.start / unit, count: piece.count / unit, ..*piece };
        let pieces: Vec<Piece> = pieces.iter().map(in_units).collect();
        let ends = ends(&pieces);
        Self { dtype, is_cast, is_transposed, references, unit, pieces, ends }
    }

    /// A tensor of dtype `own` as a whole tensor of another dtype or shape.
    pub(crate) fn of_whole(own: &DType, name: Option<String>, reference: &TensorInfo) -> Self {
        let viewed =
            Viewed { place: Place::Base(name), shape: reference.shape.clone(), is_transposed: false };
        let piece = Piece { source: Some(0), start: 0, count: elems_of(&reference.shape) };
        Self::new(own, false, reference.dtype.clone(), vec![viewed], &[piece])
    }

    /// Number of pieces and references, which all take memory.
    pub(crate) fn part_count(&self) -> usize {
        self.pieces.len() + self.references.len()
    }

    /// Whether every element is predicted from the bytes that a reference has at its place.
    pub(crate) fn is_aligned(&self, info: &TensorInfo) -> bool {
        let is_whole = matches!(self.pieces[..], [Piece { source: Some(_), start: 0, .. }]);
        is_whole
            && !self.is_transposed
            && self.size() == info.number().bytes() as u64
            && self.references.iter().all(|viewed| !viewed.is_transposed)
    }

    /// Elements that are not zeros.
    pub(crate) fn known_elems(&self) -> u64 {
        let known = self.pieces.iter().filter(|piece| piece.source.is_some());
        known.map(|piece| piece.count * self.unit).sum()
    }

    /// The references, in order.
    pub(super) fn inputs(&self) -> impl Iterator<Item = Input<'_>> {
        self.references.iter().map(|viewed| match &viewed.place {
            Place::Base(name) => Input::Shaped(name, &self.dtype, &viewed.shape),
            Place::Own(tensor) => Input::OwnShaped(*tensor, &self.dtype, &viewed.shape),
        })
    }

    /// Whether a reference is in the same file.
    pub(super) fn has_own(&self) -> bool {
        self.references.iter().any(Viewed::is_own)
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        let dtype = if self.is_cast { dtype_id(&self.dtype) } else { 0 };
        meta.push(dtype | if self.is_transposed { TRANSPOSED } else { 0 });
        push_varint(meta, self.references.len() as u64);
        for viewed in &self.references {
            let order = if viewed.is_transposed { REFERENCE_TRANSPOSED } else { 0 };
            match &viewed.place {
                Place::Base(name) => {
                    fields::push_name(meta, name);
                    meta.push(order);
                }
                Place::Own(tensor) => {
                    fields::push_name(meta, &None);
                    meta.push(order | REFERENCE_OWN);
                    push_varint(meta, *tensor as u64);
                }
            }
            fields::push_shape(meta, &viewed.shape);
        }
        push_varint(meta, self.unit);
        push_varint(meta, self.pieces.len() as u64);
        let mut expected = vec![0; self.references.len()];
        for piece in &self.pieces {
            push_varint(meta, piece.source.map_or(0, |source| source as u64 + 1));
            if let Some(source) = piece.source {
                push_zigzag(meta, piece.start.wrapping_sub(expected[source]).cast_signed());
                expected[source] = piece.start + piece.count;
            }
            push_varint(meta, piece.count);
        }
    }

    /// Reads a view of the tensor `info`. Every piece lies in its reference, and together they have
    /// as many elements as the tensor.
    pub(super) fn parse(meta: &mut ByteReader<'_>, info: &TensorInfo) -> Result<Self> {
        let bad = fields::bad;
        let id = meta.u8()?;
        let is_transposed = id & TRANSPOSED != 0;
        let dtype = of_dtype_id(id & !TRANSPOSED, &info.dtype).ok_or_else(|| bad("dtype"))?;
        if !cast::converts(&dtype, &info.dtype) {
            return Err(bad("dtype"));
        }
        if is_transposed && info.shape.len() < 2 {
            return Err(bad("order"));
        }
        let count = fields::within(meta, 0..=MAX_VIEWED as u64, "number of references")?;
        let mut references = Vec::new();
        let mut sizes = Vec::new();
        for _ in 0..count {
            let (name, flags) = (fields::name(meta)?, meta.u8()?);
            let follows_own = references.last().is_some_and(Viewed::is_own);
            let place = match (flags & REFERENCE_OWN != 0, name) {
                (true, None) => Place::Own(meta.size()?),
                (false, name) if !follows_own => Place::Base(name),
                _ => return Err(bad("reference")),
            };
            let is_transposed = flags & REFERENCE_TRANSPOSED != 0;
            // Sizes are so low that no sum of them in bytes overflows.
            let shape = fields::shape(meta, MAX_DIMENSIONS)?;
            if flags > REFERENCE_OWN | REFERENCE_TRANSPOSED || (is_transposed && shape.len() < 2) {
                return Err(bad("reference"));
            }
            sizes.push(elems_of(&shape));
            references.push(Viewed { place, shape, is_transposed });
        }
        let elems = info.elems();
        let unit = fields::within(meta, 1..=elems, "unit")?;
        let piece_count = fields::within(meta, 1..=(MAX_PIECES as u64).min(elems), "number of pieces")?;
        let mut pieces = Vec::new();
        let mut expected = vec![0u64; references.len()];
        let mut left = elems / unit;
        for _ in 0..piece_count {
            let source = meta.size()?.checked_sub(1);
            let start = match source {
                None => 0,
                Some(source) => {
                    let expected = expected.get(source).ok_or_else(|| bad("piece"))?;
                    expected.checked_add_signed(meta.zigzag()?).ok_or_else(|| bad("piece"))?
                }
            };
            let count = fields::within(meta, 1..=left, "piece")?;
            left -= count;
            if let Some(source) = source {
                let end = start.checked_add(count).ok_or_else(|| bad("piece"))?;
                if end.checked_mul(unit).is_none_or(|end| end > sizes[source]) {
                    return Err(bad("piece"));
                }
                expected[source] = end;
            }
            pieces.push(Piece { source, start, count });
        }
        if left != 0 || !elems.is_multiple_of(unit) {
            return Err(bad("number of elements"));
        }
        let ends = ends(&pieces);
        let is_cast = dtype != info.dtype;
        Ok(Self { dtype, is_cast, is_transposed, references, unit, pieces, ends })
    }

    /// Fills `out` with the prediction of the tensor from byte `start` on.
    pub(super) fn predict<'a>(
        &self,
        info: &TensorInfo,
        start: u64,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let size = info.number().bytes();
        let first = start / size as u64;
        let wanted = first..first + (out.len() / size) as u64;
        if !self.is_transposed {
            let whole = self.hold_whole(&wanted, inputs)?;
            return self.fill(info, wanted, &whole, inputs, out);
        }
        let (rows, cols) = last_two(&info.shape);
        let mut at = wanted.start;
        while at < wanted.end {
            let matrix = at / (rows * cols) * rows * cols;
            let end = wanted.end.min(matrix + rows * cols);
            let of_rows = (at - matrix) / cols..(end - matrix).div_ceil(cols);
            let whole = self.hold_whole(&(matrix..matrix + rows * cols), inputs)?;
            let mut of_column = Scratch::of_len(to_usize(of_rows.end - of_rows.start) * size);
            for column in 0..cols {
                let place = matrix + column * rows;
                let part = place + of_rows.start..place + of_rows.end;
                self.fill(info, part, &whole, inputs, &mut of_column)?;
                for (row, element) in of_rows.clone().zip(of_column.chunks_exact(size)) {
                    let place = matrix + row * cols + column;
                    if (at..end).contains(&place) {
                        let start = to_usize(place - wanted.start) * size;
                        out[start..start + size].copy_from_slice(element);
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Fills `out` with a range of the elements that the pieces give.
    fn fill<'a>(
        &self,
        info: &TensorInfo,
        wanted: Range<u64>,
        whole: &Held,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let size = info.number().bytes();
        let runs = self.runs(&wanted);
        let held = Held::of(self, &runs, inputs)?;
        let mut rest = out;
        for run in runs {
            let (now, later) = rest.split_at_mut(to_usize(run.elems.end - run.elems.start) * size);
            rest = later;
            let Some(source) = run.source else {
                now.fill(0);
                continue;
            };
            let range = run.elems.start * self.size()..run.elems.end * self.size();
            let convert = |bytes: &[u8], out| cast::convert_into(&self.dtype, &info.dtype, bytes, out);
            if self.references[source].is_transposed {
                convert(&self.transposed(source, &run.elems, whole, inputs)?, now);
            } else if let Some(bytes) = whole.part(source, &range).or_else(|| held.part(source, &range)) {
                convert(bytes, now);
            } else {
                convert(&inputs.bytes(source, range)?, now);
            }
        }
        Ok(())
    }

    /// The pieces of a range of elements, with their places in the references in elements.
    fn runs(&self, wanted: &Range<u64>) -> Vec<Run> {
        let first = self.ends.partition_point(|end| end * self.unit <= wanted.start);
        let mut runs = Vec::new();
        for (piece, end) in self.pieces[first..].iter().zip(&self.ends[first..]) {
            let place = (end - piece.count) * self.unit..end * self.unit;
            if place.start >= wanted.end {
                break;
            }
            let (from, to) = (place.start.max(wanted.start), place.end.min(wanted.end));
            let start = piece.start * self.unit + from - place.start;
            runs.push(Run { source: piece.source, elems: start..start + (to - from) });
        }
        runs
    }

    /// The references of a range of elements whose columns, or many pieces, are needed, if they
    /// must be decoded.
    fn hold_whole<'a>(&self, wanted: &Range<u64>, inputs: &mut impl ReadInputs<'a>) -> Result<Held> {
        if !(0..self.references.len()).any(|source| inputs.is_decoded(source)) {
            return Ok(Held(Vec::new()));
        }
        let mut uses = vec![0; self.references.len()];
        self.runs(wanted).iter().filter_map(|run| run.source).for_each(|source| uses[source] += 1);
        let hold = |(source, uses): (usize, usize)| {
            let is_turned = self.is_transposed || self.references[source].is_transposed;
            let is_needed = uses > MANY_PIECES || (uses > 0 && is_turned);
            let len_bytes = elems_of(&self.references[source].shape) * self.size();
            if !is_needed || !inputs.is_decoded(source) || len_bytes > MOST_HELD {
                return Ok(None);
            }
            let mut bytes = Scratch::of_len(to_usize(len_bytes));
            inputs.read_into(source, 0, &mut bytes)?;
            Ok(Some((0, bytes)))
        };
        uses.into_iter().enumerate().map(hold).collect::<Result<_>>().map(Held)
    }

    /// Elements of a reference whose last two dimensions are swapped.
    fn transposed<'a>(
        &self,
        source: usize,
        elems: &Range<u64>,
        whole: &Held,
        inputs: &impl ReadInputs<'a>,
    ) -> Result<Scratch> {
        let size = self.size();
        let mut out = Scratch::of_len(to_usize((elems.end - elems.start) * size));
        let (rows, cols) = last_two(&self.references[source].shape);
        let mut at = elems.start;
        while at < elems.end {
            let matrix = at / (rows * cols) * rows * cols;
            let end = elems.end.min(matrix + rows * cols);
            // The rows of the view that hold the range are columns of the reference.
            let columns = (at - matrix) / rows..(end - matrix).div_ceil(rows);
            let is_one = columns.end - columns.start == 1;
            let of_rows = if is_one { (at - matrix) % rows..(end - 1 - matrix) % rows + 1 } else { 0..rows };
            for row in of_rows {
                let start = matrix + row * cols;
                let range = (start + columns.start) * size..(start + columns.end) * size;
                let read;
                let bytes = match whole.part(source, &range) {
                    Some(bytes) => bytes,
                    None => {
                        read = inputs.bytes(source, range)?;
                        &*read
                    }
                };
                for (column, bytes) in columns.clone().zip(bytes.chunks_exact(to_usize(size))) {
                    let place = matrix + column * rows + row;
                    if (at..end).contains(&place) {
                        let start = to_usize((place - elems.start) * size);
                        out[start..start + bytes.len()].copy_from_slice(bytes);
                    }
                }
            }
            at = end;
        }
        Ok(out)
    }

    fn size(&self) -> u64 {
        self.dtype.bits().unwrap_or(8) / 8
    }
}

/// A run of elements of a reference.
struct Run {
    source: Option<usize>,
    elems: Range<u64>,
}

/// Parts of references that were read at once, since many pieces lie in them.
struct Held(Vec<Option<(u64, Scratch)>>);

impl Held {
    fn of<'a>(view: &View, runs: &[Run], inputs: &mut impl ReadInputs<'a>) -> Result<Self> {
        if runs.len() < 3 {
            return Ok(Self(Vec::new()));
        }
        // Of each reference: where its runs start and end, and what they have together.
        let mut spans = vec![(u64::MAX, 0, 0); view.references.len()];
        for run in runs {
            let Some(source) = run.source else { continue };
            let (start, end, used) = &mut spans[source];
            *start = run.elems.start.min(*start);
            *end = run.elems.end.max(*end);
            *used += run.elems.end - run.elems.start;
        }
        let hold = |(source, (start, end, used)): (usize, (u64, u64, u64))| {
            let pays = used > 0 && end - start <= READ_AT_ONCE * used;
            if !pays || view.references[source].is_transposed {
                return Ok(None);
            }
            let mut bytes = Scratch::of_len(to_usize((end - start) * view.size()));
            inputs.read_into(source, start * view.size(), &mut bytes)?;
            Ok(Some((start * view.size(), bytes)))
        };
        spans.into_iter().enumerate().map(hold).collect::<Result<_>>().map(Self)
    }

    fn part(&self, source: usize, bytes: &Range<u64>) -> Option<&[u8]> {
        let (start, held) = self.0.get(source)?.as_ref()?;
        held.get(to_usize(bytes.start.checked_sub(*start)?)..to_usize(bytes.end.checked_sub(*start)?))
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted =
            |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let used = self.references.len();
        write!(
            f,
            "{} of {} of {}",
            counted(self.pieces.len(), "piece"),
            counted(used, "tensor"),
            self.dtype
        )?;
        if self.is_transposed || self.references.iter().any(|viewed| viewed.is_transposed) {
            f.write_str(", transposed")?;
        }
        Ok(())
    }
}

/// Rows and columns of each matrix of a shape.
fn last_two(shape: &[u64]) -> (u64, u64) {
    match shape[..] {
        [.., rows, cols] => (rows.max(1), cols.max(1)),
        _ => (1, 1),
    }
}

/// Number of elements of a shape that exists.
fn elems_of(shape: &[u64]) -> u64 {
    shape.iter().product()
}

fn ends(pieces: &[Piece]) -> Vec<u64> {
    let mut end = 0;
    let sums = pieces.iter().map(|piece| {
        end += piece.count;
        end
    });
    sums.collect()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Dtypes of references by their ids; 0 is the tensor's own dtype.
const DTYPES: [DType; 5] = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2];

pub(super) fn dtype_id(dtype: &DType) -> u8 {
    let found = (1..).zip(&DTYPES).find(|(_, known)| *known == dtype);
    found.expect("only these dtypes are converted").0
}

pub(super) fn of_dtype_id(id: u8, own: &DType) -> Option<DType> {
    match id.checked_sub(1) {
        None => Some(own.clone()),
        Some(other) => DTYPES.get(usize::from(other)).filter(|dtype| *dtype != own).cloned(),
    }
}

#[cfg(test)]
mod tests;
