//! Products of sparse differences of weights with activations, added to products that are there.
//! It knows nothing of bases; how a difference becomes entries is said here, since entries must give it back exactly.
//!
//! A matrix is divided into blocks of columns; the entries of one row in one block stand together, and `ends` has for every row and block, rows first, the number of entries up to its end.

#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};

/// An entry in four bytes: the upper 20 bits of an FP32 difference, and the column in its block of 4096. For weights of 16 bits.
pub type Narrow = u32;
/// An entry in eight bytes: an FP32 difference, and the column in the lower half. For weights of 32 bits; there is one block.
pub type Wide = u64;

/// Columns of a block of narrow entries.
pub const NARROW_COLS: usize = 4096;
/// Bits of a narrow entry that are the column.
const COL: u32 = 0xfff;

/// Calls `push` with values of which each is exact in a narrow entry and which, added one after another to `from` in FP32, give `to`. `None` where there are none: not finite numbers.
pub fn narrow_parts(from: f32, to: f32, mut push: impl FnMut(f32)) -> Option<()> {
    if !(from.is_finite() && to.is_finite()) {
        return None;
    }
    let is_narrow = |value: f32| value.to_bits() & COL == 0;
    match exact_difference(from, to) {
        Some(difference) => {
            let mut rest = difference;
            let mut parts = [0.0; 3];
            let mut count = 0;
            // Parts of one sign, so that all sums on the way lie between the two values.
            while rest != 0.0 && count < parts.len() {
                parts[count] = f32::from_bits(rest.to_bits() & !COL);
                rest -= parts[count];
                count += 1;
            }
            let sum = parts[..count].iter().fold(from, |sum, part| sum + part);
            if rest == 0.0 && sum == to && parts[..count].iter().all(|part| *part != 0.0) {
                parts[..count].iter().for_each(|part| push(*part));
                return Some(());
            }
        }
        None if from == to => return Some(()),
        None => {}
    }
    (is_narrow(from) && is_narrow(to)).then(|| {
        push(-from);
        push(to);
    })
}

/// The same for wide entries, which every finite FP32 number fits into.
pub fn wide_parts(from: f32, to: f32, mut push: impl FnMut(f32)) -> Option<()> {
    if !(from.is_finite() && to.is_finite()) {
        return None;
    }
    match exact_difference(from, to) {
        Some(difference) => push(difference),
        None if from == to => {}
        None => {
            push(-from);
            push(to);
        }
    }
    Some(())
}

/// What two different numbers differ by, if that is an FP32 number.
fn exact_difference(from: f32, to: f32) -> Option<f32> {
    let difference = to - from;
    // Exact in double precision, unless the exponents are so far apart that the difference is not exact in single either.
    let is_exact = f64::from(from) + f64::from(difference) == f64::from(to)
        && f64::from(to) - f64::from(difference) == f64::from(from);
    (difference != 0.0 && difference.is_finite() && is_exact && from + difference == to).then_some(difference)
}

/// A narrow entry; the column is below [`NARROW_COLS`].
#[must_use]
pub fn narrow(col: u16, value: f32) -> Narrow {
    debug_assert!(value.to_bits() & COL == 0 && u32::from(col) <= COL);
    value.to_bits() | u32::from(col)
}

/// A wide entry.
#[must_use]
pub fn wide(col: u32, value: f32) -> Wide {
    u64::from(value.to_bits()) << 32 | u64::from(col)
}

/// Sparse differences of some rows.
#[derive(Debug, Clone, Copy)]
pub enum Differences<'a> {
    /// Of 16-bit weights.
    Narrow {
        /// Entries of all rows of the tensor.
        entries: &'a [Narrow],
        /// Where entries of the rows and their blocks end, after where those of the first one begin.
        ends: &'a [u32],
    },
    /// Of 32-bit weights.
    Wide {
        /// As above.
        entries: &'a [Wide],
        /// As above.
        ends: &'a [u32],
    },
}

/// Columns that activations are filled up to, so that no column of an entry lies outside: whole blocks, or a power of two in the first one.
#[must_use]
fn filled_cols(cols: usize) -> usize {
    if cols < NARROW_COLS { cols.next_power_of_two() } else { cols.next_multiple_of(NARROW_COLS) }
}

