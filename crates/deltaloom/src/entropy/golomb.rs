//! Golomb and Rice codes of many numbers: streams with a fixed divisor, and pieces with a fitted
//! one.
//! The loops are in `deltaloom_kernels::prefix`. Scales have their own Rice code in
//! [`super::rice`].

use std::io::Read;

use deltaloom_kernels::DecodeError;
use deltaloom_kernels::msb::{MsbReader, MsbWriter};
use deltaloom_kernels::prefix::{Golomb, MAX_DIVISOR, Ones, Rest, decode_golomb, encode_golomb};

use super::bit_source::BitSource;
use crate::error::{Error, Result};
use crate::limits::narrow;

/// This many numbers are enough to fit a divisor.
const SAMPLE: usize = 1 << 13;

/// Encodes a stream of numbers with a fixed divisor, as published.
pub(crate) struct GolombEncoder {
    code: Golomb,
    bits: MsbWriter,
}

impl GolombEncoder {
    pub(crate) fn new(divisor: u64) -> Result<Self> {
        Ok(Self { code: published(divisor)?, bits: MsbWriter::default() })
    }

    /// Appends the bytes that these numbers complete.
    pub(crate) fn push(&mut self, numbers: &[u64], out: &mut Vec<u8>) -> Result<()> {
        encode_golomb(&self.code, numbers, &mut self.bits).map_err(|_| Error::LimitExceeded {
            what: "the largest gap for the published Golomb code",
            found: numbers.iter().copied().max().unwrap_or(0),
            limit: 256 << 28,
        })?;
        self.bits.drain_to(out);
        Ok(())
    }

    /// Appends the last byte.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.bits.finish_to(out);
    }
}

fn published(divisor: u64) -> Result<Golomb> {
    Golomb::published(divisor).ok_or_else(|| Error::corrupt("the divisor of a Golomb code is out of range"))
}

/// Decodes such a stream from a reader.
pub(crate) struct GolombDecoder<R> {
    code: Golomb,
    bits: BitSource<R>,
    ones: Ones,
}

impl<R: Read> GolombDecoder<R> {
    pub(crate) fn new(divisor: u64, source: R) -> Result<Self> {
        Ok(Self { code: published(divisor)?, bits: BitSource::new(source), ones: Ones::default() })
    }

    /// Fills `numbers` with the next ones.
    pub(crate) fn fill(&mut self, numbers: &mut [u64]) -> Result<()> {
        let (code, ones) = (&self.code, &mut self.ones);
        self.bits.fill(numbers, |reader, rest, out| decode_golomb(code, reader, rest, ones, out))
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(self) -> Result<()> {
        self.bits.finish()
    }
}

/// Divisors to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Divisors {
    /// Powers of two: a Rice code.
    PowersOfTwo,
    /// Also the divisors between, in eighths of the best power.
    All,
}

/// The divisor with which a sample of `distances`, all at least 1, takes the fewest bits. All
/// powers of two are tried, since the mean says little about distances that are either tiny or
/// huge.
pub(crate) fn fit(distances: &[u64], divisors: Divisors) -> u64 {
    let step = distances.len().div_ceil(SAMPLE).max(1);
    let sample: Vec<u64> = distances.iter().copied().step_by(step).collect();
    let bits = |divisor: &u64| Golomb::of_distances(*divisor).map_or(u64::MAX, |code| code.len_bits(&sample));
    let power = (0..=MAX_DIVISOR.ilog2()).map(|k| 1 << k).min_by_key(bits).unwrap_or(1);
    if divisors == Divisors::PowersOfTwo {
        return power;
    }
    // In eighths of it, from the power below to the power above.
    let near = (4..16).map(|eighths| (power * eighths / 8).max(1));
    std::iter::once(power).chain(near).min_by_key(bits).unwrap_or(power)
}

fn of_distances(divisor: u64) -> Result<Golomb> {
    Golomb::of_distances(divisor)
        .ok_or_else(|| Error::corrupt("the divisor of a Golomb code is out of range"))
}

/// Appends the codes of `distances`, all at least 1, as whole bytes.
pub(crate) fn push_distances(divisor: u64, distances: &[u64], out: &mut Vec<u8>) -> Result<()> {
    let mut bits = MsbWriter::default();
    encode_golomb(&of_distances(divisor)?, distances, &mut bits)?;
    bits.finish_to(out);
    Ok(())
}

