//! Applies residuals of 16- and 32-bit floats, a vector at a time. A vector with a far jump or a
//! long residual is left to the scalar code, which handles all symbols.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "masks of lanes, and constants of a few bits")]

use std::arch::x86_64::*;

use super::{JUMP_CENTER, JUMP_SPAN, apply_elements};
use crate::bits::BitReader;
use crate::tokens::{JUMPS, token_base};
use crate::{DecodeError, Number};

/// Number of 16-bit elements in a vector; each lane holds a field of up to 9 raw bits, at any of 8
/// bit positions.
const WIDE: usize = 32;
/// The same for 32 bits, with fields of up to 25 bits.
const NARROW: usize = 16;
/// Bytes of bits that one vector may need.
const WINDOW: usize = 64;

/// For symbols below 128: the number of raw bits, and the bits above them.
static RAW_BITS: [u8; 128] = by_symbol(true);
static HEADS: [u8; 128] = by_symbol(false);

const fn by_symbol(raw: bool) -> [u8; 128] {
    let mut all = [0; 128];
    let mut symbol = 0;
    while symbol < 128 {
        let (base, raw_bits) = token_base(symbol as u8);
        let (bits, head) = (raw_bits as u8, (base >> raw_bits) as u8);
        all[symbol] = if raw { bits } else { head };
        symbol += 1;
    }
    all
}

