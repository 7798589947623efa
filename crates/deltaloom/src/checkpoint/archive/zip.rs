//! The directory of a zip archive whose entries are stored as they are, with the extensions for
//! large files (APPNOTE.TXT of PKWARE, sections 4.3 and 4.5.3).
//! It checks where entries are. It reads no entry, and does not check its CRC-32.

use std::collections::HashSet;
use std::ops::Range;

use super::File;
use crate::entropy::bytes::ByteReader;
use crate::error::{Error, Result};
use crate::limits::Limits;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: u64 = 46;
const END_BYTES: u64 = 22;
const END_64_BYTES: u64 = 56;
const LOCATOR_64_BYTES: u64 = 20;
/// The longest comment at the end of an archive.
const COMMENT_BYTES: u64 = 0xffff;
/// The extra field that has sizes and offsets of 64 bits.
const EXTRA_64: u16 = 1;
/// Flags of an entry: it is encrypted; its sizes follow its data.
const ENCRYPTED: u16 = 1;
const HAS_DESCRIPTOR: u16 = 1 << 3;

/// A file in the archive.
pub(super) struct Entry {
    pub(super) name: String,
    /// Its bytes. `None` if they are compressed.
    pub(super) data: Option<Range<u64>>,
}

/// Where the directory is, and the number of its entries.
struct Directory {
    place: Range<u64>,
    count: u64,
}

/// The entries in the order of their places. They lie one after another before the directory.
pub(super) fn read(file: &File<'_>) -> Result<Vec<Entry>> {
    let directory = find_directory(file)?;
    Limits::check("the number of files in an archive", directory.count, file.limits.tensors)?;
    let len_bytes = directory.place.end - directory.place.start;
    Limits::check("the directory of an archive in bytes", len_bytes, file.limits.header_bytes)?;
    if directory.count.checked_mul(CENTRAL_BYTES).is_none_or(|least| least > len_bytes) {
        return Err(Error::corrupt("the directory of the archive is shorter than its entries"));
    }
    let bytes = file.read(directory.place.clone())?;
    let mut reader = ByteReader::new(&bytes, "the directory of the archive");
    let mut listed = (0..directory.count).map(|_| Listed::parse(&mut reader)).collect::<Result<Vec<_>>>()?;
    reader.finish()?;
    listed.sort_by_key(|entry| entry.offset);
    let mut names = HashSet::with_capacity(listed.len());
    if let Some(twice) = listed.iter().find(|entry| !names.insert(entry.name)) {
        return Err(Error::corrupt(format!("two files of the archive are named {}", twice.shown())));
    }
    let mut end = 0;
    let mut entries = Vec::with_capacity(listed.len());
    for entry in &listed {
        if entry.offset < end {
            return Err(Error::corrupt(format!("{} overlaps another file of the archive", entry.shown())));
        }
        let data = entry.find_data(file, directory.place.start)?;
        end = data.end;
        let name = std::str::from_utf8(entry.name)
            .map_err(|_| Error::corrupt("the name of a file in the archive is not UTF-8"))?;
        entries.push(Entry { name: name.to_owned(), data: entry.is_stored().then_some(data) });
    }
    Ok(entries)
}

fn find_directory(file: &File<'_>) -> Result<Directory> {
    let len_bytes = file.source.len_bytes();
    let start = len_bytes.saturating_sub(END_BYTES + COMMENT_BYTES);
    let tail = file.read(start..len_bytes)?;
    let is_end = |at: &usize| {
        let end = &tail[*at..];
        let comment = end.get(20..22).map(|b| u16::from_le_bytes([b[0], b[1]]));
        end.starts_with(&END.to_le_bytes())
            && comment.is_some_and(|comment| u64::from(comment) + END_BYTES == end.len() as u64)
    };
    let at = (0..tail.len()).rev().find(is_end);
    let at = at.ok_or_else(|| Error::corrupt("the archive has no directory: it was cut off"))?;
    let mut reader = ByteReader::new(&tail[at + 4..], "the end of the archive");
    let [disk, first_disk, here, count] = [(); 4].map(|()| reader.array().map(u16::from_le_bytes));
    let (size, offset) = (reader.u32()?, reader.u32()?);
    let end = start + at as u64;
    let large = read_end_64(file, end)?;
    let (disks, here, count, size, offset, end) = match large {
        None => {
            ((disk?.into(), first_disk?.into()), here?.into(), count?.into(), size.into(), offset.into(), end)
        }
        Some(large) => large,
    };
    if disks != (0, 0) || here != count {
        return Err(Error::corrupt("the archive consists of several files"));
    }
    if u64::checked_add(offset, size) != Some(end) {
        return Err(Error::corrupt("the directory of the archive is not where its end says"));
    }
    Ok(Directory { place: offset..end, count })
}

/// Disks, entries here and in all, size and offset of the directory, and where its end begins.
type End = ((u32, u32), u64, u64, u64, u64, u64);

