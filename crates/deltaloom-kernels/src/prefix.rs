//! Prefix codes of numbers, many at a time: Elias delta, and Golomb with its special case Rice. The
//! caller chooses which numbers are coded.
//!
//! Sources: P. Elias, "Universal codeword sets and representations of the integers" (1975); S. W.
//! Golomb, "Run-length encodings" (1966).

use crate::DecodeError;
use crate::isa::per_isa;
use crate::msb::{MsbReader, MsbWriter, SHORT_BITS};

/// Bytes that a code may span, not counting the ones of a Golomb code. Readers stop if fewer bytes
/// are left, unless these are the last bytes.
pub const REACH_BYTES: usize = 24;

/// Whether more bytes follow those of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// More will come: stop before a code that may be incomplete.
    Follows,
    /// These are the last bytes.
    Ended,
}

per_isa! {
    /// Appends the Elias delta codes of `numbers`, all at least 1.
    pub fn encode_elias_delta(numbers: &[u64], bits: &mut MsbWriter) = encode_elias_delta_body;
}

#[inline(always)]
fn encode_elias_delta_body(numbers: &[u64], bits: &mut MsbWriter) {
    for &number in numbers {
        // Zero has no code. Callers never pass it, and coding it as 1 does no harm.
        let number = number.max(1);
        let below = 63 - number.leading_zeros();
        let length = u64::from(below) + 1;
        let prefix_bits = 2 * (63 - length.leading_zeros()) + 1;
        let detail = number & !(1 << below);
        if prefix_bits + below <= SHORT_BITS {
            bits.push(length << below | detail, prefix_bits + below);
        } else {
            bits.push(length, prefix_bits);
            bits.push(detail, below);
        }
    }
}

