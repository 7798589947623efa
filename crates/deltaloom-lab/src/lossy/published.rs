//! The published threshold methods, exactly as described: they turn a difference of FP32 tensors
//! into bytes and back, with every loss in their formulas.
//!
//! Not meant for use; use [`super::corrected`].

use super::threshold::{self, Threshold, USUAL};
use crate::entropy::elias;
use deltaloom::__internals::bytes::{ByteReader, push_text, push_varint};
use deltaloom::__internals::{frame, to_usize};
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Result};

/// zstd level of the published methods.
const LEVEL: i32 = 3;
/// The quantile of P3+.
const QUANTILE: f64 = 0.97;
/// Length of the longest Elias delta code of a gap in bytes, rounded up.
const MAX_GAP_BYTES: u64 = 10;

/// A published method under its authors' name. The third early form is P1 under another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// First early form: differences below 1e-5 become zero, the whole difference is in zstd.
    V1,
    /// Second early form: differences below 1e-3 become zero, the whole difference is FP16 in zstd.
    V2,
    /// "TPDE": keeps differences of at least 1e-3.
    P1,
    /// P1 with values normalised to their range.
    P1Plus,
    /// "NoPE zone": 5e-4 instead of 1e-3 for tensors in which more than 90 % of the elements change
    /// by less than 1e-3.
    P2,
    /// P2 with values normalised to their range.
    P2Plus,
    /// "Interpolation": the formulas of P1+.
    P3,
    /// First form of P3: normalises the whole tensor to its range, then keeps what is at least
    /// 1e-3.
    P3First,
    /// "Dynamic": keeps differences of at least the 97 % quantile of the tensor.
    P3Plus,
    /// "Context scaling": the formulas of P3.
    P4,
}

impl Method {
    /// All methods, in the order in which they are listed.
    pub const ALL: [Self; 10] = [
        Self::P1,
        Self::P1Plus,
        Self::P2,
        Self::P2Plus,
        Self::P3,
        Self::P3First,
        Self::P3Plus,
        Self::P4,
        Self::V1,
        Self::V2,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::P1 => "P1",
            Self::P1Plus => "P1+",
            Self::P2 => "P2",
            Self::P2Plus => "P2+",
            Self::P3 => "P3",
            Self::P3First => "P3-first",
            Self::P3Plus => "P3+",
            Self::P4 => "P4",
        }
    }

    /// The threshold rule of this method, without its losses.
    #[must_use]
    pub fn rule(self) -> super::Rule {
        use super::Rule;
        match self {
            Self::V1 => Rule::Fixed(1e-5),
            Self::V2 | Self::P1 | Self::P1Plus | Self::P3 | Self::P4 => Rule::Fixed(USUAL),
            Self::P2 | Self::P2Plus => Rule::Zone,
            Self::P3First => Rule::Range(USUAL),
            Self::P3Plus => Rule::Quantile(QUANTILE),
        }
    }

    fn form(self) -> Form {
        match self {
            Self::V1 => Form::Dense,
            Self::V2 => Form::DenseHalf,
            Self::P1 | Self::P2 => Form::Values,
            Self::P3First => Form::WholeNormalised,
            Self::P1Plus | Self::P2Plus | Self::P3 | Self::P3Plus | Self::P4 => Form::Normalised,
        }
    }
}

/// The stored part of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Every element, including zeros.
    Dense,
    /// Every element in FP16.
    DenseHalf,
    /// Kept elements.
    Values,
    /// Kept elements, normalised to their range.
    Normalised,
    /// Kept elements of the tensor, which is normalised to its range.
    WholeNormalised,
}

/// A difference as a published method stores it.
pub(super) struct Coded {
    /// Bytes that its authors count: compressed positions and values, and the extra numbers. For
    /// tensors of several dimensions they store the first index alone.
    pub(super) published_bytes: u64,
    /// Everything that a reader needs, including name and shape.
    pub(super) bytes: Vec<u8>,
    pub(super) kept: usize,
    pub(super) threshold: Threshold,
}

