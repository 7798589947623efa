//! Keys of 16- and 32-bit floats and their tables, a vector at a time.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::{KEYS, row_elements};
use crate::Number;

/// Elements of a vector of 16-bit floats, and keys of one.
const WIDE: usize = 16;
const BYTES: usize = 32;

/// Keys of a part of a row of 16-bit floats; `col_scales` is empty or has one per element.
///
/// # Safety
/// Needs the features below; `values` has two bytes for every byte of `out`.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn row_keys_16(
    number: Number,
    base: i32,
    col_scales: &[i32],
    values: &[u8],
    out: &mut [u8],
) {
    let shift = _mm_cvtsi32_si128(number.mantissa_bits().cast_signed());
    let mask = _mm256_set1_epi16((1 << number.exponent_bits()) - 1);
    let base_8 = _mm256_set1_epi32(base);
    // Saturation keeps its side: exponents take at most 10 bits, so beyond 15 the key is 0 or 255 anyway.
    let mut subtrahend = _mm256_packs_epi32(base_8, base_8);
    let full = out.len() / WIDE * WIDE;
    let (out, out_rest) = out.split_at_mut(full);
    let (values, values_rest) = values.split_at(2 * full);
    let (scales, scales_rest) = col_scales.split_at(full.min(col_scales.len()));
    for (i, (out, values)) in out.chunks_exact_mut(WIDE).zip(values.chunks_exact(2 * WIDE)).enumerate() {
        if let Some(scales) = scales.get(WIDE * i..WIDE * (i + 1)) {
            // SAFETY: there are 16 scales.
            let [low, high] = [0, 8].map(|from| unsafe {
                _mm256_add_epi32(base_8, _mm256_loadu_si256(scales.as_ptr().add(from).cast()))
            });
            subtrahend = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        }
        // SAFETY: there are 32 bytes.
        let x = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
        let exponent = _mm256_and_si256(_mm256_srl_epi16(x, shift), mask);
        let key = _mm256_subs_epi16(_mm256_slli_epi16::<2>(exponent), subtrahend);
        let key = _mm_packus_epi16(_mm256_castsi256_si128(key), _mm256_extracti128_si256::<1>(key));
        // SAFETY: there are 16 bytes.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), key) };
    }
    row_elements::<2>(number, base, scales_rest, values_rest, out_rest);
}

/// Replaces every key by its table.
///
/// # Safety
/// Needs the features below.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn map_keys(keys: &mut [u8], map: &[u8; KEYS]) {
    // Sixteen tables to a list. A lookup of a byte below 0 gives 0, so lists from the first one on are added up while 16 at a time are taken off a
    // key: each is stored as what it differs from the one before it.
    let mut lists = [_mm256_setzero_si256(); KEYS / 16];
    for (i, list) in lists.iter_mut().enumerate() {
        // SAFETY: both reads are within the map.
        let [here, before] = [i, i - i.min(1)].map(|i| unsafe {
            _mm256_broadcastsi128_si256(_mm_loadu_si128(map.as_ptr().add(16 * i).cast()))
        });
        *list = if i % 8 == 0 { here } else { _mm256_xor_si256(here, before) };
    }
    let (low_lists, high_lists) = lists.split_at(KEYS / 32);
    let mut vectors = keys.chunks_exact_mut(BYTES);
    for keys in &mut vectors {
        // SAFETY: there are 32 bytes.
        let key = unsafe { _mm256_loadu_si256(keys.as_ptr().cast()) };
        // Keys from 128 on are below 0.
        let (mut low, mut high) = (key, _mm256_xor_si256(key, _mm256_set1_epi8(-128)));
        let mut table = _mm256_setzero_si256();
        for (low_list, high_list) in low_lists.iter().zip(high_lists) {
            let both =
                _mm256_xor_si256(_mm256_shuffle_epi8(*low_list, low), _mm256_shuffle_epi8(*high_list, high));
            table = _mm256_xor_si256(table, both);
            low = _mm256_subs_epi8(low, _mm256_set1_epi8(16));
            high = _mm256_subs_epi8(high, _mm256_set1_epi8(16));
        }
        // SAFETY: there are 32 bytes.
        unsafe { _mm256_storeu_si256(keys.as_mut_ptr().cast(), table) };
    }
    vectors.into_remainder().iter_mut().for_each(|key| *key = map[usize::from(*key)]);
}
