//! Blocks of numbers as GGUF files have them: codes that share scales, by the structs of
//! ggml-common.h and the functions `dequantize_row_*` of ggml-quants.c.
//! It knows where a block has what, and what codes stand for. It quantises nothing.

use std::ops::Range;

use crate::error::{Error, Result};

/// Most numbers of a block.
pub(crate) const MOST_NUMBERS: usize = 256;
/// Most groups of a block that have a scale of their own.
const MOST_GROUPS: usize = 16;
/// What the codes of the IQ4 kinds stand for (`kvalues_iq4nl`).
const NONLINEAR: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A type of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum BlockKind {
    /// 32 codes of 4 bits and a scale.
    Q4_0,
    /// The same, with a least number.
    Q4_1,
    /// 32 codes of 5 bits and a scale.
    Q5_0,
    /// The same, with a least number.
    Q5_1,
    /// 32 codes of 8 bits and a scale.
    Q8_0,
    /// 256 codes of 2 bits, with a scale and a minimum for each 16.
    Q2K,
    /// 256 codes of 3 bits, with a scale for each 16.
    Q3K,
    /// 256 codes of 4 bits, with a scale and a minimum for each 32.
    Q4K,
    /// 256 codes of 5 bits, with a scale and a minimum for each 32.
    Q5K,
    /// 256 codes of 6 bits, with a scale for each 16.
    Q6K,
    /// 32 codes of 4 bits for unequally spaced numbers, and a scale.
    Iq4Nl,
    /// 256 such codes, with a scale for each 32.
    Iq4Xs,
}

/// Codes, or some bits of each, in a block: those of `run` codes lie in the lowest bits of as many
/// bytes, those of the next `run` codes in the bits above them, and so on until the bytes are full.
#[derive(Clone, Copy)]
struct Field {
    at: usize,
    bits: usize,
    run: usize,
}

/// Where a block has what.
struct Layout {
    numbers: usize,
    bytes: usize,
    /// Numbers that share a scale.
    group: usize,
    low: Field,
    /// The bits above `low`.
    high: Option<Field>,
    /// The bytes that are not codes.
    scales: [Range<usize>; 2],
    /// The code that stands for 0.
    zero: i16,
}

/// The numbers that a code c of a group stands for: scale (c - zero) + bias.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Group {
    pub(crate) scale: f32,
    pub(crate) bias: Option<f32>,
}

