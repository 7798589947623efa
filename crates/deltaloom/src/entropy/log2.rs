//! Fixed-point base-2 logarithms, so that every machine plans the same way; docs/adr/0005.

use std::sync::LazyLock;

use crate::limits::to_usize;

/// Fraction bits of a logarithm and of every cost.
pub const FRACTION_BITS: u32 = 16;
/// One bit of cost.
pub const ONE_BIT: u64 = 1 << FRACTION_BITS;

const INDEX_BITS: u32 = 12;

/// log2(1 + i / 4096) for i in 0..=4096.
static FRACTIONS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let fraction = |i: u64| {
        // Squaring doubles the logarithm: each overflow past 2 is its next bit. x stays below 2^32.
        let mut x = (1u64 << 31) + (i << (31 - INDEX_BITS));
        let mut bits = 0u32;
        for _ in 0..=FRACTION_BITS {
            x = (x * x) >> 31;
            let is_over = x >> 32 != 0;
            bits = (bits << 1) | u32::from(is_over);
            x >>= u32::from(is_over);
        }
        bits.div_ceil(2)
    };
    (0..1 << INDEX_BITS).map(fraction).chain([1 << FRACTION_BITS]).collect()
});

/// log2(n) in 1/65536 bits; 0 for n = 0.
pub fn log2(n: u64) -> u64 {
    if n == 0 {
        return 0;
    }
    let exponent = n.ilog2();
    let normalised = n << (63 - exponent) << 1;
    let index = (normalised >> (64 - INDEX_BITS)) as usize;
    // Straight lines between the entries: at this table size, exact to one unit in the last place.
    let (low, high) = (u64::from(FRACTIONS[index]), u64::from(FRACTIONS[index + 1]));
    let between = normalised << INDEX_BITS >> (64 - FRACTION_BITS);
    (u64::from(exponent) << FRACTION_BITS) + low + (((high - low) * between) >> FRACTION_BITS)
}

/// n log2(n) for small n. Most counts are small.
static SMALL_N_LOG2: LazyLock<Vec<u64>> = LazyLock::new(|| (0..4096).map(|n| n * log2(n)).collect());

/// n log2(n): the building block of entropies.
pub fn n_log2(n: u64) -> u64 {
    let small = SMALL_N_LOG2.get(to_usize(n));
    small.copied().unwrap_or_else(|| n * log2(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_real_logarithm() {
        for n in (1..5000).chain((0..40).map(|k| (1u64 << k) + 12_345)) {
            let (exact, ours) = ((n as f64).log2(), log2(n) as f64 / 65536.0);
            assert!((exact - ours).abs() < 4e-5, "{n}: {exact} {ours}");
        }
        assert_eq!(log2(1), 0);
        assert_eq!(log2(4096), 12 * ONE_BIT);
    }
}