/// Order-preserving integers of 16-bit floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn ordered_16(x: __m512i) -> __m512i {
    let sign = _mm512_srai_epi16::<15>(x);
    _mm512_xor_si512(x, _mm512_or_si512(sign, _mm512_set1_epi16(i16::MIN)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn ordered_32(x: __m512i) -> __m512i {
    let sign = _mm512_srai_epi32::<31>(x);
    _mm512_xor_si512(x, _mm512_or_si512(sign, _mm512_set1_epi32(i32::MIN)))
}

/// Turns predictions into 16-bit floats; see [`super::apply`].
///
/// # Safety
/// Needs the features below. `values` must have an element for every symbol.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn apply_16(
    number: Number,
    values: &mut [u8],
    symbols: &[u8],
    raw: &mut BitReader<'_>,
) -> Result<(), DecodeError> {
    let even = 0x5555_5555_5555_5555;
    // SAFETY: each list has at least one vector.
    let [raw_bits_of, head_of] = unsafe { [load(&RAW_BITS), load(&HEADS)] };
    let (mantissa_bits, exponent_mask) = shift_and_mask(number);
    let exponent_mask = _mm512_set1_epi16(exponent_mask.cast_signed());
    let mantissa_width = _mm512_set1_epi16(number.mantissa_bits() as i16);
    let needs_third_byte = number.mantissa_bits() > 9;
    let (one, top) = (_mm512_set1_epi16(1), _mm512_set1_epi16(i16::MIN));
    let (center, span) = (_mm512_set1_epi16(JUMP_CENTER as i16), _mm512_set1_epi16(JUMP_SPAN as i16));
    let far_span = _mm512_set1_epi16(JUMP_SPAN as i16 - 2);
    let first_jump = _mm512_set1_epi16(JUMPS as i16);
    let first_flip = _mm512_set1_epi16((JUMPS + JUMP_SPAN) as i16);
    let in_all_four = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0908_0908_0908_0908, 0x0100_0100_0100_0100));
    for (values, symbols) in values.chunks_mut(2 * WIDE).zip(symbols.chunks(WIDE)) {
        if symbols.len() < WIDE {
            return apply_elements::<2>(number, values, symbols, raw);
        }
        // SAFETY: there are 32 symbols and 64 bytes of values.
        let (symbol, p) = unsafe { (_mm256_loadu_si256(symbols.as_ptr().cast()), load(values)) };
        let symbol = _mm512_cvtepu8_epi16(symbol);
        let is_jump = _mm512_cmpge_epu16_mask(symbol, first_jump);
        let jump = _mm512_sub_epi16(symbol, first_jump);
        let is_flipped = _mm512_cmpge_epu16_mask(symbol, first_flip);
        let jump = _mm512_mask_sub_epi16(jump, is_flipped, jump, span);
        // The first and the last jump have all bits raw.
        let is_far = is_jump & !_mm512_cmplt_epu16_mask(_mm512_sub_epi16(jump, one), far_span);
        if (_mm512_cmpge_epu16_mask(symbol, _mm512_set1_epi16(64)) & !is_jump) | is_far != 0 {
            apply_elements::<2>(number, values, symbols, raw)?;
            continue;
        }
        let raw_bits = _mm512_maskz_permutexvar_epi8(even, symbol, raw_bits_of);
        let raw_bits = _mm512_mask_mov_epi16(raw_bits, is_jump, mantissa_width);
        let mut z = symbol;
        let mut bits = _mm512_setzero_si512();
        if _mm512_test_epi16_mask(raw_bits, raw_bits) != 0 {
            let head = _mm512_maskz_permutexvar_epi8(even, symbol, head_of);
            // The number of bits before each field: sums within each word of four fields, plus
            // those of earlier words.
            let pairs = _mm512_add_epi64(raw_bits, _mm512_slli_epi64::<16>(raw_bits));
            let fours = _mm512_add_epi64(pairs, _mm512_slli_epi64::<32>(pairs));
            let (before_words, total) = sums_before(_mm512_srli_epi64::<48>(fours));
            let in_all_four = _mm512_shuffle_epi8(before_words, in_all_four);
            let start = _mm512_set1_epi16((raw.position_bits() % 8) as i16);
            let position =
                _mm512_add_epi16(_mm512_sub_epi16(fours, raw_bits), _mm512_add_epi16(in_all_four, start));
            let window = window(raw);
            let byte = _mm512_srli_epi16::<3>(position);
            let both = _mm512_or_si512(byte, _mm512_slli_epi16::<8>(byte));
            let bytes = _mm512_add_epi16(both, _mm512_set1_epi16(0x100));
            let shift = _mm512_and_si512(position, _mm512_set1_epi16(7));
            let mut field = _mm512_srlv_epi16(_mm512_permutexvar_epi8(bytes, window), shift);
            if needs_third_byte {
                let third =
                    _mm512_permutexvar_epi8(_mm512_add_epi16(bytes, _mm512_set1_epi16(0x202)), window);
                let left = _mm512_sub_epi16(_mm512_set1_epi16(16), shift);
                field = _mm512_or_si512(field, _mm512_sllv_epi16(third, left));
            }
            let above = _mm512_sllv_epi16(_mm512_set1_epi16(-1), raw_bits);
            bits = _mm512_andnot_si512(above, field);
            z = _mm512_or_si512(_mm512_sllv_epi16(head, raw_bits), bits);
            raw.skip(total);
        }
        let odd = _mm512_and_si512(z, one);
        let d = _mm512_xor_si512(_mm512_srli_epi16::<1>(z), _mm512_sub_epi16(_mm512_setzero_si512(), odd));
        let d = _mm512_mask_sub_epi16(d, _mm512_movepi16_mask(p), _mm512_setzero_si512(), d);
        let o = _mm512_add_epi16(ordered_16(p), d);
        let all_if_top_is_clear = _mm512_xor_si512(_mm512_srai_epi16::<15>(o), _mm512_set1_epi16(-1));
        let near = _mm512_xor_si512(o, _mm512_or_si512(all_if_top_is_clear, top));
        // Sign, exponent and mantissa of the jumps.
        let exponent = _mm512_add_epi16(_mm512_srl_epi16(p, mantissa_bits), _mm512_sub_epi16(jump, center));
        let exponent = _mm512_sll_epi16(_mm512_and_si512(exponent, exponent_mask), mantissa_bits);
        let sign = _mm512_and_si512(_mm512_mask_mov_epi16(p, is_flipped, _mm512_xor_si512(p, top)), top);
        let far = _mm512_or_si512(_mm512_or_si512(sign, exponent), bits);
        // SAFETY: there are 64 bytes of values.
        unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), _mm512_mask_mov_epi16(near, is_jump, far)) };
    }
    Ok(())
}

