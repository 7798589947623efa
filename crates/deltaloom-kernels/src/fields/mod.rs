//! Splits stand-alone elements into a modelled part (exponent and top mantissa bits) and raw
//! fields; docs/format.md section 9. How many mantissa bits are modelled is chosen elsewhere.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::bits::{BitReader, BitWriter, SHORT_BITS};
use crate::isa::per_isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};
use crate::number::{by_number, load, store};
use crate::{DecodeError, Number, NumberKind};

/// The symbol that announces a whole modelled part.
const ESCAPE: u8 = 255;
/// Most mantissa bits that a symbol can include.
pub const MAX_MODELLED_BITS: u32 = 3;

/// Which bits of an element are modelled, and which values of them have their own symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldSplit {
    number: Number,
    modelled_bits: u32,
    lowest: u64,
    has_signs: bool,
}

impl FieldSplit {
    /// Creates a split of floats with `modelled_bits` top mantissa bits in the symbol, or of 8-bit
    /// integers with none. The modelled part `lowest` gets symbol 0. `None` if docs/format.md does
    /// not allow it.
    #[must_use]
    pub fn new(number: Number, modelled_bits: u32, lowest: u64) -> Option<Self> {
        let allowed = match number.kind() {
            NumberKind::Float => modelled_bits <= MAX_MODELLED_BITS.min(number.mantissa_bits()),
            _ => number.bits() == 8 && modelled_bits == 0,
        };
        let split = Self { number, modelled_bits, lowest, has_signs: true };
        (allowed && lowest >> split.top_bits() == 0).then_some(split)
    }

    /// The same split for elements whose top bits are all 0 and are omitted.
    #[must_use]
    pub fn without_signs(self) -> Self {
        Self { has_signs: false, ..self }
    }

    /// Width of the modelled part.
    #[must_use]
    pub fn top_bits(self) -> u32 {
        if self.is_float() { self.number.exponent_bits() + self.modelled_bits } else { self.number.bits() }
    }

    /// Most low mantissa bits that can be declared zero.
    #[must_use]
    pub fn max_zero_bits(self) -> u32 {
        if self.is_float() { self.number.mantissa_bits() - self.modelled_bits } else { 0 }
    }

    /// Raw field bits of an element, without escapes, if `zero_bits` low mantissa bits are zero.
    #[must_use]
    pub fn field_bits(self, zero_bits: u32) -> u32 {
        if self.is_float() { u32::from(self.has_signs) + self.max_zero_bits() - zero_bits } else { 0 }
    }

