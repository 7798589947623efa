//! Stand-alone 16- and 32-bit floats, a vector at a time. Byte permutes and shifts move the raw
//! fields; escapes are handled one by one.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "masks of lanes, and constants of a few bits")]

use std::arch::x86_64::*;

use super::{ESCAPE, FieldSplit, decode_elements, encode_elements, push_escapes, read_escapes};
use crate::DecodeError;
use crate::bits::{BitReader, BitWriter};

/// Number of elements in a vector. Their fields together start and end at byte boundaries and need
/// at most a vector.
const WIDE: usize = 32;
const NARROW: usize = 16;
/// Widest raw field of 32-bit floats, at any of 8 bit positions.
const NARROW_BITS: usize = 25;

/// Whether the kernels below support this split.
pub(super) fn supports(split: FieldSplit, zero_bits: u32) -> bool {
    let field_bits = split.field_bits(zero_bits) as usize;
    split.is_float()
        && field_bits > 0
        && match split.number.bits() {
            16 => true,
            32 => field_bits <= NARROW_BITS,
            _ => false,
        }
}

/// Shift counts in the form that vector instructions need.
struct Shifts {
    zero_bits: __m128i,
    mantissa_bits: __m128i,
    top: __m128i,
    sign: __m128i,
    field_bits: __m128i,
}

#[inline]
#[target_feature(enable = "avx512f")]
fn shifts(split: FieldSplit, zero_bits: u32) -> Shifts {
    let count = |bits: u32| _mm_cvtsi64_si128(bits.into());
    Shifts {
        zero_bits: count(zero_bits),
        mantissa_bits: count(split.max_zero_bits() - zero_bits),
        top: count(split.max_zero_bits()),
        sign: count(split.sign_shift()),
        field_bits: count(split.field_bits(zero_bits)),
    }
}

/// See [`super::encode`].
///
/// # Safety
/// Needs the features below, `supports(split, zero_bits)`, 16-bit floats, and as many elements in
/// `target` as symbols.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn encode_16(
    split: FieldSplit,
    target: &[u8],
    zero_bits: u32,
    symbols: &mut [u8],
    escapes: &mut BitWriter,
    fields: &mut BitWriter,
) {
    let field_bits = split.field_bits(zero_bits);
    let by = shifts(split, zero_bits);
    let magnitude = _mm512_set1_epi16(i16::MAX);
    let mantissa = _mm512_set1_epi16(low_bits_16(split.max_zero_bits() - zero_bits));
    let lowest = _mm512_set1_epi16((split.lowest & 0xffff) as u16 as i16);
    let two_fields = _mm_cvtsi64_si128((2 * field_bits).into());
    let four_fields = _mm_cvtsi64_si128((4 * field_bits).into());
    let rest_of_four = _mm_cvtsi64_si128((64 - 4 * field_bits).into());
    // Eight fields need `field_bits` bytes of each 16.
    let packed = u64::from(low_bits_16(field_bits).cast_unsigned()) * 0x0001_0001_0001_0001;
    for (symbols, values) in symbols.chunks_mut(WIDE).zip(target.chunks(2 * WIDE)) {
        if symbols.len() < WIDE {
            encode_elements::<2>(split, values, zero_bits, symbols, escapes, fields);
            break;
        }
        // SAFETY: there are 64 bytes.
        let x = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
        let top = _mm512_srl_epi16(_mm512_and_si512(x, magnitude), by.top);
        let above = _mm512_min_epu16(_mm512_sub_epi16(top, lowest), _mm512_set1_epi16(ESCAPE.into()));
        let symbol = _mm512_cvtepi16_epi8(above);
        // SAFETY: there are 32 symbols.
        unsafe { _mm256_storeu_si256(symbols.as_mut_ptr().cast(), symbol) };
        if _mm256_cmpeq_epi8_mask(symbol, _mm256_set1_epi8(-1)) != 0 {
            push_escapes::<2>(split, symbols, values, escapes);
        }
        let sign = _mm512_sll_epi16(_mm512_srl_epi16(x, by.sign), by.mantissa_bits);
        let field = _mm512_or_si512(_mm512_and_si512(_mm512_srl_epi16(x, by.zero_bits), mantissa), sign);
        let two = _mm512_or_si512(
            _mm512_and_si512(field, _mm512_set1_epi32(0xffff)),
            _mm512_sll_epi32(_mm512_srli_epi32::<16>(field), by.field_bits),
        );
        let four = _mm512_or_si512(
            _mm512_and_si512(two, _mm512_set1_epi64(0xffff_ffff)),
            _mm512_sll_epi64(_mm512_srli_epi64::<32>(two), two_fields),
        );
        // Both words of each 16 bytes as one number of 128 bits.
        let from_low = _mm512_maskz_mov_epi64(0b0101_0101, four);
        let high = _mm512_unpackhi_epi64(four, four);
        let shifted =
            _mm512_mask_srl_epi64(_mm512_sll_epi64(high, four_fields), 0b1010_1010, high, rest_of_four);
        let eight = _mm512_or_si512(from_low, shifted);
        let mut block = [0u8; 64];
        // SAFETY: the block is one vector.
        unsafe {
            _mm512_storeu_si512(block.as_mut_ptr().cast(), _mm512_maskz_compress_epi8(packed, eight));
        }
        fields.push_blocks(&[block], [WIDE * field_bits as usize / 8]);
    }
}

