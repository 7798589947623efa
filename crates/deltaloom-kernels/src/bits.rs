//! Bit streams, least significant bit first, as in docs/format.md section 7. They carry raw bits;
//! the caller knows what the bits mean.

use crate::DecodeError;

/// Collects fields of up to 64 bits into bytes.
#[derive(Debug, Default)]
pub struct BitWriter {
    /// Longer than the written data: every push stores a whole word, which is faster than checking
    /// whether a byte is full.
    bytes: Vec<u8>,
    at_byte: usize,
    pending: u64,
    pending_bits: u32,
}

/// Most bits that fit in a word next to up to 7 pending bits.
pub(crate) const SHORT_BITS: u32 = 56;
/// Bytes by which the buffer grows.
const GROWTH: usize = 4096;

/// Kept out of line, so that the common push stays small.
#[cold]
#[inline(never)]
fn grow(bytes: &mut Vec<u8>) {
    bytes.resize(2 * bytes.len() + GROWTH, 0);
}

impl BitWriter {
    /// Creates a writer that reuses the memory of `buffer`.
    #[must_use]
    pub fn with_buffer(buffer: Vec<u8>) -> Self {
        Self { bytes: buffer, ..Self::default() }
    }

    /// Appends the low `bits` bits of `value`; bits above them must be zero.
    #[inline(always)]
    pub fn push(&mut self, value: u64, bits: u32) {
        debug_assert!(bits == 64 || value >> bits == 0);
        if bits <= SHORT_BITS {
            self.push_short(value, bits);
        } else {
            self.push_short(value & ((1 << 32) - 1), 32);
            self.push_short(value >> 32, bits - 32);
        }
    }

    #[inline(always)]
    fn push_short(&mut self, value: u64, bits: u32) {
        if self.at_byte + 8 > self.bytes.len() {
            grow(&mut self.bytes);
        }
        self.pending |= value << self.pending_bits;
        self.pending_bits += bits;
        self.bytes[self.at_byte..self.at_byte + 8].copy_from_slice(&self.pending.to_le_bytes());
        let full_bits = self.pending_bits & !7;
        self.at_byte += full_bits as usize / 8;
        // Two shifts, because a single shift by 64 would overflow.
        self.pending = self.pending >> (full_bits / 2) >> (full_bits - full_bits / 2);
        self.pending_bits &= 7;
    }

    /// Appends at most eight fields of at most 56 bits each. The bits of a value above its field
    /// must be zero.
    #[cfg(target_arch = "x86_64")]
    // A call per vector would cost more than the pushes.
    #[inline(always)]
    pub(crate) fn push_all<const N: usize>(&mut self, values: &[u64; N], bits: &[u64; N]) {
        if self.at_byte + 64 > self.bytes.len() {
            grow(&mut self.bytes);
        }
        // Read the fields once: for all the compiler knows, a write to `out` could change them.
        let out = &mut self.bytes[self.at_byte..self.at_byte + 64];
        let (mut pending, mut pending_bits, mut at_byte) = (self.pending, u64::from(self.pending_bits), 0);
        for (value, bits) in values.iter().zip(bits) {
            debug_assert!(*bits <= u64::from(SHORT_BITS) && value >> bits == 0);
            pending |= value << pending_bits;
            pending_bits += bits;
            out[at_byte..at_byte + 8].copy_from_slice(&pending.to_le_bytes());
            at_byte += (pending_bits / 8) as usize;
            // A shift by 64 would overflow, but at most 63 bits are pending.
            pending >>= pending_bits & 56;
            pending_bits &= 7;
        }
        (self.pending, self.pending_bits) = (pending, (pending_bits & 7) as u32);
        self.at_byte += at_byte;
    }

    /// Appends the first `lens[i]` bytes of each block i. The data written before must end at a
    /// byte.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn push_blocks<const N: usize, const B: usize>(
        &mut self,
        blocks: &[[u8; N]; B],
        lens: [usize; B],
    ) {
        debug_assert!(self.pending_bits == 0 && lens.iter().all(|len| *len <= N));
        if self.at_byte + N * B > self.bytes.len() {
            grow(&mut self.bytes);
        }
        let out = &mut self.bytes[self.at_byte..self.at_byte + N * B];
        let mut at = 0;
        for (block, len) in blocks.iter().zip(lens) {
            out[at..at + N].copy_from_slice(block);
            at += len;
        }
        self.at_byte += at;
    }

    /// Number of bits written so far.
    #[must_use]
    pub fn len_bits(&self) -> u64 {
        self.at_byte as u64 * 8 + u64::from(self.pending_bits)
    }

    /// Returns the bytes; the last one is padded with zero bits.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        // The last store wrote the incomplete byte, followed by zeros.
        self.bytes.truncate(self.at_byte + self.pending_bits.div_ceil(8) as usize);
        self.bytes
    }
}

