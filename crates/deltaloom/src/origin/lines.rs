//! A matrix whose rows, or columns, are those of a reference, each times a number of its own: norms
//! that were folded into the weights after them, or scales that were moved between layers.
//! As for [`super::scaled`], elements say which numbers round to them. Where no number fits all
//! elements of a line, least squares gives one, and a residual makes it exact.

use super::scaled::{Numbers, value_of};
use super::subject::Subject;
use super::{Origin, nearest, reference_name};
use crate::bases::{TensorSource, predict_into};
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::number::{load_singles, store_singles_or};
use crate::predict::{
    Element, Groups, Numbers as GroupNumbers, Operand, Packing, Place, Predictor, Quantised, Ties, Values,
};
use crate::progress::{Progress, check_cancelled};
use crate::sample;
use crate::tensor::TensorInfo;

/// Rows that are looked at first.
const PROBED: u64 = 8;
/// Shorter lines do not pay for their number.
const LEAST_ELEMS: u64 = 64;
/// Norm of the change, relative to that of the reference, below which factors would save little.
const LEAST_CHANGE: f64 = 0.01;
/// Part of the square of the change that the number of a line explains, and part of the lines that
/// changed of which that holds, below which numbers cannot pay.
const LEAST_EXPLAINED: f64 = 0.25;
const LEAST_LINES: f64 = 0.5;
/// What a number costs in the index, in the unit of estimates.
const NUMBER_COST: u128 = 32 * ONE_BIT as u128;

/// Which lines have numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    Rows,
    Columns,
}

/// What the elements of a line say about its number.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    numbers: Option<Numbers>,
    /// Sums of products: of the reference with the tensor, and with itself.
    with_target: f64,
    with_itself: f64,
}

impl Evidence {
    const NONE: Self = Self { numbers: Some(Numbers::ALL), with_target: 0.0, with_itself: 0.0 };

