//! Adapters merged in turn, each into the rows and columns that it changes; docs/format.md section
//! 3.2.1. [`super::Adapter`] is the case of one adapter for a whole matrix.
//! It computes a prediction from known steps. [`crate::origin`] finds them.

use std::fmt;
use std::ops::Range;

use super::adapter::{MAX_RANK, Merge};
use super::number::{Element, load_singles, rounded, store_singles_or};
use super::{ReadInputs, element_of, fields};
use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::tensor::{ChunkGrid, TensorInfo};

/// Most factors, and most steps.
pub(crate) const MAX_STEPS: u64 = 4096;
const MAX_DIMENSIONS: u64 = 16;
/// Most bytes of a name that is not stored again.
const MAX_REPEATED_BYTES: usize = 128;
/// Most products of an element, on average over the tensor.
const MAX_PRODUCTS: u128 = 1 << 14;

/// Steps that turn a reference into the prediction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Adapters {
    /// Name of the tensor they are added to. `None` stands for the tensor's own name.
    pub(crate) reference: Option<String>,
    /// Rows and columns of the tensor, seen as a matrix.
    pub(crate) size: [u64; 2],
    pub(crate) factors: Vec<Factor>,
    pub(crate) steps: Vec<Step>,
}

/// A tensor of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Factor {
    pub(crate) name: String,
    pub(crate) dtype: Element,
    pub(crate) shape: Vec<u64>,
}

/// A product of two matrices that is added.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    /// The order of operations; nothing is transposed.
    pub(crate) merge: Merge,
    /// The sum is kept in F32, not rounded to the dtype of the tensor.
    pub(crate) is_kept: bool,
    pub(crate) rank: u64,
    pub(crate) scale: f32,
    /// Rows and columns of the tensor that it changes.
    pub(crate) rows: Range<u64>,
    pub(crate) cols: Range<u64>,
    /// The left matrix, row by row.
    pub(crate) u: Strided,
    /// The right matrix, row by row.
    pub(crate) v: Strided,
    /// The length that each row gets, for DoRA (Liu et al., "DoRA: Weight-Decomposed Low-Rank
    /// Adaptation", 2024).
    pub(crate) magnitude: Option<Strided>,
}

/// A matrix whose elements lie in a factor at even distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Strided {
    /// Number of the factor.
    pub(crate) factor: usize,
    /// The first element.
    pub(crate) start: u64,
    /// From one row to the next.
    pub(crate) by_row: u64,
    /// From one column to the next.
    pub(crate) by_col: u64,
}

impl Strided {
    /// The elements from the first to the last that some rows need.
    fn span(&self, rows: &Range<u64>, cols: u64) -> Range<u64> {
        let start = self.start + rows.start * self.by_row;
        start..start + (rows.end - 1 - rows.start) * self.by_row + (cols - 1) * self.by_col + 1
    }

    /// Whether a matrix of this size lies in its factor, and has no more elements.
    fn fits(&self, rows: u64, cols: u64, factors: &[Factor]) -> bool {
        let elems = factors.get(self.factor).map_or(0, |factor| factor.shape.iter().product());
        let last = || {
            let down = (rows - 1).checked_mul(self.by_row)?;
            let right = (cols - 1).checked_mul(self.by_col)?;
            self.start.checked_add(down)?.checked_add(right)
        };
        rows.checked_mul(cols).is_some_and(|count| count <= elems) && last().is_some_and(|last| last < elems)
    }

    /// Reads some rows, row by row.
    pub(crate) fn read<'a>(
        &self,
        factors: &[Factor],
        rows: &Range<u64>,
        cols: u64,
        inputs: &impl ReadInputs<'a>,
    ) -> Result<Vec<f32>> {
        let dtype = factors[self.factor].dtype;
        let (span, size) = (self.span(rows, cols), dtype.bytes() as u64);
        // The tensor that is changed is the first input.
        let bytes = inputs.bytes(1 + self.factor, span.start * size..span.end * size)?;
        let values = load_singles(dtype, &bytes);
        if self.by_col == 1 && self.by_row == cols {
            return Ok(values);
        }
        let [by_row, by_col] = [self.by_row, self.by_col].map(to_usize);
        let row = |i: usize| (0..to_usize(cols)).map(move |j| i * by_row + j * by_col);
        Ok((0..to_usize(rows.end - rows.start)).flat_map(row).map(|at| values[at]).collect())
    }

    fn push_to(&self, meta: &mut Vec<u8>) {
        push_varint(meta, self.factor as u64);
        [self.start, self.by_row, self.by_col].into_iter().for_each(|number| push_varint(meta, number));
    }

    fn parse(meta: &mut ByteReader<'_>) -> Result<Self> {
        Ok(Self {
            factor: meta.size()?,
            start: meta.varint()?,
            by_row: meta.varint()?,
            by_col: meta.varint()?,
        })
    }
}