impl BlockKind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
    ];

    /// The kind of a `ggml_type`, as GGUF files store it. `None` for other types.
    #[must_use]
    pub fn of_type(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.facts().0 == id)
    }

    /// The name that ggml gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    /// The number of its `ggml_type`, and its name.
    fn facts(self) -> (u32, &'static str) {
        match self {
            Self::Q4_0 => (2, "Q4_0"),
            Self::Q4_1 => (3, "Q4_1"),
            Self::Q5_0 => (6, "Q5_0"),
            Self::Q5_1 => (7, "Q5_1"),
            Self::Q8_0 => (8, "Q8_0"),
            Self::Q2K => (10, "Q2_K"),
            Self::Q3K => (11, "Q3_K"),
            Self::Q4K => (12, "Q4_K"),
            Self::Q5K => (13, "Q5_K"),
            Self::Q6K => (14, "Q6_K"),
            Self::Iq4Nl => (20, "IQ4_NL"),
            Self::Iq4Xs => (23, "IQ4_XS"),
        }
    }

    /// Numbers of a block: 32 or 256.
    #[must_use]
    pub fn numbers(self) -> usize {
        self.layout().numbers
    }

    /// Bytes of a block.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.layout().bytes
    }

    fn layout(self) -> Layout {
        let field = |at, bits, run| Field { at, bits, run };
        let of_32 = |bytes, scales: usize, low: Field, high, zero| Layout {
            numbers: 32,
            bytes,
            group: 32,
            low,
            high,
            scales: [0..scales, 0..0],
            zero,
        };
        let of_256 = |bytes, group, low, high, scales, zero| Layout {
            numbers: 256,
            bytes,
            group,
            low,
            high,
            scales,
            zero,
        };
        match self {
            Self::Q4_0 => of_32(18, 2, field(2, 4, 16), None, 8),
            Self::Q4_1 => of_32(20, 4, field(4, 4, 16), None, 0),
            Self::Q5_0 => of_32(22, 2, field(6, 4, 16), Some(field(2, 1, 1)), 16),
            Self::Q5_1 => of_32(24, 4, field(8, 4, 16), Some(field(4, 1, 1)), 0),
            Self::Q8_0 => of_32(34, 2, field(2, 8, 32), None, 128),
            Self::Q2K => of_256(84, 16, field(16, 2, 32), None, [0..16, 80..84], 0),
            Self::Q3K => of_256(110, 16, field(32, 2, 32), Some(field(0, 1, 32)), [96..110, 0..0], 4),
            Self::Q4K => of_256(144, 32, field(16, 4, 32), None, [0..16, 0..0], 0),
            Self::Q5K => of_256(176, 32, field(48, 4, 32), Some(field(16, 1, 32)), [0..16, 0..0], 0),
            Self::Q6K => of_256(210, 16, field(0, 4, 64), Some(field(128, 2, 32)), [192..210, 0..0], 32),
            Self::Iq4Nl => of_32(18, 2, field(2, 4, 16), None, 0),
            Self::Iq4Xs => of_256(136, 32, field(8, 4, 16), None, [0..8, 0..0], 0),
        }
    }

    /// The bytes of a block that are not codes.
    pub(crate) fn scale_bytes(self) -> impl Iterator<Item = usize> {
        self.layout().scales.into_iter().flatten()
    }

    /// The code that stands for 0. Those of tables have none.
    pub(crate) fn zero(self) -> i16 {
        self.layout().zero
    }

    /// The greatest code.
    pub(crate) fn greatest(self) -> u8 {
        let Layout { low, high, .. } = self.layout();
        u8::MAX >> (8 - low.bits - high.map_or(0, |high| high.bits))
    }

    /// The numbers that codes stand for before they are scaled, if codes are not multiples.
    pub(crate) fn table(self) -> Option<&'static [i8; 16]> {
        matches!(self, Self::Iq4Nl | Self::Iq4Xs).then_some(&NONLINEAR)
    }

    /// The codes of a block. Those of Q8_0, which are signed, are counted from the least one.
    pub(crate) fn codes(self, block: &[u8], codes: &mut [u8]) {
        let Layout { low, high, .. } = self.layout();
        low.read(block, 0, codes);
        if let Some(high) = high {
            high.read(block, low.bits, codes);
        }
        if self == Self::Q8_0 {
            codes.iter_mut().for_each(|code| *code ^= 0x80);
        }
    }

    /// Sets the codes of a block, as [`Self::codes`] gives them.
    pub(crate) fn set_codes(self, codes: &mut [u8], block: &mut [u8]) {
        if self == Self::Q8_0 {
            codes.iter_mut().for_each(|code| *code ^= 0x80);
        }
        let Layout { low, high, .. } = self.layout();
        low.write(codes, 0, block);
        if let Some(high) = high {
            high.write(codes, low.bits, block);
        }
    }

    /// The groups of a block, from the first on, and the numbers of each.
    pub(crate) fn groups(self, block: &[u8]) -> ([Group; MOST_GROUPS], usize) {
        let f16 = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let bits = |at: usize, shift: usize, mask: u8| block[at] >> shift & mask;
        // A scale of 6 bits and a minimum, as Q4_K packs them.
        let packed = |i: usize| match i {
            0..4 => (bits(4 + i, 0, 63), bits(8 + i, 0, 63)),
            _ => (bits(8 + i, 0, 15) | bits(i, 6, 3) << 4, bits(8 + i, 4, 15) | bits(4 + i, 6, 3) << 4),
        };
        let scaled = |scale| Group { scale, bias: None };
        let with_least = |scale, bias| Group { scale, bias: Some(bias) };
        let group = |i: usize| match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::Iq4Nl => scaled(f16(0)),
            Self::Q4_1 | Self::Q5_1 => with_least(f16(0), f16(2)),
            Self::Q2K => {
                let (scale, least) = (bits(i, 0, 15), bits(i, 4, 15));
                with_least(f16(80) * f32::from(scale), -(f16(82) * f32::from(least)))
            }
            Self::Q3K => {
                let low = bits(96 + i % 8, i / 8 * 4, 15);
                let high = bits(104 + i % 4, i / 4 * 2, 3);
                scaled(f16(108) * (f32::from(low | high << 4) - 32.0))
            }
            Self::Q4K | Self::Q5K => {
                let (scale, least) = packed(i);
                with_least(f16(0) * f32::from(scale), -(f16(2) * f32::from(least)))
            }
            Self::Q6K => scaled(f16(208) * f32::from(block[192 + i].cast_signed())),
            Self::Iq4Xs => {
                let low = bits(4 + i / 2, i % 2 * 4, 15);
                let high = bits(2 + i / 4, i % 4 * 2, 3);
                scaled(f16(0) * (f32::from(low | high << 4) - 32.0))
            }
        };
        let Layout { numbers, group: len, .. } = self.layout();
        let mut groups = [Group::default(); MOST_GROUPS];
        groups.iter_mut().take(numbers / len).enumerate().for_each(|(i, to)| *to = group(i));
        (groups, len)
    }

    /// The numbers that a block stands for. Products with scales are exact, so that it makes no
    /// difference whether a product and a sum are rounded once or twice.
    pub(crate) fn dequantise(self, block: &[u8], out: &mut [f32]) {
        let mut codes = [0; MOST_NUMBERS];
        let codes = &mut codes[..out.len()];
        self.codes(block, codes);
        let (groups, len) = self.groups(block);
        let zero = f32::from(self.zero());
        for ((codes, out), group) in codes.chunks(len).zip(out.chunks_mut(len)).zip(groups) {
            let scale = group.scale;
            match (self.table(), group.bias) {
                (Some(table), _) => {
                    let value = |code: &u8| f32::from(table[usize::from(*code)]);
                    out.iter_mut().zip(codes).for_each(|(x, code)| *x = value(code) * scale);
                }
                (None, None) => {
                    out.iter_mut().zip(codes).for_each(|(x, code)| *x = (f32::from(*code) - zero) * scale);
                }
                (None, Some(bias)) => {
                    out.iter_mut().zip(codes).for_each(|(x, code)| *x = f32::from(*code) * scale + bias);
                }
            }
        }
    }
}

