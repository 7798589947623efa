//! Blocks of 32 numbers as ggml stores them: `quantize_row_*_ref` and `dequantize_row_*` of
//! ggml-quants.c, with the choices that compilers have left open.

/// Numbers of a block.
pub(crate) const BLOCK: usize = 32;

/// A block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum BlockKind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
}

/// How products and sums are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// To F32, each.
    Each,
    /// To F32, once.
    Fused,
    /// Not at all, but to F64.
    Double,
}

impl Arithmetic {
    pub(crate) const ALL: [Self; 3] = [Self::Each, Self::Fused, Self::Double];

    pub(super) fn id(self) -> u8 {
        match self {
            Self::Each => 0,
            Self::Fused => 1,
            Self::Double => 2,
        }
    }

    /// a b + c.
    fn product_and_sum(self, a: f32, b: f32, c: f32) -> f64 {
        let double = || f64::from(a) * f64::from(b) + f64::from(c);
        match self {
            Self::Each => (a * b + c).into(),
            Self::Fused => single(double()).into(),
            Self::Double => double(),
        }
    }

    fn product(self, a: f32, b: f32) -> f64 {
        match self {
            Self::Each | Self::Fused => (a * b).into(),
            Self::Double => f64::from(a) * f64::from(b),
        }
    }
}

impl BlockKind {
    pub(crate) const ALL: [Self; 5] = [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0];

    pub(super) fn id(self) -> u8 {
        match self {
            Self::Q4_0 => 0,
            Self::Q4_1 => 1,
            Self::Q5_0 => 2,
            Self::Q5_1 => 3,
            Self::Q8_0 => 4,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
        }
    }

    fn has_least(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1)
    }

    /// The greatest code of those that are packed.
    fn greatest(self) -> u8 {
        match self {
            Self::Q4_0 | Self::Q4_1 => 15,
            Self::Q5_0 | Self::Q5_1 => 31,
            Self::Q8_0 => u8::MAX,
        }
    }

    /// The block of 32 numbers.
    pub(crate) fn quantise(self, arithmetic: Arithmetic, numbers: &[f32; BLOCK], out: &mut [u8]) {
        let (scale, least) = self.scale_and_least(numbers);
        let reciprocal = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (of_scale, rest) = out.split_at_mut(2);
        of_scale.copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        if self == Self::Q8_0 {
            for (x, code) in numbers.iter().zip(rest) {
                *code = limited(arithmetic.product(*x, reciprocal).round(), -128.0, 127.0);
            }
            return;
        }
        let rest = if self.has_least() {
            let (of_least, rest) = rest.split_at_mut(2);
            of_least.copy_from_slice(&half::f16::from_f32(least).to_le_bytes());
            rest
        } else {
            rest
        };
        let middle = match self {
            Self::Q4_0 => 8.5,
            Self::Q5_0 => 16.5,
            _ => 0.5,
        };
        let greatest = f64::from(self.greatest());
        let code = |x: f32| {
            let x = if self.has_least() { x - least } else { x };
            limited(arithmetic.product_and_sum(x, reciprocal, middle), 0.0, greatest)
        };
        pack(self.greatest() > 15, &numbers.map(code), rest);
    }

    /// The scale, and the least number if the kind has one.
    fn scale_and_least(self, numbers: &[f32; BLOCK]) -> (f32, f32) {
        let known = || numbers.iter().copied().filter(|x| !x.is_nan());
        if self.has_least() {
            let first = known().next().unwrap_or(0.0);
            let least = known().fold(first, |least, x| if x < least { x } else { least });
            let greatest = known().fold(first, |greatest, x| if x > greatest { x } else { greatest });
            return ((greatest - least) / f32::from(self.greatest()), least);
        }
        let largest = known().fold(0f32, |largest, x| if x.abs() > largest.abs() { x } else { largest });
        let scale = match self {
            Self::Q4_0 => largest / -8.0,
            Self::Q5_0 => largest / -16.0,
            _ => largest.abs() / 127.0,
        };
        (scale, 0.0)
    }

    /// The numbers that a block stands for.
    pub(crate) fn numbers(self, arithmetic: Arithmetic, block: &[u8]) -> [f32; BLOCK] {
        let f16 = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let scale = f16(0);
        match self {
            Self::Q8_0 => std::array::from_fn(|i| f32::from(block[2 + i].cast_signed()) * scale),
            Self::Q4_0 => unpack(false, &block[2..]).map(|code| (f32::from(code) - 8.0) * scale),
            Self::Q5_0 => unpack(true, &block[2..]).map(|code| (f32::from(code) - 16.0) * scale),
            Self::Q4_1 | Self::Q5_1 => {
                let least = f16(2);
                let number = |code: u8| single(arithmetic.product_and_sum(code.into(), scale, least));
                unpack(self == Self::Q5_1, &block[4..]).map(number)
            }
        }
    }
}

