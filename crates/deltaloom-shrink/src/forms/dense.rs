//! Floating-point values.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The type of stored values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FloatType {
    /// FP32.
    F32,
    /// BF16.
    BF16,
    /// FP16.
    F16,
}

impl FloatType {
    /// Its name in safetensors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::BF16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// Bits of a value.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::BF16 | Self::F16 => 16,
        }
    }

    /// The nearest value of this type.
    #[must_use]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::BF16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }
}

/// Values of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    dtype: FloatType,
    values: Vec<f32>,
}

impl Dense {
    /// The nearest values of a type.
    #[must_use]
    pub fn new(dtype: FloatType, mut values: Vec<f32>) -> Self {
        values.iter_mut().for_each(|value| *value = dtype.round(*value));
        Self { dtype, values }
    }

    /// Their type.
    #[must_use]
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Values, row by row.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Little-endian bytes in their type.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.dtype {
            FloatType::F32 => values.flat_map(|value| value.to_le_bytes()).collect(),
            FloatType::BF16 => values.flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            FloatType::F16 => values.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        }
    }

    /// Values of bytes; what does not fill an element is left out.
    pub(crate) fn of_bytes(dtype: FloatType, bytes: &[u8]) -> Self {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let values = match dtype {
            FloatType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            FloatType::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            FloatType::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        };
        Self { dtype, values }
    }
}
