//! Head and trailer of a container, and the features of each format version: docs/format.md,
//! section 1 and the table of versions. The trailer says where the parts of the index are.
//! [`super::layout`] knows their contents.

use crate::checkpoint::safetensors::LOSSY_MAGIC;
use crate::checkpoint::{Contents, Member};
use crate::entropy::bytes::ByteReader;
use crate::error::{Error, Result};
use crate::foreign::CONTAINER_MAGIC as MAGIC;
use crate::limits::Limits;
use crate::predict::Predictor;

use super::identity::Identity;

pub(super) const HEAD_BYTES: u64 = 16;
pub(super) const TRAILER_BYTES: u64 = 48;
const END_MAGIC: [u8; 8] = *b"LOOMEND\n";
/// The version that is written if nothing needs a later one.
pub(super) const LEAST_VERSION: u16 = 3;
/// From this version on, there are parts after the tensors, and files may have tails or frames.
const OPEN_VERSION: u16 = 4;

/// The lowest of the written versions that has everything that such a container uses.
pub(crate) fn version_for<'a>(
    members: &[Member],
    predictors: impl Iterator<Item = &'a Predictor>,
    identity: &Identity,
) -> u16 {
    let is_new = |member: &Member| member.tail_bytes > 0 || matches!(member.contents, Contents::Framed(_));
    let needed =
        if members.iter().any(is_new) || !identity.is_empty() { OPEN_VERSION } else { LEAST_VERSION };
    predictors.map(Predictor::since).fold(needed, u16::max)
}

pub(super) fn head(version: u16) -> [u8; 16] {
    let mut head = [0; 16];
    head[..8].copy_from_slice(&MAGIC);
    head[8..10].copy_from_slice(&version.to_le_bytes());
    head
}

pub(super) fn is_magic(bytes: &[u8]) -> bool {
    bytes == MAGIC
}

/// What a version of the format has. The ids of predictors, group families and codecs say for
/// themselves which version brought them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) version: u16,
    highest_member: u8,
    /// Whether table sets may serve cells.
    pub(super) has_cells: bool,
    /// Whether the checksum of the index covers the head.
    covers_head: bool,
    /// Whether parts follow the tensors.
    pub(super) has_parts: bool,
}

impl Features {
    pub(super) fn of_version(version: u16) -> Option<Self> {
        let of_first =
            Self { version, highest_member: 1, has_cells: false, covers_head: false, has_parts: false };
        let of_third = Self { has_cells: true, covers_head: true, ..of_first };
        match version {
            1 | 2 => Some(of_first),
            LEAST_VERSION => Some(of_third),
            OPEN_VERSION => Some(Self { highest_member: 3, has_parts: true, ..of_third }),
            _ => None,
        }
    }

    /// The kind of a member, if this version has it.
    pub(super) fn check_member(self, kind: u8) -> Result<u8> {
        if kind > self.highest_member {
            return Err(Error::corrupt(format!("member kind {kind} does not exist")));
        }
        Ok(kind)
    }
}

/// CRC-32 of a stored index and the head before it, so that a damaged version is not taken for
/// another one. The first versions leave out the head.
pub(super) fn index_crc(head: Option<&[u8]>, stored: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    head.into_iter().chain([stored]).for_each(|bytes| crc.update(bytes));
    crc.finalize()
}

impl Features {
    /// The head, if the checksum of the index covers it.
    pub(super) fn covered(self, head: &[u8]) -> Option<&[u8]> {
        Some(head).filter(|_| self.covers_head)
    }
}

/// Checks a head and returns what its version has.
pub(super) fn check_head(head: &[u8]) -> Result<Features> {
    if head.starts_with(&LOSSY_MAGIC) {
        return Err(Error::Lossy);
    }
    // A shorter file may be a container that was cut off.
    if !head.starts_with(&MAGIC) && !MAGIC.starts_with(head) {
        return Err(Error::corrupt("this is not a deltaloom container (wrong magic)"));
    }
    let mut reader = ByteReader::new(head, "the head");
    reader.take(MAGIC.len())?;
    let found = u16::from_le_bytes(reader.array()?);
    let features = Features::of_version(found).ok_or(Error::UnsupportedVersion { found })?;
    if reader.array()? != [0u8; 6] {
        return Err(Error::corrupt("reserved bytes of the head are not zero"));
    }
    Ok(features)
}