impl Factor {
    /// `before` is the factor two before it.
    fn push_to(&self, before: Option<&Self>, meta: &mut Vec<u8>) {
        let is_same = before.is_some_and(|before| before.name == self.name && before.is_short());
        push_text(meta, if is_same { "" } else { &self.name });
        meta.push(fields::element_id(self.dtype));
        fields::push_shape(meta, &self.shape);
    }

    /// Whether its name can be repeated. One of many bytes could fill the memory.
    fn is_short(&self) -> bool {
        self.name.len() <= MAX_REPEATED_BYTES
    }

    fn parse(meta: &mut ByteReader<'_>, before: Option<&Self>) -> Result<Self> {
        let before = || before.filter(|before| before.is_short()).map(|before| before.name.clone());
        let name = fields::name(meta)?.or_else(before);
        let name = name.ok_or_else(|| fields::bad("name of a factor"))?;
        Ok(Self { name, dtype: fields::element(meta)?, shape: fields::shape(meta, MAX_DIMENSIONS)? })
    }
}

impl Step {
    /// Adds it to a range of elements of the tensor.
    fn apply<'a>(
        &self,
        of: &Adapters,
        element: Element,
        elems: &Range<u64>,
        inputs: &impl ReadInputs<'a>,
        values: &mut [f32],
    ) -> Result<()> {
        let rows = (elems.start / of.size[1]).max(self.rows.start)
            ..elems.end.div_ceil(of.size[1]).min(self.rows.end);
        if rows.is_empty() {
            return Ok(());
        }
        let (own, cols) = (rows.start - self.rows.start..rows.end - self.rows.start, &self.cols);
        let mut u = self.u.read(&of.factors, &own, self.rank, inputs)?;
        let v = self.v.read(&of.factors, &(0..self.rank), cols.end - cols.start, inputs)?;
        let lengths = match &self.magnitude {
            Some(magnitude) => magnitude.read(&of.factors, &own, 1, inputs)?,
            None => Vec::new(),
        };
        self.merge.prepare(&mut u, self.scale);
        let mut update = vec![0.0; to_usize(cols.end - cols.start)];
        for (i, (row, u)) in rows.zip(u.chunks_exact(to_usize(self.rank))).enumerate() {
            let place = row * of.size[1] + cols.start..row * of.size[1] + cols.end;
            let (from, to) = (place.start.max(elems.start), place.end.min(elems.end));
            if from < to {
                self.merge.update_row(u, &v, self.scale, &mut update);
                let update = &update[to_usize(from - place.start)..to_usize(to - place.start)];
                let values = &mut values[to_usize(from - elems.start)..to_usize(to - elems.start)];
                self.add(element, update, lengths.get(i).copied(), values);
            }
        }
        Ok(())
    }

    /// Adds an update to elements of a row, and gives the row its length.
    pub(crate) fn add(&self, element: Element, update: &[f32], length: Option<f32>, values: &mut [f32]) {
        values.iter_mut().zip(update).for_each(|(x, update)| *x += update);
        if let Some(length) = length {
            let factor = length / length_of(values);
            values.iter_mut().for_each(|x| *x *= factor);
        }
        if !self.is_kept {
            values.iter_mut().for_each(|x| *x = rounded(*x, element));
        }
    }

    /// `number` is its place among the steps of a tensor of `size`.
    fn push_to(&self, number: usize, size: [u64; 2], meta: &mut Vec<u8>) {
        let Merge { fused, scale_first, product, update, .. } = self.merge;
        let is_whole = self.rows == (0..size[0])
            && self.cols == (0..size[1])
            && [self.u, self.v] == of_whole(number, self.rank, size[1]);
        let flags = [fused, scale_first, self.is_kept, self.magnitude.is_some(), is_whole];
        meta.push((0..).zip(flags).map(|(bit, flag)| u8::from(flag) << bit).sum());
        meta.extend([product, update].map(|rounding| rounding.map_or(0, fields::element_id)));
        push_varint(meta, self.rank);
        meta.extend(self.scale.to_le_bytes());
        if !is_whole {
            for range in [&self.rows, &self.cols] {
                push_varint(meta, range.start);
                push_varint(meta, range.end - range.start);
            }
            [self.u, self.v].iter().for_each(|place| place.push_to(meta));
        }
        self.magnitude.iter().for_each(|place| place.push_to(meta));
    }

    fn parse(meta: &mut ByteReader<'_>, number: usize, factors: &[Factor], size: [u64; 2]) -> Result<Self> {
        let flags = meta.u8()?;
        if flags > 31 {
            return Err(fields::bad("flag"));
        }
        let has = |bit: u8| flags >> bit & 1 != 0;
        let (product, update) = (fields::rounding(meta)?, fields::rounding(meta)?);
        let merge = Merge { fused: has(0), scale_first: has(1), transposed: false, product, update };
        let rank = fields::within(meta, 1..=MAX_RANK, "rank")?;
        let scale = f32::from_le_bytes(meta.array()?);
        fields::finite(scale.into(), "scale")?;
        let is_whole = has(4);
        let [rows, cols] = match is_whole {
            true => size.map(|count| 0..count),
            false => [fields::range(meta, size[0])?, fields::range(meta, size[1])?],
        };
        let (height, width) = (rows.end - rows.start, cols.end - cols.start);
        let [u, v] = match is_whole {
            true => of_whole(number, rank, width),
            false => [Strided::parse(meta)?, Strided::parse(meta)?],
        };
        let magnitude = if has(3) { Some(Strided::parse(meta)?) } else { None };
        let mut places =
            [(Some(u), height, rank), (Some(v), rank, width), (magnitude, height, 1)].into_iter();
        if !places.all(|(place, rows, cols)| place.is_none_or(|place| place.fits(rows, cols, factors))) {
            return Err(fields::bad("place of a factor"));
        }
        Ok(Self { merge, is_kept: has(2), rank, scale, rows, cols, u, v, magnitude })
    }

    fn products(&self) -> u128 {
        let area = u128::from(self.rows.end - self.rows.start) * u128::from(self.cols.end - self.cols.start);
        area * u128::from(self.rank)
    }
}

