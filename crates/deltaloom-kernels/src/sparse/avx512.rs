//! Products of sparse differences with 512-bit vectors. For one token, it computes the products of
//! entries side by side and then sums them by row. For more tokens, each row's sum stays in
//! registers.
//!
//! Columns are masked or bounded before they are used, so no entry reads outside of the
//! activations.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "masks of lanes, and columns in 32 bits")]

use std::arch::x86_64::*;

use super::{COL, GROUP, Group, NARROW_COLS, Narrow, Wide, groups};

/// Number of lanes of a vector.
const LANES: usize = 16;
/// Products that are computed before they are summed: half of a first-level cache.
const BUFFER: usize = 4096;
/// Rows whose sums are written before they are added.
const ROWS: usize = 16;

/// Adds the products of narrow entries; see [`super::add_products`].
///
/// # Safety
/// Needs the features below, and lengths and ends that fit.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt,fma"
)]
pub(super) unsafe fn add_narrow(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    // SAFETY: the caller's promise.
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
    // SAFETY: the caller's promise.
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
    /// Columns below `cols` and differences of four entries.
    ///
    /// # Safety
    /// Needs AVX-512 and four entries.
    unsafe fn four(entries: *const Self, cols: usize) -> ([usize; 4], __m128);
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
    unsafe fn four(entries: *const Self, cols: usize) -> ([usize; 4], __m128) {
        // Two at a time, because loads are the bottleneck.
        let pairs = entries.cast::<u64>();
        // SAFETY: four entries are 16 bytes.
        let (four, low, high) = unsafe {
            (
                _mm_loadu_si128(entries.cast()),
                pairs.read_unaligned() as usize,
                pairs.add(1).read_unaligned() as usize,
            )
        };
        let mask = cols - 1;
        let differences = _mm_andnot_si128(_mm_set1_epi32(COL.cast_signed()), four);
        ([low & mask, low >> 32 & mask, high & mask, high >> 32 & mask], _mm_castsi128_ps(differences))
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
    unsafe fn four(entries: *const Self, cols: usize) -> ([usize; 4], __m128) {
        // SAFETY: four entries are 32 bytes.
        let (four, all) = unsafe { (_mm256_loadu_si256(entries.cast()), &*entries.cast::<[Self; 4]>()) };
        let differences = _mm_castsi128_ps(_mm256_cvtepi64_epi32(_mm256_srli_epi64::<32>(four)));
        ([all[0].col(cols), all[1].col(cols), all[2].col(cols), all[3].col(cols)], differences)
    }
}

/// Adds the products of one token. The `i`-th entry of a row goes to lane `i mod 16` of the row's
/// sum, wherever the row begins.
///
/// # Safety
/// Needs AVX-512, lengths and ends that fit, and `blocks` ends for each row.
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
        let ends = &ends[row * blocks..=next * blocks];
        if end_of(next) - first > BUFFER {
            // SAFETY: the caller's promise.
            y[row] += unsafe { long_row(entries, ends, x, &mut products) };
        } else if blocks == 1 {
            // SAFETY: the buffer has room for these entries and two more vectors.
            unsafe {
                fill(&entries[first..], end_of(next) - first, x, products.as_mut_ptr());
                add_rows(&products, ends, blocks, &mut y[row..next]);
            }
        } else {
            for ([start, end], x) in ends.array_windows().zip(x.chunks(NARROW_COLS).cycle()) {
                let (start, end) = (*start as usize, *end as usize);
                // SAFETY: as above; what is written past a run is overwritten by the next one.
                unsafe { fill(&entries[start..], end - start, x, products.as_mut_ptr().add(start - first)) };
            }
            // SAFETY: as above.
            unsafe { add_rows(&products, ends, blocks, &mut y[row..next]) };
        }
        row = next;
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
    let mut total = [0.0];
    let block = if ends.len() == 2 { x.len() } else { NARROW_COLS };
    for ([start, end], x) in ends.array_windows().zip(x.chunks(block)) {
        let end = *end as usize;
        for start in (*start as usize..end).step_by(BUFFER) {
            let count = BUFFER.min(end - start);
            // SAFETY: the buffer has room for them.
            let sum = unsafe {
                fill(&entries[start..], count, x, products.as_mut_ptr());
                sum_of(products.as_ptr(), count)
            };
            let none = _mm512_setzero_ps();
            add_totals([sum, none, none, none], &mut total);
        }
    }
    total[0]
}

/// Writes the products of the first `count` entries, and up to seven more.
///
/// # Safety
/// Needs AVX-512, `count` entries, and room for the products.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn fill<E: Entry>(entries: &[E], count: usize, x: &[f32], products: *mut f32) {
    const GROUP: usize = 8;
    let (first, cols) = (entries.as_ptr(), x.len());
    let whole = count.next_multiple_of(GROUP).min(entries.len() - entries.len() % GROUP);
    for group in (0..whole).step_by(GROUP) {
        for at in [group, group + 4] {
            // SAFETY: there are eight entries, and their columns are below `cols`.
            unsafe {
                let (columns, differences) = E::four(first.add(at), cols);
                let column = |i: usize| _mm_load_ss(x.as_ptr().add(columns[i]));
                let four = _mm_insert_ps::<0x10>(column(0), column(1));
                let four = _mm_insert_ps::<0x20>(four, column(2));
                let four = _mm_insert_ps::<0x30>(four, column(3));
                _mm_storeu_ps(products.add(at), _mm_mul_ps(differences, four));
            }
        }
    }
    for (i, entry) in entries.iter().enumerate().take(count).skip(whole) {
        // SAFETY: there is room.
        unsafe { *products.add(i) = entry.difference() * x[entry.col(cols)] };
    }
}

