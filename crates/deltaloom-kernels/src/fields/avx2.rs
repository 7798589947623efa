//! Stand-alone 16- and 32-bit floats, a vector at a time. Byte shuffles, multiplications and shifts
//! move the raw fields; escapes are handled one by one.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "masks and counts of a few bits")]

use std::arch::x86_64::*;

use super::{ESCAPE, FieldSplit, decode_elements, encode_elements, push_escapes, read_escapes};
use crate::DecodeError;
use crate::bits::{BitReader, BitWriter};

/// Number of elements in a vector. Their fields together start and end at byte boundaries.
const WIDE: usize = 16;
const NARROW: usize = 8;
/// Widest raw field of 32-bit floats, at any of 8 bit positions.
const NARROW_BITS: usize = 25;
/// Bytes that hold the fields of a vector, plus what a load of its second half reads past them.
const WINDOW: usize = 32;

/// Whether the kernels below support this split.
pub(super) fn supports(split: FieldSplit, zero_bits: u32) -> bool {
    let field_bits = split.field_bits(zero_bits) as usize;
    split.is_float()
        && field_bits > 0
        && match split.number.bits() {
            // A field must lie within two bytes: at any of 8 bit positions, at any even one, or at
            // any fourth one.
            16 => field_bits <= 10 || field_bits == 12,
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
}

#[inline]
#[target_feature(enable = "avx2")]
fn shifts(split: FieldSplit, zero_bits: u32) -> Shifts {
    Shifts {
        zero_bits: count(zero_bits),
        mantissa_bits: count(split.max_zero_bits() - zero_bits),
        top: count(split.max_zero_bits()),
        sign: count(split.sign_shift()),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn count(bits: u32) -> __m128i {
    _mm_cvtsi32_si128(bits as i32)
}

/// Joins the low bits of the words of each 16 bytes into one number of 128 bits. Words have `bits`
/// bits; those of the upper half are shifted up by `extra`.
struct Join {
    first: __m256i,
    second_up: __m256i,
    second_down: __m256i,
}

impl Join {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(bits: i64, extra: i64) -> Self {
        Self {
            // A shift by 64 gives 0.
            first: _mm256_setr_epi64x(0, 64, extra, 64),
            second_up: _mm256_setr_epi64x(bits, 64, bits + extra, 64),
            second_down: _mm256_setr_epi64x(64, 64 - bits, 64, 64 - bits - extra),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn join(&self, words: __m256i) -> (__m128i, __m128i) {
        let second = _mm256_unpackhi_epi64(words, words);
        let low =
            _mm256_or_si256(_mm256_sllv_epi64(words, self.first), _mm256_sllv_epi64(second, self.second_up));
        let both = _mm256_or_si256(low, _mm256_srlv_epi64(second, self.second_down));
        (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both))
    }
}

/// Joins the low `bits` bits, at most 32, of both halves of 64-bit words.
#[inline]
#[target_feature(enable = "avx2")]
fn join_halves(x: __m256i, bits: u32) -> __m256i {
    let gap = 32 - bits;
    let touching = _mm256_sllv_epi32(x, _mm256_set1_epi64x(gap.into()));
    _mm256_srl_epi64(touching, count(gap))
}

#[inline]
#[target_feature(enable = "avx2")]
fn push(fields: &mut BitWriter, low: __m128i, high: __m128i, lens: [usize; 2]) {
    let mut blocks = [[0u8; 16]; 2];
    // SAFETY: each block is half a vector.
    unsafe {
        _mm_storeu_si128(blocks[0].as_mut_ptr().cast(), low);
        _mm_storeu_si128(blocks[1].as_mut_ptr().cast(), high);
    }
    fields.push_blocks(&blocks, lens);
}

/// See [`super::encode`].
///
/// # Safety
/// Needs the features below, `supports(split, zero_bits)`, 16-bit floats, and as many elements in
/// `target` as symbols.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
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
    let magnitude = _mm256_set1_epi16(i16::MAX);
    let mantissa = _mm256_set1_epi16(low_bits_16(split.max_zero_bits() - zero_bits));
    let lowest = _mm256_set1_epi16(low_16(split.lowest));
    let second_in_two = _mm256_set1_epi32(1 | 1 << (16 + field_bits));
    let join = Join::new(i64::from(4 * field_bits), 0);
    for (symbols, values) in symbols.chunks_mut(WIDE).zip(target.chunks(2 * WIDE)) {
        if symbols.len() < WIDE {
            encode_elements::<2>(split, values, zero_bits, symbols, escapes, fields);
            break;
        }
        // SAFETY: there are 32 bytes.
        let x = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
        let top = _mm256_srl_epi16(_mm256_and_si256(x, magnitude), by.top);
        let above = _mm256_min_epu16(_mm256_sub_epi16(top, lowest), _mm256_set1_epi16(ESCAPE.into()));
        let symbol = _mm_packus_epi16(_mm256_castsi256_si128(above), _mm256_extracti128_si256::<1>(above));
        // SAFETY: there are 16 symbols.
        unsafe { _mm_storeu_si128(symbols.as_mut_ptr().cast(), symbol) };
        if _mm_movemask_epi8(_mm_cmpeq_epi8(symbol, _mm_set1_epi8(-1))) != 0 {
            push_escapes::<2>(split, symbols, values, escapes);
        }
        let sign = _mm256_sll_epi16(_mm256_srl_epi16(x, by.sign), by.mantissa_bits);
        let field = _mm256_or_si256(_mm256_and_si256(_mm256_srl_epi16(x, by.zero_bits), mantissa), sign);
        let two = _mm256_madd_epi16(field, second_in_two);
        let (low, high) = join.join(join_halves(two, 2 * field_bits));
        push(fields, low, high, [field_bits as usize; 2]);
    }
}

/// See [`super::encode`].
///
/// # Safety
/// Needs the features below, `supports(split, zero_bits)`, 32-bit floats, and as many elements in
/// `target` as symbols.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn encode_32(
    split: FieldSplit,
    target: &[u8],
    zero_bits: u32,
    symbols: &mut [u8],
    escapes: &mut BitWriter,
    fields: &mut BitWriter,
) {
    let field_bits = split.field_bits(zero_bits);
    let by = shifts(split, zero_bits);
    let magnitude = _mm256_set1_epi32(i32::MAX);
    let mantissa = _mm256_set1_epi32(low_bits_32(split.max_zero_bits() - zero_bits));
    let lowest = _mm256_set1_epi32(low_16(split.lowest).into());
    // Four fields may end in the middle of a byte, which then is also the first byte of the upper
    // half.
    let (half_bytes, half_bits) = (field_bits as usize / 2, i64::from(4 * field_bits % 8));
    let join = Join::new(i64::from(2 * field_bits), half_bits);
    let shared_byte = _mm_insert_epi8::<0>(_mm_set1_epi8(-1), half_bytes as i32);
    for (symbols, values) in symbols.chunks_mut(NARROW).zip(target.chunks(4 * NARROW)) {
        if symbols.len() < NARROW {
            encode_elements::<4>(split, values, zero_bits, symbols, escapes, fields);
            break;
        }
        // SAFETY: there are 32 bytes.
        let x = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
        let top = _mm256_srl_epi32(_mm256_and_si256(x, magnitude), by.top);
        let above = _mm256_min_epu32(_mm256_sub_epi32(top, lowest), _mm256_set1_epi32(ESCAPE.into()));
        let symbol = _mm_packus_epi32(_mm256_castsi256_si128(above), _mm256_extracti128_si256::<1>(above));
        let symbol = _mm_packus_epi16(symbol, symbol);
        // SAFETY: there are 8 symbols.
        unsafe { _mm_storel_epi64(symbols.as_mut_ptr().cast(), symbol) };
        if _mm_movemask_epi8(_mm_cmpeq_epi8(symbol, _mm_set1_epi8(-1))) != 0 {
            push_escapes::<4>(split, symbols, values, escapes);
        }
        let sign = _mm256_sll_epi32(_mm256_srl_epi32(x, by.sign), by.mantissa_bits);
        let field = _mm256_or_si256(_mm256_and_si256(_mm256_srl_epi32(x, by.zero_bits), mantissa), sign);
        let (low, high) = join.join(join_halves(field, field_bits));
        let high = _mm_or_si128(high, _mm_shuffle_epi8(low, shared_byte));
        push(fields, low, high, [half_bytes, field_bits as usize - half_bytes]);
    }
}

/// See [`super::decode`].
///
/// # Safety
/// Needs the features below, `supports(split, zero_bits)`, 16-bit floats, and as many elements in
/// `out` as symbols.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn decode_16(
    split: FieldSplit,
    symbols: &[u8],
    zero_bits: u32,
    escapes: &mut BitReader<'_>,
    fields: &mut BitReader<'_>,
    out: &mut [u8],
) -> Result<(), DecodeError> {
    let field_bits = split.field_bits(zero_bits);
    let by = shifts(split, zero_bits);
    let mantissa = _mm256_set1_epi16(low_bits_16(split.max_zero_bits() - zero_bits));
    let lowest = _mm256_set1_epi16(low_16(split.lowest));
    let top_bits = count(split.top_bits());
    // The two bytes of each field, and the power of two that moves its top bit to bit 15.
    let (mut bytes, mut powers) = ([0u8; 16], [0u16; 8]);
    for (i, (bytes, power)) in (0u8..).zip(bytes.chunks_exact_mut(2).zip(&mut powers)) {
        let bit = u32::from(i) * field_bits;
        bytes[0] = (bit / 8) as u8;
        bytes[1] = bytes[0] + 1;
        *power = 1 << (16 - field_bits - bit % 8);
    }
    // SAFETY: both are vectors.
    let [bytes, powers] =
        unsafe { [_mm_loadu_si128(bytes.as_ptr().cast()), _mm_loadu_si128(powers.as_ptr().cast())] }
            .map(|half| _mm256_broadcastsi128_si256(half));
    let unused = count(16 - field_bits);
    let mut unknown = _mm256_setzero_si256();
    let mut padded = [0; WINDOW];
    for (symbols, out) in symbols.chunks(WIDE).zip(out.chunks_mut(2 * WIDE)) {
        if symbols.len() < WIDE {
            decode_elements::<2>(split, symbols, zero_bits, escapes, fields, out)?;
            break;
        }
        // SAFETY: there are 16 symbols.
        let symbol = unsafe { _mm_loadu_si128(symbols.as_ptr().cast()) };
        let is_escape = _mm_cmpeq_epi8(symbol, _mm_set1_epi8(-1));
        let mut top = _mm256_add_epi16(_mm256_cvtepu8_epi16(symbol), lowest);
        let escape_mask = _mm_movemask_epi8(is_escape).cast_unsigned();
        if escape_mask != 0 {
            let mut tops = [0; WIDE];
            read_escapes(split, escape_mask.into(), escapes, &mut tops);
            // SAFETY: the numbers are one vector.
            let tops = unsafe { _mm256_loadu_si256(tops.as_ptr().cast()) };
            top = _mm256_blendv_epi8(top, tops, _mm256_cvtepi8_epi16(is_escape));
        }
        unknown = _mm256_or_si256(unknown, _mm256_srl_epi16(top, top_bits));
        // Eight fields need `field_bits` bytes.
        let words = halves(fields, &mut padded, field_bits as usize);
        fields.skip(WIDE * field_bits as usize);
        let field = _mm256_mullo_epi16(_mm256_shuffle_epi8(words, bytes), powers);
        let field = _mm256_srl_epi16(field, unused);
        let low = _mm256_sll_epi16(_mm256_and_si256(field, mantissa), by.zero_bits);
        let sign = _mm256_sll_epi16(_mm256_srl_epi16(field, by.mantissa_bits), by.sign);
        let x = _mm256_or_si256(_mm256_or_si256(_mm256_sll_epi16(top, by.top), low), sign);
        // SAFETY: there are 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) };
    }
    if _mm256_testz_si256(unknown, unknown) == 1 { Ok(()) } else { Err(DecodeError::BadSymbol) }
}

/// See [`super::decode`].
///
/// # Safety
/// Needs the features below, `supports(split, zero_bits)`, 32-bit floats, and as many elements in
/// `out` as symbols.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
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
    let mantissa = _mm256_set1_epi32(low_bits_32(split.max_zero_bits() - zero_bits));
    let lowest = _mm256_set1_epi32(low_16(split.lowest).into());
    let top_bits = count(split.top_bits());
    let half_bytes = field_bits / 2;
    // The four bytes of each field, counted within its half, and its bit position in the first of
    // them.
    let (mut bytes, mut bits) = ([0u8; 32], [0u32; NARROW]);
    for (i, bits) in bits.iter_mut().enumerate() {
        let bit = i * field_bits - i / 4 * 8 * half_bytes;
        *bits = (bit % 8) as u32;
        for (k, byte) in bytes[4 * i..4 * i + 4].iter_mut().enumerate() {
            *byte = (bit / 8 + k) as u8;
        }
    }
    // SAFETY: both are vectors.
    let (bytes, bits) =
        unsafe { (_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bits.as_ptr().cast())) };
    let mut unknown = _mm256_setzero_si256();
    let mut padded = [0; WINDOW];
    for (symbols, out) in symbols.chunks(NARROW).zip(out.chunks_mut(4 * NARROW)) {
        if symbols.len() < NARROW {
            decode_elements::<4>(split, symbols, zero_bits, escapes, fields, out)?;
            break;
        }
        // SAFETY: there are 8 symbols.
        let symbol = unsafe { _mm_loadl_epi64(symbols.as_ptr().cast()) };
        let is_escape = _mm_cmpeq_epi8(symbol, _mm_set1_epi8(-1));
        let mut top = _mm256_add_epi32(_mm256_cvtepu8_epi32(symbol), lowest);
        let escape_mask = _mm_movemask_epi8(is_escape).cast_unsigned();
        if escape_mask != 0 {
            let mut tops = [0; NARROW];
            read_escapes(split, escape_mask.into(), escapes, &mut tops);
            // SAFETY: the numbers are half a vector.
            let tops = unsafe { _mm_loadu_si128(tops.as_ptr().cast()) };
            top = _mm256_blendv_epi8(top, _mm256_cvtepu16_epi32(tops), _mm256_cvtepi8_epi32(is_escape));
        }
        unknown = _mm256_or_si256(unknown, _mm256_srl_epi32(top, top_bits));
        let words = halves(fields, &mut padded, half_bytes);
        fields.skip(NARROW * field_bits);
        let field = _mm256_srlv_epi32(_mm256_shuffle_epi8(words, bytes), bits);
        let low = _mm256_sll_epi32(_mm256_and_si256(field, mantissa), by.zero_bits);
        let sign = _mm256_sll_epi32(_mm256_srl_epi32(field, by.mantissa_bits), by.sign);
        let x = _mm256_or_si256(_mm256_or_si256(_mm256_sll_epi32(top, by.top), low), sign);
        // SAFETY: there are 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) };
    }
    if _mm256_testz_si256(unknown, unknown) == 1 { Ok(()) } else { Err(DecodeError::BadSymbol) }
}

/// The next 16 bytes, and the 16 bytes from byte `second` on, which is at most 16. The position
/// must be at a byte boundary.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(fields: &BitReader<'_>, padded: &mut [u8; WINDOW], second: usize) -> __m256i {
    debug_assert!(fields.position_bits().is_multiple_of(8) && second <= 16);
    let window = fields.window(padded).as_ptr();
    // SAFETY: the window has 32 bytes.
    unsafe { _mm256_loadu2_m128i(window.add(second).cast(), window.cast()) }
}

fn low_bits_16(bits: u32) -> i16 {
    (low_bits_32(bits) & 0xffff) as u16 as i16
}

fn low_bits_32(bits: u32) -> i32 {
    ((1u32 << bits) - 1).cast_signed()
}

fn low_16(x: u64) -> i16 {
    (x & 0xffff) as u16 as i16
}