/// See [`super::decode`].
///
/// # Safety
/// Needs the features below, `supports(split, zero_bits)`, 16-bit floats, and as many elements in
/// `out` as symbols.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn decode_16(
    split: FieldSplit,
    symbols: &[u8],
    zero_bits: u32,
    escapes: &mut BitReader<'_>,
    fields: &mut BitReader<'_>,
    out: &mut [u8],
) -> Result<(), DecodeError> {
    let field_bits = split.field_bits(zero_bits) as usize;
    let by = shifts(split, zero_bits);
    let mantissa = _mm512_set1_epi16(low_bits_16(split.max_zero_bits() - zero_bits));
    let lowest = _mm512_set1_epi16((split.lowest & 0xffff) as u16 as i16);
    let top_bits = _mm_cvtsi64_si128(split.top_bits().into());
    // Four fields per word: the bytes of the word, and the bit at which each byte of its 16-bit
    // numbers starts.
    let (mut bytes, mut bits) = ([0u8; 64], [0u8; 64]);
    for i in 0..64 {
        let first_bit = i / 8 * 4 * field_bits;
        bytes[i] = low_byte(first_bit / 8 + i % 8);
        bits[i] = low_byte((first_bit % 8 + i % 8 / 2 * field_bits + i % 2 * 8) % 64);
    }
    // SAFETY: both are vectors.
    let (bytes, bits) =
        unsafe { (_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(bits.as_ptr().cast())) };
    let mut unknown = 0;
    for (symbols, out) in symbols.chunks(WIDE).zip(out.chunks_mut(2 * WIDE)) {
        if symbols.len() < WIDE {
            decode_elements::<2>(split, symbols, zero_bits, escapes, fields, out)?;
            break;
        }
        // SAFETY: there are 32 symbols.
        let symbol = unsafe { _mm256_loadu_si256(symbols.as_ptr().cast()) };
        let is_escape = _mm256_cmpeq_epi8_mask(symbol, _mm256_set1_epi8(-1));
        let mut top = _mm512_add_epi16(_mm512_cvtepu8_epi16(symbol), lowest);
        if is_escape != 0 {
            let mut tops = [0; WIDE];
            read_escapes(split, is_escape.into(), escapes, &mut tops);
            // SAFETY: the numbers are one vector.
            top = _mm512_mask_mov_epi16(top, is_escape, unsafe { _mm512_loadu_si512(tops.as_ptr().cast()) });
        }
        let beyond = _mm512_srl_epi16(top, top_bits);
        unknown |= _mm512_test_epi16_mask(beyond, beyond);
        let words = _mm512_permutexvar_epi8(bytes, fields.block(WIDE * field_bits / 8));
        let field = _mm512_multishift_epi64_epi8(bits, words);
        let low = _mm512_sll_epi16(_mm512_and_si512(field, mantissa), by.zero_bits);
        let sign = _mm512_sll_epi16(_mm512_srl_epi16(field, by.mantissa_bits), by.sign);
        let x = _mm512_or_si512(_mm512_or_si512(_mm512_sll_epi16(top, by.top), low), sign);
        // SAFETY: there are 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) };
    }
    if unknown == 0 { Ok(()) } else { Err(DecodeError::BadSymbol) }
}

