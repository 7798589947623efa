//! The numbers that codes stand for, and the codes of numbers.

use super::packing::Packing;
use crate::entropy::bytes::ByteReader;
use crate::error::Result;
use crate::limits::{narrow, to_usize};
use crate::predict::{cast, fields};
use crate::tensor::DType;

/// The magnitudes of E2M1, by their codes.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
/// The levels of NF4 (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
/// appendix E).
pub(crate) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The numbers that codes stand for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    /// Elements are numbers of their dtype; packed codes are unsigned integers.
    Numbers,
    /// Packed codes are integers in two's complement.
    Signed,
    /// Packed codes of 4 bits are floats with 2 exponent bits and 1 mantissa bit.
    E2m1,
    /// Packed codes number these.
    Table(Vec<f32>),
}

/// How quotients in the middle between two numbers are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ties {
    Even,
    Away,
    ToZero,
}

impl Ties {
    const ALL: [Self; 3] = [Self::Even, Self::Away, Self::ToZero];

    pub(super) fn id(self) -> u8 {
        match self {
            Self::Even => 0,
            Self::Away => 1,
            Self::ToZero => 2,
        }
    }

    pub(super) fn of_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }
}

impl Values {
    pub(super) fn push_to(&self, meta: &mut Vec<u8>) {
        match self {
            Self::Numbers => meta.push(0),
            Self::Signed => meta.push(1),
            Self::E2m1 => meta.push(2),
            Self::Table(table) => {
                meta.push(3);
                table.iter().for_each(|number| meta.extend(number.to_le_bytes()));
            }
        }
    }

    pub(super) fn parse(meta: &mut ByteReader<'_>, packing: Packing) -> Result<Self> {
        Ok(match meta.u8()? {
            0 => Self::Numbers,
            1 => Self::Signed,
            2 => Self::E2m1,
            3 if matches!(packing.bits, 2 | 4) => {
                Self::Table((0..1 << packing.bits).map(|_| finite(meta)).collect::<Result<_>>()?)
            }
            _ => return Err(fields::bad("kind of codes")),
        })
    }

    /// Whether codes of that dtype and packing can stand for these.
    pub(super) fn fit(&self, packing: Packing, dtype: &DType, is_to_codes: bool) -> bool {
        let is_code = matches!(dtype, DType::F8E4M3 | DType::F8E5M2 | DType::U8 | DType::I8);
        match self {
            Self::Numbers if packing.bits == 0 => {
                is_code || (!is_to_codes && cast::converts(dtype, &DType::F32))
            }
            Self::Numbers | Self::Signed => packing.bits != 0,
            Self::E2m1 => packing.bits == 4,
            Self::Table(table) => packing.bits != 0 && table.len() == 1 << packing.bits,
        }
    }

    /// The number of each packed code.
    pub(super) fn table(&self, bits: u8) -> Vec<f32> {
        let code = |code: u32| match self {
            Self::Numbers => code as f32,
            Self::Signed if code >> (bits - 1) == 1 => code as f32 - (1u32 << bits) as f32,
            Self::Signed => code as f32,
            Self::E2m1 => {
                let magnitude = E2M1[to_usize(u64::from(code & 7))];
                if code & 8 == 0 { magnitude } else { -magnitude }
            }
            Self::Table(table) => table[to_usize(u64::from(code))],
        };
        (0..1 << bits).map(code).collect()
    }

    /// What turns quotients into codes of a tensor of that dtype.
    pub(super) fn coder<'a>(
        &'a self,
        packing: Packing,
        dtype: &'a DType,
        ties: Ties,
        range: (i64, i64),
    ) -> Coder<'a> {
        let float = Some(dtype).filter(|_| packing.bits == 0 && cast::largest_f8(dtype).is_some());
        Coder { values: self, float, ties, low: range.0 as f32, high: range.1 as f32 }
    }

    pub(super) fn name(&self, packing: Packing) -> String {
        let bits = packing.bits;
        match self {
            Self::Numbers if bits == 0 => "of one element each".to_owned(),
            Self::Numbers | Self::Signed => format!("of {bits} bits"),
            Self::E2m1 => "of E2M1".to_owned(),
            Self::Table(_) => format!("of {bits} bits by table"),
        }
    }
}

/// Turns quotients into codes.
pub(super) struct Coder<'a> {
    values: &'a Values,
    /// The dtype of codes that are floats.
    float: Option<&'a DType>,
    ties: Ties,
    low: f32,
    high: f32,
}

impl Coder<'_> {
    /// The code of a quotient; `zero` is the code that stands for 0. Numbers that are too large
    /// become the largest code.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is clamped, and NaN is 0"
    )]
    pub(super) fn code(&self, quotient: f32, zero: f32) -> u8 {
        if let Some(dtype) = self.float {
            let largest = cast::largest_f8(dtype).unwrap_or(f32::MAX);
            return cast::to_f8(dtype, quotient.clamp(-largest, largest));
        }
        match self.values {
            Values::Numbers | Values::Signed => {
                let code = self.integer(quotient) + zero;
                code.clamp(self.low, self.high) as i32 as u8
            }
            Values::E2m1 => {
                let sign = if quotient.is_sign_negative() { 8 } else { 0 };
                sign | nearest(&E2M1, quotient.abs(), self.ties)
            }
            Values::Table(table) => nearest(table, quotient, self.ties),
        }
    }

    fn integer(&self, x: f32) -> f32 {
        match self.ties {
            Ties::Even => x.round_ties_even(),
            Ties::Away => x.round(),
            Ties::ToZero => (x.abs() - 0.5).ceil().copysign(x),
        }
    }
}

/// The number of the nearest of rising numbers. In the middle, `Even` takes the even number, `Away`
/// the greater and `ToZero` the smaller.
fn nearest(rising: &[f32], x: f32, ties: Ties) -> u8 {
    let above = rising.windows(2).take_while(|pair| {
        let middle = (pair[0] + pair[1]) / 2.0;
        match ties {
            Ties::ToZero => middle < x,
            Ties::Away | Ties::Even => middle <= x,
        }
    });
    let found = above.count();
    let is_tie = found > 0 && (rising[found - 1] + rising[found]) / 2.0 == x;
    let found = if ties == Ties::Even && is_tie && found % 2 == 1 { found - 1 } else { found };
    narrow(found, "a code has at most 8 bits")
}

pub(super) fn finite(meta: &mut ByteReader<'_>) -> Result<f32> {
    let number = f32::from_le_bytes(meta.array()?);
    fields::finite(number.into(), "number")?;
    Ok(number)
}