/// Where the parts of the index are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) index_offset: u64,
    pub(super) meta_packed: u32,
    pub(super) meta_len: u32,
    pub(super) tables_packed: u32,
    pub(super) tables_len: u32,
    pub(super) checks_len: u32,
    pub(super) index_crc: u32,
}

impl Trailer {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut out = self.index_offset.to_le_bytes().to_vec();
        let lengths = [self.meta_packed, self.meta_len, self.tables_packed, self.tables_len, self.checks_len];
        out.extend(lengths.iter().chain(&[0, self.index_crc]).flat_map(|x| x.to_le_bytes()));
        out.extend(crc32fast::hash(&out).to_le_bytes());
        out.extend(END_MAGIC);
        out
    }

    /// Checks everything that can be wrong with the trailer of a file of `file_bytes`.
    pub(super) fn parse(bytes: &[u8], file_bytes: u64, limits: &Limits) -> Result<Self> {
        let mut reader = ByteReader::new(bytes, "the trailer");
        let index_offset = reader.u64()?;
        let [meta_packed, meta_len, tables_packed, tables_len, checks_len, reserved, index_crc, crc] =
            [(); 8].map(|()| reader.u32().unwrap_or(0));
        if reader.array()? != END_MAGIC {
            return Err(Error::corrupt(
                "the end of the file is not a trailer: it was cut off or something was appended",
            ));
        }
        if crc != crc32fast::hash(bytes.get(..36).unwrap_or_default()) || reserved != 0 {
            return Err(Error::corrupt("the trailer does not match its checksum"));
        }
        let trailer =
            Self { index_offset, meta_packed, meta_len, tables_packed, tables_len, checks_len, index_crc };
        for part in [meta_packed, meta_len, tables_packed, tables_len, checks_len] {
            Limits::check("a part of the index in bytes", part.into(), limits.index_bytes)?;
        }
        let end =
            trailer.index_bytes().checked_add(index_offset).and_then(|end| end.checked_add(TRAILER_BYTES));
        if index_offset < HEAD_BYTES || end != Some(file_bytes) {
            return Err(Error::corrupt("the parts of the container do not add up to its length"));
        }
        Ok(trailer)
    }

    pub(super) fn index_bytes(&self) -> u64 {
        u64::from(self.meta_packed) + u64::from(self.tables_packed) + u64::from(self.checks_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_roundtrip_and_every_flip_is_seen() {
        let trailer = Trailer {
            index_offset: 100,
            meta_packed: 10,
            meta_len: 20,
            tables_packed: 30,
            tables_len: 40,
            checks_len: 50,
            index_crc: 60,
        };
        let bytes = trailer.to_bytes();
        assert_eq!(bytes.len() as u64, TRAILER_BYTES);
        let parse = |bytes: &[u8]| Trailer::parse(bytes, 100 + 90 + TRAILER_BYTES, &Limits::default());
        assert_eq!(parse(&bytes).unwrap(), trailer);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_trailer_that_claims_too_much_is_refused_before_anything_is_read() {
        let claim = |index_offset, meta_len| {
            let trailer = Trailer {
                index_offset,
                meta_packed: 0,
                meta_len,
                tables_packed: 0,
                tables_len: 0,
                checks_len: 0,
                index_crc: 0,
            };
            Trailer::parse(&trailer.to_bytes(), 64, &Limits::default())
        };
        assert!(claim(16, 0).is_ok());
        assert!(matches!(claim(1 << 60, 0), Err(Error::Corrupt { .. })));
        assert!(matches!(claim(u64::MAX, 0), Err(Error::Corrupt { .. })));
        assert!(matches!(claim(16, u32::MAX), Err(Error::LimitExceeded { .. })));
    }
}