/// Activations as the products want them: [columns, tokens], the columns filled up with zeros to a power of two below [`NARROW_COLS`] or to whole blocks.
///
/// # Panics
/// When `x`, [tokens, cols], is not of whole tokens.
#[must_use]
pub fn token_contiguous(x: &[f32], cols: usize) -> Vec<f32> {
    assert!(cols > 0 && x.len().is_multiple_of(cols));
    let tokens = x.len() / cols;
    let mut out = vec![0.0; filled_cols(cols) * tokens];
    transpose(x, tokens, cols, &mut out[..cols * tokens]);
    out
}

/// Writes the transpose of `x`, [rows, cols], into `out`, [cols, rows].
///
/// # Panics
/// When the lengths do not fit.
pub fn transpose(x: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    assert!(x.len() == rows * cols && out.len() == x.len());
    if rows <= 1 || cols <= 1 {
        return out.copy_from_slice(x);
    }
    // Squares whose lines stay in the first cache.
    const SIDE: usize = 16;
    for first_row in (0..rows).step_by(SIDE) {
        for first_col in (0..cols).step_by(SIDE) {
            for row in first_row..rows.min(first_row + SIDE) {
                for col in first_col..cols.min(first_col + SIDE) {
                    out[col * rows + row] = x[row * cols + col];
                }
            }
        }
    }
}

/// Adds the products of differences with activations to `y`, [rows, tokens]; `x` is what [`token_contiguous`] gives.
///
/// # Panics
/// When the lengths do not fit.
pub fn add_products(differences: Differences<'_>, tokens: usize, x: &[f32], y: &mut [f32]) {
    if tokens == 0 {
        return;
    }
    let cols = x.len() / tokens;
    assert!(cols > 0 && x.len() == cols * tokens && y.len().is_multiple_of(tokens));
    let rows = y.len() / tokens;
    match differences {
        Differences::Narrow { entries, ends } => {
            assert_eq!(cols, filled_cols(cols));
            check_ends(entries.len(), ends, rows * cols.div_ceil(NARROW_COLS));
            add_narrow(entries, ends, tokens, x, y);
        }
        Differences::Wide { entries, ends } => {
            check_ends(entries.len(), ends, rows);
            add_wide(entries, ends, tokens, x, y);
        }
    }
}

/// Whether the entries that are told of are there and in order.
fn check_ends(entries: usize, ends: &[u32], runs: usize) {
    assert_eq!(ends.len(), runs + 1);
    let in_order = ends.array_windows().fold(true, |in_order, [start, end]| in_order & (start <= end));
    assert!(in_order && ends[runs] as usize <= entries);
}

