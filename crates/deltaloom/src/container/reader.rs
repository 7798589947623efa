//! Opens a container, checks its index, and decodes chunks from their predictions.
//! It reads the head, the trailer and the index, and then only the requested payloads.

use std::collections::VecDeque;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::checkpoint::{FileSource, Member, ReadAt, Wanted, explain};
use crate::codec::{self, ChunkShape, Decoder};
use crate::entropy::table::Frequencies;
use crate::error::{Error, Missing, Result};
use crate::limits::{Limits, to_usize};
use crate::predict::OwnPayload;
use crate::predict::names::Names;
use crate::scratch::{Bytes, Scratch};

use super::Digest;
use super::ends::{self, HEAD_BYTES, TRAILER_BYTES, Trailer};
use super::index::{Index, PackedTensor, PayloadEntry};
use super::layout::{self, IndexParts};

/// Number of decoders of table sets, and of payloads of predictions, that are kept ready. One takes
/// up to some mebibytes.
const READY_COUNT: usize = 8;

/// Stored sizes of the parts of a container; they add up to its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PartBytes {
    /// Payloads of chunks and predictions.
    pub payload_bytes: u64,
    /// The index of files, tensors, groups and chunks.
    pub meta_bytes: u64,
    /// Frequency tables.
    pub tables_bytes: u64,
    /// Digests and checksums.
    pub checks_bytes: u64,
    /// Head and trailer.
    pub frame_bytes: u64,
}

/// A container opened for reading.
pub struct Container {
    path: PathBuf,
    source: Box<dyn ReadAt>,
    index: Index,
    /// Made when a tensor is first looked up by its name.
    names: OnceLock<Names>,
    parts: PartBytes,
    decoders: Ready<Decoder>,
    /// By the offset of their payload.
    own_payloads: Ready<Arc<OwnPayload>>,
}

/// The items that were used last, by number.
type Ready<T> = Mutex<VecDeque<(u64, T)>>;

/// Returns the item with a number from the cache, or makes it and keeps it.
fn ready<T: Clone>(kept: &Ready<T>, number: u64, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, ready)) = kept.iter().find(|(id, _)| *id == number) {
        return Ok(ready.clone());
    }
    let made = make()?;
    if kept.len() == READY_COUNT {
        kept.pop_front();
    }
    kept.push_back((number, made.clone()));
    Ok(made)
}

