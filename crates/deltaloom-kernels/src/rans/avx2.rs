//! rANS on eight lanes per vector: tables by gather, words by permutations that a mask selects.
#![expect(unsafe_code, reason = "vector loads, stores and gathers")]

use std::arch::x86_64::*;

use super::{Contexts, Decoder, Encoder, LANES};

/// Number of lanes of a vector.
const WIDTH: usize = 8;
const VECTORS: usize = LANES / WIDTH;

/// For every mask, which of the next words each lane takes: byte k for lane k.
static EXPAND: [u64; 256] = permutations(true);
/// For every mask, its lanes in order at the end of a vector: byte k for word k.
static COMPRESS: [u64; 256] = permutations(false);

const fn permutations(expand: bool) -> [u64; 256] {
    let mut all = [0; 256];
    let mut mask: u32 = 0;
    while mask < 256 {
        let (mut lane, mut word) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                let (at, from) = if expand { (lane, word) } else { (word + mask.count_zeros() - 24, lane) };
                all[mask as usize] |= (from as u64) << (8 * at);
                word += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    all
}

/// The permutation in a table for the sign bits of `of`, and how many are set.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn permutation(table: &[u64; 256], of: __m256i) -> (__m256i, usize) {
    let mask = _mm256_movemask_ps(_mm256_castsi256_ps(of)).cast_unsigned();
    let bytes = table[(mask & 0xff) as usize].cast_signed();
    (_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes)), mask.count_ones() as usize)
}

/// Decodes whole steps of a stream of [`LANES`] lanes while there is a word for every lane.
///
/// # Safety
/// Needs the features below; every context must name a table of `decoder.slots`.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>) {
    let mut states = load_states(decoder.states);
    let slots = decoder.slots.as_ptr().cast::<i32>();
    while decoder.has_wide_step() {
        for (part, x) in states.iter_mut().enumerate() {
            let first = decoder.done + part * WIDTH;
            let slot_in_table = _mm256_and_si256(*x, _mm256_set1_epi32(0xfff));
            let slot = match decoder.contexts {
                Contexts::Single => slot_in_table,
                Contexts::PerSymbol(contexts) => {
                    // SAFETY: there are as many contexts as symbols, and a whole step of symbols is
                    // left.
                    let contexts = unsafe { _mm_loadl_epi64(contexts.as_ptr().add(first).cast()) };
                    _mm256_or_si256(_mm256_slli_epi32::<12>(_mm256_cvtepu8_epi32(contexts)), slot_in_table)
                }
            };
            // SAFETY: contexts name tables, and each table has a slot for all 12-bit numbers.
            let slot = unsafe { _mm256_i32gather_epi32::<4>(slots, slot) };
            // SAFETY: a whole step of symbols is left.
            unsafe { _mm_storel_epi64(decoder.out.as_mut_ptr().add(first).cast(), low_bytes(slot)) };
            let frequency_less_1 = _mm256_and_si256(_mm256_srli_epi32::<8>(slot), _mm256_set1_epi32(0xfff));
            let frequency = _mm256_add_epi32(frequency_less_1, _mm256_set1_epi32(1));
            let quotient = _mm256_srli_epi32::<12>(*x);
            let next =
                _mm256_add_epi32(_mm256_mullo_epi32(frequency, quotient), _mm256_srli_epi32::<20>(slot));
            let is_short = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(next), _mm256_setzero_si256());
            let (expansion, count) = permutation(&EXPAND, is_short);
            // SAFETY: the step has 64 bytes of words; this part takes at most 16, as did each part
            // before it.
            let words = unsafe { _mm_loadu_si128(decoder.words.as_ptr().add(decoder.at).cast()) };
            let words = _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(words), expansion);
            let refilled = _mm256_or_si256(_mm256_slli_epi32::<16>(next), words);
            *x = _mm256_blendv_epi8(next, refilled, is_short);
            decoder.at += 2 * count;
        }
        decoder.done += LANES;
    }
    store_states(states, decoder.states);
}

/// The low bytes of eight numbers, in the low half.
#[inline]
#[target_feature(enable = "avx2")]
fn low_bytes(x: __m256i) -> __m128i {
    let first_bytes = _mm256_set1_epi32(0x0c08_0400);
    let bytes = _mm256_shuffle_epi8(x, first_bytes);
    _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes))
}

