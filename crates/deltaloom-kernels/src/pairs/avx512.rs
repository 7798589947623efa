//! A lane for every row. The weights of a block are turned and widened into the first-level cache.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::{
    Activations, BLOCK, BLOCK_BYTES, GROUPS_AHEAD, LEAST_WEIGHT, Line, ROWS, TILE, Turned, WEIGHT, block,
};

/// Columns that are multiplied at a time: two sums each.
const COLUMNS: usize = 12;
/// So few columns are multiplied with weights that stay in registers.
const FEW: usize = 6;

/// See [`super::Body`].
pub(super) fn add_products(weights: &[u8], x: &Activations, numbers: &[f32], sums: &mut [f32]) -> bool {
    assert!(numbers.len() == x.columns() * x.padded() && sums.len() == x.columns() * ROWS);
    // SAFETY: the caller has seen that `isa` allows AVX-512. The lengths were compared.
    unsafe { add_all(weights, x, numbers, sums) }
}

/// # Safety
/// Needs the features below, and numbers and sums for every column.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,avx512vbmi2")]
unsafe fn add_all(weights: &[u8], x: &Activations, numbers: &[f32], sums: &mut [f32]) -> bool {
    let (row_bytes, padded, all) = (x.cols * WEIGHT, x.padded(), x.columns());
    let is_whole = weights.len() == ROWS * row_bytes;
    let mut turned = Turned::new();
    let mut least = _mm512_set1_epi16(-1);
    for at in (0..x.cols).step_by(BLOCK) {
        let words = if is_whole && at + BLOCK <= x.cols {
            let next = weights.as_ptr().wrapping_add(ROWS * (GROUPS_AHEAD * row_bytes + at * WEIGHT));
            let weights = weights.as_ptr().wrapping_add(at * WEIGHT);
            // SAFETY: sixteen rows have a whole block from `at` on.
            unsafe { turned_words(weights, row_bytes, next, &mut least) }
        } else {
            let block = block(weights, x.cols, at);
            // SAFETY: a block has sixteen rows.
            unsafe { turned_words(block.as_ptr().cast(), BLOCK_BYTES, std::ptr::null(), &mut least) }
        };
        if all <= FEW {
            let pair = |number: usize| widened(words[number]);
            let (numbers, sums) = (numbers.as_ptr().wrapping_add(at), sums.as_mut_ptr());
            // SAFETY: there are that many columns, and sums for them.
            unsafe {
                match all {
                    1 => add_columns::<1>(pair, numbers, padded, sums),
                    2 => add_columns::<2>(pair, numbers, padded, sums),
                    3 => add_columns::<3>(pair, numbers, padded, sums),
                    4 => add_columns::<4>(pair, numbers, padded, sums),
                    5 => add_columns::<5>(pair, numbers, padded, sums),
                    _ => add_columns::<FEW>(pair, numbers, padded, sums),
                };
            }
            continue;
        }
        for (words, columns) in words.into_iter().zip(turned.0.as_chunks_mut::<2>().0) {
            for (column, numbers) in columns.iter_mut().zip(widened(words)) {
                // SAFETY: sixteen numbers are a vector.
                unsafe { _mm512_storeu_ps(column.as_mut_ptr(), numbers) };
            }
        }
        let pair = |number: usize| {
            let [first, second] = &turned.0.as_chunks::<2>().0[number];
            // SAFETY: sixteen numbers are a vector.
            unsafe { [_mm512_loadu_ps(first.as_ptr()), _mm512_loadu_ps(second.as_ptr())] }
        };
        let mut first = 0;
        while first < all {
            let numbers = numbers[first * padded..].as_ptr().wrapping_add(at);
            let sums = sums[first * ROWS..].as_mut_ptr();
            // SAFETY: there are that many columns from the first one on, and sums for them.
            first += unsafe {
                match all - first {
                    1 => add_columns::<1>(pair, numbers, padded, sums),
                    2 => add_columns::<2>(pair, numbers, padded, sums),
                    3..6 => add_columns::<3>(pair, numbers, padded, sums),
                    6..COLUMNS => add_columns::<6>(pair, numbers, padded, sums),
                    _ => add_columns::<COLUMNS>(pair, numbers, padded, sums),
                }
            };
        }
    }
    let limit = _mm512_set1_epi16((2 * LEAST_WEIGHT - 1).cast_signed());
    _mm512_cmplt_epu16_mask(least, limit) == 0
}