/// Codes the difference of tensor `info`, which has as many elements as its shape.
pub(super) fn encode(method: Method, info: &TensorInfo, difference: &[f32]) -> Result<Coded> {
    let mut bytes = Vec::new();
    push_text(&mut bytes, &info.name);
    push_text(&mut bytes, info.dtype.name());
    push_varint(&mut bytes, info.shape.len() as u64);
    info.shape.iter().for_each(|size| push_varint(&mut bytes, *size));

    let form = method.form();
    let threshold = match method.rule().threshold(difference) {
        Some(threshold) if form != Form::WholeNormalised => threshold,
        _ => Threshold { value: USUAL, zone: false },
    };
    let (least, greatest) = threshold::range(difference);
    let whole = form == Form::WholeNormalised;
    let value = |d: f32| if whole { normalise(d, least, greatest) } else { d };
    let is_kept = |d: f32| value(d).abs() >= threshold.value;
    let positions: Vec<usize> = (0..difference.len()).filter(|i| is_kept(difference[*i])).collect();
    let kept = positions.len();
    if matches!(form, Form::Dense | Form::DenseHalf) {
        let zeroed = difference.iter().map(|d| if is_kept(*d) { *d } else { 0.0 });
        let dense: Vec<u8> = match form {
            Form::DenseHalf => zeroed.flat_map(|d| half::f16::from_f32(d).to_le_bytes()).collect(),
            _ => zeroed.flat_map(f32::to_le_bytes).collect(),
        };
        let frame = compress(&dense)?;
        bytes.extend(&frame);
        return Ok(Coded { published_bytes: frame.len() as u64, bytes, kept, threshold });
    }

    let mut values: Vec<f32> = positions.iter().map(|at| value(difference[*at])).collect();
    let mut numbers = Vec::new();
    match form {
        Form::Normalised => {
            let (least, greatest) = threshold::range(&values);
            values.iter_mut().for_each(|v| *v = normalise(*v, least, greatest));
            numbers.extend([least, greatest]);
        }
        Form::WholeNormalised => numbers.extend([least, greatest]),
        _ => {}
    }
    let zone_bytes = usize::from(matches!(method, Method::P2 | Method::P2Plus));
    let values = compress(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    let rows = compress(&elias::encode(gaps(first_indices(info, &positions))))?;
    let flat = compress(&elias::encode(gaps(positions.iter().copied())))?;

    push_varint(&mut bytes, kept as u64);
    numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes.extend(std::iter::repeat_n(u8::from(threshold.zone), zone_bytes));
    push_varint(&mut bytes, flat.len() as u64);
    bytes.extend(flat);
    bytes.extend(&values);
    let published_bytes = (rows.len() + values.len() + 4 * numbers.len() + zone_bytes) as u64;
    Ok(Coded { published_bytes, bytes, kept, threshold })
}

/// Positions as published: the first of the indices that numpy returns for a tensor of several
/// dimensions.
fn first_indices(info: &TensorInfo, positions: &[usize]) -> impl Iterator<Item = usize> {
    let row: u64 = info.shape.iter().skip(1).product();
    positions.iter().map(move |at| *at / to_usize(row.max(1)))
}

/// The published gaps: `diff(p, prepend=-1) + 1`. They are at least 2, unless positions repeat, as
/// rows do.
fn gaps(positions: impl Iterator<Item = usize>) -> impl Iterator<Item = u64> {
    let mut next = 0;
    positions.map(move |at| {
        let gap = (at + 2 - next) as u64;
        next = at + 1;
        gap
    })
}

fn normalise(value: f32, least: f32, greatest: f32) -> f32 {
    let range = greatest - least;
    if range > 0.0 { (value - least) / range } else { 0.0 }
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    frame::compress(bytes, LEVEL).map_err(Error::io(""))
}

/// Decodes the difference that a reader gets.
pub(super) fn decode(method: Method, info: &TensorInfo, coded: &[u8], elems: usize) -> Result<Vec<f32>> {
    let bad = |what: &str| Error::corrupt(format!("difference of tensor {:?}: {what}", info.name));
    let mut reader = ByteReader::new(coded, "a published difference");
    let is_named = reader.text()? == info.name && reader.text()? == info.dtype.name();
    let dimensions = reader.size()?;
    let same_shape = dimensions == info.shape.len()
        && info
            .shape
            .iter()
            .try_fold(true, |same, size| Ok::<_, Error>(reader.varint()? == *size && same))?;
    if !is_named || !same_shape {
        return Err(bad("it belongs to another tensor"));
    }
    let form = method.form();
    let singles = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if matches!(form, Form::Dense | Form::DenseHalf) {
        let size = if form == Form::DenseHalf { 2 } else { 4 };
        let dense = frame::decompress(reader.rest(), size * elems as u64)?;
        if dense.len() as u64 != size * elems as u64 {
            return Err(bad("elements are missing"));
        }
        return Ok(match form {
            Form::DenseHalf => {
                dense.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
            }
            _ => singles(&dense),
        });
    }
    let kept = reader.size()?;
    if kept > elems {
        return Err(bad("more elements are kept than exist"));
    }
    let mut number = || Ok::<_, Error>(f32::from_le_bytes(reader.array()?));
    let (least, greatest) = if form == Form::Values { (0.0, 0.0) } else { (number()?, number()?) };
    if matches!(method, Method::P2 | Method::P2Plus) {
        reader.u8()?;
    }
    let flat_bytes = reader.size()?;
    let flat = frame::decompress(reader.take(flat_bytes)?, MAX_GAP_BYTES * kept as u64)?;
    let values = frame::decompress(reader.rest(), 4 * kept as u64)?;
    let values: Vec<f32> = singles(&values);
    if values.len() != kept {
        return Err(bad("values are missing"));
    }
    let restore = |v: f32| if form == Form::Values { v } else { v * (greatest - least) + least };
    // Elements that the first form of P3 omits are zeros of the normalised tensor.
    let dropped = if form == Form::WholeNormalised { least } else { 0.0 };
    let mut difference = vec![dropped; elems];
    let mut next = 0usize;
    for (gap, value) in elias::decode(&flat, kept)?.into_iter().zip(values) {
        let at = usize::try_from(gap).ok().and_then(|gap| next.checked_add(gap)?.checked_sub(2));
        let element = at.and_then(|at| difference.get_mut(at));
        *element.ok_or_else(|| bad("a position lies outside of it"))? = restore(value);
        next = at.map_or(next, |at| at + 1);
    }
    Ok(difference)
}

#[cfg(test)]
mod tests {
    use super::super::{corrected, positions};
    use super::*;
    use deltaloom::__internals::Element;
    use deltaloom::tensor::DType;

    fn tensor(shape: &[u64]) -> TensorInfo {
        TensorInfo::sized("weight".to_owned(), DType::F32, shape.to_vec())
    }

    /// Differences of about 1e-3, the same on every machine.
    fn differences(count: u64) -> Vec<f32> {
        let mix = |i: u64| {
            (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        (0..count).map(|i| (f32::from((mix(i) >> 48) as u16) / 65536.0 - 0.5) * 4e-3).collect()
    }

    #[test]
    fn differences_come_back_as_far_as_the_formulas_let_them() {
        let difference = differences(3000);
        let info = tensor(&[60, 50]);
        for method in Method::ALL {
            let coded = encode(method, &info, &difference).unwrap();
            let decoded = decode(method, &info, &coded.bytes, 3000).unwrap();
            let limit = match method {
                Method::P3First => 2e-3 * 4e-3,
                _ => coded.threshold.value,
            };
            let kept = decoded.iter().filter(|d| **d != 0.0).count();
            assert!(kept >= coded.kept - 1, "{}", method.name());
            assert!(difference.iter().zip(&decoded).all(|(a, b)| (a - b).abs() < limit), "{}", method.name());
            for cut in 0..coded.bytes.len() {
                assert!(decode(method, &info, &coded.bytes[..cut], 3000).is_err(), "{}", method.name());
            }
        }
    }

    #[test]
    fn the_published_gaps_of_a_matrix_do_not_say_the_column() {
        let (left, right): (Vec<usize>, Vec<usize>) = (vec![0, 7, 21], vec![5, 6, 29]);
        let gaps_of = |positions: &[usize], shape: &[u64]| {
            gaps(first_indices(&tensor(shape), positions)).collect::<Vec<_>>()
        };
        assert_eq!(gaps_of(&left, &[3, 10]), [2, 1, 3]);
        assert_eq!(gaps_of(&left, &[3, 10]), gaps_of(&right, &[3, 10]));
        assert_ne!(gaps_of(&left, &[30]), gaps_of(&right, &[30]));
        // Corrected positions are those of the flat tensor.
        for positions in [left, right] {
            let (how, coded) = positions::encode(&positions, 30);
            assert_eq!(positions::decode(how, &coded, 3, 30).unwrap(), positions);
        }
    }

    #[test]
    fn normalising_changes_values_that_were_kept() {
        let difference = differences(20_000);
        let info = tensor(&[20_000]);
        let coded = encode(Method::P1Plus, &info, &difference).unwrap();
        let decoded = decode(Method::P1Plus, &info, &coded.bytes, 20_000).unwrap();
        let kept = || difference.iter().zip(&decoded).filter(|(a, _)| a.abs() >= USUAL);
        let changed = kept().filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert!(
            (kept().count() / 10..kept().count() / 2).contains(&changed),
            "{changed} of {}",
            kept().count()
        );

        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (target, mut held) = (bytes(&difference), bytes(&vec![0.0; 20_000]));
        let coded = corrected::encode(Element::F32, &Method::P1Plus.rule(), &target, &held, 0);
        corrected::decode(Element::F32.number(), coded.positions, coded.kept, &coded.payload, &mut held)
            .unwrap();
        let words =
            |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
        let same = difference.iter().zip(words(&held)).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        assert_eq!(same, coded.kept);
    }

    #[test]
    fn one_more_than_the_gap_wastes_a_quarter_of_a_bit() {
        // About every 33rd of 200,000 elements, as the 97 % quantile keeps them.
        let kept: Vec<usize> =
            differences(200_000).iter().enumerate().filter(|(_, d)| **d > 1.88e-3).map(|(i, _)| i).collect();
        let published: u64 = gaps(kept.iter().copied()).map(elias::code_bits).sum();
        let needed: u64 = gaps(kept.iter().copied()).map(|gap| elias::code_bits(gap - 1)).sum();
        let wasted_bits = (published - needed) * 100 / kept.len() as u64;
        assert!((10..40).contains(&wasted_bits), "{wasted_bits} hundredths of a bit");
        let (_, corrected) = positions::encode(&kept, 200_000);
        assert!(corrected.len() as u64 * 8 <= needed, "{} bytes", corrected.len());
    }
}
