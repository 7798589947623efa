//! The identities `a xor b = a + b - 2 (a and b)` and `a + b = (a xor b) + 2 (a and b)` on lanes of
//! 16 or 32 bits in words, with explicit carries.
//!
//! All arithmetic is modulo the lane. Nothing here adds floats: the sum of their bits is not the
//! bits of their sum. docs/integer-identity.md says what this is good for.

use crate::isa::per_isa;

/// Width of a lane, which holds one element as an unsigned integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Four lanes per word.
    Bits16,
    /// Two lanes per word.
    Bits32,
}

impl Lane {
    /// Number of bits of one lane.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
        }
    }

    /// The lowest bit of every lane.
    const fn lowest(self) -> u64 {
        match self {
            Self::Bits16 => 0x0001_0001_0001_0001,
            Self::Bits32 => 0x0000_0001_0000_0001,
        }
    }

    /// The top bit of every lane.
    const fn top(self) -> u64 {
        self.lowest() << (self.bits() - 1)
    }

    /// Doubles each lane.
    #[inline(always)]
    #[must_use]
    pub const fn double(self, a: u64) -> u64 {
        (a << 1) & !self.lowest()
    }

    /// Adds each pair of lanes. The top bits are added separately, by xor, so that no carry leaves
    /// its lane.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, a: u64, b: u64) -> u64 {
        let top = self.top();
        ((a & !top) + (b & !top)) ^ ((a ^ b) & top)
    }

    /// Subtracts each pair of lanes. A set top bit stops each borrow.
    #[inline(always)]
    #[must_use]
    pub const fn subtract(self, a: u64, b: u64) -> u64 {
        let top = self.top();
        ((a | top) - (b & !top)) ^ ((a ^ !b) & top)
    }

    /// Computes the xor of two words by additions: `a + b - 2 (a and b)`.
    #[inline(always)]
    #[must_use]
    pub const fn xor_by_sums(self, a: u64, b: u64) -> u64 {
        self.subtract(self.add(a, b), self.double(a & b))
    }

    /// Adds by xor, and, and shift alone: the bits that both have are carried until none are left.
    /// Also returns the number of rounds, which is 0 only if `b` is 0 and never above the bits of a
    /// lane.
    #[must_use]
    pub const fn add_by_rounds(self, a: u64, b: u64) -> (u64, u32) {
        let (mut sum, mut carry, mut rounds) = (a, b, 0);
        while carry != 0 {
            (sum, carry) = (sum ^ carry, self.double(sum & carry));
            rounds += 1;
        }
        (sum, rounds)
    }
}

per_isa! {
    /// Turns an XOR delta into a difference in place. With t = base xor x, t - base = x - 2 (base
    /// and x), so t itself is not needed.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn xor_to_difference(lane: Lane, base: &[u8], delta: &mut [u8]) = xor_to_difference_body;
}

#[inline(always)]
fn xor_to_difference_body(lane: Lane, base: &[u8], delta: &mut [u8]) {
    by_word(base, delta, |b, x| lane.subtract(x, lane.double(b & x)));
}

per_isa! {
    /// Turns a difference into an XOR delta in place: base xor (base + d).
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn difference_to_xor(lane: Lane, base: &[u8], delta: &mut [u8]) = difference_to_xor_body;
}

#[inline(always)]
fn difference_to_xor_body(lane: Lane, base: &[u8], delta: &mut [u8]) {
    by_word(base, delta, |b, d| b ^ lane.add(b, d));
}

per_isa! {
    /// Adds differences to values.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn add_differences(lane: Lane, differences: &[u8], values: &mut [u8]) = add_differences_body;
}

#[inline(always)]
fn add_differences_body(lane: Lane, differences: &[u8], values: &mut [u8]) {
    by_word(differences, values, |d, v| lane.add(v, d));
}

per_isa! {
    /// Applies an XOR delta to values by additions alone.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn apply_xor_by_sums(lane: Lane, delta: &[u8], values: &mut [u8]) = apply_xor_by_sums_body;
}

#[inline(always)]
fn apply_xor_by_sums_body(lane: Lane, delta: &[u8], values: &mut [u8]) {
    by_word(delta, values, |x, v| lane.xor_by_sums(v, x));
}

