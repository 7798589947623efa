//! The container of a method: a header of 48 bytes with everything that decoding needs, and the
//! coded body. Bodies are kept in temporary files.
//!
//! It is not the container of docs/format.md, and only this laboratory reads it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use super::method::Method;
use super::pattern::Source;
use deltaloom::__internals::bytes::ByteReader;
use deltaloom::{Error, Result};

/// Number of bytes before the body.
pub(super) const HEADER_BYTES: u64 = 48;
const MAGIC: [u8; 8] = *b"LOOMGAPS";
const VERSION: u8 = 1;
const IS_RAW: u8 = 1;

/// Contents of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) method: Method,
    /// Whether the body is the original data, because coding would have enlarged it.
    pub(super) is_raw: bool,
    /// Divisor of the published Golomb code, or 0.
    pub(super) divisor: u32,
    pub(super) original_bytes: u64,
    pub(super) gaps: u64,
    pub(super) body_bytes: u64,
    /// CRC-32 of the data.
    pub(super) crc: u32,
}

impl Header {
    fn to_bytes(self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend([VERSION, self.method.wire_id(), if self.is_raw { IS_RAW } else { 0 }, 0]);
        out.extend(self.divisor.to_le_bytes());
        out.extend([self.original_bytes, self.gaps, self.body_bytes].iter().flat_map(|n| n.to_le_bytes()));
        out.extend(self.crc.to_le_bytes());
        let of_header = crc32fast::hash(&out);
        out.extend(of_header.to_le_bytes());
        out
    }

    pub(super) fn read(stream: &mut dyn Read) -> Result<Self> {
        let mut bytes = [0; 48];
        stream.read_exact(&mut bytes).map_err(|e| Error::corrupt(format!("positions header: {e}")))?;
        let mut reader = ByteReader::new(&bytes, "a positions header");
        if reader.array::<8>()? != MAGIC {
            return Err(Error::corrupt("not a positions container"));
        }
        let [version, method, flags, zero] = reader.array()?;
        if version != VERSION {
            return Err(Error::UnsupportedVersion { found: u16::from(version) });
        }
        let divisor = reader.u32()?;
        let [original_bytes, gaps, body_bytes] = [reader.u64()?, reader.u64()?, reader.u64()?];
        let (crc, of_header) = (reader.u32()?, reader.u32()?);
        reader.finish()?;
        let bad = || Error::corrupt("malformed positions header");
        if crc32fast::hash(&bytes[..44]) != of_header || flags & !IS_RAW != 0 || zero != 0 {
            return Err(bad());
        }
        let method = Method::from_wire_id(method).ok_or_else(bad)?;
        let is_raw = flags == IS_RAW;
        let is_possible =
            gaps <= original_bytes.saturating_mul(8) && (!is_raw || body_bytes == original_bytes);
        let header = Self { method, is_raw, divisor, original_bytes, gaps, body_bytes, crc };
        if is_possible { Ok(header) } else { Err(bad()) }
    }
}

/// Collects the coded body of a container in an anonymous file, which the system removes.
pub(super) struct Spool {
    file: BufWriter<File>,
    body_bytes: u64,
    /// If the body needs more bytes than this, the data itself is the better body.
    most_bytes: u64,
}

fn temporary(e: io::Error) -> Error {
    Error::writing(std::env::temp_dir())(e)
}

impl Spool {
    pub(super) fn new(original_bytes: u64) -> Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 18, tempfile::tempfile().map_err(temporary)?);
        file.write_all(&[0; 48]).map_err(temporary)?;
        Ok(Self { file, body_bytes: 0, most_bytes: original_bytes })
    }

    /// Appends to the body. Bytes that would make it larger than the data are only counted.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.body_bytes += bytes.len() as u64;
        if self.body_bytes <= self.most_bytes {
            self.file.write_all(bytes).map_err(temporary)?;
        }
        Ok(())
    }

    /// Writes the header, and the data itself if coding did not shrink it.
    pub(super) fn finish(mut self, source: &Source, mut header: Header) -> Result<Stored> {
        header.body_bytes = self.body_bytes;
        if self.body_bytes > self.most_bytes {
            header.is_raw = true;
            header.body_bytes = header.original_bytes;
            self.file.seek(SeekFrom::Start(HEADER_BYTES)).map_err(temporary)?;
            let mut block = Vec::new();
            let mut number = 0;
            while source.block(number, &mut block)? {
                self.file.write_all(&block).map_err(temporary)?;
                number += 1;
            }
        }
        let mut file = self.file.into_inner().map_err(|e| temporary(e.into_error()))?;
        // The abandoned body may have been longer.
        file.set_len(HEADER_BYTES + header.body_bytes).map_err(temporary)?;
        file.rewind().and_then(|()| file.write_all(&header.to_bytes())).map_err(temporary)?;
        file.rewind().map_err(temporary)?;
        Ok(Stored { file, coded_bytes: self.body_bytes, header })
    }
}

/// A whole container, ready to be read from its start.
pub(super) struct Stored {
    pub(super) file: File,
    /// Size of the coded body, even if the data itself was stored instead.
    pub(super) coded_bytes: u64,
    pub(super) header: Header,
}

impl Stored {
    pub(super) fn copy_to(mut self, out: &mut dyn Write) -> Result<u64> {
        io::copy(&mut self.file, out).map_err(temporary)
    }
}
