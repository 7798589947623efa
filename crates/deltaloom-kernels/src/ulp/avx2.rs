//! Residuals of 16- and 32-bit floats, a vector at a time. A vector with a far jump or a long
//! residual is left to the scalar code, which handles all symbols.
//!
//! One PEXT or PDEP moves the raw bits of the elements in a 64-bit word, with a mask of their
//! widths. Both are fast on Intel and from Zen 3 on. Zen 1 and 2 have them in microcode: results
//! are the same, but slow.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "constants of a few bits, and counts of elements")]

use std::arch::x86_64::*;

use super::{JUMP_CENTER, JUMP_SPAN, apply_elements, encode_elements, push_masked};
use crate::bits::{BitReader, BitWriter};
use crate::tokens::{JUMPS, token_base, token_of_bits};
use crate::{DecodeError, Number};

/// Number of 16-bit elements per iteration, and most residual bits that they may have: three
/// hexadecimal digits.
const WIDE: usize = 32;
const WIDE_BITS: u32 = 12;
/// The same for 32 bits: below this number of bits, two raw fields fit a word.
const NARROW: usize = 8;
const NARROW_BITS: u32 = 28;
/// Most raw bits of a word that fit next to up to 7 pending bits.
const WORD_BITS: u32 = 56;
/// Bytes that may hold the raw bits of eight words.
const WINDOW: usize = 64;

/// For the second and the third hexadecimal digit of a residual: the number of raw bits if it is
/// the highest nonzero digit.
pub(super) static RAW_BITS_OF_SECOND: [u8; 16] = by_digit(4);
pub(super) static RAW_BITS_OF_THIRD: [u8; 16] = by_digit(8);
/// By number of raw bits: the number to add to the bits above them to get the symbol.
pub(super) static SYMBOL_OF_RAW_BITS: [u8; 16] = by_raw_bits();
/// For symbols below 64, by their upper four bits: the mask of raw bits (low and high byte), and
/// the residual bits above them. The lowest two bits of the symbol count up from those.
static MASK_LOW: [u8; 16] = by_symbol(Part::MaskLow);
static MASK_HIGH: [u8; 16] = by_symbol(Part::MaskHigh);
static HEAD: [u8; 16] = by_symbol(Part::Head);

const fn by_digit(below: usize) -> [u8; 16] {
    let mut all = [0; 16];
    let mut digit: usize = 1;
    while digit < 16 {
        let bits = below + (usize::BITS - digit.leading_zeros()) as usize;
        all[digit] = token_of_bits(bits).1;
        digit += 1;
    }
    all
}

const fn by_raw_bits() -> [u8; 16] {
    let mut all = [0; 16];
    let mut bits = 5;
    while bits <= WIDE_BITS as usize {
        let (symbol, raw_bits) = token_of_bits(bits);
        all[raw_bits as usize] = symbol - (1u32 << (bits - 1) >> raw_bits) as u8;
        bits += 1;
    }
    all
}

enum Part {
    MaskLow,
    MaskHigh,
    Head,
}

const fn by_symbol(part: Part) -> [u8; 16] {
    let mut all = [0; 16];
    let mut fours = 0;
    while fours < 16 {
        let (base, raw_bits) = token_base(4 * fours as u8);
        let (mask, head) = ((1u32 << raw_bits) - 1, (base >> raw_bits) as u8);
        all[fours] = match part {
            Part::MaskLow => (mask & 0xff) as u8,
            Part::MaskHigh => (mask >> 8) as u8,
            Part::Head => head,
        };
        fours += 1;
    }
    all
}

/// Whether the kernels below support this float type: four mantissas of 16-bit or two of 32-bit
/// floats must fit [`WORD_BITS`].
pub(super) fn supports(number: Number) -> bool {
    match number.bits() {
        16 => 4 * number.mantissa_bits() <= WORD_BITS,
        32 => 2 * number.mantissa_bits() <= WORD_BITS,
        _ => false,
    }
}

/// Constants for 16-bit floats.
struct Wide {
    mantissa_bits: __m128i,
    exponent: __m256i,
    mantissa: __m256i,
    top: __m256i,
}