fn add_narrow(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` gives what was detected, and `add_products` has checked lengths and ends.
        return unsafe {
            match isa() {
                Isa::Avx512 => avx512::add_narrow(entries, ends, tokens, x, y),
                _ => add_narrow_avx2(entries, ends, tokens, x, y),
            }
        };
    }
    add_narrow_body(entries, ends, tokens, x, y);
}

fn add_wide(entries: &[Wide], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` gives what was detected, and `add_products` has checked lengths and ends.
        return unsafe {
            match isa() {
                Isa::Avx512 => avx512::add_wide(entries, ends, tokens, x, y),
                _ => add_wide_avx2(entries, ends, tokens, x, y),
            }
        };
    }
    add_wide_body(entries, ends, tokens, x, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn add_narrow_avx2(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    add_narrow_body(entries, ends, tokens, x, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
fn add_wide_avx2(entries: &[Wide], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    add_wide_body(entries, ends, tokens, x, y);
}

#[inline(always)]
fn add_narrow_body(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    add_body(entries, ends, NARROW_COLS * tokens, tokens, x, y, split_narrow);
}

#[inline(always)]
fn add_wide_body(entries: &[Wide], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    add_body(entries, ends, x.len(), tokens, x, y, split_wide);
}

#[inline(always)]
fn split_narrow(entry: Narrow) -> (usize, f32) {
    ((entry & COL) as usize, f32::from_bits(entry & !COL))
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
fn split_wide(entry: Wide) -> (usize, f32) {
    (entry as u32 as usize, f32::from_bits((entry >> 32) as u32))
}

#[inline(always)]
fn add_body<E: Copy>(
    entries: &[E],
    ends: &[u32],
    block: usize,
    tokens: usize,
    x: &[f32],
    y: &mut [f32],
    split: impl Fn(E) -> (usize, f32) + Copy,
) {
    let mut runs = ends.array_windows().map(|[start, end]| &entries[*start as usize..*end as usize]);
    for y in y.chunks_exact_mut(tokens) {
        for (x, run) in x.chunks(block).zip(&mut runs) {
            let (wide, rest) = y.as_chunks_mut::<16>();
            wide.iter_mut().enumerate().for_each(|(i, y)| add_run(run, tokens, &x[16 * i..], y, split));
            let first = tokens - rest.len();
            let (four, rest) = rest.as_chunks_mut::<4>();
            four.iter_mut()
                .enumerate()
                .for_each(|(i, y)| add_run(run, tokens, &x[first + 4 * i..], y, split));
            let first = tokens - rest.len();
            let (one, _) = rest.as_chunks_mut::<1>();
            one.iter_mut().enumerate().for_each(|(i, y)| add_run(run, tokens, &x[first + i..], y, split));
        }
    }
}

/// Adds the products of a run with `T` tokens of every `tokens`. Two sums are under way, so that an addition need not wait for the one before.
#[inline(always)]
fn add_run<E: Copy, const T: usize>(
    run: &[E],
    tokens: usize,
    x: &[f32],
    y: &mut [f32; T],
    split: impl Fn(E) -> (usize, f32),
) {
    let mut sums = [[0.0f32; T]; 2];
    let mut add = |sum: usize, entry: E| {
        let (col, difference) = split(entry);
        let x = &x[col * tokens..][..T];
        sums[sum].iter_mut().zip(x).for_each(|(sum, x)| *sum += difference * x);
    };
    let (pairs, last) = run.as_chunks::<2>();
    for [a, b] in pairs {
        add(0, *a);
        add(1, *b);
    }
    last.iter().for_each(|entry| add(0, *entry));
    let [a, b] = sums;
    y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y += a + b);
}

/// Turns rows of a base in FP32, `cols` elements each, into the rows that the differences lead to: exactly.
///
/// # Panics
/// When the lengths do not fit.
pub fn patch_rows(differences: Differences<'_>, cols: usize, rows: &mut [f32]) {
    match differences {
        Differences::Narrow { entries, ends } => {
            patch_body(entries, ends, NARROW_COLS, cols, rows, split_narrow);
        }
        Differences::Wide { entries, ends } => patch_body(entries, ends, cols, cols, rows, split_wide),
    }
}

fn patch_body<E: Copy>(
    entries: &[E],
    ends: &[u32],
    block: usize,
    cols: usize,
    rows: &mut [f32],
    split: impl Fn(E) -> (usize, f32),
) {
    let mut runs = ends.array_windows().map(|[start, end]| &entries[*start as usize..*end as usize]);
    for row in rows.chunks_exact_mut(cols.max(1)) {
        for (block, run) in row.chunks_mut(block).zip(&mut runs) {
            for entry in run {
                let (col, difference) = split(*entry);
                block[col] += difference;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    fn bf16() -> impl Strategy<Value = f32> {
        prop_oneof![
            any::<u16>().prop_map(|bits| f32::from_bits(u32::from(bits) << 16)),
            (0x3f00u16..0x4080).prop_map(|bits| f32::from_bits(u32::from(bits) << 16)),
        ]
    }

    fn check(from: f32, to: f32, parts: Option<()>, values: &[f32]) -> Result<(), TestCaseError> {
        prop_assert_eq!(parts.is_some(), from.is_finite() && to.is_finite());
        if parts.is_some() {
            let sum = values.iter().fold(from, |sum, part| sum + part);
            prop_assert_eq!(sum, to, "{:?}", values);
            // Their sum is the difference itself, or from and to cancel.
            prop_assert!(values.len() < 2 || values[0] == -from || values.len() <= 3);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn parts_lead_from_one_number_to_the_other(a in bf16(), b in bf16(), c in any::<f32>(), d in any::<f32>(), ulps in 0u32..5000) {
            let mut values = Vec::new();
            let parts = narrow_parts(a, b, |value| values.push(value));
            check(a, b, parts, &values)?;
            prop_assert!(values.iter().all(|value| value.to_bits() & COL == 0 && *value != 0.0 || *value == -a || *value == b));
            for to in [d, f32::from_bits(c.to_bits() ^ ulps)] {
                let mut values = Vec::new();
                let parts = wide_parts(c, to, |value| values.push(value));
                check(c, to, parts, &values)?;
            }
        }
    }

    /// The next of a row of random numbers of 31 bits.
    fn random(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn products_are_those_of_an_obvious_loop_on_every_isa_and_however_rows_are_split(
            rows in 0usize..11, cols in prop_oneof![1usize..900, 4090usize..4100, 8000usize..9000], tokens in prop_oneof![1usize..3, 1usize..40, 60usize..140], one_in in prop_oneof![1u64..4, 20u64..60], mut seed in any::<u64>(), split in 0usize..11,
        ) {
            let tokens = if cols > 900 { tokens % 20 + 1 } else { tokens };
            let (mut narrows, mut wides) = (Vec::new(), Vec::new());
            let (mut narrow_ends, mut wide_ends) = (vec![0], vec![0]);
            let mut expected = vec![0.0f64; rows * tokens];
            let mut sizes = vec![1e-3; rows * tokens];
            let x: Vec<f32> = (0..tokens * cols).map(|_| random(&mut seed) as i32 as f32 / 2f32.powi(31) - 0.5).collect();
            for row in 0..rows {
                for col in 0..cols {
                    if col > 0 && col % NARROW_COLS == 0 {
                        narrow_ends.push(u32::try_from(narrows.len()).unwrap());
                    }
                    if random(&mut seed) % one_in == 0 {
                        let value = f32::from_bits(random(&mut seed) as u32 & 0x807f_f000 | 0x3c00_0000);
                        narrows.push(narrow(u16::try_from(col % NARROW_COLS).unwrap(), value));
                        wides.push(wide(u32::try_from(col).unwrap(), value));
                        for token in 0..tokens {
                            let product = f64::from(value) * f64::from(x[token * cols + col]);
                            expected[row * tokens + token] += product;
                            sizes[row * tokens + token] += product.abs();
                        }
                    }
                }
                narrow_ends.push(u32::try_from(narrows.len()).unwrap());
                wide_ends.push(u32::try_from(wides.len()).unwrap());
            }
            let contiguous = token_contiguous(&x, cols);
            for_each_isa(|isa| {
                let blocks = cols.div_ceil(NARROW_COLS);
                let narrow = |from: usize, to: usize| Differences::Narrow { entries: &narrows, ends: &narrow_ends[from * blocks..=to * blocks] };
                let wide = |from: usize, to: usize| Differences::Wide { entries: &wides, ends: &wide_ends[from..=to] };
                let split = split.min(rows);
                let mut whole = [vec![0.0f32; rows * tokens], vec![0.0f32; rows * tokens]];
                add_products(narrow(0, rows), tokens, &contiguous, &mut whole[0]);
                add_products(wide(0, rows), tokens, &contiguous, &mut whole[1]);
                for whole in &whole {
                    for ((y, expected), size) in whole.iter().zip(&expected).zip(&sizes) {
                        prop_assert!((f64::from(*y) - expected).abs() <= 1e-5 * size, "{:?}: {} {}", isa, y, expected);
                    }
                }
                let mut parts = [vec![0.0f32; rows * tokens], vec![0.0f32; rows * tokens]];
                let [a, b] = parts.each_mut().map(|y| y.split_at_mut(split * tokens));
                add_products(narrow(0, split), tokens, &contiguous, a.0);
                add_products(narrow(split, rows), tokens, &contiguous, a.1);
                add_products(wide(0, split), tokens, &contiguous, b.0);
                add_products(wide(split, rows), tokens, &contiguous, b.1);
                prop_assert_eq!(parts, whole);
                Ok(())
            })?;
        }
    }

    #[test]
    fn columns_that_do_not_exist_are_not_read() {
        let x = token_contiguous(&[1.0; 5 * 3], 5);
        for tokens in [1, 3] {
            for_each_isa::<()>(|_| {
                let mut y = vec![0.0; tokens];
                let x = &x[..8 * tokens];
                let all = || {
                    add_products(
                        Differences::Narrow { entries: &[narrow(4095, 1.0)], ends: &[0, 1] },
                        tokens,
                        x,
                        &mut y.clone(),
                    );
                    add_products(
                        Differences::Wide { entries: &[wide(u32::MAX, 1.0)], ends: &[0, 1] },
                        tokens,
                        x,
                        &mut y,
                    );
                };
                // Either the product of another column or a panic.
                drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(all)));
                Ok(())
            })
            .unwrap();
        }
    }

    #[test]
    #[should_panic(expected = "assertion")]
    fn ends_behind_the_entries_are_refused() {
        add_products(Differences::Narrow { entries: &[0; 3], ends: &[0, 4] }, 1, &[0.0; 8], &mut [0.0]);
    }

    #[test]
    fn zeros_of_either_sign_differ_by_nothing() {
        for (from, to) in [(0.0, -0.0), (-0.0, 0.0), (1.0, 1.0)] {
            narrow_parts(from, to, |_| panic!("an entry")).unwrap();
            wide_parts(from, to, |_| panic!("an entry")).unwrap();
        }
    }
}
