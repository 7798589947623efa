//! The binary arithmetic coder of the mixed codec: 32 bits, no carries, probabilities of 16 bits;
//! docs/format.md section 13. It knows no models: each bit comes with its probability.

use crate::DecodeError;

/// One direction of coding, so that encoder and decoder run the same model code.
pub(super) trait BitCoder {
    /// Whether elements are known before they are coded.
    const ENCODES: bool;

    /// Codes a bit that is 1 with probability `p` / 65536, where `p` is in 1..=65535. An encoder
    /// codes `bit`; a decoder ignores it. Returns the coded bit.
    fn code(&mut self, bit: bool, p: u32) -> bool;

    /// Codes the low `bits` bits of `value` without a model, lowest first.
    fn code_raw(&mut self, value: u64, bits: u32) -> u64 {
        (0..bits).map(|i| u64::from(self.code(value >> i & 1 == 1, 1 << 15)) << i).sum()
    }
}

/// The bounds that both directions narrow; `high` is inclusive.
#[derive(Debug)]
struct Range {
    low: u32,
    high: u32,
}

impl Range {
    const FULL: Self = Self { low: 0, high: u32::MAX };

    /// The last point of the part that represents a 1.
    #[expect(clippy::cast_possible_truncation, reason = "below the width of the range")]
    #[inline(always)]
    fn split(&self, p: u32) -> u32 {
        self.low + ((u64::from(self.high - self.low) * u64::from(p)) >> 16) as u32
    }

    #[inline(always)]
    fn narrow(&mut self, bit: bool, split: u32) {
        if bit { self.high = split } else { self.low = split + 1 }
    }

    /// Drops the top byte if the bounds agree on it.
    #[inline(always)]
    fn shift(&mut self) -> Option<u8> {
        if (self.low ^ self.high) >> 24 != 0 {
            return None;
        }
        let byte = (self.low >> 24) as u8;
        (self.low, self.high) = (self.low << 8, self.high << 8 | 0xff);
        Some(byte)
    }
}

pub(super) struct BitEncoder {
    range: Range,
    out: Vec<u8>,
}

impl BitEncoder {
    pub(super) fn new(out: Vec<u8>) -> Self {
        Self { range: Range::FULL, out }
    }

    /// One more byte is enough, because a reader treats missing bytes as zeros.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.out.push((self.range.high >> 24) as u8);
        self.out
    }
}

impl BitCoder for BitEncoder {
    const ENCODES: bool = true;

    #[inline(always)]
    fn code(&mut self, bit: bool, p: u32) -> bool {
        let split = self.range.split(p);
        self.range.narrow(bit, split);
        while let Some(byte) = self.range.shift() {
            self.out.push(byte);
        }
        bit
    }
}

pub(super) struct BitDecoder<'a> {
    range: Range,
    at: u32,
    bytes: &'a [u8],
    /// Bytes taken, including those past the end.
    taken: usize,
}

/// Bytes that a decoder has taken but not used at the end.
const AHEAD: usize = 3;

impl<'a> BitDecoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { range: Range::FULL, at: 0, bytes, taken: 0 };
        (0..=AHEAD).for_each(|_| decoder.take());
        decoder
    }

    #[inline(always)]
    fn take(&mut self) {
        self.at = self.at << 8 | u32::from(self.bytes.get(self.taken).copied().unwrap_or(0));
        self.taken += 1;
    }

    /// Whether more was read past the end than any encoder leaves out.
    pub(super) fn is_past_end(&self) -> bool {
        self.taken > self.bytes.len() + AHEAD
    }

    /// Checks that exactly the available bytes were used.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.taken.cmp(&(self.bytes.len() + AHEAD)) {
            std::cmp::Ordering::Less => Err(DecodeError::Trailing),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(DecodeError::Truncated),
        }
    }
}

impl BitCoder for BitDecoder<'_> {
    const ENCODES: bool = false;

    #[inline(always)]
    fn code(&mut self, _: bool, p: u32) -> bool {
        let split = self.range.split(p);
        let bit = self.at <= split;
        self.range.narrow(bit, split);
        while self.range.shift().is_some() {
            self.take();
        }
        bit
    }
}