impl Container {
    /// Opens a container file and reads its index.
    ///
    /// # Errors
    /// What is wrong with the file, with its path.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::from_source(path, Box::new(FileSource::open(path)?), limits)
    }

    /// Reads the index of a container in any source. `path` is for messages.
    ///
    /// # Errors
    /// What is wrong with the container, with the path.
    pub fn from_source(path: &Path, source: Box<dyn ReadAt>, limits: &Limits) -> Result<Self> {
        let (index, parts) = read_index(path, &*source, limits)
            .map_err(|e| explain::explain(e, &*source, Wanted::Container).in_file(path))?;
        Ok(Self {
            path: path.to_path_buf(),
            source,
            index,
            names: OnceLock::new(),
            parts,
            decoders: Mutex::default(),
            own_payloads: Mutex::default(),
        })
    }

    /// Whether a file begins like a container.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_container(path: &Path) -> Result<bool> {
        let mut start = Vec::new();
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        file.take(8).read_to_end(&mut start).map_err(Error::io(path))?;
        Ok(ends::is_magic(&start))
    }

    /// Path it was opened under.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the container.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.source.len_bytes()
    }

    /// Checks that the file has not changed since it was opened, as far as the system tells: its
    /// length, its time of change, and that no other file has its name. Bytes that were changed
    /// without a trace are found by the checksum of their chunk.
    ///
    /// # Errors
    /// [`Error::Changed`], [`Error::Io`].
    pub fn check_unchanged(&self) -> Result<()> {
        if self.source.is_unchanged(&self.path).map_err(Error::io(&self.path))? {
            return Ok(());
        }
        Err(Error::Changed { path: self.path.clone() })
    }

    /// Stored sizes of its parts.
    #[must_use]
    pub fn part_bytes(&self) -> PartBytes {
        self.parts
    }

    /// BLAKE3 of the index and the trailer, which contain every digest and the checksum of every
    /// payload.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn index_digest(&self) -> Result<Digest> {
        let payload_bytes: u64 = self.index.tensors.iter().map(PackedTensor::packed_bytes).sum();
        let index_offset = HEAD_BYTES + payload_bytes;
        let mut index = vec![0; to_usize(self.len_bytes() - index_offset)];
        self.source.read_at(index_offset, &mut index).map_err(Error::io(&self.path))?;
        Ok(blake3::hash(&index))
    }

    /// Memory of the frequency tables in the index, in bytes. The decoders that are made while
    /// decoding are not included.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        let tables = self.index.table_sets.iter().map(|set| set.tables.len());
        (tables.sum::<usize>() * size_of::<Frequencies>()) as u64
    }

    /// The name of the file that was packed, unless it was a directory.
    #[must_use]
    pub fn single_file(&self) -> Option<&str> {
        let member = self.index.members.first()?;
        (self.index.layout == crate::checkpoint::Layout::File).then_some(member.path.as_str())
    }

    /// The files of the checkpoint that was packed.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.index.members
    }

    /// BLAKE3 of the tensor with this number: tensors count from 0, file by file. `None` for a
    /// number that no tensor has.
    #[must_use]
    pub fn digest(&self, number: usize) -> Option<blake3::Hash> {
        self.index.tensors.get(number).map(|tensor| tensor.digest)
    }

    /// Number of the tensor with that name.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidArgument`] if several files have one.
    pub(crate) fn find(&self, name: &str) -> Result<usize> {
        let name_of = |number: usize| self.index.info(&self.index.tensors[number]).name.as_str();
        let names = self.names.get_or_init(|| Names::new(self.index.tensors.len(), name_of));
        match names.named(name, name_of) {
            [number] => Ok(*number),
            [] => Err(Error::not_found(Missing::Tensor, format!("tensor {name:?}")).in_file(&self.path)),
            _ => Err(Error::InvalidArgument(format!("several files have a tensor {name:?}"))),
        }
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Reads a payload of a tensor and checks its CRC-32.
    pub(crate) fn read_payload(&self, tensor: &PackedTensor, entry: &PayloadEntry) -> Result<Bytes<'_>> {
        let end = entry.offset.checked_add(entry.len_bytes as u64);
        let held = end.and_then(|end| self.source.slice(entry.offset..end));
        let payload = match held {
            Some(payload) => Bytes::Held(payload),
            None => {
                let mut payload = Scratch::of_len(entry.len_bytes);
                self.source.read_at(entry.offset, &mut payload).map_err(Error::io(&self.path))?;
                Bytes::Read(payload)
            }
        };
        if crc32fast::hash(&payload) != entry.crc {
            let name = &self.index.info(tensor).name;
            let fault =
                format!("a payload of tensor {name:?} at byte {} does not match its checksum", entry.offset);
            return Err(Error::corrupt_at(entry.offset, fault).in_file(&self.path));
        }
        Ok(payload)
    }

    /// Turns `values`, the prediction of chunk `i` of a tensor, into its elements: those that are
    /// coded, if the tensor is converted from another dtype. `classes` are
    /// those of their history, if the coding has them.
    pub(crate) fn decode_chunk(
        &self,
        tensor: &PackedTensor,
        i: usize,
        classes: Option<&[u8]>,
        values: &mut [u8],
    ) -> Result<()> {
        let chunk = &tensor.chunks[i];
        let payload = self.read_payload(tensor, &chunk.payload)?;
        let group = &tensor.groups[chunk.group];
        let rows = tensor.grid.chunk_rows(i as u64);
        let shape = ChunkShape {
            number: self.index.coded_info(tensor).number(),
            rows: to_usize(rows.end - rows.start),
            cols: to_usize(tensor.grid.cols),
        };
        let tables = group.tables.map(|set| self.decoder(set)).transpose();
        tables
            .and_then(|tables| {
                let (codec, tables) = (chunk.codec, tables.as_ref());
                codec::decode(&shape, codec, &group.coding, tables, &payload, classes, values)
            })
            .map_err(|e| e.in_file(&self.path))
    }

    fn decoder(&self, set: usize) -> Result<Decoder> {
        ready(&self.decoders, set as u64, || codec::decoder(&self.index.table_sets[set]))
    }

    /// The payload of a tensor's prediction, if it has one.
    pub(crate) fn own_payload(&self, tensor: &PackedTensor) -> Result<Option<Arc<OwnPayload>>> {
        let Some(entry) = &tensor.own_payload else { return Ok(None) };
        let make = || {
            let bytes = self.read_payload(tensor, entry)?;
            let info = self.index.coded_info(tensor);
            let payload = tensor.predictor.parse_payload(bytes.to_vec(), &info, &tensor.grid);
            payload.map(Arc::new).map_err(|e| e.in_file(&self.path))
        };
        ready(&self.own_payloads, entry.offset, make).map(Some)
    }
}

