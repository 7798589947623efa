//! Reading and writing the small numbers of the format: fixed fields, varints, zigzag.
//! Every read is checked against the bytes that exist.

use crate::error::{Error, Result};
use crate::limits::to_usize;

/// A cursor over bytes that belong to `what`.
#[derive(Debug, Clone)]
pub struct ByteReader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> ByteReader<'a> {
    /// Starts at the first byte; errors call the bytes `what`.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(Error::corrupt(format!("{} ends early", self.what)));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A little-endian number of four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A little-endian number of eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A varint: seven bits a byte, the lowest first.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::corrupt(format!("{}: a varint is too long", self.what)))
    }

    /// A varint that counts things in memory.
    pub fn size(&mut self) -> Result<usize> {
        self.varint().map(to_usize)
    }

    /// A signed varint in zigzag order.
    pub fn zigzag(&mut self) -> Result<i64> {
        self.varint().map(from_zigzag)
    }

    /// A length and as many bytes of UTF-8.
    pub fn text(&mut self) -> Result<&'a str> {
        let length = self.size()?;
        std::str::from_utf8(self.take(length)?)
            .map_err(|_| Error::corrupt(format!("{}: a name is not UTF-8", self.what)))
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Fails if bytes are left.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::corrupt(format!("{} has {} bytes left over", self.what, self.rest.len())))
    }
}

/// Appends what [`ByteReader::varint`] reads.
pub fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Appends what [`ByteReader::zigzag`] reads.
pub fn push_zigzag(out: &mut Vec<u8>, value: i64) {
    push_varint(out, to_zigzag(value));
}

/// Small numbers of both signs as small numbers: 0, -1, 1, -2, ...
pub fn to_zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// What [`to_zigzag`] was given.
pub fn from_zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Appends what [`ByteReader::text`] reads.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    push_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_roundtrip(unsigned in any::<u64>(), signed in any::<i64>(), shift in 0u32..64) {
            let (unsigned, signed) = (unsigned >> shift, signed >> shift);
            let mut bytes = Vec::new();
            push_varint(&mut bytes, unsigned);
            push_zigzag(&mut bytes, signed);
            let mut reader = ByteReader::new(&bytes, "test");
            prop_assert_eq!(reader.varint().unwrap(), unsigned);
            prop_assert_eq!(reader.zigzag().unwrap(), signed);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn only_the_shortest_form_is_a_varint() {
        let varint = |bytes: &[u8]| ByteReader::new(bytes, "test").varint();
        assert_eq!(varint(&[0]).unwrap(), 0);
        assert_eq!(varint(&[0xff; 9].iter().copied().chain([1]).collect::<Vec<_>>()).unwrap(), u64::MAX);
        assert!(varint(&[0x80, 0]).is_err());
        assert!(varint(&[0xff; 9].iter().copied().chain([2]).collect::<Vec<_>>()).is_err());
        assert!(varint(&[0x80; 11]).is_err());
        assert!(varint(&[0x80]).is_err());
    }
}