    /// How far a sign is shifted; without signs, out of the element.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn sign_shift(self) -> u32 {
        if self.has_signs { self.number.bits() - 1 } else { self.number.bits() }
    }

    /// Bit layout of the elements.
    #[must_use]
    pub fn number(self) -> Number {
        self.number
    }

    fn is_float(self) -> bool {
        self.number.kind() == NumberKind::Float
    }

    #[inline]
    fn top(self, x: u64) -> u64 {
        if self.is_float() { (x & (self.number.top_bit() - 1)) >> self.max_zero_bits() } else { x }
    }

    #[inline]
    fn symbol(self, top: u64) -> u8 {
        match top.checked_sub(self.lowest) {
            Some(above) if above < u64::from(ESCAPE) => u8::try_from(above).unwrap_or(ESCAPE),
            _ => ESCAPE,
        }
    }

    /// Encodes all elements: symbols into `symbols`, escapes into `escapes`, raw fields into
    /// `fields`.
    pub fn encode(
        self,
        target: &[u8],
        zero_bits: u32,
        symbols: &mut [u8],
        escapes: &mut BitWriter,
        fields: &mut BitWriter,
    ) {
        assert_eq!(target.len(), symbols.len() * self.number.bytes());
        #[cfg(target_arch = "x86_64")]
        if isa() >= Isa::Avx512 && self.number.bits() == 16 && avx512::supports(self, zero_bits) {
            #[expect(unsafe_code, reason = "calling a function with detected target features")]
            // SAFETY: `isa` returns only what was detected; the split is supported and the lengths
            // were checked.
            return unsafe { avx512::encode_16(self, target, zero_bits, symbols, escapes, fields) };
        }
        // Wider vectors gained nothing for 32 bits: docs/benchmarks/kernels.md.
        #[cfg(target_arch = "x86_64")]
        if isa() >= Isa::Avx2 && avx2::supports(self, zero_bits) {
            #[expect(unsafe_code, reason = "calling functions with detected target features")]
            // SAFETY: `isa` returns only what was detected; the split is supported and the lengths
            // were checked.
            return unsafe {
                match self.number.bits() {
                    16 => avx2::encode_16(self, target, zero_bits, symbols, escapes, fields),
                    _ => avx2::encode_32(self, target, zero_bits, symbols, escapes, fields),
                }
            };
        }
        encode(self, target, zero_bits, symbols, escapes, fields);
    }

    /// Rebuilds all elements; inverse of [`Self::encode`].
    ///
    /// # Errors
    /// [`DecodeError::BadSymbol`] for a symbol whose modelled part does not fit the number type.
    pub fn decode(
        self,
        symbols: &[u8],
        zero_bits: u32,
        escapes: &mut BitReader<'_>,
        fields: &mut BitReader<'_>,
        out: &mut [u8],
    ) -> Result<(), DecodeError> {
        assert_eq!(out.len(), symbols.len() * self.number.bytes());
        #[cfg(target_arch = "x86_64")]
        if isa() == Isa::Avx2 && avx2::supports(self, zero_bits) {
            #[expect(unsafe_code, reason = "calling functions with detected target features")]
            // SAFETY: `isa` returns only what was detected; the split is supported and the lengths
            // were checked.
            return unsafe {
                match self.number.bits() {
                    16 => avx2::decode_16(self, symbols, zero_bits, escapes, fields, out),
                    _ => avx2::decode_32(self, symbols, zero_bits, escapes, fields, out),
                }
            };
        }
        #[cfg(target_arch = "x86_64")]
        if isa() >= Isa::Avx512 && avx512::supports(self, zero_bits) {
            #[expect(unsafe_code, reason = "calling functions with detected target features")]
            // SAFETY: `isa` returns only what was detected; the split is supported and the lengths
            // were checked.
            return unsafe {
                match self.number.bits() {
                    16 => avx512::decode_16(self, symbols, zero_bits, escapes, fields, out),
                    _ => avx512::decode_32(self, symbols, zero_bits, escapes, fields, out),
                }
            };
        }
        decode(self, symbols, zero_bits, escapes, fields, out)
    }

    /// The same split, with a number type that is a constant to the compiler.
    #[inline(always)]
    fn with_number(self, number: Number) -> Self {
        Self { number, ..self }
    }

    /// How many fields of `field_bits` fit one push or take. Fewer calls are faster, because each
    /// waits for the one before it.
    #[inline(always)]
    fn fields_at_once(field_bits: u32) -> usize {
        (SHORT_BITS / field_bits.max(1)).clamp(1, 8) as usize
    }
}

per_isa! {
    /// [`FieldSplit::encode`].
    fn encode(
        split: FieldSplit,
        target: &[u8],
        zero_bits: u32,
        symbols: &mut [u8],
        escapes: &mut BitWriter,
        fields: &mut BitWriter,
    ) = encode_body;
}

#[inline(always)]
fn encode_body(
    split: FieldSplit,
    target: &[u8],
    zero_bits: u32,
    symbols: &mut [u8],
    escapes: &mut BitWriter,
    fields: &mut BitWriter,
) {
    #[inline(always)]
    fn run<const B: usize>(
        number: Number,
        split: FieldSplit,
        target: &[u8],
        zero_bits: u32,
        symbols: &mut [u8],
        escapes: &mut BitWriter,
        fields: &mut BitWriter,
    ) {
        encode_elements::<B>(split.with_number(number), target, zero_bits, symbols, escapes, fields);
    }
    by_number!(split.number, run(split, target, zero_bits, symbols, escapes, fields));
}

