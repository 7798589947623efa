//! The file of a lossy step: payloads, and an index in JSON that says `lossy`, with the bound and
//! the digest of every tensor; docs/lossy.md.
//!
//! It does not choose what is kept; see [`super::closed_loop`].

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::corrected;
use super::positions::Positions;
use super::reconstruction::{Reconstructed, Reconstruction};
use super::tensors::Named;
use super::threshold::Rule;
use deltaloom::__internals::bytes::ByteReader;
use deltaloom::__internals::{LOSSY_MAGIC, check_cancelled, check_paths, frame, parse_header, to_usize};
use deltaloom::checkpoint::{Checkpoint, FileSource, Layout, Member, ReadAt as _};
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Limits, Progress, Result};

const VERSION: u16 = 1;
const HEAD_BYTES: u64 = 16;
const TRAILER_BYTES: u64 = 32;
const END_MAGIC: [u8; 8] = *b"LOSSYEND";
const LEVEL: i32 = 3;

/// Location of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    offset: u64,
    pub(super) len_bytes: u64,
    crc32: u32,
}

/// How a tensor of the step is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "coding", rename_all = "snake_case")]
pub(super) enum Coding {
    /// Elements that differ by the threshold or more are exact; the others stay unchanged.
    Thresholded {
        threshold: f32,
        /// Greatest absolute error of an element, rounded up: zero, or at most the threshold. It is
        /// F32, because every JSON reader gets its decimals right.
        bound: f32,
        kept: u64,
        positions: Positions,
        /// Digest of the tensor that is changed.
        previous: String,
        payload: Option<Place>,
    },
    /// The same as in the previous reconstruction.
    Same,
    /// The bytes of an earlier tensor of this file.
    Tied { to: usize },
    /// All bytes, compressed by zstd.
    Exact { payload: Place },
}

/// A tensor of the step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TensorEntry {
    pub(super) name: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    /// BLAKE3 of the reconstruction.
    pub(super) digest: String,
    #[serde(flatten)]
    pub(super) coding: Coding,
}

/// A file of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberEntry {
    pub(super) path: String,
    /// Its safetensors header, compressed by zstd; `None` for other files.
    pub(super) header: Option<Place>,
}

/// Contents of the index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Index {
    /// Always true, for people who look at the file.
    pub(super) lossy: bool,
    pub(super) form: String,
    pub(super) method: String,
    pub(super) rule: Rule,
    pub(super) step: u64,
    pub(super) previous_step: u64,
    pub(super) is_directory: bool,
    pub(super) members: Vec<MemberEntry>,
    pub(super) tensors: Vec<TensorEntry>,
}

/// A file that is being written.
pub(super) struct LossyWriter<W: Write> {
    out: W,
    offset: u64,
}

impl<W: Write> LossyWriter<W> {
    pub(super) fn new(mut out: W) -> Result<Self> {
        let mut head = LOSSY_MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend([0; 6]);
        out.write_all(&head).map_err(Error::writing(""))?;
        Ok(Self { out, offset: HEAD_BYTES })
    }

    pub(super) fn push(&mut self, payload: &[u8]) -> Result<Place> {
        self.out.write_all(payload).map_err(Error::writing(""))?;
        let len_bytes = payload.len() as u64;
        let place = Place { offset: self.offset, len_bytes, crc32: crc32fast::hash(payload) };
        self.offset += len_bytes;
        Ok(place)
    }

    pub(super) fn push_frame(&mut self, bytes: &[u8]) -> Result<Place> {
        self.push(&frame::compress(bytes, LEVEL).map_err(Error::io(""))?)
    }

    /// Writes index and trailer. Returns the size of the file.
    pub(super) fn finish(mut self, index: &Index) -> Result<u64> {
        let too_large = || Error::InvalidArgument("the index of a lossy file is too large".to_owned());
        let json = serde_json::to_vec(index).map_err(|_| too_large())?;
        let stored = frame::compress(&json, LEVEL).map_err(Error::io(""))?;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| too_large());
        let mut trailer = self.offset.to_le_bytes().to_vec();
        trailer.extend(length(&stored)?.to_le_bytes());
        trailer.extend(length(&json)?.to_le_bytes());
        trailer.extend(crc32fast::hash(&stored).to_le_bytes());
        trailer.extend([0; 4]);
        trailer.extend(END_MAGIC);
        let written = self.out.write_all(&stored).and_then(|()| self.out.write_all(&trailer));
        written.and_then(|()| self.out.flush()).map_err(Error::writing(""))?;
        Ok(self.offset + stored.len() as u64 + TRAILER_BYTES)
    }
}

