//! The blocks of numbers, as ggml quantises them: those of 32 by `quantize_row_*_ref` of
//! ggml-quants.c, with the choices that compilers have left open; and those of which the scales are
//! known by the nearest codes, which is the last step of all its quantisers.

use crate::checkpoint::gguf::{BlockKind, MOST_NUMBERS};
use crate::limits::narrow;

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

/// The kind with this id in files.
pub(super) fn of_id(id: u8) -> Option<BlockKind> {
    BlockKind::ALL.get(usize::from(id)).copied()
}

pub(super) fn id(kind: BlockKind) -> u8 {
    let found = (0..).zip(BlockKind::ALL).find(|(_, other)| *other == kind);
    found.expect("all kinds are listed").0
}

/// Whether scales follow from the numbers of a block. Those of other kinds are searched for.
pub(crate) fn has_quantiser(kind: BlockKind) -> bool {
    matches!(kind, BlockKind::Q4_0 | BlockKind::Q4_1 | BlockKind::Q5_0 | BlockKind::Q5_1 | BlockKind::Q8_0)
}

fn has_least(kind: BlockKind) -> bool {
    matches!(kind, BlockKind::Q4_1 | BlockKind::Q5_1)
}

/// The block of some numbers, for a kind that has a quantiser.
pub(super) fn quantise(kind: BlockKind, arithmetic: Arithmetic, numbers: &[f32], out: &mut [u8]) {
    let (scale, least) = scale_and_least(kind, numbers);
    let reciprocal = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
    if has_least(kind) {
        out[2..4].copy_from_slice(&half::f16::from_f32(least).to_le_bytes());
    }
    let middle = match kind {
        BlockKind::Q4_0 => 8.5,
        BlockKind::Q5_0 => 16.5,
        _ => 0.5,
    };
    let greatest = kind.greatest();
    let code = |x: f32| match kind {
        BlockKind::Q8_0 => {
            let code = arithmetic.product(x, reciprocal).round();
            if code.is_nan() { 128 } else { limited(code + 128.0, greatest) }
        }
        _ => {
            let x = if has_least(kind) { x - least } else { x };
            limited(arithmetic.product_and_sum(x, reciprocal, middle), greatest)
        }
    };
    let mut codes = [0; MOST_NUMBERS];
    codes.iter_mut().zip(numbers).for_each(|(to, x)| *to = code(*x));
    kind.set_codes(&mut codes[..numbers.len()], out);
}

/// The scale, and the least number if the kind has one.
fn scale_and_least(kind: BlockKind, numbers: &[f32]) -> (f32, f32) {
    let known = || numbers.iter().copied().filter(|x| !x.is_nan());
    if has_least(kind) {
        let first = known().next().unwrap_or(0.0);
        let least = known().fold(first, |least, x| if x < least { x } else { least });
        let greatest = known().fold(first, |greatest, x| if x > greatest { x } else { greatest });
        return ((greatest - least) / f32::from(kind.greatest()), least);
    }
    let largest = known().fold(0f32, |largest, x| if x.abs() > largest.abs() { x } else { largest });
    let scale = match kind {
        BlockKind::Q4_0 => largest / -8.0,
        BlockKind::Q5_0 => largest / -16.0,
        _ => largest.abs() / 127.0,
    };
    (scale, 0.0)
}

/// Sets the codes of a block that has its scales to those of the numbers.
pub(super) fn set_nearest(kind: BlockKind, numbers: &[f32], block: &mut [u8]) {
    let (groups, len) = kind.groups(block);
    let mut codes = [0; MOST_NUMBERS];
    for ((codes, numbers), group) in codes.chunks_mut(len).zip(numbers.chunks(len)).zip(groups) {
        let bias = group.bias.unwrap_or(0.0);
        let (scale, zero) = (group.scale, f32::from(kind.zero()));
        let code = |x: f32| match kind.table() {
            // In the file, such codes are 0.
            _ if scale == 0.0 && kind == BlockKind::Q8_0 => 128,
            _ if scale == 0.0 => 0,
            Some(table) => nearest(table, x * (1.0 / scale)),
            None => limited(f64::from(known((x - bias) / scale).round_ties_even() + zero), kind.greatest()),
        };
        codes.iter_mut().zip(numbers).for_each(|(to, x)| *to = code(*x));
    }
    kind.set_codes(&mut codes[..numbers.len()], block);
}

