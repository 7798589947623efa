//! Elements of the computed predictors: little-endian floats to F64 and back, with the last
//! rounding of docs/format.md section 3.
//! It supports three dtypes only.

use deltaloom_kernels::Number;

use crate::tensor::DType;

/// A dtype that predictions can be computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// Its upper half.
    BF16,
    /// IEEE half precision.
    F16,
}

impl Element {
    /// `None` for dtypes without arithmetic here.
    pub fn of(dtype: &DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::BF16),
            DType::F16 => Some(Self::F16),
            _ => None,
        }
    }

    /// The dtype of tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::BF16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Its fields.
    pub fn number(self) -> Number {
        match self {
            Self::F32 => Number::float(8, 23),
            Self::BF16 => Number::float(8, 7),
            Self::F16 => Number::float(5, 10),
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }
}

/// Elements as F64, which holds them all.
pub fn load(element: Element, bytes: &[u8], out: &mut [f64]) {
    match element {
        Element::F32 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b).into());
        }
        Element::BF16 => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(x, b)| *x = half::bf16::from_le_bytes(*b).to_f64()),
        Element::F16 => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(x, b)| *x = half::f16::from_le_bytes(*b).to_f64()),
    }
}

/// Elements as F32.
pub fn load_singles(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Element::BF16 => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        Element::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is what is meant")]
pub(super) fn narrow(x: f64) -> f32 {
    x as f32
}

/// Rounds to F32. Sums, differences, products, quotients and roots of F32 numbers, computed in F64
/// and rounded once, are those of F32 arithmetic: F64 has more than twice the digits (Figueroa,
/// "When is double rounding innocuous?", 1995).
pub(super) fn round_to_single(x: f64) -> f64 {
    f64::from(narrow(x))
}

/// Rounds to F32 and then to the dtype. A number that is not finite becomes the element of
/// `fallback`.
pub(crate) fn store_or(element: Element, values: &[f64], fallback: &[u8], out: &mut [u8]) {
    let singles = values.iter().map(|x| narrow(*x));
    store_singles_or(element, singles, fallback, out);
}

/// An F32 number, rounded to a dtype.
pub(crate) fn rounded(x: f32, element: Element) -> f32 {
    match element {
        Element::F32 => x,
        Element::BF16 => half::bf16::from_f32(x).to_f32(),
        Element::F16 => half::f16::from_f32(x).to_f32(),
    }
}

/// Rounds F32 numbers to the dtype. A number that is not finite, before or after, becomes the
/// element of `fallback`.
pub(crate) fn store_singles_or(
    element: Element,
    values: impl Iterator<Item = f32>,
    fallback: &[u8],
    out: &mut [u8],
) {
    match element {
        Element::F32 => {
            for ((x, fallback), out) in
                values.zip(fallback.as_chunks::<4>().0).zip(out.as_chunks_mut::<4>().0)
            {
                *out = if x.is_finite() { x.to_le_bytes() } else { *fallback };
            }
        }
        Element::BF16 => {
            for ((x, fallback), out) in
                values.zip(fallback.as_chunks::<2>().0).zip(out.as_chunks_mut::<2>().0)
            {
                let rounded = half::bf16::from_f32(x);
                *out = if rounded.is_finite() { rounded.to_le_bytes() } else { *fallback };
            }
        }
        Element::F16 => {
            for ((x, fallback), out) in
                values.zip(fallback.as_chunks::<2>().0).zip(out.as_chunks_mut::<2>().0)
            {
                let rounded = half::f16::from_f32(x);
                *out = if rounded.is_finite() { rounded.to_le_bytes() } else { *fallback };
            }
        }
    }
}
