//! How the bits of an element are read as a number: its kind, its fields and its order-preserving
//! integer.
//!
//! It holds no values and does arithmetic only on single words.

/// The kind of number that the bits of an element represent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberKind {
    /// Sign, exponent and mantissa, from the top bit down.
    Float,
    /// Two's complement.
    Signed,
    /// Plain binary; also for bytes of unknown meaning.
    Unsigned,
}

/// Bit layout of an element. Elements are little-endian and 1, 2, 4 or 8 bytes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    kind: NumberKind,
    bits: u32,
    exponent_bits: u32,
    mantissa_bits: u32,
}

impl Number {
    /// A float of one sign bit, `exponent_bits` and `mantissa_bits`.
    #[must_use]
    pub const fn float(exponent_bits: u32, mantissa_bits: u32) -> Self {
        Self {
            kind: NumberKind::Float,
            bits: 1 + exponent_bits + mantissa_bits,
            exponent_bits,
            mantissa_bits,
        }
    }

    /// A two's complement integer of `bits` bits.
    #[must_use]
    pub const fn signed(bits: u32) -> Self {
        Self { kind: NumberKind::Signed, bits, exponent_bits: 0, mantissa_bits: 0 }
    }

    /// An unsigned integer of `bits` bits.
    #[must_use]
    pub const fn unsigned(bits: u32) -> Self {
        Self { kind: NumberKind::Unsigned, bits, exponent_bits: 0, mantissa_bits: 0 }
    }

    /// The kind of number.
    #[must_use]
    pub const fn kind(self) -> NumberKind {
        self.kind
    }

    /// Width of an element in bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// Width of an element in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bits as usize / 8
    }

    /// Bits of the exponent field, 0 for integers.
    #[must_use]
    pub const fn exponent_bits(self) -> u32 {
        self.exponent_bits
    }

    /// Bits of the mantissa field, 0 for integers.
    #[must_use]
    pub const fn mantissa_bits(self) -> u32 {
        self.mantissa_bits
    }

    /// All bits of an element.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// The top bit of an element: the sign of floats and signed integers.
    #[must_use]
    pub const fn top_bit(self) -> u64 {
        1 << (self.bits - 1)
    }

    /// Exponent field of `x`, 0 for integers.
    #[inline]
    #[must_use]
    pub const fn exponent(self, x: u64) -> u32 {
        match self.kind {
            #[expect(clippy::cast_possible_truncation, reason = "an exponent has at most 11 bits")]
            NumberKind::Float => ((x & (self.top_bit() - 1)) >> self.mantissa_bits) as u32,
            _ => 0,
        }
    }

    /// Order-preserving integer of `x`: for every bit pattern, the unsigned order of the results is
    /// the numeric order.
    #[inline]
    #[must_use]
    pub const fn ordered(self, x: u64) -> u64 {
        match self.kind {
            // Signs are effectively random, so the bits are flipped by arithmetic, not by a branch.
            NumberKind::Float => x ^ (self.top_bit() | self.all_if(x >> (self.bits - 1))),
            NumberKind::Signed => x ^ self.top_bit(),
            NumberKind::Unsigned => x,
        }
    }

    /// Inverse of [`Self::ordered`].
    #[inline]
    #[must_use]
    pub const fn unordered(self, o: u64) -> u64 {
        match self.kind {
            NumberKind::Float => o ^ (self.top_bit() | self.all_if(o >> (self.bits - 1) ^ 1)),
            NumberKind::Signed => o ^ self.top_bit(),
            NumberKind::Unsigned => o,
        }
    }

    /// Folds residual `d` by the sign of prediction `p`, so that it counts away from zero. It is
    /// its own inverse.
    #[inline]
    #[must_use]
    pub const fn folded(self, d: u64, p: u64) -> u64 {
        let is_negative = match self.kind {
            NumberKind::Unsigned => 0,
            _ => p >> (self.bits - 1),
        };
        (d ^ is_negative.wrapping_neg()).wrapping_add(is_negative)
    }

    /// All bits of an element when `bit` is 1, none when it is 0.
    #[inline]
    const fn all_if(self, bit: u64) -> u64 {
        bit.wrapping_neg() & self.mask()
    }
}

