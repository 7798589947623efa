//! Maps keys to tables, a vector at a time. Computing the keys needs no code here: the compiler
//! vectorises the portable body as well.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::KEYS;

/// Number of keys in a vector.
const BYTES: usize = 32;

/// Replaces every key by its table.
///
/// # Safety
/// Needs the features below.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn map_keys(keys: &mut [u8], map: &[u8; KEYS]) {
    // Sixteen tables per list. The key is lowered by 16 per list, and a lookup with a negative byte
    // gives 0. So the lists up to the key's own are combined by xor. Each list therefore stores its
    // xor with the list before it.
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
        // As signed bytes, keys from 128 on are negative.
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
