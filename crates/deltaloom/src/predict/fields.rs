//! Fields that several predictors store in the index; docs/format.md section 3.

use std::ops::{Range, RangeInclusive};

use super::number::Element;
use crate::entropy::bytes::{ByteReader, push_text, push_varint};
use crate::error::{Error, Result};

/// Where a prediction finds one of its inputs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Place {
    /// In a base. `None` stands for the name of the predicted tensor.
    Base(Option<String>),
    /// In the same file, by number.
    Own(usize),
}

pub(super) fn push_name(meta: &mut Vec<u8>, name: &Option<String>) {
    push_text(meta, name.as_deref().unwrap_or_default());
}

pub(super) fn name(meta: &mut ByteReader<'_>) -> Result<Option<String>> {
    Ok(Some(meta.text()?).filter(|name| !name.is_empty()).map(str::to_owned))
}

pub(super) fn bad(what: &str) -> Error {
    Error::corrupt(format!("a predictor has an invalid {what}"))
}

const ELEMENTS: [Element; 3] = [Element::F32, Element::BF16, Element::F16];

pub(super) fn element_id(element: Element) -> u8 {
    match element {
        Element::F32 => 0,
        Element::BF16 => 1,
        Element::F16 => 2,
    }
}

pub(super) fn element(meta: &mut ByteReader<'_>) -> Result<Element> {
    ELEMENTS.get(usize::from(meta.u8()?)).copied().ok_or_else(|| bad("dtype"))
}

/// A rounding. 0 stands for none, which includes rounding to F32.
pub(super) fn rounding(meta: &mut ByteReader<'_>) -> Result<Option<Element>> {
    Ok(Some(element(meta)?).filter(|to| *to != Element::F32))
}

pub(super) fn finite(number: f64, what: &str) -> Result<f64> {
    if number.is_finite() { Ok(number) } else { Err(bad(what)) }
}

/// A number that must be in a range.
pub(super) fn within(meta: &mut ByteReader<'_>, range: RangeInclusive<u64>, what: &str) -> Result<u64> {
    let number = meta.varint()?;
    if range.contains(&number) { Ok(number) } else { Err(bad(what)) }
}

/// A range that is not empty, below a limit: its start and its length.
pub(super) fn range(meta: &mut ByteReader<'_>, limit: u64) -> Result<Range<u64>> {
    let (start, count) = (meta.varint()?, meta.varint()?);
    let end = start.checked_add(count).filter(|end| count > 0 && *end <= limit);
    Ok(start..end.ok_or_else(|| bad("range"))?)
}

pub(super) fn push_shape(meta: &mut Vec<u8>, shape: &[u64]) {
    push_varint(meta, shape.len() as u64);
    shape.iter().for_each(|dim| push_varint(meta, *dim));
}

/// A shape of at most so many dimensions, of fewer than 2^56 elements.
pub(super) fn shape(meta: &mut ByteReader<'_>, most: u64) -> Result<Vec<u64>> {
    let dims = within(meta, 0..=most, "number of dimensions")?;
    let shape = (0..dims).map(|_| meta.varint()).collect::<Result<Vec<u64>>>()?;
    let elems = shape.iter().try_fold(1, |product: u64, dim| product.checked_mul(*dim));
    if elems.is_some_and(|elems| elems < 1 << 56) { Ok(shape) } else { Err(bad("shape")) }
}
