//! Bit streams, most significant bit first, as published codes of positions use them. The
//! container's streams start at the other end and are in [`crate::bits`].

/// Most bits of one push or peek, because up to 7 bits may be pending.
pub(crate) const SHORT_BITS: u32 = 56;
/// Bytes by which the buffer grows at least.
const GROWTH: usize = 4096;

/// Collects fields of up to 64 bits into bytes.
#[derive(Debug, Default)]
pub struct MsbWriter {
    /// Longer than the written data: every push stores a whole word.
    bytes: Vec<u8>,
    at_byte: usize,
    /// Pending bits, at the upper end.
    pending: u64,
    pending_bits: u32,
}

/// Kept out of line, so that the common push stays small.
#[cold]
#[inline(never)]
fn grow(bytes: &mut Vec<u8>) {
    bytes.resize(2 * bytes.len() + GROWTH, 0);
}

impl MsbWriter {
    /// Appends the low `bits` bits of `value`; bits above them must be zero.
    #[inline(always)]
    pub fn push(&mut self, value: u64, bits: u32) {
        debug_assert!(bits == 64 || value >> bits == 0);
        if bits <= SHORT_BITS {
            self.push_short(value, bits);
        } else {
            self.push_short(value >> 32, bits - 32);
            self.push_short(value & 0xffff_ffff, 32);
        }
    }

    #[inline(always)]
    fn push_short(&mut self, value: u64, bits: u32) {
        if self.at_byte + 8 > self.bytes.len() {
            grow(&mut self.bytes);
        }
        // Two shifts: with nothing pending and no bits to push, one shift would be by 64.
        self.pending |= value << 1 << (63 - self.pending_bits - bits);
        self.pending_bits += bits;
        self.bytes[self.at_byte..self.at_byte + 8].copy_from_slice(&self.pending.to_be_bytes());
        self.at_byte += self.pending_bits as usize / 8;
        // At most 63 bits are pending, so at most 56 of them fill bytes.
        self.pending <<= self.pending_bits & 56;
        self.pending_bits &= 7;
    }

    /// Appends `count` ones.
    pub fn push_ones(&mut self, mut count: u64) {
        while count > 0 {
            let run = count.min(32);
            self.push((1 << run) - 1, run as u32);
            count -= run;
        }
    }

    /// Appends the full bytes to `out` and keeps the remaining bits.
    pub fn drain_to(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.at_byte]);
        self.at_byte = 0;
    }

    /// Appends everything to `out` and pads the last byte with zero bits. The next push starts a
    /// new stream.
    pub fn finish_to(&mut self, out: &mut Vec<u8>) {
        self.push_short(0, (8 - self.pending_bits) % 8);
        self.drain_to(out);
    }
}

/// Reads fields back. Reading past the end returns zeros, and [`MsbReader::is_beyond`] says whether
/// that happened.
#[derive(Debug, Clone)]
pub struct MsbReader<'a> {
    bytes: &'a [u8],
    at_bit: usize,
}

impl<'a> MsbReader<'a> {
    /// Creates a reader at bit `at_bit` of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8], at_bit: usize) -> Self {
        Self { bytes, at_bit }
    }

    /// Returns at least [`SHORT_BITS`] bits from the current position, at the upper end.
    #[inline(always)]
    pub(crate) fn peek(&self) -> u64 {
        let start = self.at_bit / 8;
        let window = match self.bytes.get(start..).and_then(|rest| rest.first_chunk::<8>()) {
            Some(full) => u64::from_be_bytes(*full),
            None => self.peek_at_end(start),
        };
        window << (self.at_bit % 8)
    }

    #[cold]
    fn peek_at_end(&self, start: usize) -> u64 {
        let mut word = [0u8; 8];
        let tail = self.bytes.get(start..).unwrap_or_default();
        word[..tail.len()].copy_from_slice(tail);
        u64::from_be_bytes(word)
    }

    /// Skips `bits` bits.
    #[inline(always)]
    pub(crate) fn skip(&mut self, bits: u32) {
        self.at_bit += bits as usize;
    }

    /// Reads the next `bits` bits, at most 64.
    #[inline(always)]
    pub fn take(&mut self, bits: u32) -> u64 {
        if bits <= SHORT_BITS {
            self.take_short(bits)
        } else {
            self.take_short(bits - 32) << 32 | self.take_short(32)
        }
    }

    #[inline(always)]
    fn take_short(&mut self, bits: u32) -> u64 {
        // Two shifts, because zero bits would need a shift by 64.
        let value = self.peek() >> 1 >> (63 - bits);
        self.skip(bits);
        value
    }

    /// Number of bits read so far, including those before the first one.
    #[must_use]
    pub fn at_bit(&self) -> usize {
        self.at_bit
    }

    /// Whether more was read than the stream has.
    #[must_use]
    pub fn is_beyond(&self) -> bool {
        self.at_bit > self.bytes.len().saturating_mul(8)
    }

    /// Whether there are at least `bytes` bytes from the one that holds the next bit.
    #[inline(always)]
    pub(crate) fn has(&self, bytes: usize) -> bool {
        self.at_bit / 8 + bytes <= self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(fields in prop::collection::vec((any::<u64>(), 0u32..=64), 0..200), drained in 0usize..200) {
            let fields: Vec<(u64, u32)> =
                fields.into_iter().map(|(v, b)| (if b == 64 { v } else { v & ((1 << b) - 1) }, b)).collect();
            let (mut writer, mut bytes) = (MsbWriter::default(), Vec::new());
            for (i, &(value, bits)) in fields.iter().enumerate() {
                writer.push(value, bits);
                if i == drained {
                    writer.drain_to(&mut bytes);
                }
            }
            writer.finish_to(&mut bytes);
            let total: u32 = fields.iter().map(|f| f.1).sum();
            prop_assert_eq!(bytes.len(), total.div_ceil(8) as usize);
            let mut reader = MsbReader::new(&bytes, 0);
            for &(value, bits) in &fields {
                prop_assert_eq!(reader.take(bits), value);
            }
            prop_assert!(!reader.is_beyond());
            reader.take(8);
            prop_assert!(reader.is_beyond());
        }
    }

    #[test]
    fn the_first_bit_is_the_highest() {
        let (mut writer, mut bytes) = (MsbWriter::default(), Vec::new());
        writer.push(1, 1);
        writer.push(0b01, 2);
        writer.push_ones(40);
        writer.finish_to(&mut bytes);
        assert_eq!(bytes, [0b1011_1111, 0xff, 0xff, 0xff, 0xff, 0b1110_0000]);
    }
}