/// Replaces each word of `values` by `f` of the word of `other` and itself. An incomplete last word
/// is padded with zeros.
#[inline(always)]
fn by_word(other: &[u8], values: &mut [u8], f: impl Fn(u64, u64) -> u64) {
    assert_eq!(other.len(), values.len(), "two sides of one length");
    let (words, rest) = values.as_chunks_mut::<8>();
    let (other_words, other_rest) = other.as_chunks::<8>();
    for (word, other) in words.iter_mut().zip(other_words) {
        *word = f(u64::from_le_bytes(*other), u64::from_le_bytes(*word)).to_le_bytes();
    }
    let padded = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let last = f(padded(other_rest), padded(rest)).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    /// Applies `f` to each lane with ordinary integer arithmetic, as a reference.
    fn by_lane(lane: Lane, a: u64, b: u64, f: impl Fn(u32, u32) -> u32) -> u64 {
        let mask = u64::MAX >> (64 - lane.bits());
        (0..64 / lane.bits()).fold(0, |word, i| {
            let part = |x: u64| u32::try_from(x >> (i * lane.bits()) & mask).unwrap();
            word | (u64::from(f(part(a), part(b))) & mask) << (i * lane.bits())
        })
    }

    proptest! {
        #[test]
        fn identities_hold_in_every_lane(a: u64, b: u64, sparse: u64) {
            for lane in [Lane::Bits16, Lane::Bits32] {
                for (a, b) in [(a, b), (a, b & sparse & b.rotate_left(7)), (a, a), (a, !a), (u64::MAX, b), (a, 0)] {
                    let sum = by_lane(lane, a, b, u32::wrapping_add);
                    prop_assert_eq!(lane.add(a, b), sum);
                    prop_assert_eq!(lane.subtract(a, b), by_lane(lane, a, b, u32::wrapping_sub));
                    prop_assert_eq!(lane.double(a), lane.add(a, a));
                    prop_assert_eq!(lane.xor_by_sums(a, b), a ^ b);
                    prop_assert_eq!(lane.add(a ^ b, lane.double(a & b)), sum);
                    let (by_rounds, rounds) = lane.add_by_rounds(a, b);
                    prop_assert_eq!(by_rounds, sum);
                    prop_assert!(rounds <= lane.bits() && (rounds == 0) == (b == 0));
                    prop_assert_eq!(rounds <= 1, lane.double(a & b) == 0, "one round where nothing is carried");
                }
            }
        }

        #[test]
        fn deltas_of_both_kinds_lead_from_base_to_tuned(pairs in prop::collection::vec(any::<(u32, u32)>(), 0..40), cut in 0usize..2) {
            for lane in [Lane::Bits16, Lane::Bits32] {
                let side = |side: fn(&(u32, u32)) -> u32| {
                    let mut bytes: Vec<u8> = pairs.iter().flat_map(|pair| side(pair).to_le_bytes()).collect();
                    // Drop 16-bit lanes, so that both kinds of ends occur.
                    if lane == Lane::Bits16 {
                        bytes.truncate(bytes.len().saturating_sub(2 * cut));
                    }
                    bytes
                };
                let (base, tuned) = (side(|pair| pair.0), side(|pair| pair.1));
                let xor: Vec<u8> = base.iter().zip(&tuned).map(|(b, t)| b ^ t).collect();
                for_each_isa(|isa| {
                    let mut values = base.clone();
                    apply_xor_by_sums(lane, &xor, &mut values);
                    prop_assert_eq!(&values, &tuned, "{:?}", isa);
                    let mut delta = xor.clone();
                    xor_to_difference(lane, &base, &mut delta);
                    values.clone_from(&base);
                    add_differences(lane, &delta, &mut values);
                    prop_assert_eq!(&values, &tuned, "{:?}", isa);
                    difference_to_xor(lane, &base, &mut delta);
                    prop_assert_eq!(&delta, &xor, "{:?}", isa);
                    Ok(())
                })?;
            }
        }
    }

    #[test]
    fn the_chain_is_as_long_as_the_run_it_ripples_through() {
        // 1 + 0xffff carries through all 16 bits and out of the lane, without touching its
        // neighbours.
        assert_eq!(Lane::Bits16.add_by_rounds(0x0001_0000, 0xffff_0000), (0, 16));
        assert_eq!(Lane::Bits32.add_by_rounds(1, 0xffff_ffff), (0, 32));
        assert_eq!(Lane::Bits16.add_by_rounds(0x00f0, 0x0f0f), (0x0fff, 1));
        assert_eq!(Lane::Bits16.add_by_rounds(0x0101, 0x0101), (0x0202, 2));
    }

    #[test]
    fn bits_of_floats_do_not_add_up_to_their_sum() {
        // BF16: 1.0 + 1.5 is 2.5, but their bits add up to 2.55e38.
        let (one, one_and_a_half, two_and_a_half) = (0x3f80u64, 0x3fc0, 0x4020);
        let sum = Lane::Bits16.add(one, one_and_a_half);
        assert_eq!(sum, 0x7f40);
        assert_ne!(sum, two_and_a_half);
        assert!((f32::from_bits(0x7f40_0000) - 2.55e38).abs() < 1e36);
        // The integers of neighbouring floats differ by ULPs, which is what a delta counts.
        assert_eq!(Lane::Bits16.subtract(0x3f83, one), 3);
    }
}
