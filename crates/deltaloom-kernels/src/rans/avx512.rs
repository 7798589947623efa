//! rANS on sixteen lanes per vector: tables by gather, words by expansion and compression.
#![expect(unsafe_code, reason = "vector loads, stores and gathers")]

use std::arch::x86_64::*;

use super::{Contexts, Decoder, Encoder, LANES};

/// Rounds up, so that a quotient is exact or one too large.
const UP: i32 = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
/// Number of lanes of a vector.
const WIDTH: usize = 16;

/// Decodes whole steps of a stream of [`LANES`] lanes while there is a word for every lane.
///
/// # Safety
/// Needs the features below; every context must name a table of `decoder.slots`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn decode(decoder: &mut Decoder<'_>) {
    let mut states = load_states(decoder.states);
    while decoder.has_wide_step() {
        // SAFETY: there is a step, and contexts are in range by this function's contract.
        unsafe { decode_step(decoder, &mut states) };
    }
    store_states(states, decoder.states);
}

/// Decodes two streams, alternating steps: one waits for its tables while the other computes.
///
/// # Safety
/// As for [`decode`].
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn decode_two(a: &mut Decoder<'_>, b: &mut Decoder<'_>) {
    let (mut a_states, mut b_states) = (load_states(a.states), load_states(b.states));
    while a.has_wide_step() && b.has_wide_step() {
        // SAFETY: there is a step of each, and contexts are in range by this function's contract.
        unsafe {
            decode_step(a, &mut a_states);
            decode_step(b, &mut b_states);
        }
    }
    store_states(a_states, a.states);
    store_states(b_states, b.states);
}

/// # Safety
/// `decoder.has_wide_step()`, and every context names a table.
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
unsafe fn decode_step(decoder: &mut Decoder<'_>, states: &mut [__m512i; 2]) {
    let slots = decoder.slots.as_ptr().cast::<i32>();
    for (half, x) in states.iter_mut().enumerate() {
        let first = decoder.done + half * WIDTH;
        let slot_in_table = _mm512_and_si512(*x, _mm512_set1_epi32(0xfff));
        let slot = match decoder.contexts {
            Contexts::Single => slot_in_table,
            Contexts::PerSymbol(contexts) => {
                // SAFETY: there are as many contexts as symbols, and a whole step of symbols is
                // left.
                let contexts = unsafe { _mm_loadu_si128(contexts.as_ptr().add(first).cast()) };
                _mm512_or_si512(_mm512_slli_epi32::<12>(_mm512_cvtepu8_epi32(contexts)), slot_in_table)
            }
        };
        // SAFETY: contexts name tables, and each table has a slot for all 12-bit numbers.
        let slot = unsafe { _mm512_i32gather_epi32::<4>(slot, slots) };
        // SAFETY: a whole step of symbols is left.
        unsafe { _mm_storeu_si128(decoder.out.as_mut_ptr().add(first).cast(), _mm512_cvtepi32_epi8(slot)) };
        let frequency_less_1 = _mm512_and_si512(_mm512_srli_epi32::<8>(slot), _mm512_set1_epi32(0xfff));
        let frequency = _mm512_add_epi32(frequency_less_1, _mm512_set1_epi32(1));
        let quotient = _mm512_srli_epi32::<12>(*x);
        let next = _mm512_add_epi32(_mm512_mullo_epi32(frequency, quotient), _mm512_srli_epi32::<20>(slot));
        let is_short = _mm512_cmplt_epu32_mask(next, _mm512_set1_epi32(0x1_0000));
        // SAFETY: the step has 64 bytes of words; this half takes at most 32, as did the one before
        // it.
        let words = unsafe { _mm256_loadu_si256(decoder.words.as_ptr().add(decoder.at).cast()) };
        let words = _mm512_maskz_expand_epi32(is_short, _mm512_cvtepu16_epi32(words));
        *x = _mm512_mask_or_epi32(next, is_short, _mm512_slli_epi32::<16>(next), words);
        decoder.at += 2 * is_short.count_ones() as usize;
    }
    decoder.done += LANES;
}

