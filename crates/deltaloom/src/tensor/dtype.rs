//! Element types by their safetensors names.
//! It converts nothing; see [`crate::predict`] for rounding.

use std::fmt;

use deltaloom_kernels::Number;

/// Type of the elements of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of safetensors")]
pub enum DType {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F8E4M3,
    F8E5M2,
    F16,
    BF16,
    F32,
    F64,
    /// Any other type, by name. Its elements are coded as bytes.
    Opaque(Box<str>),
}

const NAMES: [(&str, DType); 15] = [
    ("BOOL", DType::Bool),
    ("U8", DType::U8),
    ("U16", DType::U16),
    ("U32", DType::U32),
    ("U64", DType::U64),
    ("I8", DType::I8),
    ("I16", DType::I16),
    ("I32", DType::I32),
    ("I64", DType::I64),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E5M2", DType::F8E5M2),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F32", DType::F32),
    ("F64", DType::F64),
];

impl DType {
    /// The type of that name; unknown names are opaque.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map_or_else(|| Self::Opaque(name.into()), |(_, dtype)| dtype.clone())
    }

    /// Safetensors name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Opaque(name) => name,
            known => NAMES.iter().find(|(_, dtype)| dtype == known).map_or("", |(name, _)| name),
        }
    }

    /// Bit layout of an element; `None` for opaque types. For the crates of this workspace only,
    /// since the type belongs to deltaloom-kernels.
    #[doc(hidden)]
    #[must_use]
    pub fn number(&self) -> Option<Number> {
        Some(match self {
            Self::Bool | Self::U8 => Number::unsigned(8),
            Self::U16 => Number::unsigned(16),
            Self::U32 => Number::unsigned(32),
            Self::U64 => Number::unsigned(64),
            Self::I8 => Number::signed(8),
            Self::I16 => Number::signed(16),
            Self::I32 => Number::signed(32),
            Self::I64 => Number::signed(64),
            Self::F8E4M3 => Number::float(4, 3),
            Self::F8E5M2 => Number::float(5, 2),
            Self::F16 => Number::float(5, 10),
            Self::BF16 => Number::float(8, 7),
            Self::F32 => Number::float(8, 23),
            Self::F64 => Number::float(11, 52),
            Self::Opaque(_) => return None,
        })
    }

    /// Bits of an element, if known. Some opaque types have a known size, too.
    #[must_use]
    pub fn bits(&self) -> Option<u64> {
        match self {
            Self::Opaque(name) => match &**name {
                "F4" => Some(4),
                "F6_E2M3" | "F6_E3M2" => Some(6),
                "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Some(8),
                "C64" => Some(64),
                _ => None,
            },
            known => known.number().map(|number| u64::from(number.bits())),
        }
    }

    /// Whether elements may be powers of two by their exponents, as scales of MX formats are
    /// (E8M0). Writers store them as bytes, too.
    pub(crate) fn may_be_exponents(&self) -> bool {
        *self == Self::U8 || self.name() == "F8_E8M0"
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_agree_with_safetensors() {
        use safetensors::Dtype as Theirs;
        let theirs = [
            Theirs::BOOL,
            Theirs::U8,
            Theirs::I8,
            Theirs::F8_E4M3,
            Theirs::F8_E5M2,
            Theirs::F8_E8M0,
            Theirs::F4,
            Theirs::F6_E2M3,
            Theirs::F6_E3M2,
            Theirs::I16,
            Theirs::U16,
            Theirs::F16,
            Theirs::BF16,
            Theirs::I32,
            Theirs::U32,
            Theirs::F32,
            Theirs::C64,
            Theirs::F64,
            Theirs::I64,
            Theirs::U64,
        ];
        for dtype in theirs {
            let name = serde_json::to_value(dtype).unwrap();
            let ours = DType::from_name(name.as_str().unwrap());
            assert_eq!(ours.name(), name.as_str().unwrap());
            assert_eq!(ours.bits(), Some(dtype.bitsize() as u64), "{name}");
        }
    }
}
