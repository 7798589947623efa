//! Elias delta codes of positive numbers, most significant bit first. Source: P. Elias, "Universal codeword sets and representations of the integers", 1975.
//! It does not know what the numbers count.

use crate::error::{Error, Result};

/// Bits of the code of `n`, which is at least 1.
pub(super) fn code_bits(n: u64) -> u64 {
    let bits = u64::from(n.max(1).ilog2()) + 1;
    2 * u64::from(bits.ilog2()) + bits
}

/// Bits from the top of each byte down.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    pending: u128,
    pending_bits: u32,
}

impl Writer {
    /// Appends the low `bits` bits of `value`, at most 64; bits above them must be zero.
    fn push(&mut self, value: u64, bits: u32) {
        self.pending = self.pending << bits | u128::from(value);
        self.pending_bits += bits;
        while self.pending_bits >= 8 {
            self.pending_bits -= 8;
            self.bytes.push((self.pending >> self.pending_bits & 0xff) as u8);
        }
        self.pending &= (1 << self.pending_bits) - 1;
    }

    fn finish(mut self) -> Vec<u8> {
        if self.pending_bits > 0 {
            self.push(0, 8 - self.pending_bits);
        }
        self.bytes
    }
}

/// Codes numbers, each at least 1, one after another; the last byte is filled up with zeros.
pub(super) fn encode(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut writer = Writer::default();
    for n in numbers {
        let bits = n.max(1).ilog2() + 1;
        let prefix = bits.ilog2();
        writer.push(0, prefix);
        writer.push(u64::from(bits), prefix + 1);
        writer.push(n & ((1 << (bits - 1)) - 1), bits - 1);
    }
    writer.finish()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at_bit: usize,
}

impl Reader<'_> {
    fn bit(&mut self) -> Result<u64> {
        let byte = self.bytes.get(self.at_bit / 8);
        let byte = byte.ok_or_else(|| Error::corrupt("Elias codes end early"))?;
        let bit = byte >> (7 - self.at_bit % 8) & 1;
        self.at_bit += 1;
        Ok(u64::from(bit))
    }

    fn take(&mut self, bits: u32) -> Result<u64> {
        (0..bits).try_fold(0, |value, _| Ok(value << 1 | self.bit()?))
    }
}

/// Reads `count` numbers, which must be all that is there.
pub(super) fn decode(bytes: &[u8], count: usize) -> Result<Vec<u64>> {
    // A number takes at least a bit, so this bounds the allocation by the bytes that are there.
    if count > bytes.len().saturating_mul(8) {
        return Err(Error::corrupt("there are fewer Elias codes than numbers"));
    }
    let mut reader = Reader { bytes, at_bit: 0 };
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        let mut prefix = 0;
        while reader.bit()? == 0 {
            prefix += 1;
            if prefix > 6 {
                return Err(Error::corrupt("an Elias code is longer than 64 bits"));
            }
        }
        let bits = u32::try_from(1 << prefix | reader.take(prefix)?).unwrap_or(u32::MAX);
        if bits > 64 {
            return Err(Error::corrupt("an Elias code is longer than 64 bits"));
        }
        numbers.push(1 << (bits - 1) | reader.take(bits - 1)?);
    }
    let rest = bytes.len() * 8 - reader.at_bit;
    if rest > 7 || reader.take(u32::try_from(rest).unwrap_or(0))? != 0 {
        return Err(Error::corrupt("bytes are left over after Elias codes"));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_are_the_published_ones() {
        // 1 = 1, 2 = 0100, 3 = 0101, 4 = 01100, 8 = 00100000, 17 = 001010001
        assert_eq!(encode([1, 2, 3].into_iter()), [0b1010_0010, 0b1000_0000]);
        assert_eq!(encode([4, 1, 1, 1].into_iter()), [0b0110_0111]);
        assert_eq!(encode([8].into_iter()), [0b0010_0000]);
        assert_eq!(encode([17].into_iter()), [0b0010_1000, 0b1000_0000]);
        assert_eq!([1, 2, 3, 4, 8, 17].map(code_bits), [1, 4, 4, 5, 8, 9]);
    }

    proptest! {
        #[test]
        fn numbers_roundtrip(numbers in prop::collection::vec((1u64.., 0u32..64), 0..200)) {
            let numbers: Vec<u64> = numbers.into_iter().map(|(n, shift)| (n >> shift).max(1)).chain([u64::MAX, 1]).collect();
            let bytes = encode(numbers.iter().copied());
            prop_assert_eq!(bytes.len() as u64, numbers.iter().map(|n| code_bits(*n)).sum::<u64>().div_ceil(8));
            prop_assert_eq!(decode(&bytes, numbers.len()).unwrap(), numbers);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), count in 0usize..400) {
            let _any = decode(&bytes, count);
        }
    }

    #[test]
    fn hostile_counts_do_not_allocate() {
        assert!(decode(&[0xff], usize::MAX).is_err());
    }
}
