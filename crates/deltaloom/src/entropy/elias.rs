//! Streams of numbers in the Elias delta code; which numbers they are is not known here.
//! The loops are in `deltaloom_kernels::prefix`.

use std::io::Read;

use deltaloom_kernels::msb::MsbWriter;
use deltaloom_kernels::prefix::{decode_elias_delta, encode_elias_delta};

use super::bit_source::BitSource;
use crate::error::Result;

/// Encodes numbers from 1.
#[derive(Debug, Default)]
pub(crate) struct EliasEncoder {
    bits: MsbWriter,
}

impl EliasEncoder {
    /// Appends the bytes that are full after these numbers.
    pub(crate) fn push(&mut self, numbers: &[u64], out: &mut Vec<u8>) {
        encode_elias_delta(numbers, &mut self.bits);
        self.bits.drain_to(out);
    }

    /// Appends the last byte.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.bits.finish_to(out);
    }
}

/// Decodes them from a reader.
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
}