/// Loads element `i` of little-endian elements of `B` bytes.
#[inline]
pub(crate) fn load<const B: usize>(bytes: &[u8], i: usize) -> u64 {
    let mut word = [0u8; 8];
    word[..B].copy_from_slice(&bytes[i * B..(i + 1) * B]);
    u64::from_le_bytes(word)
}

/// Loads an element of at most 4 bytes.
#[inline]
pub(crate) fn load_32<const B: usize>(bytes: &[u8]) -> u32 {
    let mut word = [0u8; 4];
    word[..B.min(4)].copy_from_slice(&bytes[..B.min(4)]);
    u32::from_le_bytes(word)
}

/// Stores the low `B` bytes of `x` as element `i`.
#[inline]
pub(crate) fn store<const B: usize>(bytes: &mut [u8], i: usize, x: u64) {
    bytes[i * B..(i + 1) * B].copy_from_slice(&x.to_le_bytes()[..B]);
}

/// Calls an `#[inline(always)]` function that is generic over the element's size in bytes and takes
/// the number first. The common floats get their own copy each, with constant field widths; every
/// other number shares a copy per size.
macro_rules! by_number {
    ($number:expr, $f:ident ( $($arg:expr),* $(,)? )) => {{
        const BF16: $crate::Number = $crate::Number::float(8, 7);
        const F16: $crate::Number = $crate::Number::float(5, 10);
        const F32: $crate::Number = $crate::Number::float(8, 23);
        match $number {
            BF16 => $f::<2>(BF16, $($arg),*),
            F16 => $f::<2>(F16, $($arg),*),
            F32 => $f::<4>(F32, $($arg),*),
            other => $crate::number::by_size!(other, $f(other, $($arg),*)),
        }
    }};
}
pub(crate) use by_number;

/// Calls a function that is generic over the element's size in bytes, with the size of `$number`.
macro_rules! by_size {
    ($number:expr, $f:ident ( $($arg:expr),* $(,)? )) => {
        match $number.bytes() {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            4 => $f::<4>($($arg),*),
            _ => $f::<8>($($arg),*),
        }
    };
}
pub(crate) use by_size;

#[cfg(test)]
mod tests {
    use super::*;

    const BF16: Number = Number::float(8, 7);

    #[test]
    fn order_of_all_bf16_patterns_is_numeric_order() {
        let value = |x: u64| f32::from_bits(u32::try_from(x).unwrap() << 16);
        let mut by_order: Vec<u64> = (0..=u64::from(u16::MAX)).collect();
        by_order.sort_by_key(|&x| BF16.ordered(x));
        let finite: Vec<f32> = by_order.iter().map(|&x| value(x)).filter(|v| !v.is_nan()).collect();
        assert!(finite.windows(2).all(|w| w[0] <= w[1]));
        assert!(by_order.iter().all(|&x| BF16.unordered(BF16.ordered(x)) == x));
        // NaNs sort outside the infinities, one sign at each end.
        assert!(value(by_order[0]).is_nan() && value(by_order[65535]).is_nan());
    }

    #[test]
    fn integers_keep_their_order() {
        let i8s = Number::signed(8);
        assert!(i8s.ordered(0x80) < i8s.ordered(0xff) && i8s.ordered(0xff) < i8s.ordered(0));
        assert_eq!(Number::unsigned(16).ordered(77), 77);
        assert_eq!(Number::unsigned(64).mask(), u64::MAX);
    }

    #[test]
    fn exponent_is_the_field() {
        assert_eq!(BF16.exponent(0xbf80), 127);
        assert_eq!(Number::float(11, 52).exponent(1.0f64.to_bits()), 1023);
        assert_eq!(Number::signed(32).exponent(123), 0);
    }
}
