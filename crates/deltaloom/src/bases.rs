//! What the reader already has: the tensors of all bases, found by digest, whether they lie in plain files or in other containers.
//! It reads and decodes, also straight into a caller's memory; it does not choose among references.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, Contents, FileSource};
use crate::container::{Container, Digest, PackedTensor};
use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::predict::{Predictor, cast, names};
use crate::scratch::{Bytes, Scratch};
use crate::tensor::{DType, TensorInfo};

/// Bytes that are hashed at a time.
const HASH_BLOCK_BYTES: usize = 1 << 20;

/// A container whose references were found, so that any of its tensors can be read.
pub struct ResolvedContainer {
    container: Container,
    /// Per tensor, where it has a reference.
    references: Vec<Option<TensorSource>>,
}

impl ResolvedContainer {
    /// Finds the references of all tensors of `container` in `bases`, hashing on the threads of the current rayon pool.
    ///
    /// # Errors
    /// [`Error::BaseMismatch`] for the first tensor whose reference no base has.
    pub fn new(container: Container, bases: &Bases) -> Result<Self> {
        Self::resolve(container, bases, |_| true)
    }

    /// Finds only what one tensor needs, so that reading it costs no more than it must; the others cannot be read then.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a tensor that it does not have, [`Error::BaseMismatch`].
    pub fn for_tensor(container: Container, bases: &Bases, name: &str) -> Result<Self> {
        let number = container.find(name)?;
        let target = container.index().tensors[number].predictor.internal();
        Self::resolve(container, bases, |i| i == number || Some(i) == target)
    }

    /// With references that were found in another way than by their digests, one per tensor where it has one.
    pub(crate) fn with_references(container: Container, references: Vec<Option<TensorSource>>) -> Self {
        Self { container, references }
    }

    fn resolve(container: Container, bases: &Bases, wanted: impl Fn(usize) -> bool + Sync) -> Result<Self> {
        let index = container.index();
        let find = |(i, tensor): (usize, &PackedTensor)| {
            let info = index.info(tensor);
            let name = tensor.predictor.reference_name(&info.name).filter(|_| wanted(i));
            name.map(|name| bases.find(name, info, tensor)).transpose()
        };
        // Candidates are hashed, which takes as long as reading them; the fault of the first tensor is the one to tell of.
        let found: Vec<Result<_>> = index.tensors.par_iter().enumerate().map(find).collect();
        let references = found.into_iter().collect::<Result<Vec<_>>>();
        let references = references.map_err(|e| e.in_file(container.path()))?;
        Ok(Self { container, references })
    }

    /// The container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The reference of a tensor, where it has one.
    pub(crate) fn reference(&self, number: usize) -> Option<&TensorSource> {
        self.references[number].as_ref()
    }

    /// Whether a reference is of the same checkpoint or container as this tensor.
    pub(crate) fn rests_on(&self, source: &TensorSource) -> bool {
        self.references.iter().flatten().any(|reference| reference.has_origin_of(source))
    }

    pub(crate) fn tensor(&self, number: usize) -> &PackedTensor {
        &self.container.index().tensors[number]
    }

    pub(crate) fn info(&self, number: usize) -> &TensorInfo {
        self.container.index().info(self.tensor(number))
    }