#[inline]
#[target_feature(enable = "avx2")]
fn wide(number: Number) -> Wide {
    let mantissa = (1u16 << number.mantissa_bits()) - 1;
    Wide {
        mantissa_bits: _mm_cvtsi32_si128(number.mantissa_bits().cast_signed()),
        exponent: _mm256_set1_epi16((!mantissa & 0x7fff).cast_signed()),
        mantissa: _mm256_set1_epi16(mantissa.cast_signed()),
        top: _mm256_set1_epi16(i16::MIN),
    }
}

/// Computes symbols and raw bits of 16-bit floats; see [`super::encode`].
///
/// # Safety
/// Needs the features below and `supports(number)`. `target`, `prediction` and `symbols` must have
/// the same number of elements.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn encode_16(
    number: Number,
    target: &[u8],
    prediction: &[u8],
    symbols: &mut [u8],
    raw: &mut BitWriter,
) {
    let wide = wide(number);
    let pairs = target.chunks(2 * WIDE).zip(prediction.chunks(2 * WIDE));
    for (symbols, (target, prediction)) in symbols.chunks_mut(WIDE).zip(pairs) {
        if symbols.len() < WIDE {
            encode_elements::<2>(number, target, prediction, symbols, raw);
            break;
        }
        // SAFETY: both are 64 bytes.
        let [t0, p0, t1, p1] =
            unsafe { [load(target), load(prediction), load(&target[32..]), load(&prediction[32..])] };
        let (first, second) = (tokens_16(&wide, t0, p0), tokens_16(&wide, t1, p1));
        let beyond = _mm256_or_si256(first.beyond, second.beyond);
        if _mm256_testz_si256(beyond, beyond) == 0 {
            encode_elements::<2>(number, target, prediction, symbols, raw);
            continue;
        }
        let packed = _mm256_packus_epi16(first.symbol, second.symbol);
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        // SAFETY: there are 32 symbols.
        unsafe { _mm256_storeu_si256(symbols.as_mut_ptr().cast(), packed) };
        let any = _mm256_or_si256(first.mask, second.mask);
        if _mm256_testz_si256(any, any) == 0 {
            let (mut bits, mut masks) = ([0; 8], [0; 8]);
            // SAFETY: eight words are two vectors.
            unsafe {
                store(&mut bits, first.bits);
                store(&mut bits[4..], second.bits);
                store(&mut masks, first.mask);
                store(&mut masks[4..], second.mask);
            }
            // SAFETY: BMI2 is enabled.
            unsafe { push_masked(raw, &bits, &masks) };
        }
    }
}

/// Tokens of the elements of a vector: symbols, and bits, of which those in the masks are raw.
/// Lanes with nonzero `beyond` have no token here.
struct Tokens {
    symbol: __m256i,
    bits: __m256i,
    mask: __m256i,
    beyond: __m256i,
}