/// Where U and V lie for a step that adds B A to the whole tensor, and whose factors are the next
/// two: A, then B.
fn of_whole(number: usize, rank: u64, width: u64) -> [Strided; 2] {
    let place = |factor, by_row| Strided { factor, start: 0, by_row, by_col: 1 };
    [place(2 * number + 1, rank), place(2 * number, width)]
}

/// The length of a row as a vector.
fn length_of(row: &[f32]) -> f32 {
    let sum = row.iter().fold(0.0, |sum, x| sum + f64::from(*x) * f64::from(*x));
    #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is what is meant")]
    let length = sum.sqrt() as f32;
    length
}

impl Adapters {
    /// Whether a reader accepts them for a tensor.
    pub(crate) fn is_allowed(&self, info: &TensorInfo, grid: &ChunkGrid) -> bool {
        let elems = info.len_bytes() / info.number().bytes() as u64;
        let products: u128 = self.steps.iter().map(Step::products).sum();
        // Rows of other widths are not read whole.
        let has_lengths = self.steps.iter().any(|step| step.magnitude.is_some());
        let is_whole = |step: &Step| step.cols == (0..self.size[1]);
        let lengths_fit = grid.is_matrix && grid.cols == self.size[1] && self.steps.iter().all(is_whole);
        let counts = [self.factors.len() as u64, self.steps.len() as u64];
        counts.iter().all(|count| (1..=MAX_STEPS).contains(count))
            && products <= MAX_PRODUCTS * u128::from(elems)
            && (!has_lengths || lengths_fit)
    }