    /// The tensors of all files in the order of the container, which is the order of their numbers.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        let index = self.container.index();
        index.tensors.iter().map(|tensor| index.info(tensor))
    }

    /// Decodes a tensor, by its place in [`Self::tensors`], into `out`, which has its length: chunk by chunk, on the threads of the current rayon pool.
    /// Every chunk's CRC-32 is checked; [`Self::check`] also checks the digest.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a number that no tensor has or a buffer of another length; what reading or decoding gives. `out` may be partly written then.
    pub fn read_into(&self, number: usize, out: &mut [u8]) -> Result<()> {
        self.check_number(number)?;
        self.read_run_into(number..number + 1, out)
    }

    /// Decodes all tensors, one after another in the order of [`Self::tensors`], into `out`, which has the length of all; otherwise as [`Self::read_into`].
    ///
    /// # Errors
    /// As [`Self::read_into`].
    pub fn read_all_into(&self, out: &mut [u8]) -> Result<()> {
        self.read_run_into(self.numbers(), out)
    }

    fn check_number(&self, number: usize) -> Result<()> {
        if self.numbers().contains(&number) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!("there is no tensor number {number}")))
    }

    /// The numbers of all tensors.
    fn numbers(&self) -> Range<usize> {
        0..self.container.index().tensors.len()
    }

    fn read_run_into(&self, numbers: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.for_chunks(numbers, out, |number, i, values| self.chunk_into(number, i, values))
    }

    /// Turns references into the tensors where they are: `values` has the bytes of all tensors one after another in the order of [`Self::tensors`], those with a
    /// reference holding its bytes, which are not looked at: only what changes is touched. Runs on the threads of the current rayon pool and checks the CRC-32 of
    /// every chunk it decodes; [`Self::check`] finds out whether the references were the right ones.
    ///
    /// # Errors
    /// As [`Self::read_into`]; `values` may be partly changed then.
    pub fn apply_all(&self, values: &mut [u8]) -> Result<()> {
        self.for_chunks(self.numbers(), values, |number, i, values| {
            let tensor = self.tensor(number);
            match &tensor.predictor {
                Predictor::Reference(_) => self.container.decode_chunk(tensor, i, values),
                Predictor::Identical(_) => Ok(()),
                _ => self.chunk_into(number, i, values),
            }
        })
    }

    /// Fills `values` with what [`Self::apply_all`] starts from: the reference of each tensor that has one of its size, and anything for the others.
    ///
    /// # Errors
    /// As [`Self::read_into`].
    pub fn read_references_into(&self, values: &mut [u8]) -> Result<()> {
        self.for_chunks(self.numbers(), values, |number, i, values| {
            let tensor = self.tensor(number);
            match (&tensor.predictor, &self.references[number]) {
                (Predictor::Reference(_) | Predictor::Identical(_), Some(reference)) => {
                    reference.read_into(tensor.grid.chunk_bytes(i as u64).start, values)
                }
                _ => Ok(()),
            }
        })
    }

    /// Runs `each` on all chunks of tensors that lie one after another in `values`.
    fn for_chunks(
        &self,
        numbers: Range<usize>,
        values: &mut [u8],
        each: impl Fn(usize, usize, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let (given, needed) =
            (values.len() as u64, numbers.clone().map(|number| self.info(number).len_bytes()).sum::<u64>());
        let wrong = || Error::InvalidArgument(format!("a buffer of {given} bytes for {needed}"));
        if given != needed {
            return Err(wrong());
        }
        let mut rest = values;
        let mut chunks = Vec::new();
        for number in numbers {
            let grid = self.tensor(number).grid;
            for i in 0..grid.chunk_count() {
                let place = grid.chunk_bytes(i);
                let values = rest.split_off_mut(..to_usize(place.end - place.start)).ok_or_else(wrong)?;
                chunks.push((number, to_usize(i), values));
            }
        }
        chunks.into_par_iter().try_for_each(|(number, i, values)| each(number, i, values))
    }

    /// Checks that `bytes` are those of a tensor, by its place in [`Self::tensors`], that was packed.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`]; [`Error::InvalidArgument`] for a number that no tensor has.
    pub fn check(&self, number: usize, bytes: &[u8]) -> Result<()> {
        self.check_number(number)?;
        self.check_digest(number, blake3::hash(bytes))
    }

    pub(crate) fn check_digest(&self, number: usize, found: Digest) -> Result<()> {
        let expected = self.tensor(number).digest;
        if found == expected {
            return Ok(());
        }
        let hex = |digest: Digest| digest.to_hex().to_string();
        let tensor = self.info(number).name.clone();
        let mismatch = Error::DigestMismatch { tensor, expected: hex(expected), found: hex(found) };
        Err(mismatch.in_file(self.container.path()))
    }

    /// Decodes chunk `i` of a tensor.
    pub(crate) fn chunk(&self, number: usize, i: usize) -> Result<Scratch> {
        let place = self.tensor(number).grid.chunk_bytes(i as u64);
        let mut values = Scratch::of_len(to_usize(place.end - place.start));
        self.chunk_into(number, i, &mut values)?;
        Ok(values)
    }

    /// Decodes chunk `i` of a tensor into `out`, which has its length and may hold anything.
    pub(crate) fn chunk_into(&self, number: usize, i: usize, out: &mut [u8]) -> Result<()> {
        let tensor = self.tensor(number);
        let start = tensor.grid.chunk_bytes(i as u64).start;
        let reference =
            || self.references[number].as_ref().ok_or_else(|| Error::corrupt("a reference is missing"));
        match &tensor.predictor {
            Predictor::Zero | Predictor::Reference(_) if !tensor.chunks[i].codec.uses_prediction() => {
                self.container.decode_chunk(tensor, i, out)
            }
            Predictor::Zero => {
                out.fill(0);
                self.container.decode_chunk(tensor, i, out)
            }
            Predictor::Reference(_) => {
                reference()?.read_into(start, out)?;
                self.container.decode_chunk(tensor, i, out)
            }
            Predictor::Identical(_) => reference()?.read_into(start, out),
            Predictor::Tied(target) => self.chunk_into(*target, i, out),
            Predictor::Cast(_) => {
                let singles = reference()?.read(2 * start, 2 * out.len())?;
                cast::round_into(&self.info(number).dtype, &singles, out);
                Ok(())
            }
            // The grids agree: they depend on the shape, which is the same, and not on the element's size.
            Predictor::CastInternal(target) => {
                cast::round_into(&self.info(number).dtype, &self.chunk(*target, i)?, out);
                Ok(())
            }
        }
    }

    /// Bytes `offset..offset + len_bytes` of a tensor, decoding only the chunks that hold them.
    pub(crate) fn read(&self, number: usize, offset: u64, len_bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len_bytes];
        self.read_part_into(number, offset, &mut out)?;
        Ok(out)
    }

    /// Fills `out` with the bytes of a tensor from `offset` on, decoding only the chunks that hold them.
    fn read_part_into(&self, number: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let grid = self.tensor(number).grid;
        let (start, end) = (offset, offset + out.len() as u64);
        let rows = start / grid.row_bytes()..end.div_ceil(grid.row_bytes());
        for i in grid.chunks_of_rows(&rows) {
            let place = grid.chunk_bytes(i);
            let (from, to) = (start.max(place.start), end.min(place.end));
            let part = &mut out[to_usize(from - start)..to_usize(to - start)];
            if (from..to) == place {
                self.chunk_into(number, to_usize(i), part)?;
            } else {
                let chunk = self.chunk(number, to_usize(i))?;
                part.copy_from_slice(&chunk[to_usize(from - place.start)..to_usize(to - place.start)]);
            }
        }
        Ok(())
    }
}

