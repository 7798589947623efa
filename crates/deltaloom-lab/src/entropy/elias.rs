//! Streams of numbers in the Elias delta code. The loops are in `deltaloom_kernels::prefix`, and
//! the caller knows what the numbers mean.

use std::io::Read;

use deltaloom_kernels::msb::MsbWriter;
use deltaloom_kernels::prefix::{decode_elias_delta, encode_elias_delta};

use super::bit_source::BitSource;
use deltaloom::{Error, Result};

/// Encodes numbers, each at least 1.
#[derive(Debug, Default)]
pub(crate) struct EliasEncoder {
    bits: MsbWriter,
}

impl EliasEncoder {
    /// Encodes the numbers and appends the full bytes.
    pub(crate) fn push(&mut self, numbers: &[u64], out: &mut Vec<u8>) {
        encode_elias_delta(numbers, &mut self.bits);
        self.bits.drain_to(out);
    }

    /// Appends the last byte.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.bits.finish_to(out);
    }
}

/// Decodes such numbers from a reader.
pub(crate) struct EliasDecoder<R> {
    bits: BitSource<R>,
}

impl<R: Read> EliasDecoder<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { bits: BitSource::new(source) }
    }

    /// Fills `numbers` with the next ones.
    pub(crate) fn fill(&mut self, numbers: &mut [u64]) -> Result<()> {
        self.bits.fill(numbers, decode_elias_delta)
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(self) -> Result<()> {
        self.bits.finish()
    }
}

/// Number of bits of the code of `n`, which is at least 1.
pub(crate) fn code_bits(n: u64) -> u64 {
    let bits = u64::from(n.max(1).ilog2()) + 1;
    2 * u64::from(bits.ilog2()) + bits
}

/// Encodes numbers, each at least 1; the last byte is padded with zeros.
pub(crate) fn encode(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
    let numbers: Vec<u64> = numbers.collect();
    let (mut encoder, mut out) = (EliasEncoder::default(), Vec::new());
    encoder.push(&numbers, &mut out);
    encoder.finish(&mut out);
    out
}

/// Decodes `count` numbers, which must be all that `bytes` contain.
pub(crate) fn decode(bytes: &[u8], count: usize) -> Result<Vec<u64>> {
    // Each number needs at least one bit.
    if count > bytes.len().saturating_mul(8) {
        return Err(Error::corrupt("there are fewer numbers than announced"));
    }
    let mut numbers = vec![0; count];
    let mut decoder = EliasDecoder::new(bytes);
    decoder.fill(&mut numbers)?;
    decoder.finish()?;
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_back_and_its_end_is_checked() {
        let numbers: Vec<u64> = (0..40_000).map(|i| 1 + (i * i * 7919) % (1 << (i % 50))).collect();
        let (mut encoder, mut bytes) = (EliasEncoder::default(), Vec::new());
        numbers.chunks(777).for_each(|piece| encoder.push(piece, &mut bytes));
        encoder.finish(&mut bytes);
        let decode = |bytes: &[u8]| -> Result<Vec<u64>> {
            let (mut decoder, mut out) = (EliasDecoder::new(bytes), vec![0; numbers.len()]);
            out.chunks_mut(1001).try_for_each(|piece| decoder.fill(piece))?;
            decoder.finish()?;
            Ok(out)
        };
        assert!(bytes.len() > 1 << 16, "more than a buffer");
        assert_eq!(decode(&bytes).unwrap(), numbers);
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        bytes.push(0);
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn codes_are_the_published_ones() {
        // 1 = 1, 2 = 0100, 3 = 0101, 4 = 01100, 8 = 00100000, 17 = 001010001
        assert_eq!(encode([1, 2, 3].into_iter()), [0b1010_0010, 0b1000_0000]);
        assert_eq!(encode([4, 1, 1, 1].into_iter()), [0b0110_0111]);
        assert_eq!(encode([17].into_iter()), [0b0010_1000, 0b1000_0000]);
        assert_eq!([1, 2, 3, 4, 8, 17].map(code_bits), [1, 4, 4, 5, 8, 9]);
        assert_eq!(decode(&[0b0010_1000, 0b1000_0000], 1).unwrap(), [17]);
        assert!(decode(&[0xff], usize::MAX).is_err() && decode(&[0xff], 7).is_err());
    }
}