    /// Name, dtype and shape of a factor.
    pub(super) fn factor(&self, which: usize) -> TensorInfo {
        let Factor { name, dtype, shape } = &self.factors[which];
        TensorInfo::sized(name.clone(), dtype.dtype(), shape.clone())
    }

    /// Number of steps and factors, which all take memory.
    pub(crate) fn part_count(&self) -> usize {
        self.steps.len() + self.factors.len()
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        fields::push_name(meta, &self.reference);
        push_varint(meta, self.size[1]);
        push_varint(meta, self.factors.len() as u64);
        for (i, factor) in self.factors.iter().enumerate() {
            factor.push_to(i.checked_sub(2).map(|before| &self.factors[before]), meta);
        }
        push_varint(meta, self.steps.len() as u64);
        self.steps.iter().enumerate().for_each(|(number, step)| step.push_to(number, self.size, meta));
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>, info: &TensorInfo, grid: &ChunkGrid) -> Result<Self> {
        let reference = fields::name(meta)?;
        let elems = info.len_bytes() / info.number().bytes() as u64;
        let width = fields::within(meta, 1..=elems, "width")?;
        if !elems.is_multiple_of(width) {
            return Err(fields::bad("width"));
        }
        let count = fields::within(meta, 1..=MAX_STEPS, "number of factors")?;
        let mut factors: Vec<Factor> = Vec::new();
        for i in 0..to_usize(count) {
            let before = i.checked_sub(2).map(|before| &factors[before]);
            factors.push(Factor::parse(meta, before)?);
        }
        let count = fields::within(meta, 1..=MAX_STEPS, "number of steps")?;
        let size = [elems / width, width];
        let steps = (0..to_usize(count)).map(|number| Step::parse(meta, number, &factors, size));
        let steps = steps.collect::<Result<Vec<_>>>()?;
        let adapters = Self { reference, size, factors, steps };
        if adapters.is_allowed(info, grid) { Ok(adapters) } else { Err(fields::bad("list of steps")) }
    }

    /// Fills `out` with the prediction of a tensor from byte `start` on.
    pub(super) fn predict<'a>(
        &self,
        info: &TensorInfo,
        start: u64,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let element = element_of(info)?;
        let size = element.bytes() as u64;
        inputs.read_into(0, start, out)?;
        let elems = start / size..(start + out.len() as u64) / size;
        let mut values = load_singles(element, out);
        for step in &self.steps {
            step.apply(self, element, &elems, inputs, &mut values)?;
        }
        let fallback = out.to_vec();
        store_singles_or(element, values.into_iter(), &fallback, out);
        Ok(())
    }
}