#[inline(always)]
fn encode_elements<const B: usize>(
    split: FieldSplit,
    target: &[u8],
    zero_bits: u32,
    symbols: &mut [u8],
    escapes: &mut BitWriter,
    all_fields: &mut BitWriter,
) {
    // A local writer stays in registers; one behind a reference is stored at every push.
    let mut fields = std::mem::take(all_fields);
    let (field_bits, mantissa_bits) = (split.field_bits(zero_bits), split.max_zero_bits() - zero_bits);
    let at_once = FieldSplit::fields_at_once(field_bits);
    for (symbols, values) in symbols.chunks_mut(at_once).zip(target.chunks(at_once * B)) {
        let (mut bits, mut bit_count) = (0, 0);
        for (symbol, value) in symbols.iter_mut().zip(values.chunks_exact(B)) {
            let x = load::<B>(value, 0);
            let top = split.top(x);
            *symbol = split.symbol(top);
            if *symbol == ESCAPE {
                escapes.push(top, split.top_bits());
            }
            if split.is_float() {
                let mantissa = x >> zero_bits & ((1 << mantissa_bits) - 1);
                let sign = if split.has_signs { x >> (split.number.bits() - 1) } else { 0 };
                bits |= (mantissa | sign << mantissa_bits) << bit_count;
                bit_count += field_bits;
            }
        }
        fields.push(bits, bit_count);
    }
    *all_fields = fields;
}

per_isa! {
    /// [`FieldSplit::decode`].
    fn decode(
        split: FieldSplit,
        symbols: &[u8],
        zero_bits: u32,
        escapes: &mut BitReader<'_>,
        fields: &mut BitReader<'_>,
        out: &mut [u8],
    ) -> Result<(), DecodeError> = decode_body;
}

#[inline(always)]
fn decode_body(
    split: FieldSplit,
    symbols: &[u8],
    zero_bits: u32,
    escapes: &mut BitReader<'_>,
    fields: &mut BitReader<'_>,
    out: &mut [u8],
) -> Result<(), DecodeError> {
    #[inline(always)]
    fn run<const B: usize>(
        number: Number,
        split: FieldSplit,
        symbols: &[u8],
        zero_bits: u32,
        escapes: &mut BitReader<'_>,
        fields: &mut BitReader<'_>,
        out: &mut [u8],
    ) -> Result<(), DecodeError> {
        decode_elements::<B>(split.with_number(number), symbols, zero_bits, escapes, fields, out)
    }
    by_number!(split.number, run(split, symbols, zero_bits, escapes, fields, out))
}

#[inline(always)]
fn decode_elements<const B: usize>(
    split: FieldSplit,
    symbols: &[u8],
    zero_bits: u32,
    escapes: &mut BitReader<'_>,
    all_fields: &mut BitReader<'_>,
    out: &mut [u8],
) -> Result<(), DecodeError> {
    let mut fields = all_fields.clone();
    let (field_bits, mantissa_bits) = (split.field_bits(zero_bits), split.max_zero_bits() - zero_bits);
    let at_once = FieldSplit::fields_at_once(field_bits);
    let mut unknown = 0;
    for (symbols, values) in symbols.chunks(at_once).zip(out.chunks_mut(at_once * B)) {
        #[expect(clippy::cast_possible_truncation, reason = "at most 8")]
        let mut bits = fields.take(symbols.len() as u32 * field_bits);
        for (&symbol, value) in symbols.iter().zip(values.chunks_exact_mut(B)) {
            let top = match symbol {
                ESCAPE => escapes.take(split.top_bits()),
                _ => split.lowest + u64::from(symbol),
            };
            unknown |= top >> split.top_bits();
            let mut x = top;
            if split.is_float() {
                x = top << split.max_zero_bits()
                    | (bits & ((1 << mantissa_bits) - 1)) << zero_bits
                    | (bits >> mantissa_bits & u64::from(split.has_signs)) << (split.number.bits() - 1);
                // Two shifts, because a field may be as wide as the word.
                bits = bits >> (field_bits / 2) >> (field_bits - field_bits / 2);
            }
            store::<B>(value, 0, x);
        }
    }
    *all_fields = fields;
    if unknown == 0 { Ok(()) } else { Err(DecodeError::BadSymbol) }
}