/// A tensor that the reader has.
#[derive(Clone)]
pub(crate) enum TensorSource {
    /// In a plain file.
    Plain { checkpoint: Arc<Checkpoint>, member: usize, info: TensorInfo, digest: Arc<OnceLock<Digest>> },
    /// In a container, by number.
    Packed { resolved: Arc<ResolvedContainer>, number: usize },
}

impl TensorSource {
    pub(crate) fn info(&self) -> &TensorInfo {
        match self {
            Self::Plain { info, .. } => info,
            Self::Packed { resolved, number } => resolved.info(*number),
        }
    }

    /// Whether it is a small file of a directory.
    pub(crate) fn is_small_file(&self) -> bool {
        let member = match self {
            Self::Plain { checkpoint, member, .. } => &checkpoint.members[*member],
            Self::Packed { resolved, number } => {
                &resolved.container.index().members[resolved.tensor(*number).place.0]
            }
        };
        member.contents == Contents::Opaque
    }

    /// Whether it has the dtype, shape and length of another: where the size of a dtype is not known, the first two do not give the third.
    pub(crate) fn is_like(&self, other: &TensorInfo) -> bool {
        self.info().same_type(other) && self.info().len_bytes() == other.len_bytes()
    }

    /// Whether dtype, shape and length are those of the reference that a packed tensor, which `info` describes, needs.
    pub(crate) fn fits(&self, info: &TensorInfo, predictor: &Predictor) -> bool {
        match predictor {
            Predictor::Cast(_) => self.info().dtype == DType::F32 && self.info().shape == info.shape,
            _ => self.is_like(info),
        }
    }

