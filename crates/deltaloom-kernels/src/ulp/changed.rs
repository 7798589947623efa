//! Finds elements that differ from their prediction, with AVX2: masks of lanes, and a list of lanes
//! for every mask.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "elements of a vector")]

use std::arch::x86_64::*;

use super::avx2::load;

/// The lanes of every mask, one per byte.
static LANES_OF_MASK: [u64; 256] = {
    let mut all = [0; 256];
    let mut mask = 0;
    while mask < all.len() {
        let (mut lane, mut found) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                all[mask] |= lane << (8 * found);
                found += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    all
};

/// Returns the positions of the elements of `B` bytes, 2 or 4, that differ; see
/// [`super::changed_positions`].
///
/// # Safety
/// Needs the features below. Both sides must have the same length, in whole elements.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn changed_positions<const B: usize>(target: &[u8], prediction: &[u8]) -> Vec<u32> {
    let mut positions: Vec<u32> = Vec::new();
    let mut found = 0;
    let mut first = 0;
    for (target, prediction) in target.chunks(64).zip(prediction.chunks(64)) {
        let mut ends = [[0; 64]; 2];
        let (mut t, mut p) = (target, prediction);
        if target.len() < 64 {
            // The padding at both ends is equal.
            ends[0][..target.len()].copy_from_slice(target);
            ends[1][..target.len()].copy_from_slice(prediction);
            (t, p) = (&ends[0], &ends[1]);
        }
        // SAFETY: both are 64 bytes.
        let [t0, p0, t1, p1] = unsafe { [load(t), load(p), load(&t[32..]), load(&p[32..])] };
        let equal = if B == 2 {
            let equal = _mm256_packs_epi16(_mm256_cmpeq_epi16(t0, p0), _mm256_cmpeq_epi16(t1, p1));
            _mm256_movemask_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(equal))
        } else {
            let low = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(t0, p0)));
            let high = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(t1, p1)));
            low | high << 8 | !0xffff
        };
        let mut changed = !equal.cast_unsigned();
        let mut at = first;
        while changed != 0 {
            if positions.len() < found + 8 {
                positions.resize(2 * positions.len() + 512, 0);
            }
            let eight = (changed & 0xff) as usize;
            let lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(LANES_OF_MASK[eight].cast_signed()));
            let numbers = _mm256_add_epi32(lanes, _mm256_set1_epi32(at));
            // SAFETY: there is room for a vector.
            unsafe { _mm256_storeu_si256(positions.as_mut_ptr().add(found).cast(), numbers) };
            found += eight.count_ones() as usize;
            changed >>= 8;
            at += 8;
        }
        first += 64 / B as i32;
    }
    positions.truncate(found);
    positions
}