/// Adds the totals of rows whose products are in the buffer, four rows at a time.
///
/// # Safety
/// Needs AVX-512, and as many products as the ends say.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,fma")]
unsafe fn add_rows(products: &[f32; BUFFER + 2 * LANES], ends: &[u32], blocks: usize, y: &mut [f32]) {
    let mut ends = ends.iter().step_by(blocks).map(|end| *end as usize);
    let first = ends.next().unwrap_or_default();
    let mut start = 0;
    for y in y.chunks_mut(4) {
        let mut sums = [_mm512_setzero_ps(); 4];
        for sum in sums.iter_mut().take(y.len()) {
            let end = ends.next().map_or(start, |end| end - first);
            // SAFETY: the buffer holds these products and two vectors past them.
            *sum = unsafe { sum_of(products.as_ptr().add(start), end - start) };
            start = end;
        }
        add_totals(sums, y);
    }
}

/// Sums the products lane by lane.
///
/// # Safety
/// Needs AVX-512; `count` numbers and two vectors must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,bmi1,bmi2")]
unsafe fn sum_of(products: *const f32, count: usize) -> __m512 {
    // Always two vectors, even if they are empty: most short rows end in them, and the branch would
    // be hard to predict.
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

/// Adds the products of several tokens. The sums of a group of tokens, four vectors, stay in
/// registers for a whole row.
///
/// The sums of several rows are written side by side before they are added to `y`. Otherwise rows
/// shorter than a vector would wait for each other, because the result of a masked store cannot be
/// read back at once.
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
    let cols = x.len() / tokens;
    let (blocks, block) = (cols.div_ceil(block), block.min(cols));
    let mut sums = [0.0f32; (ROWS + 1) * GROUP];
    for (Group { first, tokens, all_tokens }, x) in groups(tokens, x) {
        let last = _bzhi_u32(u32::MAX, (tokens - (tokens - 1) / LANES * LANES) as u32) as __mmask16;
        for (y, panel) in y.chunks_mut(ROWS * all_tokens).zip(0..) {
            for row in 0..y.len() / all_tokens {
                let ends = &ends[(panel * ROWS + row) * blocks..][..=blocks];
                let sums = &mut sums[row * tokens..][..GROUP];
                sums.fill(0.0);
                for ([start, end], x) in ends.array_windows().zip(x.chunks_exact(block * tokens)) {
                    let run = &entries[*start as usize..*end as usize];
                    let x = Columns { x, cols: block, tokens, last };
                    // SAFETY: in each column the last vector has the lanes `last`, and `sums` has
                    // four vectors.
                    unsafe {
                        match tokens.div_ceil(LANES) {
                            1 => add_run::<E, 1, 4>(run, x, sums),
                            2 => add_run::<E, 2, 2>(run, x, sums),
                            3 => add_run::<E, 3, 2>(run, x, sums),
                            _ => add_run::<E, 4, 2>(run, x, sums),
                        }
                    }
                }
            }
            if tokens == all_tokens {
                y.iter_mut().zip(&sums).for_each(|(y, sum)| *y += sum);
                continue;
            }
            for (y, sums) in y.chunks_exact_mut(all_tokens).zip(sums.chunks_exact(tokens)) {
                y[first..first + tokens].iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
            }
        }
    }
}

/// A block of columns of `tokens` numbers each.
#[derive(Clone, Copy)]
struct Columns<'a> {
    x: &'a [f32],
    cols: usize,
    tokens: usize,
    /// Lanes of the last vector.
    last: __mmask16,
}

impl Columns<'_> {
    /// Loads `V` vectors of the column of an entry.
    ///
    /// # Safety
    /// Needs AVX-512, and that many vectors in each column.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<E: Entry, const V: usize>(self, entry: E) -> [__m512; V] {
        let mut vectors = [_mm512_setzero_ps(); V];
        // SAFETY: the column is below `cols`, and lanes without tokens are not read.
        unsafe {
            let column = self.x.as_ptr().add(entry.col(self.cols) * self.tokens);
            for (v, vector) in vectors.iter_mut().enumerate() {
                let lanes = if v + 1 == V { self.last } else { 0xffff };
                *vector = _mm512_maskz_loadu_ps(lanes, column.add(v * LANES));
            }
        }
        vectors
    }
}

/// Adds the products of a run with `V` vectors of tokens to four vectors of sums. `U` sums are
/// computed in turn.
///
/// # Safety
/// Needs AVX-512, and `V` vectors in every column of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,fma")]
unsafe fn add_run<E: Entry, const V: usize, const U: usize>(run: &[E], x: Columns<'_>, sums: &mut [f32]) {
    let mut totals = [[_mm512_setzero_ps(); V]; U];
    let (groups, rest) = run.as_chunks::<U>();
    for group in groups {
        for u in 0..U {
            let difference = _mm512_set1_ps(group[u].difference());
            // SAFETY: the caller's promise.
            let columns = unsafe { x.load::<E, V>(group[u]) };
            for v in 0..V {
                totals[u][v] = _mm512_fmadd_ps(difference, columns[v], totals[u][v]);
            }
        }
    }
    for u in 0..U - 1 {
        if u < rest.len() {
            let difference = _mm512_set1_ps(rest[u].difference());
            // SAFETY: the caller's promise.
            let columns = unsafe { x.load::<E, V>(rest[u]) };
            for v in 0..V {
                totals[u][v] = _mm512_fmadd_ps(difference, columns[v], totals[u][v]);
            }
        }
    }
    let sums: &mut [f32] = &mut sums[..V * LANES];
    for (v, sums) in sums.chunks_exact_mut(LANES).enumerate() {
        // SAFETY: sixteen numbers are one vector.
        let mut sum = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
        for totals in &totals {
            sum = _mm512_add_ps(sum, totals[v]);
        }
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum) };
    }
}
