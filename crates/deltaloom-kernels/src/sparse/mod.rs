//! Adds products of sparse weight differences with activations to existing products.
//!
//! It knows nothing of bases. But it defines how a difference becomes entries, because they must
//! restore it exactly.
//!
//! A matrix is divided into blocks of columns. The entries of one row in one block are adjacent.
//! For every row and block, rows first, `ends` holds the number of entries up to its end.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod transpose;

pub use transpose::transpose;

#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};

/// An entry in four bytes, for weights of 16 bits: the upper 20 bits of an FP32 difference, and the
/// column in its block of 4096.
pub type Narrow = u32;
/// An entry in eight bytes: an FP32 difference, and the column in the lower half. For weights of 32
/// bits; there is only one block.
pub type Wide = u64;

/// Number of columns of a block of narrow entries.
pub const NARROW_COLS: usize = 4096;
/// The column bits of a narrow entry.
const COL: u32 = 0xfff;

/// Calls `push` with values that a narrow entry holds exactly and that, added one after another to
/// `from` in FP32, give `to`. `None` if there are none, because a number is not finite.
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
            // The parts have one sign, so all intermediate sums lie between the two values.
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

/// The same for wide entries, which hold every finite FP32 number.
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

/// The difference of two different numbers, if it is an FP32 number.
fn exact_difference(from: f32, to: f32) -> Option<f32> {
    let difference = to - from;
    // Exact in double precision, unless the exponents are so far apart that the difference is not
    // exact in single precision either.
    let is_exact = f64::from(from) + f64::from(difference) == f64::from(to)
        && f64::from(to) - f64::from(difference) == f64::from(from);
    (difference != 0.0 && difference.is_finite() && is_exact && from + difference == to).then_some(difference)
}

/// Makes a narrow entry; the column is below [`NARROW_COLS`].
#[must_use]
pub fn narrow(col: u16, value: f32) -> Narrow {
    debug_assert!(value.to_bits() & COL == 0 && u32::from(col) <= COL);
    value.to_bits() | u32::from(col)
}

/// Makes a wide entry.
#[must_use]
pub fn wide(col: u32, value: f32) -> Wide {
    u64::from(value.to_bits()) << 32 | u64::from(col)
}

/// Sparse differences of some rows.
#[derive(Debug, Clone, Copy)]
pub enum Differences<'a> {
    /// Differences of 16-bit weights.
    Narrow {
        /// Entries of all rows of the tensor.
        entries: &'a [Narrow],
        /// The start of the first row's entries, followed by the end of the entries of each block
        /// of these rows.
        ends: &'a [u32],
    },
    /// Differences of 32-bit weights.
    Wide {
        /// As above.
        entries: &'a [Wide],
        /// As above.
        ends: &'a [u32],
    },
}

/// Number of columns to which activations are padded: whole blocks, or a power of two within the
/// first one. So no column of an entry lies outside.
#[must_use]
fn filled_cols(cols: usize) -> usize {
    if cols < NARROW_COLS { cols.next_power_of_two() } else { cols.next_multiple_of(NARROW_COLS) }
}

/// Number of tokens whose activations are adjacent.
const GROUP: usize = 64;

/// Lays activations out for the products: every 64 tokens, and the rest, as [columns, tokens].
/// Columns are padded with zeros to a power of two below [`NARROW_COLS`], or to whole blocks. With
/// more adjacent tokens, columns would evict each other from the caches.
///
/// # Panics
/// If `x`, which is [tokens, cols], does not hold whole tokens.
#[must_use]
pub fn token_contiguous(x: &[f32], cols: usize) -> Vec<f32> {
    let mut out = Vec::new();
    token_contiguous_into(x, cols, &mut out);
    out
}

/// As [`token_contiguous`], into a reused list.
///
/// # Panics
/// As [`token_contiguous`].
pub fn token_contiguous_into(x: &[f32], cols: usize, out: &mut Vec<f32>) {
    assert!(cols > 0 && x.len().is_multiple_of(cols));
    let filled = filled_cols(cols);
    out.resize(x.len() / cols * filled, 0.0);
    for (x, out) in x.chunks(GROUP * cols).zip(out.chunks_mut(GROUP * filled)) {
        let (columns, rest) = out.split_at_mut(x.len());
        transpose(x, x.len() / cols, cols, columns);
        rest.fill(0.0);
    }
}

/// Some tokens, and where the first one is in each row of `y`, [rows, all tokens].
#[derive(Debug, Clone, Copy)]
struct Group {
    first: usize,
    tokens: usize,
    all_tokens: usize,
}

/// The groups of tokens and the activations of each.
#[inline(always)]
fn groups(all_tokens: usize, x: &[f32]) -> impl Iterator<Item = (Group, &[f32])> {
    let cols = x.len() / all_tokens;
    x.chunks(GROUP * cols)
        .zip((0..).step_by(GROUP))
        .map(move |(x, first)| (Group { first, tokens: x.len() / cols, all_tokens }, x))
}

/// Adds the products of differences with activations to `y`, [rows, tokens]; `x` comes from
/// [`token_contiguous`].
///
/// # Panics
/// If the lengths do not fit.
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

