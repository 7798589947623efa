//! Products of sparse differences with 512-bit vectors: for one token products of entries side by side, which rows then sum; for more, a sum per row in registers.
//! Columns are masked or bounded before they are used, so that no entry reads outside of the activations.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "masks of lanes, and columns in 32 bits")]

use std::arch::x86_64::*;

use super::{COL, NARROW_COLS, Narrow, Wide};

/// Lanes of a vector.
const LANES: usize = 16;
/// Products that are computed before they are summed: half of a first cache.
const BUFFER: usize = 4096;
/// Vectors of tokens whose sums are kept in registers.
const VECTORS: usize = 4;

/// Adds the products of narrow entries; see [`super::add_products`].
///
/// # Safety
/// Needs the features below, and lengths and ends that fit.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt,fma"
)]
pub(super) unsafe fn add_narrow(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe {
        if tokens == 1 {
            add_to_one(entries, ends, x.len().div_ceil(NARROW_COLS), x, y);
        } else {
            add_to_many(entries, ends, NARROW_COLS, tokens, x, y);
        }
    }
}

/// The same for wide entries.
///
/// # Safety
/// As for [`add_narrow`].
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt,fma"
)]
pub(super) unsafe fn add_wide(entries: &[Wide], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe {
        if tokens == 1 {
            add_to_one(entries, ends, 1, x, y);
        } else {
            add_to_many(entries, ends, x.len() / tokens, tokens, x, y);
        }
    }
}

/// An entry: a column, and a difference as the bits of an FP32 number.
trait Entry: Copy {
    /// The column, below `cols`.
    fn col(self, cols: usize) -> usize;
    /// The difference.
    fn difference(self) -> f32;
    /// Differences of four entries.
    ///
    /// # Safety
    /// Needs AVX-512 and four entries.
    unsafe fn differences(entries: *const Self) -> __m128;
}

impl Entry for Narrow {
    /// `cols` is a power of two.
    #[inline(always)]
    fn col(self, cols: usize) -> usize {
        self as usize & (cols - 1)
    }

    #[inline(always)]
    fn difference(self) -> f32 {
        f32::from_bits(self & !COL)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn differences(entries: *const Self) -> __m128 {
        // SAFETY: four entries are 16 bytes.
        let entries = unsafe { _mm_loadu_si128(entries.cast()) };
        _mm_castsi128_ps(_mm_andnot_si128(_mm_set1_epi32(COL.cast_signed()), entries))
    }
}

impl Entry for Wide {
    #[inline(always)]
    fn col(self, cols: usize) -> usize {
        (self as u32 as usize).min(cols - 1)
    }

