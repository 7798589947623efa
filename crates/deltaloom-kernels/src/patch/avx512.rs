//! Rows patched a word of the mask at a time: bytes that stand side by side are expanded into vectors of the base, in registers, since expansion from memory is slow on Zen 4.
//! Words at the end of a row, and those before the end of a list, are left to the portable loops, which check every place.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "parts of a mask")]

use std::arch::x86_64::*;

use super::{Planes, WORD_ELEMS, bitmap_body, bits_at, planes_body, row_words};

/// Bytes of a vector.
const VECTOR: usize = 64;

/// See [`super::bitmap_rows`], for elements of `B` bytes.
///
/// # Safety
/// Needs the features below, and lengths that fit.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn bitmap<const B: usize>(
    cols: usize,
    base: &[u8],
    mask: &[u64],
    values: &[u8],
    out: &mut [u8],
) -> usize {
    let mut taken = 0;
    let rows = base.chunks_exact(cols * B).zip(out.chunks_exact_mut(cols * B));
    for ((base, out), mask) in rows.zip(mask.chunks_exact(row_words(cols))) {
        let words = base.chunks(WORD_ELEMS * B).zip(out.chunks_mut(WORD_ELEMS * B)).zip(mask);
        for ((base, out), word) in words {
            let left = &values[taken..];
            if base.len() < WORD_ELEMS * B || left.len() < WORD_ELEMS * B {
                taken += bitmap_body::<B>(base.len() / B, base, std::slice::from_ref(word), left, out);
                continue;
            }
            // SAFETY: there are 64 elements of the base, of `out` and of the values.
            taken += unsafe { bitmap_word::<B>(base.as_ptr(), *word, left.as_ptr(), out.as_mut_ptr()) };
        }
    }
    taken
}

/// Patches the elements of a word and gives how many bytes were taken.
///
/// # Safety
/// Needs AVX-512, and 64 elements of `B` bytes each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt")]
unsafe fn bitmap_word<const B: usize>(
    base: *const u8,
    mut word: u64,
    values: *const u8,
    out: *mut u8,
) -> usize {
    let mut taken = 0;
    for part in 0..B {
        let lanes = VECTOR / B;
        let these = word & (u64::MAX >> (64 - lanes));
        // SAFETY: the base and `out` have `B` vectors, and at most as many values were taken as there are elements before these.
        unsafe {
            let base = _mm512_loadu_si512(base.add(part * VECTOR).cast());
            let values = _mm512_loadu_si512(values.add(taken).cast());
            let patched = if B == 2 {
                _mm512_mask_expand_epi16(base, these as __mmask32, values)
            } else {
                _mm512_mask_expand_epi32(base, these as __mmask16, values)
            };
            _mm512_storeu_si512(out.add(part * VECTOR).cast(), patched);
        }
        taken += B * these.count_ones() as usize;
        word >>= lanes % 64;
    }
    taken
}

/// See [`super::planes_rows`], for elements of `B` bytes.
///
/// # Safety
/// Needs the features below, and lengths that fit.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn planes<const B: usize>(
    cols: usize,
    base: &[u8],
    planes: Planes<'_>,
    out: &mut [u8],
) -> (usize, usize) {
    let Planes { mask, tops, first_top, lows, highs } = planes;
    let (mut low, mut high) = (0, 0);
    let rows = base.chunks_exact(cols * B).zip(out.chunks_exact_mut(cols * B));
    for ((base, out), mask) in rows.zip(mask.chunks_exact(row_words(cols))) {
        let words = base.chunks(WORD_ELEMS * B).zip(out.chunks_mut(WORD_ELEMS * B)).zip(mask);
        for ((base, out), word) in words {
            let (lows, highs, first_top) = (&lows[low..], &highs[high..], first_top + low / (B - 1));
            let is_whole = base.len() == WORD_ELEMS * B;
            if !is_whole || lows.len() < WORD_ELEMS * B || highs.len() < WORD_ELEMS + VECTOR {
                let mask = std::slice::from_ref(word);
                let planes = Planes { mask, tops, first_top, lows, highs };
                let taken = planes_body::<B>(base.len() / B, base, planes, out);
                (low, high) = (low + taken.0, high + taken.1);
                continue;
            }
            let top = _pdep_u64(bits_at(tops, first_top, word.count_ones() as usize), *word);
            // SAFETY: there are 64 elements of the base and of `out`, as many low bytes and a vector, and as many top bytes and a vector.
            unsafe {
                planes_word::<B>(
                    base.as_ptr(),
                    [*word, top],
                    [lows.as_ptr(), highs.as_ptr()],
                    out.as_mut_ptr(),
                );
            }
            low += (B - 1) * word.count_ones() as usize;
            high += top.count_ones() as usize;
        }
    }
    (low, high)
}

/// Patches the elements of a word.
///
/// # Safety
/// Needs AVX-512, 64 elements of `B` bytes, 64 times `B` low bytes, and two vectors of top bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt")]
unsafe fn planes_word<const B: usize>(
    base: *const u8,
    [mut word, mut top]: [u64; 2],
    [mut lows, mut highs]: [*const u8; 2],
    out: *mut u8,
) {
    // The lowest byte of every element, and all of its bytes but the top one as multiples of it.
    let (lowest, all_lows) = if B == 2 { (0x5555_5555_5555_5555, 1) } else { (0x1111_1111_1111_1111, 7) };
    for part in 0..B {
        let (low, high) = (_pdep_u64(word, lowest) * all_lows, _pdep_u64(top, lowest) << (B - 1));
        // SAFETY: the base and `out` have `B` vectors, and at most as many bytes were taken as there are elements before these.
        unsafe {
            let base = _mm512_loadu_si512(base.add(part * VECTOR).cast());
            let patched = _mm512_mask_expand_epi8(base, low, _mm512_loadu_si512(lows.cast()));
            let patched = _mm512_mask_expand_epi8(patched, high, _mm512_loadu_si512(highs.cast()));
            _mm512_storeu_si512(out.add(part * VECTOR).cast(), patched);
            lows = lows.add(low.count_ones() as usize);
            highs = highs.add(high.count_ones() as usize);
        }
        word >>= VECTOR / B % 64;
        top >>= VECTOR / B % 64;
    }
}
