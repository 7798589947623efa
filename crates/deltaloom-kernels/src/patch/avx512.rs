//! Patches rows one word of the mask at a time: adjacent bytes are expanded into vectors of the
//! base.
//!
//! Rows follow each other as in the portable loops. Where a row or a list ends, only a part of a
//! vector is read or written.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "parts of a mask")]

use std::arch::{asm, x86_64::*};

use super::{Planes, WORD_ELEMS, bits_at, row_words};

/// Number of bytes of a vector.
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
            let values = &values[taken..];
            taken += B * word.count_ones() as usize;
            // SAFETY: the base and `out` have the same length. Whole words have 64 elements of
            // each; for other words the length is checked.
            unsafe {
                if base.len() == WORD_ELEMS * B && values.len() >= WORD_ELEMS * B {
                    bitmap_word::<B, true>(base, *word, values, out);
                } else {
                    assert!(values.len() >= B * word.count_ones() as usize && is_inside::<B>(*word, base));
                    bitmap_word::<B, false>(base, *word, values, out);
                }
            }
        }
    }
    taken
}

/// Whether all set bits of a word belong to elements.
#[inline]
#[target_feature(enable = "bmi2")]
fn is_inside<const B: usize>(word: u64, elements: &[u8]) -> bool {
    _bzhi_u64(word, (elements.len() / B) as u32) == word
}

/// Patches the elements of a word. If it is `WHOLE`, every slice has 64 elements.
///
/// # Safety
/// Needs AVX-512, and as many bytes in `out` as in the base.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt")]
unsafe fn bitmap_word<const B: usize, const WHOLE: bool>(
    base: &[u8],
    mut word: u64,
    values: &[u8],
    out: &mut [u8],
) {
    let mut taken = 0;
    for part in 0..B {
        let these = word & (u64::MAX >> (64 - VECTOR / B));
        // SAFETY: for a whole word, the base and `out` have `B` vectors, and no more values were
        // taken than there are elements before these.
        unsafe {
            let before = load::<WHOLE>(base, part * VECTOR);
            let values = in_register(load::<WHOLE>(values, taken));
            let patched = if B == 2 {
                _mm512_mask_expand_epi16(before, these as __mmask32, values)
            } else {
                _mm512_mask_expand_epi32(before, these as __mmask16, values)
            };
            store::<WHOLE>(out, part * VECTOR, patched);
        }
        taken += B * these.count_ones() as usize;
        word >>= VECTOR / B;
    }
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
    let (mut changed, mut high) = (0, 0);
    let rows = base.chunks_exact(cols * B).zip(out.chunks_exact_mut(cols * B));
    for ((base, out), mask) in rows.zip(planes.mask.chunks_exact(row_words(cols))) {
        let words = base.chunks(WORD_ELEMS * B).zip(out.chunks_mut(WORD_ELEMS * B)).zip(mask);
        for ((base, out), word) in words {
            let count = word.count_ones() as usize;
            let (lows, highs) = (&planes.lows[changed * (B - 1)..], &planes.highs[high..]);
            let top = _pdep_u64(bits_at(planes.tops, planes.first_top + changed, count), *word);
            changed += count;
            high += top.count_ones() as usize;
            let is_whole = base.len() == WORD_ELEMS * B;
            // SAFETY: the base and `out` have the same length. Whole words have 64 elements of
            // each; for other words the length is checked.
            unsafe {
                if is_whole && lows.len() >= WORD_ELEMS * B && highs.len() >= WORD_ELEMS + VECTOR {
                    planes_word::<B, true>(base, [*word, top], [lows, highs], out);
                } else {
                    assert!(lows.len() >= count * (B - 1) && highs.len() >= top.count_ones() as usize);
                    assert!(is_inside::<B>(*word, base));
                    planes_word::<B, false>(base, [*word, top], [lows, highs], out);
                }
            }
        }
    }
    (changed * (B - 1), high)
}

/// Patches the elements of a word. If it is `WHOLE`, every slice has 64 elements, and there is
/// another vector of top bytes.
///
/// # Safety
/// Needs AVX-512, and as many bytes in `out` as in the base.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,bmi1,bmi2,popcnt")]
unsafe fn planes_word<const B: usize, const WHOLE: bool>(
    base: &[u8],
    [mut word, mut top]: [u64; 2],
    [lows, highs]: [&[u8]; 2],
    out: &mut [u8],
) {
    // The lowest byte of every element, and all its bytes but the top one as a multiple of that.
    let (lowest, all_lows) = if B == 2 { (0x5555_5555_5555_5555, 1) } else { (0x1111_1111_1111_1111, 7) };
    let (mut low_at, mut high_at) = (0, 0);
    for part in 0..B {
        let (low, high) = (_pdep_u64(word, lowest) * all_lows, _pdep_u64(top, lowest) << (B - 1));
        // SAFETY: for a whole word, the base and `out` have `B` vectors, and no more bytes were
        // taken than there are elements before these.
        unsafe {
            let before = load::<WHOLE>(base, part * VECTOR);
            let patched = _mm512_mask_expand_epi8(before, low, in_register(load::<WHOLE>(lows, low_at)));
            let patched = _mm512_mask_expand_epi8(patched, high, in_register(load::<WHOLE>(highs, high_at)));
            store::<WHOLE>(out, part * VECTOR, patched);
        }
        low_at += low.count_ones() as usize;
        high_at += high.count_ones() as usize;
        word >>= VECTOR / B;
        top >>= VECTOR / B;
    }
}

/// Loads a vector at `at`. Unless it is `WHOLE`, missing bytes are zero.
///
/// # Safety
/// Needs AVX-512, and 64 bytes if it is `WHOLE`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,bmi2")]
unsafe fn load<const WHOLE: bool>(bytes: &[u8], at: usize) -> __m512i {
    // SAFETY: the caller's promise if it is `WHOLE`; else only existing bytes are read.
    unsafe {
        if WHOLE {
            return _mm512_loadu_si512(bytes.as_ptr().add(at).cast());
        }
        let bytes = &bytes[at.min(bytes.len())..];
        _mm512_maskz_loadu_epi8(first_lanes(bytes.len()), bytes.as_ptr().cast())
    }
}

/// Stores a vector at `at`. Unless it is `WHOLE`, only as much as there is room for.
///
/// # Safety
/// As for [`load`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,bmi2")]
unsafe fn store<const WHOLE: bool>(bytes: &mut [u8], at: usize, vector: __m512i) {
    // SAFETY: the caller's promise if it is `WHOLE`; else only existing bytes are written.
    unsafe {
        if WHOLE {
            return _mm512_storeu_si512(bytes.as_mut_ptr().add(at).cast(), vector);
        }
        let at = at.min(bytes.len());
        let bytes = &mut bytes[at..];
        _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), first_lanes(bytes.len()), vector);
    }
}

/// The first `count` byte lanes, or all.
#[inline]
#[target_feature(enable = "bmi2")]
fn first_lanes(count: usize) -> __mmask64 {
    _bzhi_u64(u64::MAX, count.min(VECTOR) as u32)
}

/// Forces the vector into a register: otherwise the compiler expands from memory, which is many
/// times slower on Zen 4.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_register(mut vector: __m512i) -> __m512i {
    // SAFETY: emits no instruction.
    unsafe { asm!("/* {0} */", inout(zmm_reg) vector, options(pure, nomem, nostack, preserves_flags)) };
    vector
}