impl Field {
    /// Adds these bits of the codes, from bit `shift` on. All codes are 0 there.
    fn read(self, block: &[u8], shift: usize, codes: &mut [u8]) {
        let mask = u8::MAX >> (8 - self.bits);
        let span = self.run * (8 / self.bits);
        for (codes, bytes) in codes.chunks_exact_mut(span).zip(block[self.at..].chunks_exact(self.run)) {
            for (place, codes) in codes.chunks_exact_mut(self.run).enumerate() {
                let down = place * self.bits;
                codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code |= (byte >> down & mask) << shift);
            }
        }
    }

    /// Sets these bits of a block to those of the codes from bit `shift` on.
    fn write(self, codes: &[u8], shift: usize, block: &mut [u8]) {
        let mask = u8::MAX >> (8 - self.bits);
        let span = self.run * (8 / self.bits);
        for (codes, bytes) in codes.chunks_exact(span).zip(block[self.at..].chunks_exact_mut(self.run)) {
            bytes.fill(0);
            for (place, codes) in codes.chunks_exact(self.run).enumerate() {
                let up = place * self.bits;
                bytes.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= (code >> shift & mask) << up);
            }
        }
    }
}

/// Fills `out` with the numbers that whole blocks stand for, as ggml computes them. For a tensor of
/// a GGUF file, blocks follow each other row by row.
///
/// # Errors
/// [`Error::Corrupt`] if `blocks` are not whole blocks, or `out` does not have as many numbers.
pub fn dequantise(kind: BlockKind, blocks: &[u8], out: &mut [f32]) -> Result<()> {
    let (bytes, numbers) = (kind.bytes(), kind.numbers());
    let count = blocks.len() / bytes;
    if !blocks.len().is_multiple_of(bytes) || count.checked_mul(numbers) != Some(out.len()) {
        return Err(Error::corrupt(format!(
            "{} bytes are no blocks of {} for {} numbers",
            blocks.len(),
            kind.name(),
            out.len()
        )));
    }
    let pairs = blocks.chunks_exact(bytes).zip(out.chunks_exact_mut(numbers));
    pairs.for_each(|(block, out)| kind.dequantise(block, out));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::narrow;

    /// A block of bytes that look random. The F16 numbers, which end at these places, are small.
    fn block(kind: BlockKind, ends: &[usize]) -> Vec<u8> {
        let byte = |i: usize| narrow::<u32>(i, "it is small").wrapping_mul(0x9e37_79b9).to_be_bytes()[0];
        let mut block: Vec<u8> = (0..kind.bytes()).map(|i| byte(i + kind.bytes())).collect();
        ends.iter().for_each(|at| block[*at] &= 0x3b);
        block
    }

    /// The kinds, where the F16 numbers of their blocks end, and the start of the digest of the
    /// numbers that the dequantisers of the Python package `gguf` give.
    const KNOWN: [(BlockKind, &[usize], &str); 12] = [
        (BlockKind::Q4_0, &[1], "d59db07ea3f642ba"),
        (BlockKind::Q4_1, &[1, 3], "16e331c78c8c1e4e"),
        (BlockKind::Q5_0, &[1], "35be3802b616c135"),
        (BlockKind::Q5_1, &[1, 3], "ce2685abecf5d68e"),
        (BlockKind::Q8_0, &[1], "63669ce63a60e36b"),
        (BlockKind::Q2K, &[81, 83], "72474bcc67053585"),
        (BlockKind::Q3K, &[109], "80e0e1d789411c41"),
        (BlockKind::Q4K, &[1, 3], "57b52f2fa7e75526"),
        (BlockKind::Q5K, &[1, 3], "da7e13cdfdac1600"),
        (BlockKind::Q6K, &[209], "f90c3310257dfcda"),
        (BlockKind::Iq4Nl, &[1], "f84700ce9e608a34"),
        (BlockKind::Iq4Xs, &[1], "411a83f4185dae64"),
    ];

    #[test]
    fn blocks_stand_for_what_ggml_computes() {
        for (kind, ends, digest) in KNOWN {
            let mut numbers = vec![0.0; kind.numbers()];
            dequantise(kind, &block(kind, ends), &mut numbers).unwrap();
            let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
            assert_eq!(&blake3::hash(&bytes).to_hex()[..16], digest, "{kind:?}");
        }
    }

    #[test]
    fn every_byte_of_a_block_is_a_scale_or_has_codes() {
        for (kind, ends, _) in KNOWN {
            let block = block(kind, ends);
            let mut codes = vec![0; kind.numbers()];
            kind.codes(&block, &mut codes);
            assert!(codes.iter().all(|code| *code <= kind.greatest()), "{kind:?}");
            let mut again = vec![0; kind.bytes()];
            kind.scale_bytes().for_each(|at| again[at] = block[at]);
            kind.set_codes(&mut codes, &mut again);
            assert_eq!(again, block, "{kind:?}");
        }
    }

    #[test]
    fn kinds_have_the_numbers_of_ggml() {
        assert_eq!(BlockKind::of_type(12), Some(BlockKind::Q4K));
        assert_eq!(BlockKind::of_type(23).map(BlockKind::name), Some("IQ4_XS"));
        assert_eq!(BlockKind::of_type(0), None);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let mut out = [0.0; 256];
        assert!(dequantise(BlockKind::Q6K, &[0; 210], &mut out).is_ok());
        assert!(dequantise(BlockKind::Q6K, &[0; 209], &mut out).is_err());
        assert!(dequantise(BlockKind::Q6K, &[0; 210], &mut out[1..]).is_err());
        assert!(dequantise(BlockKind::Q4K, &[0; 288], &mut out).is_err());
    }
}