/// Adds the products of a block with `N` columns. `pair` gives the weights of two columns of the
/// block for sixteen rows. Returns `N`.
///
/// # Safety
/// Needs AVX-512, a block of numbers for each column, `padded` apart, and sixteen sums for each.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_columns<const N: usize>(
    pair: impl Fn(usize) -> [__m512; 2],
    numbers: *const f32,
    padded: usize,
    sums: *mut f32,
) -> usize {
    let (mut even, mut odd) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
    for number in 0..BLOCK / 2 {
        let [first, second] = pair(number);
        for n in 0..N {
            let x = numbers.wrapping_add(n * padded + 2 * number);
            // SAFETY: column `n` has a whole block.
            let x = unsafe { [_mm512_set1_ps(*x), _mm512_set1_ps(*x.add(1))] };
            even[n] = _mm512_fmadd_ps(first, x[0], even[n]);
            odd[n] = _mm512_fmadd_ps(second, x[1], odd[n]);
        }
    }
    for n in 0..N {
        let sums = sums.wrapping_add(n * ROWS);
        // SAFETY: column `n` has sixteen sums.
        unsafe {
            let before = _mm512_loadu_ps(sums);
            _mm512_storeu_ps(sums, _mm512_add_ps(before, _mm512_add_ps(even[n], odd[n])));
        }
    }
    N
}

/// A block of sixteen rows, turned: words of two weights, each for all rows. It keeps the smallest
/// weights.
///
/// # Safety
/// Needs AVX-512, and a block of each row; rows are `row_bytes` apart. `next` is soon needed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn turned_words(
    weights: *const u8,
    row_bytes: usize,
    next: *const u8,
    least: &mut __m512i,
) -> [__m512i; ROWS] {
    let mut rows = [_mm512_setzero_si512(); ROWS];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: row `i` has a block here.
        *row = unsafe { _mm512_loadu_si512(weights.add(i * row_bytes).cast()) };
        // To ask for what is not there does no harm.
        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(i * BLOCK_BYTES).cast());
        // Without the sign. 0 becomes the largest one.
        let sizes = _mm512_sub_epi16(_mm512_add_epi16(*row, *row), _mm512_set1_epi16(1));
        *least = _mm512_min_epu16(*least, sizes);
    }
    words_of_all(rows)
}

/// The numbers of words of two weights.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(words: __m512i) -> [__m512; 2] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    [_mm512_slli_epi32::<16>(words), _mm512_and_si512(words, upper)].map(|half| _mm512_castsi512_ps(half))
}

/// Turns sixteen rows of sixteen words: a vector then has one word of every row.
#[inline]
#[target_feature(enable = "avx512f")]
fn words_of_all(rows: [__m512i; ROWS]) -> [__m512i; ROWS] {
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for i in 0..4 {
        a[i] = _mm512_shuffle_i32x4::<0x88>(b[i], b[4 + i]);
        a[4 + i] = _mm512_shuffle_i32x4::<0xdd>(b[i], b[4 + i]);
        a[8 + i] = _mm512_shuffle_i32x4::<0x88>(b[8 + i], b[12 + i]);
        a[12 + i] = _mm512_shuffle_i32x4::<0xdd>(b[8 + i], b[12 + i]);
    }
    for i in 0..4 {
        b[i] = _mm512_shuffle_i32x4::<0x88>(a[i], a[8 + i]);
        b[8 + i] = _mm512_shuffle_i32x4::<0xdd>(a[i], a[8 + i]);
        b[4 + i] = _mm512_shuffle_i32x4::<0x88>(a[4 + i], a[12 + i]);
        b[12 + i] = _mm512_shuffle_i32x4::<0xdd>(a[4 + i], a[12 + i]);
    }
    b
}

/// The layout for tiles; see [`super::Layout`].
pub(super) fn in_words(numbers: &[f32], padded: usize) -> Vec<Line> {
    let mut lines = vec![Line([0; TILE]); numbers.len() / 2 / TILE];
    // A column is a whole number of lines.
    let groups = lines.chunks_mut(padded / 2).zip(numbers.chunks(TILE * padded));
    for (lines, numbers) in groups {
        // SAFETY: only machines with AVX-512 have tiles. Groups are whole columns of whole blocks.
        unsafe { turn_group(numbers, padded, lines.as_mut_ptr().cast()) };
    }
    lines
}

/// # Safety
/// Needs AVX-512, at most sixteen columns of whole blocks, and room for a word of each two numbers.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn turn_group(numbers: &[f32], padded: usize, words: *mut u32) {
    let columns = numbers.len() / padded;
    let mask = u16::MAX >> (TILE - columns);
    for at in (0..padded).step_by(BLOCK) {
        let mut rows = [_mm512_setzero_si512(); ROWS];
        for (column, row) in rows.iter_mut().take(columns).enumerate() {
            let numbers = numbers.as_ptr().wrapping_add(column * padded + at);
            // SAFETY: the column has a whole block from `at` on.
            let halves =
                unsafe { [_mm512_loadu_si512(numbers.cast()), _mm512_loadu_si512(numbers.add(16).cast())] };
            let [low, high] = halves.map(|half| _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(half)));
            *row = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
        }
        for (word, row) in words_of_all(rows).into_iter().enumerate() {
            let out = words.wrapping_add((at / 2 + word) * columns);
            // SAFETY: there is a word of every column, and no other one is written.
            unsafe { _mm512_mask_storeu_epi32(out.cast(), mask, row) };
        }
    }
}