/// Encodes `encoder.symbols[..full]`, last ones first; `full` is a multiple of [`LANES`].
///
/// # Safety
/// Needs the features below; every context must name a table of `encoder.entries`, and there must
/// be `full` symbols and contexts.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn encode(encoder: &mut Encoder<'_>, full: usize) {
    let entries = encoder.entries.as_ptr().cast::<i32>();
    let mut states = load_states(&encoder.states);
    let mut absent = _mm256_setzero_si256();
    for step in (0..full / LANES).rev() {
        for part in (0..VECTORS).rev() {
            let first = step * LANES + part * WIDTH;
            // SAFETY: a whole step of symbols starts here.
            let symbols = unsafe { _mm_loadl_epi64(encoder.symbols.as_ptr().add(first).cast()) };
            let symbols = _mm256_cvtepu8_epi32(symbols);
            let index = match encoder.contexts {
                Contexts::Single => symbols,
                Contexts::PerSymbol(contexts) => {
                    // SAFETY: there are as many contexts as symbols.
                    let contexts = unsafe { _mm_loadl_epi64(contexts.as_ptr().add(first).cast()) };
                    let contexts = _mm256_cvtepu8_epi32(contexts);
                    _mm256_or_si256(_mm256_slli_epi32::<8>(contexts), symbols)
                }
            };
            // SAFETY: contexts name tables, and each table has an entry for all 8-bit symbols.
            let entry = unsafe { _mm256_i32gather_epi32::<4>(entries, index) };
            let frequency = _mm256_and_si256(entry, _mm256_set1_epi32(0xffff));
            absent = _mm256_or_si256(absent, _mm256_cmpeq_epi32(frequency, _mm256_setzero_si256()));
            let x = states[part];
            // Both sides have at most 13 bits, so a signed comparison suffices.
            let is_room = _mm256_cmpgt_epi32(frequency, _mm256_srli_epi32::<20>(x));
            let is_full = _mm256_xor_si256(is_room, _mm256_set1_epi32(-1));
            let (compression, count) = permutation(&COMPRESS, is_full);
            let words =
                _mm256_permutevar8x32_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)), compression);
            let words = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            debug_assert!(encoder.start >= 2 * WIDTH);
            // SAFETY: the buffer has two bytes for every symbol and 64 more; words of later symbols
            // needed no more than that.
            unsafe {
                _mm_storeu_si128(encoder.buffer.as_mut_ptr().add(encoder.start - 2 * WIDTH).cast(), words)
            };
            encoder.start -= 2 * count;
            let x = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(x), x, is_room);
            let quotient = quotient_or_one_more(x, frequency);
            let rest = _mm256_sub_epi32(x, _mm256_mullo_epi32(quotient, frequency));
            let is_over = _mm256_srai_epi32::<31>(rest);
            let quotient = _mm256_add_epi32(quotient, is_over);
            let rest = _mm256_add_epi32(rest, _mm256_and_si256(is_over, frequency));
            let base = _mm256_add_epi32(rest, _mm256_srli_epi32::<16>(entry));
            states[part] = _mm256_add_epi32(_mm256_slli_epi32::<12>(quotient), base);
        }
    }
    assert!(_mm256_movemask_epi8(absent) == 0, "a symbol that its table does not have");
    store_states(states, &mut encoder.states);
}

/// x / f for quotients below 2^20. Three roundings leave an error below 2^-2. The last factor
/// shifts the result up, so that truncation gives the quotient or one more.
#[inline]
#[target_feature(enable = "avx2")]
fn quotient_or_one_more(x: __m256i, frequency: __m256i) -> __m256i {
    // AVX2 cannot convert unsigned numbers.
    let high = _mm256_cvtepi32_ps(_mm256_srli_epi32::<16>(x));
    let low = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff)));
    let x = _mm256_add_ps(_mm256_mul_ps(high, _mm256_set1_ps(65536.0)), low);
    let ratio = _mm256_div_ps(x, _mm256_cvtepi32_ps(frequency));
    let above = 1.0 + 4.0 * f32::EPSILON;
    _mm256_cvttps_epi32(_mm256_mul_ps(ratio, _mm256_set1_ps(above)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_states(states: &[u32]) -> [__m256i; VECTORS] {
    assert_eq!(states.len(), LANES);
    // SAFETY: the assertion above checks the length.
    std::array::from_fn(|i| unsafe { _mm256_loadu_si256(states.as_ptr().add(i * WIDTH).cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_states(vectors: [__m256i; VECTORS], states: &mut [u32]) {
    assert_eq!(states.len(), LANES);
    for (i, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the assertion above checks the length.
        unsafe { _mm256_storeu_si256(states.as_mut_ptr().add(i * WIDTH).cast(), vector) };
    }
}