    fn add(&mut self, element: Element, target: &[u8], reference: &[u8]) {
        self.numbers = self.numbers.and_then(|numbers| numbers.and(element, target, reference));
        let size = element.bytes();
        for (target, reference) in target.chunks_exact(size).zip(reference.chunks_exact(size)) {
            let (target, reference) = (value_of(element, target), value_of(element, reference));
            if target.is_finite() && reference.is_finite() {
                self.with_target += target * reference;
                self.with_itself += reference * reference;
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "it is rounded")]
    fn number(&self) -> f32 {
        let fitted =
            || if self.with_itself > 0.0 { (self.with_target / self.with_itself) as f32 } else { 1.0 };
        let number = match self.numbers {
            Some(numbers) => numbers.middle().map_or(1.0, |middle| middle as f32),
            None => fitted(),
        };
        if number.is_finite() { number } else { 1.0 }
    }
}

/// Rows and columns, if dtype and shape allow.
fn applies(info: &TensorInfo) -> Option<(Element, u64, u64)> {
    let element = Element::of(&info.dtype)?;
    let [.., rows, cols] = info.shape[..] else { return None };
    let is_long = |lines: u64| lines >= LEAST_ELEMS;
    (info.len_bytes() > 0 && (is_long(rows) || is_long(cols))).then_some((element, info.elems() / cols, cols))
}

/// Whether a sample differs from that of its reference by more than training usually does.
fn differs(element: Element, sample: &[u8], reference: &[u8]) -> bool {
    let (own, others) = (load_singles(element, sample), load_singles(element, reference));
    let both = own.iter().zip(&others).filter(|(x, y)| x.is_finite() && y.is_finite());
    let squares = both.map(|(x, y)| (f64::from(x - y).powi(2), f64::from(*y).powi(2)));
    let (change, size) = squares.fold((0.0, 0.0), |sums, (change, size)| (sums.0 + change, sums.1 + size));
    change > LEAST_CHANGE * LEAST_CHANGE * size
}

/// Whether numbers of lines explain some of the change, by least squares: most tensors are spared
/// estimates of costs. `cols` is the length of a row.
fn explains(lines: Lines, cols: usize, target: &[f32], reference: &[f32]) -> bool {
    let count = if lines == Lines::Rows { target.len() / cols } else { cols };
    // Of each line, the squares of the change and of the reference, and their product.
    let mut sums = vec![(0.0, 0.0, 0.0); count];
    let of_row = target.chunks_exact(cols).zip(reference.chunks_exact(cols));
    for (row, (target, reference)) in of_row.enumerate() {
        for (col, (x, y)) in target.iter().zip(reference).enumerate() {
            if x.is_finite() && y.is_finite() {
                let (change, size) = (f64::from(x - y), f64::from(*y));
                let sums = &mut sums[if lines == Lines::Rows { row } else { col }];
                sums.0 += change * change;
                sums.1 += size * size;
                sums.2 += change * size;
            }
        }
    }
    let changed = sums.iter().filter(|(change, _, _)| *change > 0.0).count();
    let is_explained = |(change, size, product): &&(f64, f64, f64)| {
        *change > 0.0 && product * product >= LEAST_EXPLAINED * change * size
    };
    let explained = sums.iter().filter(is_explained).count();
    changed > 0 && explained as f64 >= LEAST_LINES * changed as f64
}

/// The prediction from a reference of the same dtype and shape, and its cost, if numbers of rows
/// or of columns pay. `plain` is the cost of the reference as it is.
pub(super) fn fit(
    subject: Subject<'_>,
    sample: &[u8],
    reference: &TensorSource,
    progress: &dyn Progress,
) -> Result<Option<(u128, Origin)>> {
    let info = subject.info();
    let Some((element, rows, cols)) = applies(info) else { return Ok(None) };
    if !differs(element, sample, &sample::of(reference)?) {
        return Ok(None);
    }
    let row_bytes = cols * element.bytes() as u64;
    let count = PROBED.min(rows);
    let (mut target, mut other) = (Vec::new(), Vec::new());
    for row in 0..count {
        let offset = row * rows / count * row_bytes;
        target.extend(subject.read(offset, to_usize(row_bytes))?);
        other.extend(reference.read(offset, to_usize(row_bytes))?);
    }
    let (singles, of_reference) = (load_singles(element, &target), load_singles(element, &other));
    let may_pay = |lines: &Lines| {
        let is_long = match lines {
            Lines::Rows => cols >= LEAST_ELEMS,
            Lines::Columns => rows >= LEAST_ELEMS && info.shape.len() <= 2,
        };
        is_long && explains(*lines, to_usize(cols), &singles, &of_reference)
    };
    let possible: Vec<Lines> = [Lines::Rows, Lines::Columns].into_iter().filter(may_pay).collect();
    if possible.is_empty() {
        return Ok(None);
    }
    let cost = |prediction: &[u8]| u128::from(plan::residual_cost(info.number(), &target, prediction));
    let without = cost(&other);
    let mut best: Option<(u128, Lines)> = None;
    for lines in possible {
        let number_count = if lines == Lines::Rows { count } else { cols };
        let evidence = evidence_of(element, lines, to_usize(cols), &target, &other);
        let numbers: Vec<f32> = evidence.iter().map(Evidence::number).collect();
        let prediction = multiplied(element, lines, to_usize(cols), &other, &numbers);
        // Numbers of columns are shared by all rows.
        let of_numbers =
            NUMBER_COST * u128::from(number_count) * u128::from(if lines == Lines::Rows { 1 } else { count })
                / u128::from(if lines == Lines::Rows { 1 } else { rows });
        let with = cost(&prediction) + of_numbers;
        if with < without / 4 * 3 && best.is_none_or(|(least, _)| with < least) {
            best = Some((with, lines));
        }
    }
    let Some((_, lines)) = best else { return Ok(None) };
    // What was seen of all numbers is all there is, or more rows narrow them down.
    let mut evidence = match lines {
        Lines::Rows => Vec::new(),
        Lines::Columns => vec![Evidence::NONE; to_usize(cols)],
    };
    for (offset, len) in info.blocks(row_bytes) {
        check_cancelled(progress)?;
        let (target, other) = (subject.read(offset, len)?, reference.read(offset, len)?);
        match lines {
            Lines::Rows => evidence.extend(evidence_of(element, lines, to_usize(cols), &target, &other)),
            Lines::Columns => add_columns(element, &mut evidence, &target, &other),
        }
    }
    let numbers: Vec<f32> = evidence.iter().map(Evidence::number).collect();
    let of_numbers = NUMBER_COST * numbers.len() as u128;
    let [.., in_matrix, _] = info.shape[..] else { return Ok(None) };
    let groups = Groups {
        rows: if lines == Lines::Rows { 1 } else { in_matrix },
        cols: if lines == Lines::Rows { cols } else { 1 },
        source: GroupNumbers::Stored(numbers),
        plus: 0.0,
    };
    let operand = Operand {
        place: Place::Base(reference_name(info, reference)),
        dtype: info.dtype.clone(),
        shape: info.shape.clone(),
    };
    let scaled = Quantised {
        is_to_codes: false,
        is_transposed: false,
        scales_first: false,
        is_reciprocal: false,
        reference: operand,
        packing: Packing::ELEMENTS,
        values: Values::Numbers,
        scales: vec![groups],
        zero: None,
        bias: None,
        index: None,
        rounding: Element::F32,
        ties: Ties::Even,
        range: (0, 0),
    };
    if !scaled.is_valid(info) {
        return Ok(None);
    }
    let predictor = Predictor::Quantised(Box::new(scaled));
    let references = vec![reference.clone()];
    let read = |offset, len| {
        let mut out = vec![0; len];
        predict_into(&predictor, &references, None, info, offset, &mut out)?;
        Ok(out)
    };
    // What a few rows have in common by chance, all rows do not.
    let prediction = sample::read(info, sample::ELEMS, read)?;
    let with = plan::residual_cost(info.number(), sample, &prediction);
    let cost = nearest::of_tensor(info, sample, with) + nearest::DIGEST_COST + of_numbers;
    if cost >= nearest::cost(info, sample, reference)? / 8 * 7 {
        return Ok(None);
    }
    Ok(Some((cost, Origin::coded(predictor, references).with_reference_digests()?)))
}

fn evidence_of(
    element: Element,
    lines: Lines,
    cols: usize,
    target: &[u8],
    reference: &[u8],
) -> Vec<Evidence> {
    match lines {
        Lines::Rows => {
            let row_bytes = cols * element.bytes();
            let rows = target.chunks_exact(row_bytes).zip(reference.chunks_exact(row_bytes));
            let of_row = |(target, reference): (&[u8], &[u8])| {
                let mut evidence = Evidence::NONE;
                evidence.add(element, target, reference);
                evidence
            };
            rows.map(of_row).collect()
        }
        Lines::Columns => {
            let mut evidence = vec![Evidence::NONE; cols];
            add_columns(element, &mut evidence, target, reference);
            evidence
        }
    }
}

fn add_columns(element: Element, evidence: &mut [Evidence], target: &[u8], reference: &[u8]) {
    let (size, row_bytes) = (element.bytes(), evidence.len() * element.bytes());
    for (target, reference) in target.chunks_exact(row_bytes).zip(reference.chunks_exact(row_bytes)) {
        let elements = target.chunks_exact(size).zip(reference.chunks_exact(size));
        evidence.iter_mut().zip(elements).for_each(|(evidence, (a, b))| evidence.add(element, a, b));
    }
}

/// Rows of a reference times the numbers of their rows or columns.
fn multiplied(element: Element, lines: Lines, cols: usize, reference: &[u8], numbers: &[f32]) -> Vec<u8> {
    let mut out = reference.to_vec();
    let singles = load_singles(element, reference);
    let number =
        |place: usize| if lines == Lines::Rows { numbers[place / cols] } else { numbers[place % cols] };
    let products = singles.iter().enumerate().map(|(place, x)| x * number(place));
    store_singles_or(element, products, reference, &mut out);
    out
}