    /// Whether it is of the same checkpoint or container as another.
    pub(crate) fn has_origin_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain { checkpoint: a, .. }, Self::Plain { checkpoint: b, .. }) => Arc::ptr_eq(a, b),
            (Self::Packed { resolved: a, .. }, Self::Packed { resolved: b, .. }) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len_bytes];
        self.read_into(offset, &mut buffer)?;
        Ok(buffer)
    }

    /// Bytes of a range: where they are in memory, or read.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Result<Bytes<'_>> {
        match self {
            Self::Plain { checkpoint, member, info, .. } => checkpoint.bytes(*member, info, range),
            Self::Packed { .. } => {
                let mut bytes = Scratch::of_len(to_usize(range.end - range.start));
                self.read_into(range.start, &mut bytes)?;
                Ok(Bytes::Read(bytes))
            }
        }
    }

    /// Fills `buffer` with bytes from `offset` on.
    pub(crate) fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::Plain { checkpoint, member, info, .. } => checkpoint.read(*member, info, offset, buffer),
            Self::Packed { resolved, number } => resolved.read_part_into(*number, offset, buffer),
        }
    }

    /// BLAKE3 of the tensor: computed once for plain files, taken from the index for containers (whose chunks have checksums, and whose results are
    /// checked in turn when they are decoded whole).
    pub(crate) fn digest(&self) -> Result<Digest> {
        let (info, cell) = match self {
            Self::Packed { resolved, number } => return Ok(resolved.tensor(*number).digest),
            Self::Plain { info, digest, .. } => (info, digest),
        };
        if let Some(digest) = cell.get() {
            return Ok(*digest);
        }
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < info.len_bytes() {
            let len_bytes = HASH_BLOCK_BYTES.min(to_usize(info.len_bytes() - at));
            hasher.update(&self.read(at, len_bytes)?);
            at += len_bytes as u64;
        }
        Ok(*cell.get_or_init(|| hasher.finalize()))
    }
}

/// One base: a name for messages and its tensors. Clones share them.
#[derive(Clone)]
pub(crate) struct Base {
    path: PathBuf,
    tensors: Vec<TensorSource>,
    by_name: HashMap<String, Vec<usize>>,
}

impl Base {
    pub(crate) fn of_checkpoint(path: &Path, checkpoint: Checkpoint) -> Self {
        let checkpoint = Arc::new(checkpoint);
        let source = |(member, info): (usize, &TensorInfo)| TensorSource::Plain {
            checkpoint: Arc::clone(&checkpoint),
            member,
            info: info.clone(),
            digest: Arc::default(),
        };
        Self::new(path.to_path_buf(), checkpoint.tensors().map(source).collect())
    }

    pub(crate) fn of_container(path: &Path, resolved: ResolvedContainer) -> Self {
        let resolved = Arc::new(resolved);
        let count = resolved.container().index().tensors.len();
        let source = |number| TensorSource::Packed { resolved: Arc::clone(&resolved), number };
        Self::new(path.to_path_buf(), (0..count).map(source).collect())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn new(path: PathBuf, tensors: Vec<TensorSource>) -> Self {
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, tensor) in tensors.iter().enumerate() {
            by_name.entry(tensor.info().name.clone()).or_default().push(i);
        }
        Self { path, tensors, by_name }
    }

    pub(crate) fn tensors(&self) -> &[TensorSource] {
        &self.tensors
    }

    pub(crate) fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a TensorSource> + use<'a> {
        self.by_name.get(name).into_iter().flatten().map(|i| &self.tensors[*i])
    }

    /// Of the tensors that fit, the one that has the place of a tensor of this name: the same name, or the only one that a prefix makes of it.
    pub(crate) fn counterpart(
        &self,
        name: &str,
        fits: impl Fn(&TensorSource) -> bool,
    ) -> Option<&TensorSource> {
        if let Some(same) = self.named(name).find(|source| fits(source)) {
            return Some(same);
        }
        let fitting = || self.tensors.iter().filter(|source| fits(source));
        let name = names::renamed(name, fitting().map(|source| source.info().name.as_str()))?;
        fitting().find(|source| source.info().name == name)
    }
}

/// All tensors of all bases. Their order does not matter.
#[derive(Default)]
pub struct Bases {
    bases: Vec<Base>,
    /// Every tensor whose digest is known: a renamed reference is then found without hashing its neighbours again.
    by_digest: Mutex<HashMap<Digest, TensorSource>>,
}