/// An open lossy step.
pub struct LossyFile {
    pub(super) path: PathBuf,
    source: FileSource,
    pub(super) index: Index,
    pub(super) members: Vec<Member>,
}

impl LossyFile {
    /// Opens a file and checks its index.
    ///
    /// # Errors
    /// What is wrong with the file, with its path.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let source = FileSource::open(path)?;
        Self::read(path, source, limits).map_err(|e| e.in_file(path))
    }

    /// The step's number in the series, and the number of the step that it changes.
    #[must_use]
    pub fn steps(&self) -> (u64, u64) {
        (self.index.step, self.index.previous_step)
    }

    fn read(path: &Path, source: FileSource, limits: &Limits) -> Result<Self> {
        let available = source.len_bytes();
        if available < HEAD_BYTES + TRAILER_BYTES {
            let what = "the head and trailer of a lossy file";
            return Err(Error::Truncated { what, needed: HEAD_BYTES + TRAILER_BYTES, available });
        }
        let read = |offset: u64, len_bytes: u64| {
            let mut bytes = vec![0; to_usize(len_bytes)];
            source.read_at(offset, &mut bytes).map_err(Error::io(path))?;
            Ok::<_, Error>(bytes)
        };
        let head = read(0, HEAD_BYTES)?;
        let mut reader = ByteReader::new(&head, "the head");
        if reader.array()? != LOSSY_MAGIC {
            return Err(Error::corrupt("this is not a lossy step (wrong magic)"));
        }
        let found = u16::from_le_bytes(reader.array()?);
        if found != VERSION || reader.array()? != [0u8; 6] {
            return Err(Error::UnsupportedVersion { found });
        }
        let trailer = read(available - TRAILER_BYTES, TRAILER_BYTES)?;
        let mut reader = ByteReader::new(&trailer, "the trailer");
        let (offset, stored_bytes) = (reader.u64()?, u64::from(reader.u32()?));
        let (json_bytes, crc) = (u64::from(reader.u32()?), reader.u32()?);
        if reader.u32()? != 0 || reader.array()? != END_MAGIC {
            return Err(Error::corrupt("the file does not end with the trailer of a lossy file"));
        }
        let end = offset.checked_add(stored_bytes).and_then(|end| end.checked_add(TRAILER_BYTES));
        if offset < HEAD_BYTES || end != Some(available) {
            return Err(Error::corrupt("the index is not at the offset in the trailer"));
        }
        Limits::check("the size of the index in bytes", json_bytes.max(stored_bytes), limits.index_bytes)?;
        let stored = read(offset, stored_bytes)?;
        if crc32fast::hash(&stored) != crc {
            return Err(Error::corrupt("wrong checksum of the index"));
        }
        let json = frame::decompress(&stored, json_bytes)?;
        if json.len() as u64 != json_bytes {
            return Err(Error::corrupt("wrong length of the index"));
        }
        let index: Index =
            serde_json::from_slice(&json).map_err(|e| Error::corrupt(format!("the index: {e}")))?;
        let mut this = Self { path: path.to_path_buf(), source, index, members: Vec::new() };
        this.check_index(offset, limits)?;
        this.members = this.read_members(limits)?;
        Ok(this)
    }

    fn check_index(&self, payloads_end: u64, limits: &Limits) -> Result<()> {
        let index = &self.index;
        Limits::check("the number of tensors", index.tensors.len() as u64, limits.tensors)?;
        Limits::check("the number of files", index.members.len() as u64, limits.members)?;
        let headers = index.members.iter().filter_map(|member| member.header);
        let payloads = index.tensors.iter().filter_map(|tensor| tensor.coding.payload());
        let is_outside = |place: &Place| {
            let end = place.offset.checked_add(place.len_bytes);
            place.offset < HEAD_BYTES || end.is_none_or(|end| end > payloads_end)
        };
        if !index.lossy || headers.chain(payloads).any(|place| is_outside(&place)) {
            return Err(Error::corrupt("the index refers to payloads that do not exist"));
        }
        let is_tied_wrongly =
            |(i, tensor): (usize, &TensorEntry)| matches!(tensor.coding, Coding::Tied { to } if to >= i);
        if index.tensors.iter().enumerate().any(is_tied_wrongly) {
            return Err(Error::corrupt("a tensor is tied to a later one"));
        }
        Ok(())
    }

    fn read_members(&self, limits: &Limits) -> Result<Vec<Member>> {
        let mut entries = self.index.tensors.iter();
        let mut members = Vec::new();
        for entry in &self.index.members {
            let member = match &entry.header {
                Some(place) => {
                    let header = self.frame(place, limits.header_bytes)?;
                    let tensors = parse_header(&header, limits)?;
                    Member::safetensors(entry.path.clone(), header, tensors, 0)
                }
                None => {
                    let len_bytes = entries.as_slice().first().and_then(|tensor| tensor.shape.first());
                    Member::opaque(entry.path.clone(), len_bytes.copied().unwrap_or(0))
                }
            };
            let agrees = |info: &TensorInfo| {
                entries.next().is_some_and(|tensor| {
                    (tensor.name.as_str(), tensor.dtype.as_str()) == (&info.name, info.dtype.name())
                        && tensor.shape == info.shape
                })
            };
            if !member.tensors.iter().all(agrees) {
                return Err(Error::corrupt("the index and the headers have different tensors"));
            }
            members.push(member);
        }
        if entries.next().is_some() {
            return Err(Error::corrupt("the index has tensors that belong to no file"));
        }
        check_paths(self.layout(), &members)?;
        Ok(members)
    }

    fn layout(&self) -> Layout {
        if self.index.is_directory { Layout::Directory } else { Layout::File }
    }

    fn payload(&self, place: &Place) -> Result<Vec<u8>> {
        let mut payload = vec![0; to_usize(place.len_bytes)];
        self.source.read_at(place.offset, &mut payload).map_err(Error::io(&self.path))?;
        if crc32fast::hash(&payload) != place.crc32 {
            return Err(Error::corrupt(format!("wrong checksum of the payload at byte {}", place.offset)));
        }
        Ok(payload)
    }

    fn frame(&self, place: &Place, limit_bytes: u64) -> Result<Vec<u8>> {
        frame::decompress(&self.payload(place)?, limit_bytes)
    }

    /// Writes the reconstruction of this step into an empty folder, from the reconstruction of the
    /// step before. Checks every digest.
    pub(super) fn reconstruct(
        &self,
        previous: &Checkpoint,
        folder: &Path,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<Reconstructed> {
        let held = Named::new(previous);
        let mut out = Reconstruction::create(folder, self.layout(), self.members.clone())?;
        let tensors: Vec<(usize, &TensorInfo)> = self
            .members
            .iter()
            .enumerate()
            .flat_map(|(m, it)| it.tensors.iter().map(move |t| (m, t)))
            .collect();
        for (entry, (member, info)) in self.index.tensors.iter().zip(&tensors) {
            check_cancelled(progress)?;
            let values = match entry.coding {
                Coding::Tied { to } => {
                    let (member, info) = tensors[to];
                    out.read_back(member, info)?
                }
                _ => self.decode(entry, info, &held).map_err(|e| e.in_file(&self.path))?,
            };
            let found = blake3::hash(&values).to_hex();
            if values.len() as u64 != info.len_bytes() || found.as_str() != entry.digest {
                return Err(Error::DigestMismatch {
                    tensor: entry.name.clone(),
                    expected: entry.digest.clone(),
                    found: found.to_string(),
                });
            }
            out.push(*member, &values)?;
            progress.advance(info.len_bytes());
        }
        out.finish(limits)
    }

    fn decode(&self, entry: &TensorEntry, info: &TensorInfo, held: &Named<'_>) -> Result<Vec<u8>> {
        let missing = |expected: &str, found: String| Error::BaseMismatch {
            tensor: entry.name.clone(),
            expected: expected.to_owned(),
            found,
            needed: String::new(),
        };
        let previous = |expected: &str| {
            let values = held.read(&info.name, |held| held.same_type(info))?;
            let values = values.ok_or_else(|| missing(expected, "found no such tensor".to_owned()))?;
            let found = blake3::hash(&values).to_hex();
            if found.as_str() == expected {
                Ok(values)
            } else {
                Err(missing(expected, format!("found {found}")))
            }
        };
        match &entry.coding {
            Coding::Same => previous(&entry.digest),
            Coding::Exact { payload } => self.frame(payload, info.len_bytes()),
            Coding::Thresholded { kept, positions, previous: digest, payload, .. } => {
                let mut values = previous(digest)?;
                let payload = payload.as_ref().map_or(Ok(Vec::new()), |place| self.payload(place))?;
                corrected::decode(info.number(), *positions, to_usize(*kept), &payload, &mut values)?;
                Ok(values)
            }
            Coding::Tied { .. } => Err(Error::corrupt("a tied tensor has no payload")),
        }
    }
}

impl Coding {
    fn payload(&self) -> Option<Place> {
        match self {
            Self::Thresholded { payload, .. } => *payload,
            Self::Exact { payload } => Some(*payload),
            Self::Same | Self::Tied { .. } => None,
        }
    }
}