/// See [`super::decode`].
///
/// # Safety
/// Needs the features below, `supports(split, zero_bits)`, 32-bit floats, and as many elements in
/// `out` as symbols.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn decode_32(
    split: FieldSplit,
    symbols: &[u8],
    zero_bits: u32,
    escapes: &mut BitReader<'_>,
    fields: &mut BitReader<'_>,
    out: &mut [u8],
) -> Result<(), DecodeError> {
    let field_bits = split.field_bits(zero_bits) as usize;
    let by = shifts(split, zero_bits);
    let mantissa = _mm512_set1_epi32(low_bits_32(split.max_zero_bits() - zero_bits));
    let lowest = _mm512_set1_epi32((split.lowest & 0xffff) as i32);
    let top_bits = _mm_cvtsi64_si128(split.top_bits().into());
    let mut bytes = [0u8; 64];
    let mut bits = [0u32; NARROW];
    for i in 0..64 {
        bytes[i] = low_byte(i / 4 * field_bits / 8 + i % 4);
        bits[i / 4] = low_byte(i / 4 * field_bits % 8).into();
    }
    // SAFETY: both are vectors.
    let (bytes, bits) =
        unsafe { (_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(bits.as_ptr().cast())) };
    let mut unknown = 0;
    for (symbols, out) in symbols.chunks(NARROW).zip(out.chunks_mut(4 * NARROW)) {
        if symbols.len() < NARROW {
            decode_elements::<4>(split, symbols, zero_bits, escapes, fields, out)?;
            break;
        }
        // SAFETY: there are 16 symbols.
        let symbol = unsafe { _mm_loadu_si128(symbols.as_ptr().cast()) };
        let is_escape = _mm_cmpeq_epi8_mask(symbol, _mm_set1_epi8(-1));
        let mut top = _mm512_add_epi32(_mm512_cvtepu8_epi32(symbol), lowest);
        if is_escape != 0 {
            let mut tops = [0; WIDE];
            read_escapes(split, is_escape.into(), escapes, &mut tops);
            // SAFETY: the numbers are one vector.
            let tops = unsafe { _mm512_loadu_si512(tops.as_ptr().cast()) };
            top = _mm512_mask_mov_epi32(top, is_escape, _mm512_cvtepu16_epi32(_mm512_castsi512_si256(tops)));
        }
        let beyond = _mm512_srl_epi32(top, top_bits);
        unknown |= _mm512_test_epi32_mask(beyond, beyond);
        let field = _mm512_permutexvar_epi8(bytes, fields.block(NARROW * field_bits / 8));
        let field = _mm512_srlv_epi32(field, bits);
        let low = _mm512_sll_epi32(_mm512_and_si512(field, mantissa), by.zero_bits);
        let sign = _mm512_sll_epi32(_mm512_srl_epi32(field, by.mantissa_bits), by.sign);
        let x = _mm512_or_si512(_mm512_or_si512(_mm512_sll_epi32(top, by.top), low), sign);
        // SAFETY: there are 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) };
    }
    if unknown == 0 { Ok(()) } else { Err(DecodeError::BadSymbol) }
}

impl BitReader<'_> {
    /// The next `len` bytes, at most 64, followed by arbitrary bytes. The position must be at a
    /// byte boundary.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn block(&mut self, len: usize) -> __m512i {
        debug_assert!(self.position_bits().is_multiple_of(8));
        let rest = self.rest();
        let mask = if rest.len() >= 64 { u64::MAX } else { (1 << rest.len()) - 1 };
        self.skip(8 * len);
        // SAFETY: masked bytes are not read.
        unsafe { _mm512_maskz_loadu_epi8(mask, rest.as_ptr().cast()) }
    }
}

fn low_bits_16(bits: u32) -> i16 {
    ((1u32 << bits) - 1) as u16 as i16
}

fn low_bits_32(bits: u32) -> i32 {
    ((1u32 << bits) - 1).cast_signed()
}

fn low_byte(x: usize) -> u8 {
    (x & 0xff) as u8
}