/// Writes the modelled parts of the elements that have no symbol of their own.
#[cfg(target_arch = "x86_64")]
fn push_escapes<const B: usize>(split: FieldSplit, symbols: &[u8], values: &[u8], escapes: &mut BitWriter) {
    for (_, value) in symbols.iter().zip(values.chunks_exact(B)).filter(|(symbol, _)| **symbol == ESCAPE) {
        escapes.push(split.top(load::<B>(value, 0)), split.top_bits());
    }
}

/// Reads the modelled parts of escaped elements into their places.
#[cfg(target_arch = "x86_64")]
fn read_escapes<const N: usize>(
    split: FieldSplit,
    mut is_escape: u64,
    escapes: &mut BitReader<'_>,
    tops: &mut [u16; N],
) {
    while is_escape != 0 {
        #[expect(clippy::cast_possible_truncation, reason = "exponents and a few bits take at most 16")]
        let top = escapes.take(split.top_bits()) as u16;
        tops[is_escape.trailing_zeros() as usize % N] = top;
        is_escape &= is_escape - 1;
    }
}

/// Counts the modelled parts with [`MAX_MODELLED_BITS`] mantissa bits (or all if there are fewer)
/// in `histogram`, which has one counter per value.
///
/// # Panics
/// If the histogram is too short for the number type.
pub fn count_tops(split: FieldSplit, target: &[u8], histogram: &mut [u32]) {
    fn run<const B: usize>(number: Number, split: FieldSplit, target: &[u8], histogram: &mut [u32]) {
        let split = split.with_number(number);
        #[expect(clippy::cast_possible_truncation, reason = "at most 14 bits")]
        let top_of = |value: &[u8]| split.top(load::<B>(value, 0)) as usize;
        // Neighbours are often equal, and an addition waits for the last one to the same counter,
        // so four histograms take turns.
        let mut turns = vec![[0u32; 4]; 1 << split.top_bits()];
        let fours = target.chunks_exact(4 * B);
        for value in fours.remainder().chunks_exact(B) {
            turns[top_of(value)][0] += 1;
        }
        for four in fours {
            for (turn, value) in four.chunks_exact(B).enumerate() {
                turns[top_of(value)][turn] += 1;
            }
        }
        histogram[..turns.len()]
            .iter_mut()
            .zip(&turns)
            .for_each(|(count, turns)| *count += turns.iter().sum::<u32>());
    }
    by_number!(split.number, run(split, target, histogram));
}

per_isa! {
    /// Number of low bits that are zero in every element.
    #[must_use]
    pub fn common_zero_bits(number: Number, target: &[u8]) -> u32 = common_zero_bits_body;
}

#[inline(always)]
fn common_zero_bits_body(number: Number, target: &[u8]) -> u32 {
    let words = target.chunks_exact(8);
    let last = words.remainder();
    let any = words.fold(0, |any, word| any | load::<8>(word, 0));
    let any = last.iter().zip((0..64).step_by(8)).fold(any, |any, (byte, at)| any | u64::from(*byte) << at);
    // A word holds several elements side by side.
    let any = (0..64).step_by(number.bits() as usize).fold(0, |all, at| all | any >> at);
    (any & number.mask()).trailing_zeros().min(number.bits())
}

per_isa! {
    /// Raw bits that the escapes among `symbols` need.
    #[must_use]
    pub fn escape_bits(split: FieldSplit, symbols: &[u8]) -> u64 = escape_bits_body;
}