impl fmt::Display for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, .. } = self;
        let mut scales: Vec<String> = steps.iter().map(|step| step.scale.to_string()).collect();
        scales.dedup();
        let more = if scales.len() > 4 { ", .." } else { "" };
        scales.truncate(4);
        let what = if scales.len() == 1 { "scale" } else { "scales" };
        let steps = if steps.len() == 1 { "1 step".to_owned() } else { format!("{} steps", steps.len()) };
        write!(f, "{steps}, {what} {}{more}", scales.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Predictor;
    use crate::tensor::DType;

    fn info() -> TensorInfo {
        TensorInfo::sized("w".to_owned(), DType::BF16, vec![6, 4])
    }

    fn parse(bytes: &[u8]) -> Result<Predictor> {
        let (info, grid) = (info(), ChunkGrid::new(&info(), 17));
        let mut reader = ByteReader::new(bytes, "a test");
        let parsed = Predictor::parse(&mut reader, &info, &grid, 4)?;
        reader.finish()?;
        Ok(parsed)
    }

    /// Two adapters with factors of the same names; the second with lengths, or for some rows.
    fn adapters(has_lengths: bool) -> Adapters {
        let factor = |name: &str, shape: &[u64]| Factor {
            name: name.to_owned(),
            dtype: Element::F32,
            shape: shape.to_vec(),
        };
        let factors = [("a", [2, 4]), ("b", [6, 2])].map(|(name, shape)| factor(name, &shape));
        let factors = [&factors[..], &factors, &[factor("m", &[6, 1])]].concat();
        let merge = Merge {
            fused: true,
            scale_first: false,
            transposed: false,
            product: None,
            update: Some(Element::BF16),
        };
        let step = |number: usize, rows: Range<u64>| {
            let [u, v] = of_whole(number, 2, 4);
            Step { merge, is_kept: number == 0, rank: 2, scale: 0.5, rows, cols: 0..4, u, v, magnitude: None }
        };
        let mut second = step(1, if has_lengths { 0..6 } else { 2..5 });
        second.magnitude = has_lengths.then_some(Strided { factor: 4, start: 0, by_row: 1, by_col: 1 });
        Adapters { reference: None, size: [6, 4], factors, steps: vec![step(0, 0..6), second] }
    }

    #[test]
    fn steps_are_stored_and_lie_in_their_factors() {
        for has_lengths in [false, true] {
            let predictor = Predictor::Adapters(Box::new(adapters(has_lengths)));
            let mut bytes = Vec::new();
            predictor.push_to(&mut bytes);
            assert_eq!(parse(&bytes).unwrap(), predictor);
            for cut in 0..bytes.len() {
                assert!(parse(&bytes[..cut]).is_err(), "{cut}");
            }
            // Whatever one byte becomes, all matrices lie in their factors.
            for at in 0..bytes.len() {
                for value in 0..=255 {
                    let mut changed = bytes.clone();
                    changed[at] = value;
                    let Ok(Predictor::Adapters(parsed)) = parse(&changed) else { continue };
                    for step in &parsed.steps {
                        let rows = step.rows.end - step.rows.start;
                        assert!(step.rows.end <= parsed.size[0] && step.cols.end <= parsed.size[1]);
                        assert!(step.u.fits(rows, step.rank, &parsed.factors));
                        assert!(step.v.fits(step.rank, step.cols.end - step.cols.start, &parsed.factors));
                    }
                }
            }
        }
    }

    #[test]
    fn senseless_steps_are_refused() {
        let refused = |change: &dyn Fn(&mut Adapters), why: &str| {
            let mut changed = adapters(true);
            change(&mut changed);
            let mut bytes = Vec::new();
            Predictor::Adapters(Box::new(changed)).push_to(&mut bytes);
            assert!(parse(&bytes).is_err(), "{why}");
        };
        refused(&|adapters| adapters.size = [5, 5], "a width that does not divide the tensor");
        refused(&|adapters| adapters.size = [12, 2], "lengths of half rows");
        refused(&|adapters| adapters.steps[0].rows = 0..7, "rows beyond the tensor");
        refused(&|adapters| adapters.steps[0].cols = 2..2, "no columns");
        refused(&|adapters| adapters.steps[0].rank = 0, "no rank");
        refused(&|adapters| adapters.steps[0].rank = 3, "a rank that the factors do not have");
        refused(&|adapters| adapters.steps[0].scale = f32::NAN, "no scale");
        refused(&|adapters| adapters.steps[1].u.factor = 5, "an unknown factor");
        refused(&|adapters| adapters.steps[1].u.start = u64::MAX, "a place that overflows");
        refused(&|adapters| adapters.steps[1].u.by_row = 3, "a place beyond its factor");
        refused(&|adapters| adapters.factors[0].name.clear(), "no name");
        refused(&|adapters| adapters.factors[4].shape = vec![u64::MAX, 2], "a shape that overflows");
        refused(&|adapters| adapters.factors.clear(), "no factors");
        refused(&|adapters| adapters.steps.clear(), "no steps");
        // A matrix of more elements than the factor has, all of them the same one.
        let many = |adapters: &mut Adapters| {
            adapters.steps[1].rank = 1024;
            adapters.steps[1].u = Strided { factor: 1, start: 0, by_row: 0, by_col: 0 };
        };
        refused(&many, "more elements than a factor has");
        let long = |adapters: &mut Adapters| {
            adapters.factors[0].name = "a".repeat(MAX_REPEATED_BYTES + 1);
            adapters.factors[2].name.clear();
        };
        refused(&long, "a long name that is repeated");
    }
}