    #[inline(always)]
    fn difference(self) -> f32 {
        f32::from_bits((self >> 32) as u32)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn differences(entries: *const Self) -> __m128 {
        // SAFETY: four entries are 32 bytes.
        let entries = unsafe { _mm256_loadu_si256(entries.cast()) };
        _mm_castsi128_ps(_mm256_cvtepi64_epi32(_mm256_srli_epi64::<32>(entries)))
    }
}

/// One token: the sum of a row has its `i`-th entry in lane `i mod 16`, wherever the row begins.
///
/// # Safety
/// Needs AVX-512, and lengths and ends that fit: `blocks` for each row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,fma")]
unsafe fn add_to_one<E: Entry>(entries: &[E], ends: &[u32], blocks: usize, x: &[f32], y: &mut [f32]) {
    let mut products = [0.0f32; BUFFER + 2 * LANES];
    let end_of = |row: usize| ends[row * blocks] as usize;
    let mut row = 0;
    while row < y.len() {
        let first = end_of(row);
        let mut next = row + 1;
        while next < y.len() && end_of(next + 1) - first <= BUFFER {
            next += 1;
        }
        if end_of(next) - first > BUFFER {
            // SAFETY: as the caller says.
            y[row] += unsafe { long_row(entries, &ends[row * blocks..][..=blocks], x, &mut products) };
            row = next;
            continue;
        }
        if blocks == 1 {
            // SAFETY: the buffer has room for these entries.
            unsafe { fill(&entries[first..], end_of(next) - first, x, products.as_mut_ptr()) };
        } else {
            let runs = ends[row * blocks..=next * blocks].array_windows();
            for ([start, end], x) in runs.zip(x.chunks(NARROW_COLS).cycle()) {
                let (start, end) = (*start as usize, *end as usize);
                // SAFETY: as above; what is written behind a run is written again by the next one.
                unsafe { fill(&entries[start..], end - start, x, products.as_mut_ptr().add(start - first)) };
            }
        }
        while row < next {
            let mut sums = [_mm512_setzero_ps(); 4];
            for (i, sum) in sums.iter_mut().enumerate() {
                if row + i < next {
                    let (start, end) = (end_of(row + i) - first, end_of(row + i + 1) - first);
                    // SAFETY: these products are in the buffer, and two vectors behind it.
                    *sum = unsafe { sum_of(products.as_ptr().add(start), end - start) };
                }
            }
            let (rows, _) = y[row..next].split_at_mut(4.min(next - row));
            add_totals(sums, rows);
            row += rows.len();
        }
    }
}

/// The total of a row with more products than the buffer holds.
///
/// # Safety
/// As for [`add_to_one`].
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,fma")]
unsafe fn long_row<E: Entry>(
    entries: &[E],
    ends: &[u32],
    x: &[f32],
    products: &mut [f32; BUFFER + 2 * LANES],
) -> f32 {
    let mut total = 0.0;
    for ([start, end], x) in
        ends.array_windows().zip(x.chunks(if ends.len() == 2 { x.len() } else { NARROW_COLS }))
    {
        let end = *end as usize;
        for start in (*start as usize..end).step_by(BUFFER) {
            let count = BUFFER.min(end - start);
            // SAFETY: the buffer has room for them.
            let sum = unsafe {
                fill(&entries[start..], count, x, products.as_mut_ptr());
                sum_of(products.as_ptr(), count)
            };
            let mut one = [0.0];
            add_totals([sum, _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()], &mut one);
            total += one[0];
        }
    }
    total
}

/// Writes the products of the first `count` entries, and up to three more.
///
/// # Safety
/// Needs AVX-512, `count` entries, and room for the products.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn fill<E: Entry>(entries: &[E], count: usize, x: &[f32], products: *mut f32) {
    let cols = x.len();
    let (first, x) = (entries.as_ptr(), x.as_ptr());
    let mut at = 0;
    while at < count {
        if at + 4 > entries.len() {
            for (i, entry) in entries.iter().enumerate().skip(at) {
                // SAFETY: the column is below `cols`, and there is room.
                unsafe { *products.add(i) = entry.difference() * *x.add(entry.col(cols)) };
            }
            return;
        }
        // SAFETY: there are four entries, and their columns are below `cols`.
        unsafe {
            let four = first.add(at);
            let column = |i: usize| _mm_load_ss(x.add((*four.add(i)).col(cols)));
            let columns = _mm_insert_ps::<0x10>(column(0), column(1));
            let columns = _mm_insert_ps::<0x20>(columns, column(2));
            let columns = _mm_insert_ps::<0x30>(columns, column(3));
            _mm_storeu_ps(products.add(at), _mm_mul_ps(E::differences(four), columns));
        }
        at += 4;
    }
}

/// The sum of some products, lane by lane.
///
/// # Safety
/// Needs AVX-512, and that `count` numbers and two vectors can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,bmi1,bmi2")]
unsafe fn sum_of(products: *const f32, count: usize) -> __m512 {
    // Two vectors whether there is anything in them or not: most short rows end in them, and the processor need not foresee where.
    let lanes = _bzhi_u32(u32::MAX, count.min(2 * LANES) as u32);
    // SAFETY: lanes that are not set are not read.
    let mut sum = unsafe {
        let low = _mm512_maskz_loadu_ps(lanes as __mmask16, products);
        _mm512_add_ps(low, _mm512_maskz_loadu_ps((lanes >> LANES) as __mmask16, products.add(LANES)))
    };
    let mut at = 2 * LANES;
    while at < count {
        let lanes = _bzhi_u32(u32::MAX, (count - at).min(LANES) as u32) as __mmask16;
        // SAFETY: as above.
        sum = _mm512_add_ps(sum, unsafe { _mm512_maskz_loadu_ps(lanes, products.add(at)) });
        at += LANES;
    }
    sum
}

/// Adds the totals of up to four sums.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn add_totals([a, b, c, d]: [__m512; 4], y: &mut [f32]) {
    let quarter = |sum: __m512| {
        let half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
        _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
    };
    let ab = _mm_hadd_ps(quarter(a), quarter(b));
    let totals = _mm_hadd_ps(ab, _mm_hadd_ps(quarter(c), quarter(d)));
    if let Ok(y) = <&mut [f32; 4]>::try_from(&mut *y) {
        // SAFETY: four numbers are one vector.
        unsafe { _mm_storeu_ps(y.as_mut_ptr(), _mm_add_ps(_mm_loadu_ps(y.as_ptr()), totals)) };
        return;
    }
    let mut all = [0.0; 4];
    // SAFETY: as above.
    unsafe { _mm_storeu_ps(all.as_mut_ptr(), totals) };
    y.iter_mut().zip(all).for_each(|(y, total)| *y += total);
}

