//! Fields that several predictors store in the index; docs/format.md section 3.

use std::ops::RangeInclusive;

use super::number::Element;
use crate::entropy::bytes::{ByteReader, push_text};
use crate::error::{Error, Result};

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

pub(super) fn finite(number: f64, what: &str) -> Result<f64> {
    if number.is_finite() { Ok(number) } else { Err(bad(what)) }
}

/// A number that must be in a range.
pub(super) fn within(meta: &mut ByteReader<'_>, range: RangeInclusive<u64>, what: &str) -> Result<u64> {
    let number = meta.varint()?;
    if range.contains(&number) { Ok(number) } else { Err(bad(what)) }
}