#[inline(always)]
fn escape_bits_body(split: FieldSplit, symbols: &[u8]) -> u64 {
    let in_block = |block: &[u8]| block.iter().fold(0u8, |count, symbol| count + u8::from(*symbol == ESCAPE));
    let escapes: u64 = symbols.chunks(255).map(|block| u64::from(in_block(block))).sum();
    escapes * u64::from(split.top_bits())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    /// Splits and joins on every instruction set; all must give the same bits.
    fn roundtrip(split: FieldSplit, zero_bits: u32, target: &[u8]) {
        let count = target.len() / split.number.bytes();
        let mut first = None;
        for_each_isa(|isa| {
            let (mut symbols, mut escapes, mut fields) =
                (vec![0; count], BitWriter::default(), BitWriter::default());
            split.encode(target, zero_bits, &mut symbols, &mut escapes, &mut fields);
            let coded = (symbols, escapes.finish(), fields.finish());
            assert_eq!(*first.get_or_insert(coded.clone()), coded, "{isa:?}");
            let (symbols, escapes, fields) = coded;
            let bits = count as u64 * u64::from(split.field_bits(zero_bits));
            assert_eq!(fields.len() as u64, bits.div_ceil(8));
            let (mut escapes, mut fields) = (BitReader::new(&escapes), BitReader::new(&fields));
            let mut out = vec![0; target.len()];
            split.decode(&symbols, zero_bits, &mut escapes, &mut fields, &mut out).unwrap();
            assert_eq!(out, target, "{isa:?}");
            escapes.finish(0).unwrap();
            fields.finish(0).unwrap();
            Ok::<_, ()>(())
        })
        .unwrap();
    }

    proptest! {
        #[test]
        fn any_bits_roundtrip(words in prop::collection::vec(any::<u64>(), 1..200), m in 0u32..=3, lowest in 0u64..500, zero_bits in 0u32..9, near in any::<bool>()) {
            for number in [
                Number::float(8, 7), Number::float(5, 10), Number::float(8, 23), Number::float(11, 52),
                Number::float(4, 3), Number::float(5, 2), Number::unsigned(8), Number::signed(8),
            ] {
                let Some(split) = FieldSplit::new(number, m, lowest) else { continue };
                let zero_bits = zero_bits.min(split.max_zero_bits());
                // Few escapes, or almost only escapes.
                let top = |w: u64| if near && split.is_float() { (w % 2) << (number.bits() - 1) | (lowest + w % 250) << split.max_zero_bits() | w >> 40 & ((1 << split.max_zero_bits().min(24)) - 1) } else { w };
                let word = |w: &u64| top(*w) >> zero_bits << zero_bits;
                let target: Vec<u8> = words.iter().flat_map(|w| word(w).to_le_bytes()[..number.bytes()].to_vec()).collect();
                roundtrip(split, zero_bits, &target);
            }
        }
    }

    #[test]
    fn signs_are_left_out_where_there_are_none() {
        for (number, zero_bits) in
            [(Number::float(8, 23), 0), (Number::float(8, 7), 4), (Number::float(5, 10), 1)]
        {
            let split = FieldSplit::new(number, 3, 40).unwrap();
            let word = |i: u64| ((i * 0x9e37_79b9) & (number.top_bit() - 1)) >> zero_bits << zero_bits;
            let target: Vec<u8> =
                (0..200).flat_map(|i| word(i).to_le_bytes()[..number.bytes()].to_vec()).collect();
            roundtrip(split.without_signs(), zero_bits, &target);
            assert_eq!(split.without_signs().field_bits(zero_bits) + 1, split.field_bits(zero_bits));
        }
    }

    #[test]
    fn zero_bits_are_left_out() {
        let split = FieldSplit::new(Number::float(8, 23), 2, 490).unwrap();
        let values = [1.5f32, -0.25, 3.0e-3, 1.0e30].map(|v| v.to_bits() & 0xffff_0000);
        let target: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(common_zero_bits(Number::float(8, 23), &target), 16);
        roundtrip(split, 16, &target);
        assert_eq!(split.field_bits(16), 6);
    }

    #[test]
    fn splits_that_the_format_does_not_have() {
        assert!(FieldSplit::new(Number::float(5, 2), 3, 0).is_none());
        assert!(FieldSplit::new(Number::unsigned(16), 0, 0).is_none());
        assert!(FieldSplit::new(Number::float(8, 7), 0, 256).is_none());
    }
}