/// Reads fields back. Reading past the end returns zeros, which [`BitReader::finish`] reports.
#[derive(Debug, Clone)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    at_bit: usize,
}

impl<'a> BitReader<'a> {
    /// Creates a reader at the first bit of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at_bit: 0 }
    }

    /// Reads the next `bits` bits, at most 64.
    #[inline]
    pub fn take(&mut self, bits: u32) -> u64 {
        if bits <= SHORT_BITS {
            self.take_short(bits)
        } else {
            self.take_short(32) | self.take_short(bits - 32) << 32
        }
    }

    #[inline]
    fn take_short(&mut self, bits: u32) -> u64 {
        let start = self.at_bit / 8;
        let window = match self.bytes.get(start..start + 8) {
            Some(full) => u64::from_le_bytes(full.try_into().unwrap_or_default()),
            None => {
                let mut word = [0u8; 8];
                let tail = self.bytes.get(start..).unwrap_or_default();
                word[..tail.len()].copy_from_slice(tail);
                u64::from_le_bytes(word)
            }
        };
        let value = (window >> (self.at_bit % 8)) & ((1 << bits) - 1);
        self.at_bit += bits as usize;
        value
    }

    /// Number of bits read so far.
    #[must_use]
    pub fn position_bits(&self) -> usize {
        self.at_bit
    }

    /// The bytes from the one that holds the next bit.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at_bit / 8..).unwrap_or_default()
    }

    /// The `N` bytes from the one that holds the next bit. If fewer are left, copies them to
    /// `padded` and pads them with zeros.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn window<'p, const N: usize>(&self, padded: &'p mut [u8; N]) -> &'p [u8; N]
    where
        'a: 'p,
    {
        let rest = self.rest();
        rest.first_chunk().unwrap_or_else(|| {
            *padded = [0; N];
            padded[..rest.len()].copy_from_slice(rest);
            padded
        })
    }

    /// Skips `bits` bits. This may lead past the end, as [`Self::take`] may.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn skip(&mut self, bits: usize) {
        self.at_bit += bits;
    }

    /// Checks that the stream was exactly as long as needed and that its unused bits are zero. The
    /// first `carried_bytes` may be longer than needed, because they cost nothing.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if more was read than the stream has, [`DecodeError::Trailing`]
    /// if something is left over.
    pub fn finish(mut self, carried_bytes: usize) -> Result<(), DecodeError> {
        let used_bytes = self.at_bit.div_ceil(8);
        if used_bytes > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        if used_bytes.max(carried_bytes) != self.bytes.len() {
            return Err(DecodeError::Trailing);
        }
        let rest_of_byte = (used_bytes * 8 - self.at_bit).min(7);
        #[expect(clippy::cast_possible_truncation, reason = "at most 7")]
        let padding = self.take_short(rest_of_byte as u32);
        if padding != 0 || self.bytes[used_bytes..].iter().any(|&b| b != 0) {
            return Err(DecodeError::Trailing);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(fields in prop::collection::vec((any::<u64>(), 0u32..=64), 0..200)) {
            let fields: Vec<(u64, u32)> =
                fields.into_iter().map(|(v, b)| (if b == 64 { v } else { v & ((1 << b) - 1) }, b)).collect();
            let mut writer = BitWriter::default();
            for &(value, bits) in &fields {
                writer.push(value, bits);
            }
            let bytes = writer.finish();
            let total: u32 = fields.iter().map(|f| f.1).sum();
            prop_assert_eq!(bytes.len(), total.div_ceil(8) as usize);
            let mut reader = BitReader::new(&bytes);
            for &(value, bits) in &fields {
                prop_assert_eq!(reader.take(bits), value);
            }
            prop_assert_eq!(reader.finish(0), Ok(()));
        }
    }

    #[test]
    fn length_is_exact() {
        let mut reader = BitReader::new(&[0b101]);
        reader.take(3);
        assert_eq!(reader.finish(0), Ok(()));
        let mut dirty = BitReader::new(&[0b1101]);
        dirty.take(3);
        assert_eq!(dirty.finish(0), Err(DecodeError::Trailing));
        let mut long = BitReader::new(&[0, 0]);
        long.take(3);
        assert_eq!(long.finish(0), Err(DecodeError::Trailing));
        let mut carried = BitReader::new(&[0, 0]);
        carried.take(3);
        assert_eq!(carried.finish(2), Ok(()));
        let mut short = BitReader::new(&[1]);
        assert_eq!(short.take(9), 1);
        assert_eq!(short.finish(0), Err(DecodeError::Truncated));
    }
}
