//! Scales that a quantiser computed from the numbers of each group.

use std::fmt;
use std::ops::Range;

use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::number::{load_singles, rounded};
use crate::predict::quantised::Region;
use crate::predict::{Element, Input, MOST_HELD, ReadInputs, cast, fields};
use crate::tensor::{DType, TensorInfo};

/// Which number of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// The greatest magnitude.
    Largest,
    /// The greatest number minus the least.
    Span,
    /// The same with 0 among the numbers.
    SpanWithZero,
}

impl Measure {
    pub(crate) const ALL: [Self; 3] = [Self::Largest, Self::Span, Self::SpanWithZero];

    fn id(self) -> u8 {
        match self {
            Self::Largest => 0,
            Self::Span => 1,
            Self::SpanWithZero => 2,
        }
    }
}

/// Numbers of the groups of a reference's numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scales {
    /// `None` stands for the name of the predicted tensor.
    pub(crate) reference: Option<String>,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    /// Whether groups are those of the transposed matrices.
    pub(crate) is_transposed: bool,
    /// Rows and columns of a group.
    pub(crate) group: (u64, u64),
    pub(crate) measure: Measure,
    /// Whether the measure is divided by the factor, not multiplied by it.
    pub(crate) is_divided: bool,
    pub(crate) factor: f32,
    /// What the result is rounded to before it is stored.
    pub(crate) rounding: Element,
}

/// Rows and columns of a matrix of numbers, and of its groups.
struct Size {
    rows: u64,
    cols: u64,
    in_column: u64,
    in_row: u64,
}

/// What is known of the numbers of a group. NaN is none of them.
#[derive(Debug, Clone, Copy)]
struct Extremes {
    least: f32,
    greatest: f32,
}

impl Extremes {
    const NONE: Self = Self { least: f32::INFINITY, greatest: f32::NEG_INFINITY };

    fn add(&mut self, numbers: &[f32]) {
        for x in numbers {
            self.least = if *x < self.least { *x } else { self.least };
            self.greatest = if *x > self.greatest { *x } else { self.greatest };
        }
    }

    fn measure(self, measure: Measure) -> f32 {
        if self.least > self.greatest {
            return 0.0;
        }
        match measure {
            Measure::Largest => self.greatest.abs().max(self.least.abs()),
            Measure::Span => self.greatest - self.least,
            Measure::SpanWithZero => {
                let greatest = if self.greatest > 0.0 { self.greatest } else { 0.0 };
                let least = if self.least < 0.0 { self.least } else { 0.0 };
                greatest - least
            }
        }
    }
}

