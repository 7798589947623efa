//! A lane for every row. The weights of a block are turned and widened into the first-level cache,
//! and sixteen rows make two vectors, so that four sums hide the time of an addition.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::{Activations, BLOCK, BLOCK_BYTES, GROUPS_AHEAD, LEAST_WEIGHT, ROWS, Turned, WEIGHT, block};

/// Columns that are multiplied at a time: four sums each.
const COLUMNS: usize = 3;
/// Rows in a vector.
const LANES: usize = 8;

/// See [`super::Body`].
pub(super) fn add_products(weights: &[u8], x: &Activations, numbers: &[f32], sums: &mut [f32]) -> bool {
    assert!(numbers.len() == x.columns() * x.padded() && sums.len() == x.columns() * ROWS);
    // SAFETY: the caller has seen that `isa` allows AVX2, which includes FMA. The lengths were
    // compared.
    unsafe { add_all(weights, x, numbers, sums) }
}

/// # Safety
/// Needs the features below, and numbers and sums for every column.
#[target_feature(enable = "avx2,fma")]
unsafe fn add_all(weights: &[u8], x: &Activations, numbers: &[f32], sums: &mut [f32]) -> bool {
    let (row_bytes, padded, all) = (x.cols * WEIGHT, x.padded(), x.columns());
    let is_whole = weights.len() == ROWS * row_bytes;
    let mut turned = Turned::new();
    let mut least = _mm256_set1_epi16(-1);
    for at in (0..x.cols).step_by(BLOCK) {
        if is_whole && at + BLOCK <= x.cols {
            let next = weights.as_ptr().wrapping_add(ROWS * (GROUPS_AHEAD * row_bytes + at * WEIGHT));
            let weights = weights.as_ptr().wrapping_add(at * WEIGHT);
            // SAFETY: sixteen rows have a whole block from `at` on.
            unsafe { turn(weights, row_bytes, next, &mut turned, &mut least) };
        } else {
            let block = block(weights, x.cols, at);
            // SAFETY: a block has sixteen rows.
            unsafe { turn(block.as_ptr().cast(), BLOCK_BYTES, std::ptr::null(), &mut turned, &mut least) };
        }
        let mut first = 0;
        while first < all {
            let numbers = numbers[first * padded..].as_ptr().wrapping_add(at);
            let sums = sums[first * ROWS..].as_mut_ptr();
            // SAFETY: there are that many columns from the first one on, and sums for them.
            first += unsafe {
                match all - first {
                    1 => add_columns::<1>(&turned, numbers, padded, sums),
                    2 => add_columns::<2>(&turned, numbers, padded, sums),
                    _ => add_columns::<COLUMNS>(&turned, numbers, padded, sums),
                }
            };
        }
    }
    let limit = _mm256_set1_epi16((2 * LEAST_WEIGHT - 1).cast_signed());
    let all = _mm256_cmpeq_epi16(_mm256_max_epu16(least, limit), least);
    _mm256_movemask_epi8(all) == -1
}

/// Adds the products of a block with `N` columns. Returns `N`.
///
/// # Safety
/// Needs AVX2 and FMA, a block of numbers for each column, `padded` apart, and sixteen sums for
/// each.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_columns<const N: usize>(
    turned: &Turned,
    numbers: *const f32,
    padded: usize,
    sums: *mut f32,
) -> usize {
    let (mut even, mut odd) = ([[_mm256_setzero_ps(); 2]; N], [[_mm256_setzero_ps(); 2]; N]);
    for (pair, [first, second]) in turned.0.as_chunks::<2>().0.iter().enumerate() {
        let numbers = numbers.wrapping_add(2 * pair);
        // SAFETY: each column has a whole block.
        unsafe {
            add_column(&mut even, first, numbers, padded);
            add_column(&mut odd, second, numbers.add(1), padded);
        }
    }
    for n in 0..N {
        for half in 0..2 {
            let sums = sums.wrapping_add(n * ROWS + half * LANES);
            let added = _mm256_add_ps(even[n][half], odd[n][half]);
            // SAFETY: column `n` has sixteen sums.
            unsafe { _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), added)) };
        }
    }
    N
}

/// Adds the products of a column of weights with a number of each column of activations.
///
/// # Safety
/// Needs AVX2 and FMA, and such numbers, `padded` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_column<const N: usize>(
    sums: &mut [[__m256; 2]; N],
    weights: &[f32; ROWS],
    x: *const f32,
    padded: usize,
) {
    let weights = weights.as_ptr();
    // SAFETY: sixteen numbers are two vectors.
    let weights = unsafe { [_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(LANES))] };
    for (n, sums) in sums.iter_mut().enumerate() {
        // SAFETY: there is a number of column `n`.
        let x = unsafe { _mm256_broadcast_ss(&*x.wrapping_add(n * padded)) };
        sums[0] = _mm256_fmadd_ps(weights[0], x, sums[0]);
        sums[1] = _mm256_fmadd_ps(weights[1], x, sums[1]);
    }
}

/// Turns and widens a block of sixteen rows, and keeps the smallest weights.
///
/// # Safety
/// Needs AVX2, and a block of each row; rows are `row_bytes` apart. `next` is soon needed.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn turn(
    weights: *const u8,
    row_bytes: usize,
    next: *const u8,
    turned: &mut Turned,
    least: &mut __m256i,
) {
    let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
    for line in 0..ROWS {
        // To ask for what is not there does no harm.
        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line * BLOCK_BYTES).cast());
    }
    for half in 0..2 {
        for part in 0..2 {
            let mut rows = [_mm256_setzero_si256(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                // SAFETY: each row has a block, which is two vectors.
                *row = unsafe {
                    _mm256_loadu_si256(weights.add((half * LANES + i) * row_bytes + part * 32).cast())
                };
                // Without the sign. 0 becomes the largest one.
                let sizes = _mm256_sub_epi16(_mm256_add_epi16(*row, *row), _mm256_set1_epi16(1));
                *least = _mm256_min_epu16(*least, sizes);
            }
            for (pair, word) in turned_words(rows).into_iter().enumerate() {
                let columns = [_mm256_slli_epi32::<16>(word), _mm256_and_si256(word, upper)];
                for (i, column) in columns.into_iter().enumerate() {
                    let out = &mut turned.0[part * 16 + 2 * pair + i][half * LANES..][..LANES];
                    // SAFETY: eight numbers are a vector.
                    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_castsi256_ps(column)) };
                }
            }
        }
    }
}

/// Turns eight rows of eight words: a vector then has one word of every row.
#[inline]
#[target_feature(enable = "avx2")]
fn turned_words(rows: [__m256i; LANES]) -> [__m256i; LANES] {
    let mut a = rows;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..2 {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for i in 0..4 {
        a[i] = _mm256_permute2x128_si256::<0x20>(b[i], b[4 + i]);
        a[4 + i] = _mm256_permute2x128_si256::<0x31>(b[i], b[4 + i]);
    }
    a
}