#[inline]
#[target_feature(enable = "avx2")]
fn tokens_16(wide: &Wide, t: __m256i, p: __m256i) -> Tokens {
    let word = |x: u32| _mm256_set1_epi16(x as i16);
    let d = _mm256_sub_epi16(ordered_16(wide, t), ordered_16(wide, p));
    // The sign of p, or 1 if p is 0, so that d counts away from zero.
    let d = _mm256_sign_epi16(d, _mm256_or_si256(p, word(1)));
    let z = _mm256_xor_si256(_mm256_slli_epi16::<1>(d), _mm256_srai_epi16::<15>(d));
    let exponent = |x| _mm256_srl_epi16(_mm256_and_si256(x, wide.exponent), wide.mantissa_bits);
    let distance = _mm256_sub_epi16(exponent(t), exponent(p));
    let is_flipped = _mm256_srai_epi16::<15>(_mm256_xor_si256(t, p));
    let is_jump = _mm256_or_si256(is_flipped, _mm256_cmpgt_epi16(_mm256_abs_epi16(distance), word(1)));
    // Excludes the first and the last jump symbol.
    let jump = _mm256_add_epi16(distance, word(JUMP_CENTER - 1));
    let over_span = _mm256_subs_epu16(jump, word(JUMP_SPAN - 3));
    let over_bits = _mm256_srli_epi16::<{ WIDE_BITS as i32 }>(z);
    let beyond = _mm256_blendv_epi8(over_bits, over_span, is_jump);
    // Both bytes of each number hold the digits of z.
    let third = _mm256_shuffle_epi8(z, in_lanes([1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15]));
    let second = _mm256_shuffle_epi8(z, in_lanes([0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14]));
    let second = _mm256_and_si256(_mm256_srli_epi16::<4>(second), _mm256_set1_epi8(15));
    let raw_bits = _mm256_max_epu8(
        _mm256_shuffle_epi8(in_lanes(RAW_BITS_OF_THIRD), third),
        _mm256_shuffle_epi8(in_lanes(RAW_BITS_OF_SECOND), second),
    );
    // 16-bit powers of two, one byte at a time: negative indices give 0.
    let power = in_lanes([1, 2, 4, 8, 16, 32, 64, 128, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mask = _mm256_shuffle_epi8(power, _mm256_sub_epi8(raw_bits, word(0x0800)));
    let mask = _mm256_add_epi16(mask, word(0xffff));
    let inverse = in_lanes([128, 64, 32, 16, 8, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let inverse = _mm256_shuffle_epi8(inverse, _mm256_sub_epi8(raw_bits, word(8)));
    let head = _mm256_mulhi_epu16(_mm256_add_epi16(z, z), inverse);
    let least = _mm256_shuffle_epi8(in_lanes(SYMBOL_OF_RAW_BITS), _mm256_and_si256(raw_bits, word(0xff)));
    let first_jump = _mm256_add_epi16(word(JUMPS + 1), _mm256_and_si256(is_flipped, word(JUMP_SPAN)));
    Tokens {
        symbol: _mm256_blendv_epi8(
            _mm256_add_epi16(head, least),
            _mm256_add_epi16(jump, first_jump),
            is_jump,
        ),
        bits: _mm256_blendv_epi8(z, t, is_jump),
        mask: _mm256_blendv_epi8(mask, wide.mantissa, is_jump),
        beyond,
    }
}

/// Order-preserving integers of 16-bit floats.
#[inline]
#[target_feature(enable = "avx2")]
fn ordered_16(wide: &Wide, x: __m256i) -> __m256i {
    _mm256_xor_si256(x, _mm256_or_si256(_mm256_srai_epi16::<15>(x), wide.top))
}

#[inline]
#[target_feature(enable = "avx2")]
fn ordered_32(x: __m256i) -> __m256i {
    _mm256_xor_si256(x, _mm256_or_si256(_mm256_srai_epi32::<31>(x), _mm256_set1_epi32(i32::MIN)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn words(x: __m256i) -> [u64; 4] {
    let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    [
        _mm_cvtsi128_si64(low).cast_unsigned(),
        _mm_extract_epi64::<1>(low).cast_unsigned(),
        _mm_cvtsi128_si64(high).cast_unsigned(),
        _mm_extract_epi64::<1>(high).cast_unsigned(),
    ]
}

/// Spreads the next raw bits of a stream over the masks of four words.
///
/// # Safety
/// The window must have 8 bytes from the one in which the bits of each word start, and each mask at
/// most [`WORD_BITS`] bits.
#[inline]
#[target_feature(enable = "avx2,bmi2,popcnt")]
unsafe fn spread(window: &[u8; WINDOW], at: &mut usize, masks: __m256i) -> __m256i {
    let mut words = words(masks);
    // Not a closure: a closure has features that its caller lacks, so it would not be inlined.
    for word in &mut words {
        let mask = *word;
        debug_assert!(*at / 8 + 8 <= WINDOW && mask.count_ones() <= WORD_BITS);
        // SAFETY: this function's contract.
        let bits = unsafe { window.as_ptr().add(*at / 8).cast::<u64>().read_unaligned() };
        *word = _pdep_u64(bits >> (*at % 8), mask);
        *at += mask.count_ones() as usize;
    }
    let [a, b, c, d] = words;
    _mm256_setr_epi64x(a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed())
}

/// Computes symbols and raw bits of 32-bit floats; see [`super::encode`].
///
/// # Safety
/// As for [`encode_16`].
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn encode_32(
    number: Number,
    target: &[u8],
    prediction: &[u8],
    symbols: &mut [u8],
    raw: &mut BitWriter,
) {
    let mantissa_bits = _mm_cvtsi32_si128(number.mantissa_bits().cast_signed());
    let mantissa = _mm256_set1_epi32((1 << number.mantissa_bits()) - 1);
    let magnitude = _mm256_set1_epi32(i32::MAX);
    let word = |x: u32| _mm256_set1_epi32(x.cast_signed());
    let pairs = target.chunks(4 * NARROW).zip(prediction.chunks(4 * NARROW));
    for (symbols, (target, prediction)) in symbols.chunks_mut(NARROW).zip(pairs) {
        if symbols.len() < NARROW {
            encode_elements::<4>(number, target, prediction, symbols, raw);
            break;
        }
        // SAFETY: both are 32 bytes.
        let (t, p) = unsafe { (load(target), load(prediction)) };
        let d = _mm256_sub_epi32(ordered_32(t), ordered_32(p));
        // The sign of p, or 1 if p is 0, so that d counts away from zero.
        let d = _mm256_sign_epi32(d, _mm256_or_si256(p, word(1)));
        let z = _mm256_xor_si256(_mm256_slli_epi32::<1>(d), _mm256_srai_epi32::<31>(d));
        let exponent = |x| _mm256_srl_epi32(_mm256_and_si256(x, magnitude), mantissa_bits);
        let distance = _mm256_sub_epi32(exponent(t), exponent(p));
        let is_flipped = _mm256_srai_epi32::<31>(_mm256_xor_si256(t, p));
        let is_jump = _mm256_or_si256(is_flipped, _mm256_cmpgt_epi32(_mm256_abs_epi32(distance), word(1)));
        // Excludes the first and the last jump symbol.
        let jump = _mm256_add_epi32(distance, word(JUMP_CENTER - 1));
        let in_span = _mm256_cmpeq_epi32(_mm256_min_epu32(jump, word(JUMP_SPAN - 3)), jump);
        let over_span = _mm256_xor_si256(in_span, word(u32::MAX));
        let over_bits = _mm256_srli_epi32::<{ NARROW_BITS as i32 }>(z);
        let beyond = _mm256_blendv_epi8(over_bits, over_span, is_jump);
        if _mm256_testz_si256(beyond, beyond) == 0 {
            encode_elements::<4>(number, target, prediction, symbols, raw);
            continue;
        }
        // As a float, z consists of its number of bits and the bits below the top one. Low bits are
        // cleared so that they cannot round it up.
        let float = _mm256_cvtepi32_ps(_mm256_andnot_si256(_mm256_srli_epi32::<8>(z), z));
        let float = _mm256_castps_si256(float);
        let is_small = _mm256_cmpgt_epi32(word(16), z);
        let by_eight = _mm256_sub_epi32(_mm256_srli_epi32::<20>(float), word(8 * (127 + 4) - 16));
        let by_four = _mm256_sub_epi32(_mm256_srli_epi32::<21>(float), word(4 * (127 + 8) - 48));
        let symbol = _mm256_blendv_epi8(_mm256_min_epi32(by_eight, by_four), z, is_small);
        let raw_bits = _mm256_sub_epi32(_mm256_srli_epi32::<23>(float), word(127 + 3));
        let raw_bits = _mm256_max_epi32(raw_bits, _mm256_setzero_si256());
        let raw_bits = _mm256_sub_epi32(raw_bits, _mm256_cmpgt_epi32(z, word(255)));
        let above = _mm256_sllv_epi32(word(u32::MAX), raw_bits);
        let mask = _mm256_xor_si256(above, word(u32::MAX));
        let first_jump = _mm256_add_epi32(word(JUMPS + 1), _mm256_and_si256(is_flipped, word(JUMP_SPAN)));
        let symbol = _mm256_blendv_epi8(symbol, _mm256_add_epi32(jump, first_jump), is_jump);
        let bits = _mm256_blendv_epi8(z, t, is_jump);
        let mask = _mm256_blendv_epi8(mask, mantissa, is_jump);
        let symbol = _mm_packus_epi32(_mm256_castsi256_si128(symbol), _mm256_extracti128_si256::<1>(symbol));
        // SAFETY: there are 8 symbols.
        unsafe { _mm_storel_epi64(symbols.as_mut_ptr().cast(), _mm_packus_epi16(symbol, symbol)) };
        if _mm256_testz_si256(mask, mask) == 0 {
            let (mut words, mut masks) = ([0; 4], [0; 4]);
            // SAFETY: four words are a vector.
            unsafe {
                store(&mut words, bits);
                store(&mut masks, mask);
            }
            // SAFETY: BMI2 is enabled.
            unsafe { push_masked(raw, &words, &masks) };
        }
    }
}

/// Turns predictions into 16-bit floats; see [`super::apply`].
///
/// # Safety
/// Needs the features below and `supports(number)`. `values` must have an element for every symbol.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn apply_16(
    number: Number,
    values: &mut [u8],
    symbols: &[u8],
    raw: &mut BitReader<'_>,
) -> Result<(), DecodeError> {
    let wide = wide(number);
    let byte = |x: u32| _mm256_set1_epi8(x as i8);
    let [mantissa_low, mantissa_high] =
        ((1u16 << number.mantissa_bits()) - 1).to_le_bytes().map(|half| byte(half.into()));
    let [mask_low, mask_high, heads] = [&MASK_LOW, &MASK_HIGH, &HEAD].map(|list| in_lanes(*list));
    let mut padded = [0; WINDOW];
    for (values, symbols) in values.chunks_mut(2 * WIDE).zip(symbols.chunks(WIDE)) {
        if symbols.len() < WIDE {
            return apply_elements::<2>(number, values, symbols, raw);
        }
        // SAFETY: there are 32 symbols and 64 bytes of values.
        let (symbol, [p0, p1]) = unsafe { (load(symbols), [load(values), load(&values[32..])]) };
        // Bytes in the order in which unpacking needs both halves.
        let symbol = _mm256_permute4x64_epi64::<0b11_01_10_00>(symbol);
        let is_at_least = |x, least| _mm256_cmpeq_epi8(_mm256_max_epu8(x, least), x);
        let is_jump = is_at_least(symbol, byte(JUMPS));
        let is_flipped = is_at_least(symbol, byte(JUMPS + JUMP_SPAN));
        let jump = _mm256_sub_epi8(symbol, byte(JUMPS + 1));
        let jump = _mm256_sub_epi8(jump, _mm256_and_si256(is_flipped, byte(JUMP_SPAN)));
        // The first and the last jump have all bits raw; 16-bit floats have no symbols between
        // residuals and jumps.
        let over_span = is_at_least(jump, byte(JUMP_SPAN - 2));
        let over_bits = _mm256_and_si256(symbol, byte(0xc0));
        let beyond = _mm256_blendv_epi8(over_bits, over_span, is_jump);
        if _mm256_testz_si256(beyond, beyond) == 0 {
            apply_elements::<2>(number, values, symbols, raw)?;
            continue;
        }
        let fours = _mm256_and_si256(_mm256_srli_epi16::<2>(symbol), byte(15));
        let mask_low = _mm256_blendv_epi8(_mm256_shuffle_epi8(mask_low, fours), mantissa_low, is_jump);
        let mask_high = _mm256_blendv_epi8(_mm256_shuffle_epi8(mask_high, fours), mantissa_high, is_jump);
        let head = _mm256_add_epi8(_mm256_shuffle_epi8(heads, fours), _mm256_and_si256(symbol, byte(3)));
        let moved = _mm256_sub_epi8(jump, byte(JUMP_CENTER - 1));
        let zero = _mm256_setzero_si256();
        let masks = [_mm256_unpacklo_epi8(mask_low, mask_high), _mm256_unpackhi_epi8(mask_low, mask_high)];
        let mut bits = [zero; 2];
        let any = _mm256_or_si256(mask_low, mask_high);
        if _mm256_testz_si256(any, any) == 0 {
            let mut at = raw.position_bits() % 8;
            let start = at;
            let window = raw.window(&mut padded);
            // SAFETY: eight words of at most 56 bits are 56 bytes, and the last one starts in byte
            // 49 or before.
            bits = unsafe { [spread(window, &mut at, masks[0]), spread(window, &mut at, masks[1])] };
            raw.skip(at - start);
        }
        let halves = [
            Half {
                p: p0,
                head: _mm256_unpacklo_epi8(head, zero),
                mask: masks[0],
                bits: bits[0],
                // Each byte twice, so that a 16-bit shift extends its sign.
                moved: _mm256_srai_epi16::<8>(_mm256_unpacklo_epi8(moved, moved)),
                is_jump: _mm256_unpacklo_epi8(is_jump, is_jump),
                is_flipped: _mm256_unpacklo_epi8(is_flipped, is_flipped),
            },
            Half {
                p: p1,
                head: _mm256_unpackhi_epi8(head, zero),
                mask: masks[1],
                bits: bits[1],
                moved: _mm256_srai_epi16::<8>(_mm256_unpackhi_epi8(moved, moved)),
                is_jump: _mm256_unpackhi_epi8(is_jump, is_jump),
                is_flipped: _mm256_unpackhi_epi8(is_flipped, is_flipped),
            },
        ];
        for (half, value) in halves.iter().zip(values.chunks_exact_mut(32)) {
            // SAFETY: there are 32 bytes.
            unsafe { _mm256_storeu_si256(value.as_mut_ptr().cast(), half.target(&wide)) };
        }
    }
    Ok(())
}

/// The parts of the values of half of the elements.
struct Half {
    p: __m256i,
    head: __m256i,
    mask: __m256i,
    bits: __m256i,
    moved: __m256i,
    is_jump: __m256i,
    is_flipped: __m256i,
}

impl Half {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn target(&self, wide: &Wide) -> __m256i {
        let one = _mm256_set1_epi16(1);
        // The mask of n bits plus 1 is 2^n.
        let z = _mm256_or_si256(_mm256_mullo_epi16(self.head, _mm256_add_epi16(self.mask, one)), self.bits);
        let d = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_and_si256(z, one));
        let d = _mm256_xor_si256(_mm256_srli_epi16::<1>(z), d);
        let d = _mm256_sign_epi16(d, _mm256_or_si256(self.p, one));
        let o = _mm256_add_epi16(ordered_16(wide, self.p), d);
        let all_if_top_is_clear = _mm256_xor_si256(_mm256_srai_epi16::<15>(o), _mm256_set1_epi16(-1));
        let near = _mm256_xor_si256(o, _mm256_or_si256(all_if_top_is_clear, wide.top));
        // Sign, exponent and mantissa of the jumps.
        let exponent = _mm256_add_epi16(self.p, _mm256_sll_epi16(self.moved, wide.mantissa_bits));
        let sign = _mm256_xor_si256(self.p, self.is_flipped);
        let far = _mm256_or_si256(
            _mm256_and_si256(exponent, wide.exponent),
            _mm256_or_si256(_mm256_and_si256(sign, wide.top), self.bits),
        );
        _mm256_blendv_epi8(near, far, self.is_jump)
    }
}

/// Turns predictions into 32-bit floats; see [`super::apply`].
///
/// # Safety
/// As for [`apply_16`].
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn apply_32(
    number: Number,
    values: &mut [u8],
    symbols: &[u8],
    raw: &mut BitReader<'_>,
) -> Result<(), DecodeError> {
    let mantissa_bits = _mm_cvtsi32_si128(number.mantissa_bits().cast_signed());
    let mantissa = (1u32 << number.mantissa_bits()) - 1;
    let word = |x: u32| _mm256_set1_epi32(x.cast_signed());
    let (zero, one, top) = (_mm256_setzero_si256(), word(1), word(1 << 31));
    let mut padded = [0; WINDOW];
    for (values, symbols) in values.chunks_mut(4 * NARROW).zip(symbols.chunks(NARROW)) {
        if symbols.len() < NARROW {
            return apply_elements::<4>(number, values, symbols, raw);
        }
        // SAFETY: there are 8 symbols and 32 bytes of values.
        let (symbol, p) = unsafe { (_mm_loadl_epi64(symbols.as_ptr().cast()), load(values)) };
        let symbol = _mm256_cvtepu8_epi32(symbol);
        let is_jump = _mm256_cmpgt_epi32(symbol, word(JUMPS - 1));
        let is_flipped = _mm256_cmpgt_epi32(symbol, word(JUMPS + JUMP_SPAN - 1));
        let jump = _mm256_sub_epi32(symbol, word(JUMPS + 1));
        let jump = _mm256_sub_epi32(jump, _mm256_and_si256(is_flipped, word(JUMP_SPAN)));
        // The first and the last jump have all bits raw; long residuals have symbols of 128 or
        // more.
        let over_span = _mm256_cmpeq_epi32(_mm256_max_epu32(jump, word(JUMP_SPAN - 2)), jump);
        let over_bits = _mm256_and_si256(symbol, word(0x80));
        let beyond = _mm256_blendv_epi8(over_bits, over_span, is_jump);
        if _mm256_testz_si256(beyond, beyond) == 0 {
            apply_elements::<4>(number, values, symbols, raw)?;
            continue;
        }
        // From 16 on, eight symbols share a number of bits; from 48 on, four do.
        let has_four = _mm256_cmpgt_epi32(symbol, word(47));
        let is_small = _mm256_cmpgt_epi32(word(16), symbol);
        let raw_bits = _mm256_blendv_epi8(
            _mm256_sub_epi32(_mm256_srli_epi32::<3>(symbol), one),
            _mm256_sub_epi32(_mm256_srli_epi32::<2>(symbol), word(6)),
            has_four,
        );
        let raw_bits = _mm256_andnot_si256(is_small, raw_bits);
        let head = _mm256_blendv_epi8(
            _mm256_or_si256(_mm256_and_si256(symbol, word(7)), word(8)),
            _mm256_or_si256(_mm256_and_si256(symbol, word(3)), word(4)),
            has_four,
        );
        let head = _mm256_blendv_epi8(head, symbol, is_small);
        let mask = _mm256_xor_si256(_mm256_sllv_epi32(word(u32::MAX), raw_bits), word(u32::MAX));
        let mask = _mm256_blendv_epi8(mask, word(mantissa), is_jump);
        let mut bits = zero;
        if _mm256_testz_si256(mask, mask) == 0 {
            let mut at = raw.position_bits() % 8;
            let start = at;
            // SAFETY: four words of at most 56 bits are 28 bytes.
            bits = unsafe { spread(raw.window(&mut padded), &mut at, mask) };
            raw.skip(at - start);
        }
        let z = _mm256_or_si256(_mm256_sllv_epi32(head, raw_bits), bits);
        let d = _mm256_sub_epi32(zero, _mm256_and_si256(z, one));
        let d = _mm256_xor_si256(_mm256_srli_epi32::<1>(z), d);
        let d = _mm256_sign_epi32(d, _mm256_or_si256(p, one));
        let o = _mm256_add_epi32(ordered_32(p), d);
        let all_if_top_is_clear = _mm256_xor_si256(_mm256_srai_epi32::<31>(o), word(u32::MAX));
        let near = _mm256_xor_si256(o, _mm256_or_si256(all_if_top_is_clear, top));
        // Sign, exponent and mantissa of the jumps.
        let moved = _mm256_sub_epi32(jump, word(JUMP_CENTER - 1));
        let exponent = _mm256_add_epi32(p, _mm256_sll_epi32(moved, mantissa_bits));
        let sign = _mm256_and_si256(_mm256_xor_si256(p, is_flipped), top);
        let far = _mm256_or_si256(
            _mm256_or_si256(_mm256_and_si256(exponent, word(!mantissa & !(1 << 31))), sign),
            bits,
        );
        // SAFETY: there are 32 bytes.
        unsafe {
            _mm256_storeu_si256(values.as_mut_ptr().cast(), _mm256_blendv_epi8(near, far, is_jump));
        }
    }
    Ok(())
}

/// Copies a list to both halves of a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn in_lanes(list: [u8; 16]) -> __m256i {
    // SAFETY: the list is half a vector.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(list.as_ptr().cast()) })
}

/// # Safety
/// There must be 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load(bytes: &[u8]) -> __m256i {
    debug_assert!(bytes.len() >= 32);
    // SAFETY: this function's contract.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// # Safety
/// There must be 4 words.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(words: &mut [u64], vector: __m256i) {
    debug_assert!(words.len() >= 4);
    // SAFETY: this function's contract.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) };
}