/// Encodes `encoder.symbols[..full]`, last ones first; `full` is a multiple of [`LANES`].
///
/// # Safety
/// Needs the features below; every context must name a table of `encoder.entries`, and there must
/// be `full` symbols and contexts.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn encode(encoder: &mut Encoder<'_>, full: usize) {
    let reversed = _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let reversed_bytes = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // The low word of every number, the last one first.
    let low_words_reversed = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_slli_epi32::<1>(reversed)));
    // Lanes are kept in encoding order, the last one first, so that compression puts words into
    // that order.
    let mut states = load_states(&encoder.states).map(|x| _mm512_permutexvar_epi32(reversed, x));
    let entries = encoder.entries.as_ptr().cast::<i32>();
    let mut absent = 0;
    for step in (0..full / LANES).rev() {
        for half in [1, 0] {
            let first = step * LANES + half * WIDTH;
            // SAFETY: a whole step of symbols starts here.
            let symbols = unsafe { _mm_loadu_si128(encoder.symbols.as_ptr().add(first).cast()) };
            let symbols = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(symbols, reversed_bytes));
            let index = match encoder.contexts {
                Contexts::Single => symbols,
                Contexts::PerSymbol(contexts) => {
                    // SAFETY: there are as many contexts as symbols.
                    let contexts = unsafe { _mm_loadu_si128(contexts.as_ptr().add(first).cast()) };
                    let contexts = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(contexts, reversed_bytes));
                    _mm512_or_si512(_mm512_slli_epi32::<8>(contexts), symbols)
                }
            };
            // SAFETY: contexts name tables, and each table has an entry for all 8-bit symbols.
            let entry = unsafe { _mm512_i32gather_epi32::<4>(index, entries) };
            let frequency = _mm512_and_si512(entry, _mm512_set1_epi32(0xffff));
            absent |= _mm512_testn_epi32_mask(frequency, frequency);
            let x = states[half];
            let is_full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32::<20>(x), frequency);
            let words = _mm512_maskz_compress_epi32(is_full, x);
            let words = _mm512_castsi512_si256(_mm512_permutexvar_epi16(low_words_reversed, words));
            debug_assert!(encoder.start >= 2 * WIDTH);
            // SAFETY: the buffer has two bytes for every symbol and 64 more; words of later symbols
            // needed no more than that.
            unsafe {
                _mm256_storeu_si256(encoder.buffer.as_mut_ptr().add(encoder.start - 2 * WIDTH).cast(), words)
            };
            encoder.start -= 2 * is_full.count_ones() as usize;
            let x = _mm512_mask_srli_epi32::<16>(x, is_full, x);
            // x / f is below 2^20 and its error is below 2^-3, so after rounding up three times it
            // is the quotient or one more.
            let ratio =
                _mm512_div_round_ps::<UP>(_mm512_cvt_roundepu32_ps::<UP>(x), _mm512_cvtepi32_ps(frequency));
            let quotient = _mm512_cvttps_epi32(ratio);
            let rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(quotient, frequency));
            let is_over = _mm512_movepi32_mask(rest);
            let quotient = _mm512_mask_sub_epi32(quotient, is_over, quotient, _mm512_set1_epi32(1));
            let rest = _mm512_mask_add_epi32(rest, is_over, rest, frequency);
            let base = _mm512_add_epi32(rest, _mm512_srli_epi32::<16>(entry));
            states[half] = _mm512_add_epi32(_mm512_slli_epi32::<12>(quotient), base);
        }
    }
    assert!(absent == 0, "a symbol that its table does not have");
    store_states(states.map(|x| _mm512_permutexvar_epi32(reversed, x)), &mut encoder.states);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_states(states: &[u32]) -> [__m512i; 2] {
    assert_eq!(states.len(), LANES);
    // SAFETY: 32 states are two vectors.
    unsafe {
        [_mm512_loadu_si512(states.as_ptr().cast()), _mm512_loadu_si512(states.as_ptr().add(WIDTH).cast())]
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_states([low, high]: [__m512i; 2], states: &mut [u32]) {
    assert_eq!(states.len(), LANES);
    // SAFETY: 32 states are two vectors.
    unsafe {
        _mm512_storeu_si512(states.as_mut_ptr().cast(), low);
        _mm512_storeu_si512(states.as_mut_ptr().add(WIDTH).cast(), high);
    }
}