/// Checks that the ends are in order and that their entries exist.
fn check_ends(entries: usize, ends: &[u32], runs: usize) {
    assert_eq!(ends.len(), runs + 1);
    let in_order = ends.array_windows().fold(true, |in_order, [start, end]| in_order & (start <= end));
    assert!(in_order && ends[runs] as usize <= entries);
}

fn add_narrow(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and `add_products` has checked lengths and
        // ends.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => avx512::add_narrow(entries, ends, tokens, x, y),
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
        // SAFETY: `isa` returns only what was detected, and `add_products` has checked lengths and
        // ends.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => avx512::add_wide(entries, ends, tokens, x, y),
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
    add_body(entries, ends, NARROW_COLS, tokens, x, y, split_narrow);
}

#[inline(always)]
fn add_wide_body(entries: &[Wide], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    add_body(entries, ends, x.len() / tokens, tokens, x, y, split_wide);
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
    for (Group { first, tokens, all_tokens }, x) in groups(tokens, x) {
        let blocks = (x.len() / tokens).div_ceil(block);
        for (row, y) in y.chunks_exact_mut(all_tokens).enumerate() {
            let y = &mut y[first..][..tokens];
            for (i, [start, end]) in ends[row * blocks..][..=blocks].array_windows().enumerate() {
                let (run, x) = (&entries[*start as usize..*end as usize], &x[i * block * tokens..]);
                let (wide, rest) = y.as_chunks_mut::<16>();
                for (i, y) in wide.iter_mut().enumerate() {
                    add_run::<E, 16, 2>(run, tokens, &x[16 * i..], y, split);
                }
                let first = tokens - rest.len();
                let (four, rest) = rest.as_chunks_mut::<4>();
                for (i, y) in four.iter_mut().enumerate() {
                    add_run::<E, 4, 4>(run, tokens, &x[first + 4 * i..], y, split);
                }
                let first = tokens - rest.len();
                for (i, y) in rest.iter_mut().enumerate() {
                    add_run::<E, 1, 4>(run, tokens, &x[first + i..], std::array::from_mut(y), split);
                }
            }
        }
    }
}

/// Takes the sums by value, so that they stay in registers.
#[inline(always)]
fn plus<const T: usize>(mut sums: [f32; T], difference: f32, x: &[f32; T]) -> [f32; T] {
    sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += difference * x);
    sums
}

/// Adds the products of a run with `T` of the `tokens` tokens. `U` sums are computed in turn, so
/// that an addition does not wait for the one before it.
#[inline(always)]
fn add_run<E: Copy, const T: usize, const U: usize>(
    run: &[E],
    tokens: usize,
    x: &[f32],
    y: &mut [f32; T],
    split: impl Fn(E) -> (usize, f32),
) {
    let mut sums = [[0.0f32; T]; U];
    let mut add = |sum: usize, entry: E| {
        let (col, difference) = split(entry);
        let (x, _) = x[col * tokens..].as_chunks::<T>();
        sums[sum] = plus(sums[sum], difference, &x[0]);
    };
    let (groups, last) = run.as_chunks::<U>();
    for group in groups {
        group.iter().enumerate().for_each(|(sum, entry)| add(sum, *entry));
    }
    last.iter().for_each(|entry| add(0, *entry));
    let total = sums.iter().fold([0.0; T], |total, sum| plus(total, 1.0, sum));
    *y = plus(*y, 1.0, &total);
}

/// Applies differences to base rows of FP32, `cols` elements each. The result is exact.
///
/// # Panics
/// If the lengths do not fit.
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
            // The parts sum to the difference itself, or they cancel `from` and then add `to`.
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

    /// The next number of 31 bits from a random sequence.
    fn random(seed: &mut u64) -> u32 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(*seed >> 33).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn products_are_those_of_an_obvious_loop_on_every_isa_and_however_rows_are_split(
            rows in 0usize..11, cols in prop_oneof![1usize..900, 4090usize..4100, 8000usize..9000], tokens in prop_oneof![1usize..3, 1usize..40, 60usize..140], one_in in prop_oneof![1u32..4, 20u32..60], mut seed in any::<u64>(), split in 0usize..11,
        ) {
            let tokens = if cols > 900 { tokens % 20 + 1 } else { tokens };
            let (mut narrows, mut wides) = (Vec::new(), Vec::new());
            let (mut narrow_ends, mut wide_ends) = (vec![0], vec![0]);
            let mut expected = vec![0.0f64; rows * tokens];
            let mut sizes = vec![1e-3; rows * tokens];
            let x: Vec<f32> = (0..tokens * cols).map(|_| random(&mut seed) as f32 / 2f32.powi(31) - 0.5).collect();
            for row in 0..rows {
                for col in 0..cols {
                    if col > 0 && col % NARROW_COLS == 0 {
                        narrow_ends.push(u32::try_from(narrows.len()).unwrap());
                    }
                    if random(&mut seed).is_multiple_of(one_in) {
                        let value = f32::from_bits((random(&mut seed) << 1 & 0x807f_f000) | 0x3c00_0000);
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
            let mut again = vec![7.0; 1000];
            token_contiguous_into(&x, cols, &mut again);
            prop_assert!(again == contiguous);
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
