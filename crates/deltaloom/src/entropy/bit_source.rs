//! Bits from a reader, most significant first, for codes that are decoded many at a time.
//! It keeps one buffer and does not know the codes.

use std::io::Read;

use deltaloom_kernels::DecodeError;
use deltaloom_kernels::msb::MsbReader;
use deltaloom_kernels::prefix::Rest;

use crate::error::{Error, Result};
use crate::limits::narrow;

const BUFFER_BYTES: usize = 64 << 10;

/// A reader, and what was read but not decoded yet.
pub(crate) struct BitSource<R> {
    source: R,
    buffer: Vec<u8>,
    /// End of the bytes that were read.
    end: usize,
    at_bit: usize,
    rest: Rest,
}

impl<R: Read> BitSource<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, buffer: vec![0; BUFFER_BYTES], end: 0, at_bit: 0, rest: Rest::Follows }
    }

    /// Fills all of `numbers` with what `decode` makes of the bits.
    pub(crate) fn fill(
        &mut self,
        numbers: &mut [u64],
        mut decode: impl FnMut(&mut MsbReader<'_>, Rest, &mut [u64]) -> Result<usize, DecodeError>,
    ) -> Result<()> {
        let mut done = 0;
        loop {
            let mut reader = MsbReader::new(&self.buffer[..self.end], self.at_bit);
            done += decode(&mut reader, self.rest, &mut numbers[done..])?;
            self.at_bit = reader.at_bit();
            match self.rest {
                _ if done == numbers.len() => return Ok(()),
                Rest::Follows => self.refill()?,
                Rest::Ended => return Err(DecodeError::Truncated.into()),
            }
        }
    }

    fn refill(&mut self) -> Result<()> {
        let used = (self.at_bit / 8).min(self.end);
        self.buffer.copy_within(used..self.end, 0);
        self.end -= used;
        self.at_bit -= 8 * used;
        while self.end < self.buffer.len() && self.rest == Rest::Follows {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.rest = Rest::Ended,
                Ok(count) => self.end += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::corrupt(format!("coded positions: {e}"))),
            }
        }
        Ok(())
    }

    /// Checks that everything was decoded and that the last byte ends with zero bits.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.refill()?;
        let mut reader = MsbReader::new(&self.buffer[..self.end], self.at_bit);
        let left_bits = 8 * self.end - self.at_bit.min(8 * self.end);
        if self.rest == Rest::Follows || left_bits > 7 {
            return Err(DecodeError::Trailing.into());
        }
        let padding = reader.take(narrow(left_bits.min(7), "at most 7"));
        if padding == 0 { Ok(()) } else { Err(DecodeError::Trailing.into()) }
    }
}
