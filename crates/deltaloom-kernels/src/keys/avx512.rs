//! Computes keys of 16- and 32-bit floats and maps them to tables, a vector at a time.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::KEYS;
use crate::Number;

/// Computes the keys of a part of a row of 16-bit floats; `col_scales` is empty or has one scale
/// per element.
///
/// # Safety
/// Needs the features below; `values` has two bytes for every byte of `out`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn row_keys_16(
    number: Number,
    base: i32,
    col_scales: &[i32],
    values: &[u8],
    out: &mut [u8],
) {
    let shift = _mm_cvtsi64_si128(number.mantissa_bits().into());
    let mask = _mm512_set1_epi16((1 << number.exponent_bits()) - 1);
    let base = _mm512_set1_epi32(base);
    // Saturation is harmless: exponents have at most 10 bits, so beyond 15 bits the key is 0 or 255
    // anyway.
    let half = |scales| _mm512_cvtsepi32_epi16(_mm512_add_epi32(base, scales));
    let join = |low, high| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
    let mut subtrahend = join(half(_mm512_setzero_si512()), half(_mm512_setzero_si512()));
    for (i, out) in out.chunks_mut(32).enumerate() {
        let lanes: u32 = lowest(out.len());
        if !col_scales.is_empty() {
            let [low, high] = [0, 16].map(|from| {
                let scales = col_scales.get(32 * i + from..).unwrap_or_default();
                // SAFETY: lanes past the end are not read.
                unsafe {
                    _mm512_maskz_loadu_epi32(
                        (lanes >> from & 0xffff) as u16 & present(scales),
                        scales.as_ptr(),
                    )
                }
            });
            subtrahend = join(half(low), half(high));
        }
        // SAFETY: there are two bytes for each of the lanes.
        let x = unsafe { _mm512_maskz_loadu_epi16(lanes, values.as_ptr().add(64 * i).cast()) };
        let exponent = _mm512_and_si512(_mm512_srl_epi16(x, shift), mask);
        let key = _mm512_subs_epi16(_mm512_slli_epi16::<2>(exponent), subtrahend);
        let key = _mm512_cvtusepi16_epi8(_mm512_max_epi16(key, _mm512_setzero_si512()));
        // SAFETY: lanes past the end are not written.
        unsafe { _mm256_mask_storeu_epi8(out.as_mut_ptr().cast(), lanes, key) };
    }
}

/// Computes the keys of a part of a row of 32-bit floats; as [`row_keys_16`].
///
/// # Safety
/// Needs the features below; `values` has four bytes for every byte of `out`.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn row_keys_32(
    number: Number,
    base: i32,
    col_scales: &[i32],
    values: &[u8],
    out: &mut [u8],
) {
    let shift = _mm_cvtsi64_si128(number.mantissa_bits().into());
    let mask = _mm512_set1_epi32((1 << number.exponent_bits()) - 1);
    let base = _mm512_set1_epi32(base);
    for (i, out) in out.chunks_mut(16).enumerate() {
        let lanes: u16 = lowest(out.len());
        let scales = col_scales.get(16 * i..).unwrap_or_default();
        // SAFETY: lanes past the ends are not read: there are four bytes for each of the lanes.
        let (scales, x) = unsafe {
            (
                _mm512_maskz_loadu_epi32(lanes & present(scales), scales.as_ptr()),
                _mm512_maskz_loadu_epi32(lanes, values.as_ptr().add(64 * i).cast()),
            )
        };
        let exponent = _mm512_and_si512(_mm512_srl_epi32(x, shift), mask);
        let key = _mm512_sub_epi32(_mm512_slli_epi32::<2>(exponent), _mm512_add_epi32(base, scales));
        let key = _mm512_cvtusepi32_epi8(_mm512_max_epi32(key, _mm512_setzero_si512()));
        // SAFETY: lanes past the end are not written.
        unsafe { _mm_mask_storeu_epi8(out.as_mut_ptr().cast(), lanes, key) };
    }
}

/// Replaces every key by its table.
///
/// # Safety
/// Needs the features below.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn map_keys(keys: &mut [u8], map: &[u8; KEYS]) {
    // SAFETY: the map is four vectors.
    let quarter = |i: usize| unsafe { _mm512_loadu_si512(map.as_ptr().add(64 * i).cast()) };
    let [a, b, c, d] = [quarter(0), quarter(1), quarter(2), quarter(3)];
    for keys in keys.chunks_mut(64) {
        let lanes: u64 = lowest(keys.len());
        // SAFETY: lanes past the end are not read or written.
        unsafe {
            let key = _mm512_maskz_loadu_epi8(lanes, keys.as_ptr().cast());
            let (low, high) = (_mm512_permutex2var_epi8(a, key, b), _mm512_permutex2var_epi8(c, key, d));
            let table = _mm512_mask_blend_epi8(_mm512_movepi8_mask(key), low, high);
            _mm512_mask_storeu_epi8(keys.as_mut_ptr().cast(), lanes, table);
        }
    }
}

/// The lowest `count` lanes, at most 64.
fn lowest<M: TryFrom<u64> + Default>(count: usize) -> M {
    let mask = u64::MAX.checked_shr(64u32.saturating_sub(u32::try_from(count).unwrap_or(64))).unwrap_or(0);
    M::try_from(mask).unwrap_or_default()
}

/// The lanes that have scales.
fn present(scales: &[i32]) -> u16 {
    lowest(scales.len().min(16))
}