/// Decodes `count` distances, which must use up `bytes`.
pub(crate) fn read_distances(divisor: u64, bytes: &[u8], count: usize) -> Result<Vec<u64>> {
    let code = of_distances(divisor)?;
    // Each takes at least one bit, so the bytes that exist bound the allocation.
    if count > bytes.len().saturating_mul(8) {
        return Err(DecodeError::Truncated.into());
    }
    let mut distances = vec![0; count];
    let mut reader = MsbReader::new(bytes, 0);
    decode_golomb(&code, &mut reader, Rest::Ended, &mut Ones::default(), &mut distances)?;
    let left_bits = 8 * bytes.len() - reader.at_bit();
    let padding = reader.take(narrow(left_bits.min(7), "at most 7"));
    if left_bits > 7 || padding != 0 { Err(DecodeError::Trailing.into()) } else { Ok(distances) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fitted_distances_roundtrip(distances in prop::collection::vec((1u64..=u64::MAX, 0u32..64), 0..300)) {
            let distances: Vec<u64> = distances.into_iter().map(|(d, shift)| (d >> shift).max(1)).collect();
            for divisors in [Divisors::PowersOfTwo, Divisors::All] {
                let divisor = fit(&distances, divisors);
                prop_assert!(divisors == Divisors::All || divisor.is_power_of_two());
                let mut bytes = Vec::new();
                push_distances(divisor, &distances, &mut bytes).unwrap();
                prop_assert_eq!(&read_distances(divisor, &bytes, distances.len()).unwrap(), &distances);
                bytes.push(0);
                prop_assert!(read_distances(divisor, &bytes, distances.len()).is_err());
            }
        }
    }

    #[test]
    fn the_fit_is_the_best_rice_parameter_of_a_geometric_distribution() {
        // Every distance up to 300 as often as with p = 1/50: the best k is 5.
        let mut distances = Vec::new();
        let mut left = 10_000.0f64;
        for distance in 1..300u64 {
            let share = left / 50.0;
            distances.extend(std::iter::repeat_n(distance, num(share)));
            left -= share;
        }
        assert_eq!(fit(&distances, Divisors::PowersOfTwo), 32);
        assert!((30..=40).contains(&fit(&distances, Divisors::All)));
    }

    #[test]
    fn tiny_and_huge_distances_get_a_divisor_for_both() {
        // As many bits inside a byte as between bytes far apart.
        let distances: Vec<u64> = (0..2000).map(|i| if i % 2 == 0 { 1 } else { 30_000 + i }).collect();
        let divisor = fit(&distances, Divisors::PowersOfTwo);
        let bits = Golomb::of_distances(divisor).map_or(0, |code| code.len_bits(&distances));
        assert!(bits < 2000 * 16, "{divisor}: {bits}");
    }

    #[expect(clippy::cast_possible_truncation, reason = "small counts")]
    fn num(share: f64) -> usize {
        share.round() as usize
    }

    #[test]
    fn hostile_counts_and_divisors_are_refused() {
        assert!(read_distances(4, &[0; 8], usize::MAX).is_err());
        assert!(read_distances(0, &[0; 8], 1).is_err());
        assert!(GolombEncoder::new(0).is_err());
        let mut encoder = GolombEncoder::new(256).unwrap();
        let mut out = Vec::new();
        assert!(matches!(encoder.push(&[1 << 37], &mut out), Err(Error::LimitExceeded { .. })));
    }

    #[test]
    fn a_gap_of_more_than_a_buffer_comes_back() {
        let numbers = [1, 1 << 32, 5, 1 << 34, 7];
        let (mut encoder, mut bytes) = (GolombEncoder::new(256).unwrap(), Vec::new());
        encoder.push(&numbers, &mut bytes).unwrap();
        encoder.finish(&mut bytes);
        let (mut decoder, mut out) = (GolombDecoder::new(256, &bytes[..]).unwrap(), [0; 5]);
        decoder.fill(&mut out).unwrap();
        decoder.finish().unwrap();
        assert_eq!(out, numbers);
    }
}
