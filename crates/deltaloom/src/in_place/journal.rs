//! The bytes of a journal: the bytes and places of the batch that is being written, and how far the
//! work is after it; docs/format.md, appendix A.
//! It touches no file.

use std::io;
use std::sync::Arc;

use super::disk::Disk;
use super::work::Work;
use crate::checkpoint::ReadAt;
use crate::container::Digest;
use crate::entropy::bytes::ByteReader;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::scratch::Scratch;

const MAGIC: [u8; 8] = *b"\x89LOOMJ\r\n";
const VERSION: u16 = 1;

/// New bytes for a place of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) offset: u64,
    pub(super) bytes: Scratch,
    pub(super) crc: u32,
}

impl Record {
    pub(super) fn new(offset: u64, bytes: Scratch) -> Self {
        let crc = crc32fast::hash(&bytes);
        Self { offset, bytes, crc }
    }

    fn place(&self) -> (u64, u64) {
        (self.offset, self.bytes.len() as u64)
    }
}

/// A journal that was read and whose checksums match.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Journal {
    /// Identity of the work.
    pub(super) work: Digest,
    /// Size of the file.
    pub(super) file_bytes: u64,
    /// Number of jobs that are done when the records are written.
    pub(super) done: u64,
    /// The header of the file before any change, with its length bytes.
    pub(super) old_header: Vec<u8>,
    pub(super) records: Vec<Record>,
}

/// The part of a journal before the bytes of its records.
pub(super) fn head(work: &Work, done: usize, records: &[Record]) -> Result<Vec<u8>> {
    let size =
        |size: usize| u32::try_from(size).map_err(|_| Error::corrupt("a batch is too large for a journal"));
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend([0; 6]);
    head.extend(work.identity().as_bytes());
    head.extend(work.file_bytes().to_le_bytes());
    head.extend((done as u64).to_le_bytes());
    head.extend(size(work.old_header().len())?.to_le_bytes());
    head.extend(size(records.len())?.to_le_bytes());
    head.extend(work.old_header());
    for record in records {
        head.extend(record.offset.to_le_bytes());
        head.extend(size(record.bytes.len())?.to_le_bytes());
        head.extend(record.crc.to_le_bytes());
    }
    head.extend(crc32fast::hash(&head).to_le_bytes());
    Ok(head)
}

impl Journal {
    /// Reads a journal and checks every length and checksum.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut reader = ByteReader::new(bytes, "the journal");
        if reader.array()? != MAGIC {
            return Err(Error::corrupt("this is not a journal (wrong magic)"));
        }
        if u16::from_le_bytes(reader.array()?) != VERSION || reader.array()? != [0u8; 6] {
            return Err(Error::corrupt("the journal has an unknown version"));
        }
        let work = Digest::from_bytes(reader.array()?);
        let (file_bytes, done) = (reader.u64()?, reader.u64()?);
        let (header_bytes, count) = (reader.u32()?, reader.u32()?);
        let old_header = reader.take(to_usize(header_bytes.into()))?.to_vec();
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push((reader.u64()?, reader.u32()?, reader.u32()?));
        }
        let head = &bytes[..bytes.len() - reader.clone().rest().len()];
        if crc32fast::hash(head) != reader.u32()? {
            return Err(Error::corrupt("the head of the journal does not match its checksum"));
        }
        let mut records = Vec::with_capacity(entries.len());
        for (offset, length, crc) in entries {
            let bytes = reader.take(to_usize(length.into()))?;
            if offset.checked_add(length.into()).is_none_or(|end| end > file_bytes) {
                return Err(Error::corrupt("a record of the journal lies outside the file"));
            }
            let record = Record::new(offset, bytes.to_vec().into());
            if record.crc != crc {
                return Err(Error::corrupt("a record of the journal does not match its checksum"));
            }
            records.push(record);
        }
        reader.finish()?;
        Ok(Self { work, file_bytes, done, old_header, records })
    }

    /// Checks that the same work left it, and that its records are jobs before the place that the
    /// work has reached. Returns the number of jobs done.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for other work, [`Error::Corrupt`].
    pub(super) fn jobs_done(&self, work: &Work) -> Result<usize> {
        if self.work != work.identity() {
            let message = "this journal was left by another container, or with other bases";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        let done = Some(to_usize(self.done)).filter(|done| *done <= work.jobs().len());
        let done = done.ok_or_else(|| Error::corrupt("the journal counts more chunks than exist"))?;
        let mut places = work.jobs()[..done].iter().map(|job| (job.offset, job.len_bytes));
        if self.records.iter().all(|record| places.any(|place| place == record.place())) {
            Ok(done)
        } else {
            Err(Error::corrupt("the journal has a record for a chunk that is not to be written"))
        }
    }
}

/// The file as it will be when the records of its journal are written, with its first header. A
/// file whose change was cut short is read this way as if it had been cut between two batches.
pub(super) struct Repaired {
    disk: Arc<dyn Disk>,
    /// Bytes by offset, in rising order of the offsets.
    patches: Vec<(u64, Vec<u8>)>,
}

impl Repaired {
    pub(super) fn new(disk: Arc<dyn Disk>, journal: Option<&Journal>) -> Self {
        let mut patches = Vec::new();
        if let Some(journal) = journal {
            let header_bytes = journal.old_header.len() as u64;
            let behind_header = journal.records.iter().filter(|record| record.offset >= header_bytes);
            patches.push((0, journal.old_header.clone()));
            patches.extend(behind_header.map(|record| (record.offset, record.bytes.to_vec())));
        }
        patches.sort_by_key(|(offset, _)| *offset);
        Self { disk, patches }
    }
}

impl ReadAt for Repaired {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)?;
        let end = offset + buffer.len() as u64;
        let first = self.patches.partition_point(|(at, bytes)| at + bytes.len() as u64 <= offset);
        for (at, bytes) in self.patches[first..].iter().take_while(|(at, _)| *at < end) {
            let (from, to) = (offset.max(*at), end.min(at + bytes.len() as u64));
            // Patches of an unchecked journal may overlap.
            if from < to {
                buffer[to_usize(from - offset)..to_usize(to - offset)]
                    .copy_from_slice(&bytes[to_usize(from - at)..to_usize(to - at)]);
            }
        }
        Ok(())
    }
}