/// Turns predictions into 32-bit floats; see [`super::apply`].
///
/// # Safety
/// As for [`apply_16`].
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn apply_32(
    number: Number,
    values: &mut [u8],
    symbols: &[u8],
    raw: &mut BitReader<'_>,
) -> Result<(), DecodeError> {
    let lowest_bytes = 0x1111_1111_1111_1111;
    // SAFETY: each list is two vectors.
    let [raw_bits_of, heads_of] =
        [&RAW_BITS, &HEADS].map(|list| unsafe { [load(&list[..64]), load(&list[64..])] });
    let (mantissa_bits, exponent_mask) = shift_and_mask(number);
    let exponent_mask = _mm512_set1_epi32(exponent_mask.into());
    let mantissa_width = _mm512_set1_epi32(number.mantissa_bits() as i32);
    let (one, top) = (_mm512_set1_epi32(1), _mm512_set1_epi32(i32::MIN));
    let (center, span) = (_mm512_set1_epi32(JUMP_CENTER as i32), _mm512_set1_epi32(JUMP_SPAN as i32));
    let far_span = _mm512_set1_epi32(JUMP_SPAN as i32 - 2);
    let first_jump = _mm512_set1_epi32(JUMPS as i32);
    let first_flip = _mm512_set1_epi32((JUMPS + JUMP_SPAN) as i32);
    for (values, symbols) in values.chunks_mut(4 * NARROW).zip(symbols.chunks(NARROW)) {
        if symbols.len() < NARROW {
            return apply_elements::<4>(number, values, symbols, raw);
        }
        // SAFETY: there are 16 symbols and 64 bytes of values.
        let (symbol, p) = unsafe { (_mm_loadu_si128(symbols.as_ptr().cast()), load(values)) };
        let symbol = _mm512_cvtepu8_epi32(symbol);
        let is_jump = _mm512_cmpge_epu32_mask(symbol, first_jump);
        let jump = _mm512_sub_epi32(symbol, first_jump);
        let is_flipped = _mm512_cmpge_epu32_mask(symbol, first_flip);
        let jump = _mm512_mask_sub_epi32(jump, is_flipped, jump, span);
        // The first and the last jump have all bits raw.
        let is_far = is_jump & !_mm512_cmplt_epu32_mask(_mm512_sub_epi32(jump, one), far_span);
        if (_mm512_cmpge_epu32_mask(symbol, _mm512_set1_epi32(128)) & !is_jump) | is_far != 0 {
            apply_elements::<4>(number, values, symbols, raw)?;
            continue;
        }
        let of = |[low, high]: [__m512i; 2]| _mm512_maskz_permutex2var_epi8(lowest_bytes, low, symbol, high);
        let raw_bits = _mm512_mask_mov_epi32(of(raw_bits_of), is_jump, mantissa_width);
        let mut z = symbol;
        let mut bits = _mm512_setzero_si512();
        if _mm512_test_epi32_mask(raw_bits, raw_bits) != 0 {
            let pairs = _mm512_add_epi64(raw_bits, _mm512_slli_epi64::<32>(raw_bits));
            let (before_words, total) = sums_before(_mm512_srli_epi64::<32>(pairs));
            let in_both = _mm512_shuffle_epi32::<0b10_10_00_00>(before_words);
            let start = _mm512_set1_epi32((raw.position_bits() % 8) as i32);
            let position =
                _mm512_add_epi32(_mm512_sub_epi32(pairs, raw_bits), _mm512_add_epi32(in_both, start));
            let window = window(raw);
            // Copies the byte to all four bytes of a number, which then also address its
            // neighbours.
            let byte = _mm512_shuffle_epi8(_mm512_srli_epi32::<3>(position), every_fourth());
            let bytes = _mm512_add_epi32(byte, _mm512_set1_epi32(0x0302_0100));
            let field = _mm512_permutexvar_epi8(bytes, window);
            let field = _mm512_srlv_epi32(field, _mm512_and_si512(position, _mm512_set1_epi32(7)));
            let above = _mm512_sllv_epi32(_mm512_set1_epi32(-1), raw_bits);
            bits = _mm512_andnot_si512(above, field);
            z = _mm512_or_si512(_mm512_sllv_epi32(of(heads_of), raw_bits), bits);
            raw.skip(total);
        }
        let odd = _mm512_and_si512(z, one);
        let d = _mm512_xor_si512(_mm512_srli_epi32::<1>(z), _mm512_sub_epi32(_mm512_setzero_si512(), odd));
        let d = _mm512_mask_sub_epi32(d, _mm512_movepi32_mask(p), _mm512_setzero_si512(), d);
        let o = _mm512_add_epi32(ordered_32(p), d);
        let all_if_top_is_clear = _mm512_xor_si512(_mm512_srai_epi32::<31>(o), _mm512_set1_epi32(-1));
        let near = _mm512_xor_si512(o, _mm512_or_si512(all_if_top_is_clear, top));
        // Sign, exponent and mantissa of the jumps.
        let exponent = _mm512_add_epi32(_mm512_srl_epi32(p, mantissa_bits), _mm512_sub_epi32(jump, center));
        let exponent = _mm512_sll_epi32(_mm512_and_si512(exponent, exponent_mask), mantissa_bits);
        let sign = _mm512_and_si512(_mm512_mask_xor_epi32(p, is_flipped, p, top), top);
        let far = _mm512_or_si512(_mm512_or_si512(sign, exponent), bits);
        // SAFETY: there are 64 bytes of values.
        unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), _mm512_mask_mov_epi32(near, is_jump, far)) };
    }
    Ok(())
}