/// Several tokens: their sums stay in registers for a whole row, up to 64 at a time.
///
/// # Safety
/// Needs AVX-512, and lengths and ends that fit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,fma")]
unsafe fn add_to_many<E: Entry>(
    entries: &[E],
    ends: &[u32],
    block: usize,
    tokens: usize,
    x: &[f32],
    y: &mut [f32],
) {
    let blocks = (x.len() / tokens).div_ceil(block);
    for first in (0..tokens).step_by(VECTORS * LANES) {
        let width = (tokens - first).min(VECTORS * LANES);
        let last = _bzhi_u32(u32::MAX, (width - (width - 1) / LANES * LANES) as u32) as __mmask16;
        for (y, ends) in y.chunks_exact_mut(tokens).zip(ends.windows(blocks + 1).step_by(blocks)) {
            for ([start, end], x) in ends.array_windows().zip(x.chunks(block * tokens)) {
                let run = &entries[*start as usize..*end as usize];
                let (x, y) = (&x[first..], &mut y[first..first + width]);
                // SAFETY: `x` has whole columns but for the first tokens, and `last` has the lanes of the last vector of `y`.
                unsafe {
                    match width.div_ceil(LANES) {
                        1 => add_run::<E, 1, 4>(run, tokens, x, last, y),
                        2 => add_run::<E, 2, 2>(run, tokens, x, last, y),
                        3 => add_run::<E, 3, 2>(run, tokens, x, last, y),
                        _ => add_run::<E, 4, 2>(run, tokens, x, last, y),
                    }
                }
            }
        }
    }
}

/// Adds the products of a run with `V` vectors of tokens, of which the last one has the lanes `last`; `U` sums are under way.
///
/// # Safety
/// Needs AVX-512, and the tokens in `y` and in every column of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,fma")]
unsafe fn add_run<E: Entry, const V: usize, const U: usize>(
    run: &[E],
    tokens: usize,
    x: &[f32],
    last: __mmask16,
    y: &mut [f32],
) {
    let cols = x.len().div_ceil(tokens);
    let lanes: [__mmask16; V] = std::array::from_fn(|v| if v + 1 == V { last } else { 0xffff });
    let mut sums = [[_mm512_setzero_ps(); V]; U];
    let x = x.as_ptr();
    let (groups, rest) = run.as_chunks::<U>();
    for group in groups {
        for u in 0..U {
            let difference = _mm512_set1_ps(group[u].difference());
            for v in 0..V {
                // SAFETY: the column is below `cols`, and lanes that are no tokens are not read.
                let x = unsafe {
                    _mm512_maskz_loadu_ps(lanes[v], x.add(group[u].col(cols) * tokens + v * LANES))
                };
                sums[u][v] = _mm512_fmadd_ps(difference, x, sums[u][v]);
            }
        }
    }
    for entry in rest {
        let difference = _mm512_set1_ps(entry.difference());
        for v in 0..V {
            // SAFETY: as above.
            let x = unsafe { _mm512_maskz_loadu_ps(lanes[v], x.add(entry.col(cols) * tokens + v * LANES)) };
            sums[0][v] = _mm512_fmadd_ps(difference, x, sums[0][v]);
        }
    }
    for v in 0..V {
        let mut sum = sums[0][v];
        for sums in &sums[1..] {
            sum = _mm512_add_ps(sum, sums[v]);
        }
        // SAFETY: only tokens are read and written.
        unsafe {
            let y = y.as_mut_ptr().add(v * LANES);
            _mm512_mask_storeu_ps(y, lanes[v], _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes[v], y)));
        }
    }
}
