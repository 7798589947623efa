//! Products of sparse differences of weights with activations, added to products that are there.
//! It knows nothing of bases; how a difference becomes entries is said here, since entries must give it back exactly.
//!
//! A matrix is divided into blocks of columns; the entries of one row in one block stand together, and `ends` has for every row and block, rows first, the number of entries up to its end.

use crate::isa::per_isa;

/// An entry in four bytes: the upper 24 bits of an FP32 difference, and the column in its block of 256. For weights of 16 bits.
pub type Narrow = u32;
/// An entry in eight bytes: an FP32 difference, and the column in the lower half. For weights of 32 bits; there is one block.
pub type Wide = u64;

/// Columns of a block of narrow entries.
pub const NARROW_COLS: usize = 256;

/// Calls `push` with values of which each is exact in a narrow entry and which, added one after another to `from` in FP32, give `to`. `None` where there are none: not finite numbers.
pub fn narrow_parts(from: f32, to: f32, mut push: impl FnMut(f32)) -> Option<()> {
    const TOP: u32 = 0xffff_ff00;
    if !(from.is_finite() && to.is_finite()) {
        return None;
    }
    let is_narrow = |value: f32| value.to_bits() & !TOP == 0;
    match exact_difference(from, to) {
        Some(difference) => {
            let mut rest = difference;
            let mut parts = [0.0; 3];
            let mut count = 0;
            // Parts of one sign, so that all sums on the way lie between the two values.
            while rest != 0.0 && count < parts.len() {
                parts[count] = f32::from_bits(rest.to_bits() & TOP);
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

/// A narrow entry.
#[must_use]
pub fn narrow(col: u8, value: f32) -> Narrow {
    debug_assert_eq!(value.to_bits() & 0xff, 0);
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

/// Activations as the products want them: [columns, tokens], the columns filled up with zeros to whole blocks.
///
/// # Panics
/// When `x`, [tokens, cols], is not of whole tokens.
#[must_use]
pub fn token_contiguous(x: &[f32], cols: usize) -> Vec<f32> {
    assert!(cols > 0 && x.len().is_multiple_of(cols));
    let tokens = x.len() / cols;
    let mut out = vec![0.0; cols.next_multiple_of(NARROW_COLS) * tokens];
    for (token, x) in x.chunks_exact(cols).enumerate() {
        x.iter().enumerate().for_each(|(col, x)| out[col * tokens + token] = *x);
    }
    out
}

/// Adds the products of differences with activations to `y`, [rows, tokens]; `x` is what [`token_contiguous`] gives.
///
/// # Panics
/// When the lengths do not fit.
pub fn add_products(differences: Differences<'_>, tokens: usize, x: &[f32], y: &mut [f32]) {
    if tokens == 0 {
        return;
    }
    match differences {
        Differences::Narrow { entries, ends } => add_narrow(entries, ends, tokens, x, y),
        Differences::Wide { entries, ends } => add_wide(entries, ends, tokens, x, y),
    }
}

per_isa! {
    fn add_narrow(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) = add_narrow_body;
}
per_isa! {
    fn add_wide(entries: &[Wide], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) = add_wide_body;
}

#[inline(always)]
fn add_narrow_body(entries: &[Narrow], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    add_body(entries, ends, NARROW_COLS * tokens, tokens, x, y, |entry| {
        ((entry & 0xff) as usize, f32::from_bits(entry & !0xff))
    });
}

#[inline(always)]
fn add_wide_body(entries: &[Wide], ends: &[u32], tokens: usize, x: &[f32], y: &mut [f32]) {
    add_body(entries, ends, x.len(), tokens, x, y, split_wide);
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
    split: impl Fn(E) -> (usize, f32),
) {
    let mut runs = ends.array_windows().map(|[start, end]| &entries[*start as usize..*end as usize]);
    for y in y.chunks_exact_mut(tokens) {
        for (x, run) in x.chunks(block.max(1)).zip(&mut runs) {
            for entry in run {
                let (col, difference) = split(*entry);
                let x = &x[col * tokens..][..tokens];
                y.iter_mut().zip(x).for_each(|(y, x)| *y += difference * x);
            }
        }
    }
}

/// Turns rows of a base in FP32, `cols` elements each, into the rows that the differences lead to: exactly.
///
/// # Panics
/// When the lengths do not fit.
pub fn patch_rows(differences: Differences<'_>, cols: usize, rows: &mut [f32]) {
    match differences {
        Differences::Narrow { entries, ends } => {
            patch_body(entries, ends, NARROW_COLS, cols, rows, |entry| {
                ((entry & 0xff) as usize, f32::from_bits(entry & !0xff))
            })
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
            prop_assert!(values.iter().all(|value| value.to_bits() & 0xff == 0 && *value != 0.0 || *value == -a || *value == b));
            for to in [d, f32::from_bits(c.to_bits() ^ ulps)] {
                let mut values = Vec::new();
                let parts = wide_parts(c, to, |value| values.push(value));
                check(c, to, parts, &values)?;
            }
        }
    }

    #[test]
    fn zeros_of_either_sign_differ_by_nothing() {
        for (from, to) in [(0.0, -0.0), (-0.0, 0.0), (1.0, 1.0)] {
            narrow_parts(from, to, |_| panic!("an entry")).unwrap();
            wide_parts(from, to, |_| panic!("an entry")).unwrap();
        }
    }
}