per_isa! {
    /// Fills `numbers` with decoded ones as far as the bytes of `reader` allow, and returns how
    /// many.
    ///
    /// # Errors
    /// [`DecodeError::BadSymbol`] for a code of more than 64 bits, [`DecodeError::Truncated`] if
    /// the last bytes end within a code.
    pub fn decode_elias_delta(reader: &mut MsbReader<'_>, rest: Rest, numbers: &mut [u64]) -> Result<usize, DecodeError> = decode_elias_delta_body;
}

#[inline(always)]
fn decode_elias_delta_body(
    reader: &mut MsbReader<'_>,
    rest: Rest,
    numbers: &mut [u64],
) -> Result<usize, DecodeError> {
    let mut r = reader.clone();
    let mut done = 0;
    for place in numbers {
        if rest == Rest::Follows && !r.has(REACH_BYTES) {
            break;
        }
        let window = r.peek();
        let zeros = window.leading_zeros();
        if zeros > 6 {
            return Err(if r.has(8) { DecodeError::BadSymbol } else { DecodeError::Truncated });
        }
        let length = window << zeros >> (63 - zeros);
        if length > 64 {
            return Err(DecodeError::BadSymbol);
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 63")]
        let below = length as u32 - 1;
        let prefix_bits = 2 * zeros + 1;
        *place = if prefix_bits + below <= SHORT_BITS {
            r.skip(prefix_bits + below);
            1 << below | window << prefix_bits >> 1 >> (63 - below)
        } else {
            r.skip(prefix_bits);
            1 << below | r.take(below)
        };
        done += 1;
    }
    if r.is_beyond() {
        return Err(DecodeError::Truncated);
    }
    *reader = r;
    Ok(done)
}

/// A Golomb code: the quotient in ones and a zero, the remainder in truncated binary. If the
/// divisor is a power of two, it is a Rice code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Golomb {
    divisor: u64,
    /// Subtracted from a number before it is coded.
    offset: u64,
    /// This many ones mean that the number follows in 64 bits.
    escape: u64,
    /// Bits of a long remainder; a short one, below `cutoff`, has one bit less.
    long_bits: u32,
    cutoff: u64,
    /// log2 of the divisor if it is a power of two.
    shift: Option<u32>,
}

/// Largest allowed divisor.
pub const MAX_DIVISOR: u64 = 1 << 32;
/// Number of ones after which [`Golomb::of_distances`] escapes.
const ESCAPE_ONES: u64 = 40;
/// Number of ones at which the published form gives up: 32 MiB for one number.
const MOST_ONES: u64 = 1 << 28;

impl Golomb {
    fn new(divisor: u64, offset: u64, escape: u64) -> Option<Self> {
        if !(1..=MAX_DIVISOR).contains(&divisor) {
            return None;
        }
        let long_bits = 64 - divisor.leading_zeros();
        let shift = divisor.is_power_of_two().then(|| divisor.trailing_zeros());
        Some(Self { divisor, offset, escape, long_bits, cutoff: (1 << long_bits) - divisor, shift })
    }

    /// The code as published: it codes numbers unchanged, and a quotient may need any number of
    /// ones. `None` if the divisor is 0 or above [`MAX_DIVISOR`].
    #[must_use]
    pub fn published(divisor: u64) -> Option<Self> {
        Self::new(divisor, 0, MOST_ONES)
    }

    /// A code for numbers from 1. It codes each number minus 1, with an escape for large ones.
    #[must_use]
    pub fn of_distances(divisor: u64) -> Option<Self> {
        Self::new(divisor, 1, ESCAPE_ONES)
    }

    #[inline(always)]
    fn split(&self, number: u64) -> (u64, u64) {
        match self.shift {
            Some(shift) => (number >> shift, number & (self.divisor - 1)),
            None => (number / self.divisor, number % self.divisor),
        }
    }

    /// Number of bits that the codes of `numbers` need.
    #[must_use]
    pub fn len_bits(&self, numbers: &[u64]) -> u64 {
        let len = |number: &u64| {
            let (ones, remainder) = self.split(number.saturating_sub(self.offset));
            let is_long = remainder >= self.cutoff;
            if ones < self.escape {
                ones + u64::from(self.long_bits) + u64::from(is_long)
            } else {
                self.escape + 64
            }
        };
        numbers.iter().map(len).fold(0, u64::saturating_add)
    }
}

per_isa! {
    /// Appends the Golomb codes of `numbers`.
    ///
    /// # Errors
    /// [`DecodeError::BadSymbol`] if the published code needs more than 2^28 ones for a number.
    pub fn encode_golomb(code: &Golomb, numbers: &[u64], bits: &mut MsbWriter) -> Result<(), DecodeError> = encode_golomb_body;
}

#[inline(always)]
fn encode_golomb_body(code: &Golomb, numbers: &[u64], bits: &mut MsbWriter) -> Result<(), DecodeError> {
    for &number in numbers {
        let number = number.saturating_sub(code.offset);
        let (ones, remainder) = code.split(number);
        let is_long = remainder >= code.cutoff;
        let tail_bits = code.long_bits - u32::from(!is_long);
        let tail = remainder + if is_long { code.cutoff } else { 0 };
        if ones < 20 {
            #[expect(clippy::cast_possible_truncation, reason = "below 20")]
            let ones_bits = ones as u32 + 1;
            bits.push((1 << ones_bits) - 2, ones_bits);
            bits.push(tail, tail_bits);
        } else if ones < code.escape {
            bits.push_ones(ones);
            bits.push(0, 1);
            bits.push(tail, tail_bits);
        } else if code.escape == ESCAPE_ONES {
            bits.push_ones(code.escape);
            bits.push(number, 64);
        } else {
            return Err(DecodeError::BadSymbol);
        }
    }
    Ok(())
}

/// A partly read number of which only ones were seen so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ones(u64);

per_isa! {
    /// Fills `numbers` with decoded ones as far as the bytes of `reader` allow, and returns how
    /// many. `ones` carries an incomplete number from one call to the next.
    ///
    /// # Errors
    /// [`DecodeError::BadSymbol`] for a code that no encoder writes, [`DecodeError::Truncated`] if
    /// the last bytes end within a code.
    pub fn decode_golomb(code: &Golomb, reader: &mut MsbReader<'_>, rest: Rest, ones: &mut Ones, numbers: &mut [u64]) -> Result<usize, DecodeError> = decode_golomb_body;
}

#[inline(always)]
fn decode_golomb_body(
    code: &Golomb,
    reader: &mut MsbReader<'_>,
    rest: Rest,
    pending: &mut Ones,
    numbers: &mut [u64],
) -> Result<usize, DecodeError> {
    let mut r = reader.clone();
    let mut ones = pending.0;
    let mut done = 0;
    'numbers: for place in numbers {
        let ends_here = loop {
            if rest == Rest::Follows && !r.has(REACH_BYTES) {
                break 'numbers;
            }
            let run = r.peek().leading_ones().min(SHORT_BITS);
            if ones + u64::from(run) >= code.escape {
                break true;
            }
            ones += u64::from(run);
            if run < SHORT_BITS {
                r.skip(run + 1);
                break false;
            }
            r.skip(run);
        };
        let number = if ends_here {
            if code.escape != ESCAPE_ONES {
                return Err(DecodeError::BadSymbol);
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most the escape's ones")]
            r.skip((code.escape - ones) as u32);
            r.take(64)
        } else {
            let short = r.take(code.long_bits - 1);
            let remainder = if short < code.cutoff { short } else { (short << 1 | r.take(1)) - code.cutoff };
            ones.checked_mul(code.divisor)
                .and_then(|most| most.checked_add(remainder))
                .ok_or(DecodeError::BadSymbol)?
        };
        *place = number.checked_add(code.offset).ok_or(DecodeError::BadSymbol)?;
        ones = 0;
        done += 1;
    }
    if r.is_beyond() {
        return Err(DecodeError::Truncated);
    }
    pending.0 = ones;
    *reader = r;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    fn bits_of(bytes: &[u8], count: usize) -> String {
        (0..count).map(|i| if bytes[i / 8] << (i % 8) & 0x80 == 0 { '0' } else { '1' }).collect()
    }

    fn elias(numbers: &[u64]) -> Vec<u8> {
        let (mut bits, mut bytes) = (MsbWriter::default(), Vec::new());
        encode_elias_delta(numbers, &mut bits);
        bits.finish_to(&mut bytes);
        bytes
    }

    fn golomb(code: &Golomb, numbers: &[u64]) -> Vec<u8> {
        let (mut bits, mut bytes) = (MsbWriter::default(), Vec::new());
        encode_golomb(code, numbers, &mut bits).unwrap();
        bits.finish_to(&mut bytes);
        assert_eq!(bytes.len() as u64, code.len_bits(numbers).div_ceil(8));
        bytes
    }

    /// Decodes in pieces of `piece` bytes, like a stream.
    fn decoded(
        bytes: &[u8],
        piece: usize,
        count: usize,
        mut decode: impl FnMut(&mut MsbReader<'_>, Rest, &mut [u64]) -> Result<usize, DecodeError>,
    ) -> Result<Vec<u64>, DecodeError> {
        let (mut at_bit, mut end, mut numbers) = (0, 0, vec![0; count]);
        let mut done = 0;
        loop {
            end = (end + piece).min(bytes.len());
            let rest = if end == bytes.len() { Rest::Ended } else { Rest::Follows };
            let mut reader = MsbReader::new(&bytes[..end], at_bit);
            done += decode(&mut reader, rest, &mut numbers[done..])?;
            at_bit = reader.at_bit();
            if rest == Rest::Ended {
                assert_eq!((done, at_bit.div_ceil(8)), (count, end));
                return Ok(numbers);
            }
        }
    }

    #[test]
    fn elias_codes_are_those_of_the_book() {
        for (number, code) in [
            (1, "1"),
            (2, "0100"),
            (3, "0101"),
            (4, "01100"),
            (7, "01111"),
            (8, "00100000"),
            (16, "001010000"),
            (17, "001010001"),
        ] {
            let bytes = elias(&[number]);
            assert_eq!(bits_of(&bytes, code.len()), code, "{number}");
            assert_eq!(bytes.len(), code.len().div_ceil(8));
        }
    }

    #[test]
    fn golomb_codes_are_those_of_the_book() {
        let ten = Golomb::published(10).unwrap();
        // Truncated binary of 10: 0 to 5 in three bits, 6 to 9 as 12 to 15 in four.
        for (number, code) in
            [(0, "0000"), (5, "0101"), (6, "01100"), (9, "01111"), (10, "10000"), (26, "1101100")]
        {
            assert_eq!(bits_of(&golomb(&ten, &[number]), code.len()), code, "{number}");
        }
        let published = Golomb::published(256).unwrap();
        assert_eq!(bits_of(&golomb(&published, &[99, 300]), 19), "0011000111000101100");
        let one = Golomb::published(1).unwrap();
        assert_eq!(bits_of(&golomb(&one, &[3, 0]), 5), "11100");
        let rice = Golomb::of_distances(4).unwrap();
        assert_eq!(bits_of(&golomb(&rice, &[1, 6]), 7), "0001001");
    }

    proptest! {
        #[test]
        fn elias_roundtrip(numbers in prop::collection::vec((1u64..=u64::MAX, 0u32..64), 0..200), piece in 1usize..100) {
            let mut numbers: Vec<u64> = numbers.into_iter().map(|(n, s)| (n >> s).max(1)).collect();
            numbers.extend((0..64).flat_map(|k| [1u64 << k, u64::MAX >> k]));
            let bytes = elias(&numbers);
            for_each_isa(|_| {
                prop_assert_eq!(&elias(&numbers), &bytes);
                prop_assert_eq!(&decoded(&bytes, piece, numbers.len(), decode_elias_delta).unwrap(), &numbers);
                Ok(())
            })?;
        }

        #[test]
        fn golomb_roundtrip(numbers in prop::collection::vec((any::<u64>(), 0u32..64), 0..200), divisor in 1u64..2000, power in 0u32..=32, piece in 1usize..100) {
            for divisor in [divisor, 1 << power] {
                let near = [0, 1, divisor - 1, divisor, divisor + 1, 19 * divisor, 20 * divisor, 100 * divisor];
                let far = numbers.iter().map(|(n, s)| (n >> s).saturating_add(1));
                for (code, numbers) in [
                    (Golomb::published(divisor).unwrap(), numbers.iter().map(|(n, s)| (n >> s) % (300 * divisor)).chain(near).collect::<Vec<_>>()),
                    (Golomb::of_distances(divisor).unwrap(), near.iter().map(|n| n + 1).chain(far).collect()),
                ] {
                    let bytes = golomb(&code, &numbers);
                    for_each_isa(|_| {
                        let mut ones = Ones::default();
                        let decode = |r: &mut MsbReader<'_>, rest: Rest, out: &mut [u64]| decode_golomb(&code, r, rest, &mut ones, out);
                        prop_assert_eq!(&decoded(&bytes, piece, numbers.len(), decode).unwrap(), &numbers);
                        Ok(())
                    })?;
                }
            }
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..60), divisor in 1u64..=MAX_DIVISOR) {
            let mut out = [0; 40];
            let _either = decode_elias_delta(&mut MsbReader::new(&bytes, 0), Rest::Ended, &mut out);
            for code in [Golomb::published(divisor).unwrap(), Golomb::of_distances(divisor).unwrap()] {
                let _either = decode_golomb(&code, &mut MsbReader::new(&bytes, 0), Rest::Ended, &mut Ones::default(), &mut out);
            }
        }
    }

    #[test]
    fn ends_and_excess_are_told() {
        let bytes = elias(&[1 << 40]);
        let cut = decode_elias_delta(&mut MsbReader::new(&bytes[..4], 0), Rest::Ended, &mut [0]);
        assert_eq!(cut, Err(DecodeError::Truncated));
        let zeros = decode_elias_delta(&mut MsbReader::new(&[0; 30], 0), Rest::Ended, &mut [0]);
        assert_eq!(zeros, Err(DecodeError::BadSymbol));
        let code = Golomb::published(1).unwrap();
        let many = encode_golomb(&code, &[1 << 28], &mut MsbWriter::default());
        assert_eq!(many, Err(DecodeError::BadSymbol));
        let (mut ones, mut out) = (Ones::default(), [0]);
        let cut = decode_golomb(&code, &mut MsbReader::new(&[0xff; 30], 0), Rest::Ended, &mut ones, &mut out);
        assert_eq!(cut, Err(DecodeError::Truncated));
        assert_eq!((Golomb::published(0), Golomb::of_distances(MAX_DIVISOR + 1)), (None, None));
    }
}