/// Positions of the elements of `B` bytes, 2 or 4, that differ; see [`super::changed_positions`].
///
/// # Safety
/// Needs the features below. Both sides must have the same length.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn changed_positions<const B: usize>(target: &[u8], prediction: &[u8]) -> Vec<u32> {
    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let mut positions: Vec<u32> = Vec::new();
    let mut found = 0;
    let mut first = 0;
    for (target, prediction) in target.chunks(64).zip(prediction.chunks(64)) {
        let lanes_in = if target.len() == 64 { u64::MAX } else { (1 << target.len()) - 1 };
        // SAFETY: masked bytes are not read.
        let (t, p) = unsafe {
            (
                _mm512_maskz_loadu_epi8(lanes_in, target.as_ptr().cast()),
                _mm512_maskz_loadu_epi8(lanes_in, prediction.as_ptr().cast()),
            )
        };
        let mut changed =
            if B == 2 { _mm512_cmpneq_epi16_mask(t, p) } else { _mm512_cmpneq_epi32_mask(t, p).into() };
        let mut at = first;
        while changed != 0 {
            if positions.len() < found + 16 {
                positions.resize(2 * positions.len() + 512, 0);
            }
            let sixteen = (changed & 0xffff) as u16;
            let numbers = _mm512_add_epi32(lanes, _mm512_set1_epi32(at));
            let numbers = _mm512_maskz_compress_epi32(sixteen, numbers);
            // SAFETY: there is room for a vector.
            unsafe { _mm512_storeu_si512(positions.as_mut_ptr().add(found).cast(), numbers) };
            found += sixteen.count_ones() as usize;
            changed >>= 16;
            at += 16;
        }
        first += 64 / B as i32;
    }
    positions.truncate(found);
    positions
}

/// Copies byte 0 of every 32-bit number to all of its bytes.
#[inline]
#[target_feature(enable = "avx512f")]
fn every_fourth() -> __m512i {
    _mm512_broadcast_i32x4(_mm_set_epi8(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0))
}

/// For each of eight numbers, the sum of those before it; and the sum of all.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn sums_before(x: __m512i) -> (__m512i, usize) {
    let zero = _mm512_setzero_si512();
    let two = _mm512_add_epi64(x, _mm512_alignr_epi64::<7>(x, zero));
    let four = _mm512_add_epi64(two, _mm512_alignr_epi64::<6>(two, zero));
    let all = _mm512_add_epi64(four, _mm512_alignr_epi64::<4>(four, zero));
    let last = _mm512_extracti64x2_epi64::<3>(all);
    (_mm512_sub_epi64(all, x), _mm_extract_epi64::<1>(last).cast_unsigned() as usize)
}

/// The next bytes of a stream, from the one at its position on; zeros past its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn window(raw: &BitReader<'_>) -> __m512i {
    let rest = raw.rest();
    let mask = match rest.len() {
        WINDOW.. => u64::MAX,
        short => (1 << short) - 1,
    };
    // SAFETY: masked bytes are not read.
    unsafe { _mm512_maskz_loadu_epi8(mask, rest.as_ptr().cast()) }
}

/// The shift that brings the exponent of a float down, and its mask.
#[inline]
#[target_feature(enable = "avx512f")]
fn shift_and_mask(number: Number) -> (__m128i, u16) {
    (_mm_cvtsi64_si128(i64::from(number.mantissa_bits())), (1 << number.exponent_bits()) - 1)
}

/// # Safety
/// There must be 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(bytes: &[u8]) -> __m512i {
    debug_assert!(bytes.len() >= 64);
    // SAFETY: this function's contract.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