/// The lowest 8 bits of a number without its fraction, within limits; those of 0 for NaN.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is limited, and NaN is 0")]
fn limited(x: f64, least: f64, greatest: f64) -> u8 {
    x.clamp(least, greatest) as i32 as u8
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is what is meant")]
fn single(x: f64) -> f32 {
    x as f32
}

/// Packs codes of 4 bits, or of 5.
fn pack(has_high: bool, codes: &[u8; BLOCK], mut out: &mut [u8]) {
    if has_high {
        let high = codes.iter().enumerate().fold(0u32, |high, (i, code)| high | u32::from(code >> 4) << i);
        let (of_high, rest) = out.split_at_mut(4);
        of_high.copy_from_slice(&high.to_le_bytes());
        out = rest;
    }
    let (low, high) = codes.split_at(BLOCK / 2);
    for ((low, high), out) in low.iter().zip(high).zip(out) {
        *out = low & 15 | high << 4;
    }
}

fn unpack(has_high: bool, bytes: &[u8]) -> [u8; BLOCK] {
    let (high, low) = if has_high { bytes.split_at(4) } else { (&[][..], bytes) };
    std::array::from_fn(|i| {
        let code = low[i % (BLOCK / 2)] >> (4 * (i / (BLOCK / 2))) & 15;
        let bit = high.get(i / 8).map_or(0, |byte| byte >> (i % 8) & 1);
        code | bit << 4
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::narrow;

    /// A block of numbers from -1 to 1 that are no multiples of a step.
    fn numbers() -> [f32; BLOCK] {
        std::array::from_fn(|i| {
            let i: u16 = narrow(i * 37 % 64, "it is small");
            f32::from(i) / 31.0 - 1.0
        })
    }

    #[test]
    fn blocks_stand_for_numbers_that_are_near() {
        for (kind, most) in BlockKind::ALL.into_iter().zip([0.13, 0.07, 0.07, 0.04, 0.005]) {
            for arithmetic in Arithmetic::ALL {
                let mut block = vec![0; kind.bytes()];
                kind.quantise(arithmetic, &numbers(), &mut block);
                let restored = kind.numbers(arithmetic, &block);
                for (x, y) in numbers().into_iter().zip(restored) {
                    assert!((x - y).abs() <= most, "{kind:?} {x} {y}");
                }
            }
        }
    }

    #[test]
    fn odd_numbers_give_blocks_without_a_panic() {
        for kind in BlockKind::ALL {
            for x in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45] {
                for arithmetic in Arithmetic::ALL {
                    let mut block = vec![0; kind.bytes()];
                    kind.quantise(arithmetic, &[x; BLOCK], &mut block);
                    kind.numbers(arithmetic, &block);
                }
            }
        }
        // As ggml does it: the scale of zeros is -0, and the code of 0 is the middle.
        let mut block = [0; 18];
        BlockKind::Q4_0.quantise(Arithmetic::Each, &[0.0; BLOCK], &mut block);
        assert_eq!(block[..3], [0, 0x80, 0x88]);
    }
}