/// The end of a large archive, if there is one before the ordinary end at `end`.
fn read_end_64(file: &File<'_>, end: u64) -> Result<Option<End>> {
    let Some(at) = end.checked_sub(LOCATOR_64_BYTES) else { return Ok(None) };
    let bytes = file.read(at..end)?;
    let mut reader = ByteReader::new(&bytes, "the end of the archive");
    if reader.u32()? != LOCATOR_64 {
        return Ok(None);
    }
    let (disk, place, disks) = (reader.u32()?, reader.u64()?, reader.u32()?);
    if disk != 0 || disks > 1 || place.checked_add(END_64_BYTES) != Some(at) {
        return Err(Error::corrupt("the end of the archive is not where it should be"));
    }
    let bytes = file.read(place..at)?;
    let mut reader = ByteReader::new(&bytes, "the end of the archive");
    let (magic, rest) = (reader.u32()?, reader.u64()?);
    reader.take(4)?;
    let disks = (reader.u32()?, reader.u32()?);
    let [here, count, size, offset] = [(); 4].map(|()| reader.u64());
    if magic != END_64 || rest != END_64_BYTES - 12 {
        return Err(Error::corrupt("the end of the archive is not where it should be"));
    }
    Ok(Some((disks, here?, count?, size?, offset?, place)))
}

/// An entry of the directory.
struct Listed<'a> {
    name: &'a [u8],
    flags: u16,
    method: u16,
    /// Packed and unpacked.
    sizes: [u64; 2],
    offset: u64,
}

impl<'a> Listed<'a> {
    fn parse(reader: &mut ByteReader<'a>) -> Result<Self> {
        let magic = reader.u32()?;
        reader.take(4)?;
        let [flags, method] = [u16::from_le_bytes(reader.array()?), u16::from_le_bytes(reader.array()?)];
        reader.take(8)?;
        let sizes = [reader.u32()?, reader.u32()?];
        let [name, extra, comment, disk] = [(); 4].map(|()| reader.array().map(u16::from_le_bytes));
        reader.take(6)?;
        let offset = reader.u32()?;
        let name = reader.take(usize::from(name?))?;
        let extra = reader.take(usize::from(extra?))?;
        reader.take(usize::from(comment?))?;
        if magic != CENTRAL || disk? != 0 {
            return Err(Error::corrupt("an entry of the archive's directory is damaged"));
        }
        let [packed, unpacked, offset] = large_fields([sizes[0], sizes[1], offset], extra)?;
        Ok(Self { name, flags, method, sizes: [packed, unpacked], offset })
    }

    fn shown(&self) -> String {
        format!("{:?}", String::from_utf8_lossy(self.name))
    }

    fn is_stored(&self) -> bool {
        self.method == 0
    }

    /// Compares the entry with the header before its data, which must end before `limit`.
    fn find_data(&self, file: &File<'_>, limit: u64) -> Result<Range<u64>> {
        let lies = || Error::corrupt(format!("{} is not where the archive's directory says", self.shown()));
        if self.flags & ENCRYPTED != 0 {
            return Err(Error::corrupt(format!("{} is encrypted", self.shown())));
        }
        if self.is_stored() && self.sizes[0] != self.sizes[1] {
            return Err(Error::corrupt(format!("{} has two sizes", self.shown())));
        }
        let name_start = self.offset.checked_add(LOCAL_BYTES);
        let name_end = name_start.and_then(|start| start.checked_add(self.name.len() as u64));
        let name_end = name_end.filter(|end| *end <= limit).ok_or_else(lies)?;
        let bytes = file.read(self.offset..name_end)?;
        let mut reader = ByteReader::new(&bytes, "an entry of the archive");
        let magic = reader.u32()?;
        reader.take(2)?;
        let [flags, method] = [u16::from_le_bytes(reader.array()?), u16::from_le_bytes(reader.array()?)];
        reader.take(8)?;
        let sizes = [reader.u32()?, reader.u32()?].map(u64::from);
        let [name, extra] = [u16::from_le_bytes(reader.array()?), u16::from_le_bytes(reader.array()?)];
        let says_sizes = flags & HAS_DESCRIPTOR == 0 && !sizes.contains(&u32::MAX.into());
        if magic != LOCAL
            || usize::from(name) != self.name.len()
            || reader.rest() != self.name
            || method != self.method
            || says_sizes && sizes != self.sizes
        {
            return Err(lies());
        }
        let start = name_end + u64::from(extra);
        let end = start.checked_add(self.sizes[0]).filter(|end| *end <= limit);
        Ok(start..end.ok_or_else(lies)?)
    }
}

/// Sizes and offset of an entry. Those that are too large for 32 bits are in an extra field, in
/// this order.
fn large_fields(fields: [u32; 3], extra: &[u8]) -> Result<[u64; 3]> {
    let mut large = None;
    let mut reader = ByteReader::new(extra, "an extra field of the archive");
    while !reader.is_empty() {
        let (id, length) = (u16::from_le_bytes(reader.array()?), u16::from_le_bytes(reader.array()?));
        let field = reader.take(usize::from(length))?;
        if id == EXTRA_64 {
            large = Some(ByteReader::new(field, "an extra field of the archive"));
        }
    }
    let mut of_one = |field: u32| match (&mut large, field) {
        (Some(large), u32::MAX) => large.u64(),
        (_, field) => Ok(field.into()),
    };
    Ok([of_one(fields[0])?, of_one(fields[1])?, of_one(fields[2])?])
}

/// The bytes of an entry, at most as many as a header may have.
pub(super) fn read_entry(file: &File<'_>, entry: &Entry) -> Result<Vec<u8>> {
    let Some(data) = entry.data.clone() else {
        return Err(Error::corrupt(format!("{:?} is compressed", entry.name)));
    };
    Limits::check("a file of an archive in bytes", data.end - data.start, file.limits.header_bytes)?;
    file.read(data)
}