impl Scales {
    pub(super) fn input(&self) -> Input<'_> {
        Input::Shaped(&self.reference, &self.dtype, &self.shape)
    }

    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        fields::push_name(meta, &self.reference);
        push_text(meta, self.dtype.name());
        fields::push_shape(meta, &self.shape);
        meta.push(u8::from(self.is_transposed) | u8::from(self.is_divided) << 1);
        push_varint(meta, self.group.0);
        push_varint(meta, self.group.1);
        meta.push(self.measure.id());
        meta.extend(self.factor.to_le_bytes());
        meta.push(fields::element_id(self.rounding));
    }

    /// Reads the record of the tensor `info`, after its form. All sizes fit each other.
    pub(super) fn parse(meta: &mut ByteReader<'_>, info: &TensorInfo) -> Result<Self> {
        let reference = fields::name(meta)?;
        let dtype = DType::from_name(meta.text()?);
        let shape = fields::shape(meta, super::MAX_DIMENSIONS)?;
        let flags = meta.u8()?;
        let group = (meta.varint()?, meta.varint()?);
        let measure = Measure::ALL.get(usize::from(meta.u8()?)).ok_or_else(|| fields::bad("measure"))?;
        let factor = f32::from_le_bytes(meta.array()?);
        fields::finite(factor.into(), "factor")?;
        let scales = Self {
            reference,
            dtype,
            shape,
            is_transposed: flags & 1 == 1,
            group,
            measure: *measure,
            is_divided: flags & 2 == 2,
            factor,
            rounding: fields::element(meta)?,
        };
        if flags > 3 || !scales.is_valid(info) {
            return Err(fields::bad("group of numbers"));
        }
        Ok(scales)
    }

    /// Whether a tensor can have this record.
    pub(crate) fn is_valid(&self, info: &TensorInfo) -> bool {
        self.size(info).is_some()
    }

    fn size(&self, info: &TensorInfo) -> Option<Size> {
        Element::of(&self.dtype)?;
        if !info.dtype.may_be_exponents() && !cast::converts(&DType::F32, &info.dtype) {
            return None;
        }
        let product = |shape: &[u64]| {
            shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).filter(|n| *n > 0 && *n < 1 << 56)
        };
        let (leading, rows, cols) = match self.shape[..] {
            [] => return None,
            [cols] => (1, 1, cols),
            [ref leading @ .., rows, cols] => (product(leading)?, rows, cols),
        };
        product(&self.shape)?;
        let (rows, cols) = if self.is_transposed { (cols, rows) } else { (rows, cols) };
        let (p, q) = self.group;
        if !(1..=rows).contains(&p) || !(1..=cols).contains(&q) {
            return None;
        }
        let (in_column, in_row) = (rows.div_ceil(p), cols.div_ceil(q));
        let fits = product(&info.shape) == product(&[leading, in_column, in_row]);
        fits.then_some(Size { rows, cols, in_column, in_row })
    }

    /// Fills `out` with the prediction of the tensor from byte `start` on.
    pub(super) fn predict<'a>(
        &self,
        info: &TensorInfo,
        start: u64,
        inputs: &mut impl ReadInputs<'a>,
        out: &mut [u8],
    ) -> Result<()> {
        let size = self.size(info).ok_or_else(|| fields::bad("group of numbers"))?;
        let bytes = info.number().bytes();
        let mut at = start / bytes as u64;
        let mut rest = out;
        while !rest.is_empty() {
            // The rest of a row of groups.
            let (row, first) = (at / size.in_row, at % size.in_row);
            let count = (size.in_row - first).min((rest.len() / bytes) as u64);
            let (now, later) = rest.split_at_mut(to_usize(count) * bytes);
            let extremes = self.extremes(&size, row, first..first + count, inputs)?;
            let measures: Vec<f32> =
                extremes.into_iter().map(|extremes| extremes.measure(self.measure)).collect();
            self.store(&info.dtype, &measures, now);
            (at, rest) = (at + count, later);
        }
        Ok(())
    }

    /// Stores the scales of groups with these measures as elements of a dtype.
    pub(crate) fn store(&self, dtype: &DType, measures: &[f32], out: &mut [u8]) {
        let scale = |measure: &f32| {
            let scale = if self.is_divided { measure / self.factor } else { measure * self.factor };
            rounded(scale, self.rounding)
        };
        if dtype.may_be_exponents() {
            for (out, measure) in out.iter_mut().zip(measures) {
                [*out, ..] = (scale(measure).to_bits() << 1).to_be_bytes();
            }
            return;
        }
        let singles: Vec<u8> = measures.iter().flat_map(|measure| scale(measure).to_le_bytes()).collect();
        cast::convert_into(&DType::F32, dtype, &singles, out);
    }

    /// The extremes of some groups of a row of groups, counted through all matrices.
    fn extremes<'a>(
        &self,
        size: &Size,
        row: u64,
        groups: Range<u64>,
        inputs: &mut impl ReadInputs<'a>,
    ) -> Result<Vec<Extremes>> {
        let (p, q) = self.group;
        let (matrix, row) = (row / size.in_column, row % size.in_column);
        let across = row * p..((row + 1) * p).min(size.rows);
        let along = groups.start * q..(groups.end * q).min(size.cols);
        let (rows, cols, row_len, all_rows) = match self.is_transposed {
            false => (across, along, size.cols, size.rows),
            true => (along, across, size.rows, size.cols),
        };
        let element = Element::of(&self.dtype).unwrap_or(Element::F32);
        let element_bytes = element.bytes() as u64;
        let mut found = vec![Extremes::NONE; to_usize(groups.end - groups.start)];
        let before = matrix * all_rows;
        let (first_row, first_col) = (rows.start, cols.start);
        for cols in pieces(cols, MOST_HELD / element_bytes) {
            let width = cols.end - cols.start;
            for rows in pieces(rows.clone(), MOST_HELD / (width * element_bytes)) {
                let here = before + rows.start..before + rows.end;
                let region = Region { element_bytes, row_len, rows: here, cols: cols.clone() };
                let numbers = load_singles(element, &region.read(0, inputs)?);
                for (row, line) in rows.zip(numbers.chunks_exact(to_usize(width))) {
                    if self.is_transposed {
                        found[to_usize((row - first_row) / q)].add(line);
                    } else {
                        add_line(&mut found, line, cols.start - first_col, q);
                    }
                }
            }
        }
        Ok(found)
    }
}

/// A range in pieces of at most so many.
fn pieces(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let most = most.max(1);
    let count = (range.end - range.start).div_ceil(most);
    (0..count).map(move |i| range.start + i * most..(range.start + (i + 1) * most).min(range.end))
}

/// Adds a part of a row to its groups of `q`, from place `start` of the first group on.
fn add_line(groups: &mut [Extremes], line: &[f32], start: u64, q: u64) {
    let (mut group, mut left) = (to_usize(start / q), q - start % q);
    let mut rest = line;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(to_usize(left)));
        groups[group].add(now);
        (group, left, rest) = (group + 1, q, later);
    }
}

impl fmt::Display for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p, q) = self.group;
        let by = if self.is_divided { "/" } else { "*" };
        let measure = match self.measure {
            Measure::Largest => "largest",
            Measure::Span => "span",
            Measure::SpanWithZero => "span with 0",
        };
        write!(f, "{measure} of {p} x {q} {by} {}", self.factor)
    }
}