fn read_index(path: &Path, source: &dyn ReadAt, limits: &Limits) -> Result<(Index, PartBytes)> {
    let available = source.len_bytes();
    let read = |offset, buffer: &mut [u8]| source.read_at(offset, buffer).map_err(Error::io(path));
    let mut head = vec![0; to_usize(HEAD_BYTES.min(available))];
    read(0, &mut head)?;
    let features = ends::check_head(&head)?;
    if available < HEAD_BYTES + TRAILER_BYTES {
        let what = "a container's head and trailer";
        return Err(Error::Truncated { what, needed: HEAD_BYTES + TRAILER_BYTES, available });
    }
    let mut trailer = vec![0; to_usize(TRAILER_BYTES)];
    read(available - TRAILER_BYTES, &mut trailer)?;
    let trailer = Trailer::parse(&trailer, available, limits)?;
    let mut stored = vec![0; to_usize(trailer.index_bytes())];
    read(trailer.index_offset, &mut stored)?;
    if ends::index_crc(features.covered(&head), &stored) != trailer.index_crc {
        return Err(Error::corrupt("the index does not match its checksum"));
    }
    let (meta, rest) = stored.split_at(trailer.meta_packed as usize);
    let (tables, checks) = rest.split_at(trailer.tables_packed as usize);
    let parts = IndexParts {
        meta: decompress(meta, trailer.meta_len)?,
        tables: decompress(tables, trailer.tables_len)?,
        checks: checks.to_vec(),
    };
    let payload_bytes = trailer.index_offset - HEAD_BYTES;
    let index = layout::parse(&parts, payload_bytes, features, limits)?;
    let part_bytes = PartBytes {
        payload_bytes,
        meta_bytes: meta.len() as u64,
        tables_bytes: tables.len() as u64,
        checks_bytes: checks.len() as u64,
        frame_bytes: HEAD_BYTES + TRAILER_BYTES,
    };
    Ok((index, part_bytes))
}

/// Decompresses to exactly `length` bytes. Memory grows with the bytes that exist, not with what is
/// claimed.
fn decompress(frame: &[u8], length: u32) -> Result<Vec<u8>> {
    let bad = |e: std::io::Error| Error::corrupt(format!("the index: {e}"));
    let mut out = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(bad)?.single_frame();
    let mut limited = decoder.take(u64::from(length) + 1);
    limited.read_to_end(&mut out).map_err(bad)?;
    if out.len() != length as usize || !limited.into_inner().finish().is_empty() {
        return Err(Error::corrupt("a part of the index does not match its length"));
    }
    Ok(out)
}