/// A number, or 0 for NaN.
fn known(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x }
}

/// The number of the nearest of rising numbers; in the middle, of the greater one. 0 for NaN.
fn nearest(table: &[i8; 16], x: f32) -> u8 {
    let is_below = |pair: &&[i8]| {
        let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
        x >= high || (x > low && x - low >= high - x)
    };
    narrow(table.windows(2).take_while(is_below).count(), "a table has 16 numbers")
}

/// A number without its fraction, from 0 to `greatest`; 0 for NaN.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is limited, and NaN is 0")]
fn limited(x: f64, greatest: u8) -> u8 {
    x.clamp(0.0, greatest.into()) as u8
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is what is meant")]
fn single(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of numbers from -1 to 1 that are no multiples of a step.
    fn numbers(kind: BlockKind) -> Vec<f32> {
        (0..kind.numbers())
            .map(|i| f32::from(narrow::<u16>(i * 37 % 64, "it is small")) / 31.0 - 1.0)
            .collect()
    }

    fn restored(kind: BlockKind, block: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; kind.numbers()];
        kind.dequantise(block, &mut out);
        out
    }

    #[test]
    fn blocks_stand_for_numbers_that_are_near() {
        let kinds = BlockKind::ALL.into_iter().filter(|kind| has_quantiser(*kind));
        for (kind, most) in kinds.zip([0.13, 0.07, 0.07, 0.04, 0.005]) {
            for arithmetic in Arithmetic::ALL {
                let mut block = vec![0; kind.bytes()];
                quantise(kind, arithmetic, &numbers(kind), &mut block);
                for (x, y) in numbers(kind).into_iter().zip(restored(kind, &block)) {
                    assert!((x - y).abs() <= most, "{kind:?} {x} {y}");
                }
            }
        }
    }

    #[test]
    fn what_a_block_stands_for_has_its_codes() {
        for kind in BlockKind::ALL {
            // Scales that are not 0.
            let mut block = vec![0; kind.bytes()];
            kind.scale_bytes().for_each(|at| block[at] = 0x35);
            let mut codes: Vec<u8> = (0..kind.numbers())
                .map(|i| narrow(i * 7 % (usize::from(kind.greatest()) + 1), "codes have at most 8 bits"))
                .collect();
            kind.set_codes(&mut codes, &mut block);
            let mut again = block.clone();
            kind.set_codes(&mut vec![0; kind.numbers()], &mut again);
            set_nearest(kind, &restored(kind, &block), &mut again);
            assert_eq!(again, block, "{kind:?}");
        }
    }

    #[test]
    fn odd_numbers_give_blocks_without_a_panic() {
        for kind in BlockKind::ALL {
            for x in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45] {
                let numbers = vec![x; kind.numbers()];
                for scales in [0, 0x3c, 0x7c, 0xfe] {
                    let mut block = vec![scales; kind.bytes()];
                    set_nearest(kind, &numbers, &mut block);
                    restored(kind, &block);
                }
                for arithmetic in Arithmetic::ALL {
                    let mut block = vec![0; kind.bytes()];
                    if has_quantiser(kind) {
                        quantise(kind, arithmetic, &numbers, &mut block);
                    }
                    restored(kind, &block);
                }
            }
        }
        // As ggml does it: the scale of zeros is -0, and the code of 0 is the middle.
        let mut block = [0; 18];
        quantise(BlockKind::Q4_0, Arithmetic::Each, &[0.0; 32], &mut block);
        assert_eq!(block[..3], [0, 0x80, 0x88]);
    }

    #[test]
    fn unequal_steps_have_the_nearest_number() {
        let table = BlockKind::Iq4Nl.table().unwrap();
        let codes = [-200.0, -127.0, -115.5, -116.0, 0.0, 112.0, 113.0, f32::NAN].map(|x| nearest(table, x));
        assert_eq!(codes, [0, 0, 1, 0, 8, 15, 15, 0]);
    }
}