impl Bases {
    /// Opens safetensors files, directories and containers. Containers take their references from the other bases, in whatever order they are given.
    ///
    /// # Errors
    /// What is wrong with a file; [`Error::BaseMismatch`] for a container whose references are in none of the others.
    pub fn open(paths: &[PathBuf], limits: &Limits) -> Result<Self> {
        let mut bases = Self::default();
        let mut waiting = Vec::new();
        for path in paths {
            if path.is_file() && Container::is_container(path)? {
                waiting.push(path);
            } else {
                bases.push_checkpoint(path, Checkpoint::open(path, limits)?);
            }
        }
        // A container may rest on another: go round until nobody gets further.
        while !waiting.is_empty() {
            let mut stuck = Vec::new();
            let mut last_error = None;
            for path in &waiting {
                // Read and not mapped: a base is gone through as a whole more often than not.
                let source = Box::new(FileSource::open(path)?);
                match ResolvedContainer::new(Container::from_source(path, source, limits)?, &bases) {
                    Ok(resolved) => bases.push_container(path, resolved),
                    Err(e) => {
                        stuck.push(*path);
                        last_error = last_error.or(Some(e));
                    }
                }
            }
            if stuck.len() == waiting.len() {
                return Err(last_error.unwrap_or(Error::Cancelled));
            }
            waiting = stuck;
        }
        Ok(bases)
    }

    /// Opens a checkpoint, or a container whose references these bases have, as the one base of others.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_against(&self, path: &Path, limits: &Limits) -> Result<Self> {
        let mut one = Self::default();
        if path.is_file() && Container::is_container(path)? {
            let source = Box::new(FileSource::open(path)?);
            let container = Container::from_source(path, source, limits)?;
            one.push_container(path, ResolvedContainer::new(container, self)?);
        } else {
            one.push_checkpoint(path, Checkpoint::open(path, limits)?);
        }
        Ok(one)
    }

    /// Adds the tensors of an opened checkpoint; `path` is for messages.
    pub fn push_checkpoint(&mut self, path: &Path, checkpoint: Checkpoint) {
        self.push(Base::of_checkpoint(path, checkpoint));
    }

    fn push_container(&mut self, path: &Path, resolved: ResolvedContainer) {
        self.push(Base::of_container(path, resolved));
    }

    /// Adds the tensors of a base, which others may share.
    pub(crate) fn push(&mut self, base: Base) {
        self.bases.push(base);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Base> {
        self.bases.iter()
    }

    /// Whether a plain base is, or has among its files, the one at this canonical path.
    pub(crate) fn has_file(&self, canonical: &Path) -> bool {
        let checkpoints = self.iter().filter_map(|base| base.tensors.first());
        let mut files = checkpoints.flat_map(|source| match source {
            TensorSource::Plain { checkpoint, .. } => checkpoint.file_paths().collect(),
            TensorSource::Packed { .. } => Vec::new(),
        });
        files.any(|path| path.canonicalize().is_ok_and(|path| path == canonical))
    }

    /// Whether there is any base.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// The reference of a packed tensor: the one tensor with its digest. Those with the name are looked at first.
    pub(crate) fn find(&self, name: &str, info: &TensorInfo, packed: &PackedTensor) -> Result<TensorSource> {
        let expected = packed.reference_digest.ok_or_else(|| Error::corrupt("a reference has no digest"))?;
        let is_cast = matches!(packed.predictor, Predictor::Cast(_));
        let dtype = if is_cast { &DType::F32 } else { &info.dtype };
        let fits = |source: &&TensorSource| source.fits(info, &packed.predictor);
        if let Some(found) =
            self.by_digest.lock().unwrap_or_else(PoisonError::into_inner).get(&expected).filter(fits)
        {
            return Ok(found.clone());
        }
        let named = || self.bases.iter().flat_map(|base| base.named(name)).filter(fits);
        let others =
            self.bases.iter().flat_map(|base| &base.tensors).filter(|s| s.info().name != name).filter(fits);
        for source in named().chain(others) {
            let digest = source.digest()?;
            self.by_digest.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, source.clone());
            if digest == expected {
                return Ok(source.clone());
            }
        }
        let mut found: Vec<String> = Vec::new();
        for base in &self.bases {
            for source in base.named(name).filter(fits) {
                found.push(format!("{} has {}", base.path.display(), source.digest()?.to_hex()));
            }
        }
        Err(Error::BaseMismatch {
            tensor: info.name.clone(),
            expected: expected.to_hex().to_string(),
            found: match (self.bases.is_empty(), found.is_empty()) {
                (true, _) => "no base was given".to_owned(),
                (_, true) => format!("no base has a tensor {name:?} of {dtype} {:?}", info.shape),
                _ => found.join(", "),
            },
        })
    }
}
