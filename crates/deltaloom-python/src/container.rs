//! An open file of tensors, packed or plain, reading its tensors into the memory of Python, and the
//! bases that a call is given.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use deltaloom::checkpoint::{Checkpoint, Contents, Foreign, Member};
use deltaloom::tensor::TensorInfo;
use deltaloom::{
    Bases, Changes, Container, Error, Limits, Progress, ResolvedContainer, Result, TensorReport,
    find_needed_bases,
};
use pyo3::exceptions::{PyIndexError, PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::buffer::{Input, Output};
use crate::checkpoint::Tensors;
use crate::progress::run;
use crate::report::to_json;

/// Bytes of a tensor that are read before progress is reported.
const BLOCK_BYTES: u64 = 8 << 20;

/// Where tensors are.
#[derive(Clone)]
pub(crate) enum Source {
    /// In plain files.
    Plain(Arc<Checkpoint>),
    /// In a container whose references are known.
    Packed(Arc<ResolvedContainer>),
}

impl Source {
    fn open(
        path: &Path,
        bases: &Given,
        folder: Option<&Path>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let limits = Limits::default();
        if !(path.is_file() && Container::is_container(path)?) {
            return Ok(Self::Plain(Arc::new(Checkpoint::open(path, &limits)?)));
        }
        let container = Container::open(path, &limits)?;
        let bases = bases.open_for(&container, folder, threads, progress)?;
        Ok(Self::Packed(Arc::new(ResolvedContainer::new(container, &bases)?)))
    }

    fn of_bytes(bytes: Input, bases: &Given) -> Result<Self> {
        let (limits, bytes) = (Limits::default(), Arc::new(bytes));
        match Container::from_source(Path::new("the bytes"), Box::new(Arc::clone(&bytes)), &limits) {
            Ok(container) => Ok(Self::Packed(Arc::new(ResolvedContainer::new(container, &bases.open()?)?))),
            Err(Error::InFile { source, .. })
                if matches!(*source, Error::Foreign { found: Foreign::Safetensors, .. }) =>
            {
                let checkpoint = Checkpoint::from_bytes("bytes.safetensors", bytes, &limits)?;
                Ok(Self::Plain(Arc::new(checkpoint)))
            }
            Err(e) => Err(e),
        }
    }

    fn members(&self) -> &[Member] {
        match self {
            Self::Plain(checkpoint) => &checkpoint.members,
            Self::Packed(resolved) => resolved.container().members(),
        }
    }

    fn info(&self, place: &Place) -> &TensorInfo {
        &self.members()[place.member].tensors[place.tensor]
    }

    /// Reads some bytes of a tensor, which are whole rows if there are rows.
    fn read_part(&self, place: &Place, rows: Range<u64>, bytes: Range<u64>, out: &mut [u8]) -> Result<()> {
        match self {
            Self::Plain(checkpoint) => checkpoint.read(place.member, self.info(place), bytes.start, out),
            Self::Packed(resolved) if bytes == (0..self.info(place).len_bytes()) => {
                resolved.read_into(place.number, out)
            }
            Self::Packed(resolved) => resolved.read_rows_into(place.number, rows, out),
        }
    }

    /// Reads rows `rows` of a tensor into `out`, which must have their length. A single number has
    /// one row.
    fn read_rows(
        &self,
        place: &Place,
        rows: Range<u64>,
        out: &mut [u8],
        progress: &dyn Progress,
    ) -> Result<()> {
        let info = self.info(place);
        let count = info.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > count {
            let message = format!(
                "tensor {:?} has {count} rows, {}..{} was asked for",
                info.name, rows.start, rows.end
            );
            return Err(Error::InvalidArgument(message));
        }
        // Rows of four-bit numbers may share a byte.
        let are_whole = info.len_bytes().is_multiple_of(count.max(1));
        let row_bytes = if are_whole { info.len_bytes() / count.max(1) } else { 0 };
        let needed = if rows == (0..count) {
            info.len_bytes()
        } else {
            row_bytes.saturating_mul(rows.end - rows.start)
        };
        if out.len() as u64 != needed {
            let message =
                format!("tensor {:?}: the buffer has {} bytes, {needed} are needed", info.name, out.len());
            return Err(Error::InvalidArgument(message));
        }
        if needed <= BLOCK_BYTES || row_bytes == 0 {
            self.read_part(
                place,
                rows.clone(),
                rows.start * row_bytes..rows.start * row_bytes + needed,
                out,
            )?;
            progress.advance(needed);
            return Ok(());
        }
        // Whole chunks, so that none is decoded twice.
        let chunk_rows = match self {
            Self::Packed(resolved) => resolved.rows_per_chunk(place.number) as u64,
            Self::Plain(_) => 1,
        };
        let block_rows = (BLOCK_BYTES / row_bytes / chunk_rows).max(1) * chunk_rows;
        let (mut row, mut rest) = (rows.start, out);
        while row < rows.end {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let end = ((row / block_rows + 1) * block_rows).min(rows.end);
            let bytes = row * row_bytes..end * row_bytes;
            let short = || Error::InvalidArgument("the buffer is too short".to_owned());
            let len = usize::try_from(bytes.end - bytes.start).map_err(|_| short())?;
            let part = rest.split_off_mut(..len).ok_or_else(short)?;
            self.read_part(place, row..end, bytes, part)?;
            progress.advance(part.len() as u64);
            row = end;
        }
        Ok(())
    }

    fn check(&self, place: &Place, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Packed(resolved) => resolved.check(place.number, bytes),
        }
    }
}

/// The bases of a call: paths, tensors in memory, and open files.
#[derive(Default)]
pub(crate) struct Given {
    paths: Vec<PathBuf>,
    tensors: Vec<Arc<Checkpoint>>,
    open: Vec<Source>,
    adapters: Vec<PathBuf>,
}

impl Given {
    /// Takes a list of paths, [`Tensors`] and [`Reader`]s.
    ///
    /// # Errors
    /// `TypeError` for anything else.
    pub(crate) fn of(items: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut given = Self::default();
        for item in items.try_iter()? {
            let item = item?;
            if let Ok(tensors) = item.cast::<Tensors>() {
                given.tensors.push(Arc::clone(tensors.get().checkpoint()));
            } else if let Ok(reader) = item.cast::<Reader>() {
                given.open.push(reader.get().source.clone());
            } else {
                given.paths.push(item.extract()?);
            }
        }
        Ok(given)
    }

    /// The same with adapters.
    pub(crate) fn with_adapters(self, adapters: Vec<PathBuf>) -> Self {
        Self { adapters, ..self }
    }

    /// Opens them all.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(crate) fn open(&self) -> deltaloom::Result<Bases> {
        let limits = Limits::default();
        let mut bases = Bases::default();
        for adapter in &self.adapters {
            bases.push_adapter(adapter, &limits)?;
        }
        for tensors in &self.tensors {
            bases.push_checkpoint(Path::new("tensors in memory"), Arc::clone(tensors));
        }
        for source in &self.open {
            match source {
                Source::Plain(checkpoint) => {
                    bases.push_checkpoint(Path::new("an open checkpoint"), Arc::clone(checkpoint));
                }
                Source::Packed(resolved) => {
                    let path = resolved.container().path().to_path_buf();
                    bases.push_container(&path, Arc::clone(resolved));
                }
            }
        }
        bases.push_paths(&self.paths, &limits)?;
        Ok(bases)
    }

    /// Opens them all, and looks in `folder` for those that `container` needs besides.
    ///
    /// # Errors
    /// As [`Self::open`]; what searching gives.
    pub(crate) fn open_for(
        &self,
        container: &Container,
        folder: Option<&Path>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Bases> {
        let bases = self.open()?;
        let Some(folder) = folder else { return Ok(bases) };
        let limits = Limits::default();
        Ok(find_needed_bases(container, None, bases, folder, &limits, threads, progress)?.bases)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.tensors.is_empty() && self.open.is_empty() && self.adapters.is_empty()
    }
}

/// Where a tensor is.
struct Place {
    /// Its number among all tensors, file by file.
    number: usize,
    member: usize,
    tensor: usize,
}

/// Elements of a tensor that differ from others.
struct Changed {
    /// Bytes of one.
    size: usize,
    places: Vec<u8>,
    values: Vec<u8>,
}

impl Changed {
    /// Those that differ from `old`. `None` if they take more than half of the tensor's bytes.
    fn find(
        resolved: &ResolvedContainer,
        number: usize,
        old: &[u8],
        verify: bool,
        progress: &dyn Progress,
    ) -> Result<Option<Self>> {
        let size = resolved.info(number).number().bytes();
        let is_wide = i32::try_from(old.len() / size).is_err();
        let mut found = Self { size, places: Vec::new(), values: Vec::new() };
        let mut is_dense = false;
        let each = |changes: Changes<'_>| {
            for offset in changes.offsets {
                let place = (changes.first + u64::from(*offset)).to_le_bytes();
                found.places.extend_from_slice(if is_wide { &place } else { &place[..4] });
            }
            found.values.extend_from_slice(changes.values);
            is_dense = found.places.len() + found.values.len() > old.len() / 2;
            // Nothing more is needed of a dense one.
            if is_dense || progress.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
        };
        let digest = match resolved.changes_from(number, old, each) {
            Err(_) if is_dense => return Ok(None),
            digest => digest?,
        };
        if verify {
            resolved.check_digest(number, digest)?;
        }
        Ok(Some(found))
    }
}

/// The texts in a header of safetensors.
#[derive(Deserialize)]
struct Header {
    #[serde(default, rename = "__metadata__")]
    metadata: Option<BTreeMap<String, String>>,
}

/// What is known of a tensor without reading it.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    report: &'a TensorReport,
    digest: Option<String>,
}

/// An open file or folder with tensors. Tensors are numbered in the order of [`Self::tensors`].
#[pyclass(frozen, module = "deltaloom._lib")]
pub(crate) struct Reader {
    source: Source,
    /// The folder whose files are shown, with a `/` at its end; empty for all.
    folder: &'static str,
    places: Vec<Place>,
    reports: OnceLock<Vec<TensorReport>>,
}

impl Reader {
    /// The tensors of the files in `folder` (which ends in `/`), or all.
    pub(crate) fn new(source: Source, folder: &'static str) -> Self {
        let mut places = Vec::new();
        let mut number = 0;
        for (m, member) in source.members().iter().enumerate() {
            let has_tail = member.tail_bytes > 0 && matches!(member.contents, Contents::Safetensors(_));
            for (t, info) in member.tensors.iter().enumerate() {
                let is_tail = has_tail && t + 1 == member.tensors.len();
                if member.path.starts_with(folder) && member.is_typed(info) && !is_tail {
                    places.push(Place { number, member: m, tensor: t });
                }
                number += 1;
            }
        }
        Self { source, folder, places, reports: OnceLock::new() }
    }

    fn place(&self, number: usize) -> PyResult<&Place> {
        self.places.get(number).ok_or_else(|| PyIndexError::new_err(format!("tensor number {number}")))
    }

    fn member(&self, path: &str) -> PyResult<usize> {
        let is_it = |member: &Member| member.path.strip_prefix(self.folder) == Some(path);
        self.source.members().iter().position(is_it).ok_or_else(|| PyKeyError::new_err(path.to_owned()))
    }
}

#[pymethods]
impl Reader {
    /// Opens a container, a file of tensors or a folder of such files. Bases that are missing are
    /// looked for in `folder`.
    #[staticmethod]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        bases: Bound<'_, PyAny>,
        folder: Option<PathBuf>,
        threads: usize,
    ) -> PyResult<Self> {
        let bases = Given::of(&bases)?;
        let opened = run(py, None, threads, |progress| {
            Source::open(&path, &bases, folder.as_deref(), threads, progress)
        })?;
        Ok(Self::new(opened, ""))
    }

    /// Opens a container or a file of safetensors that is in memory.
    #[staticmethod]
    fn of_bytes(
        py: Python<'_>,
        data: Bound<'_, PyAny>,
        bases: Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<Self> {
        let (data, bases) = (Input::of(&data)?, Given::of(&bases)?);
        let opened = run(py, None, threads, |_| Source::of_bytes(data, &bases))?;
        Ok(Self::new(opened, ""))
    }

    /// Name, dtype, shape, size and file of each tensor, as they are in their files.
    fn tensors(&self) -> Vec<(String, String, Vec<u64>, u64, String)> {
        let of = |place: &Place| {
            let info = self.source.info(place);
            let path = &self.source.members()[place.member].path;
            let path = path.strip_prefix(self.folder).unwrap_or(path).to_owned();
            (info.name.clone(), info.dtype.to_string(), info.shape.clone(), info.len_bytes(), path)
        };
        self.places.iter().map(of).collect()
    }

    /// The texts of all headers, if any header has texts.
    fn metadata(&self) -> Option<BTreeMap<String, String>> {
        let mut all: Option<BTreeMap<String, String>> = None;
        for member in self.source.members().iter().filter(|member| member.path.starts_with(self.folder)) {
            let Contents::Safetensors(header) = &member.contents else { continue };
            let texts = serde_json::from_slice(header).ok().and_then(|header: Header| header.metadata);
            all = match (all, texts) {
                (Some(mut all), Some(texts)) => {
                    all.extend(texts);
                    Some(all)
                }
                (all, texts) => all.or(texts),
            };
        }
        all
    }

    /// The paths of its files.
    fn files(&self) -> Vec<String> {
        let paths = self.source.members().iter();
        paths.filter_map(|member| member.path.strip_prefix(self.folder).map(str::to_owned)).collect()
    }

    /// All bytes of a file.
    fn file<'py>(&self, py: Python<'py>, path: &str, threads: usize) -> PyResult<Bound<'py, PyBytes>> {
        let number = self.member(path)?;
        let member = &self.source.members()[number];
        let before: usize = self.source.members()[..number].iter().map(|member| member.tensors.len()).sum();
        let bytes = run(py, None, threads, |progress| {
            let mut bytes = match &member.contents {
                Contents::Safetensors(header) => [&(header.len() as u64).to_le_bytes()[..], header].concat(),
                Contents::Opaque => Vec::new(),
                Contents::Framed(_) => {
                    let message =
                        format!("{path}: tensors lie between the bytes of this file; unpack the container");
                    return Err(Error::InvalidArgument(message));
                }
            };
            for (t, info) in member.tensors.iter().enumerate() {
                let place = Place { number: before + t, member: number, tensor: t };
                let start = bytes.len();
                let len = usize::try_from(info.len_bytes()).unwrap_or(usize::MAX);
                let end = start.checked_add(len).ok_or_else(|| Error::corrupt("a file is too long"))?;
                bytes.resize(end, 0);
                let rows = 0..info.shape.first().copied().unwrap_or(1);
                self.source.read_rows(&place, rows, &mut bytes[start..], progress)?;
                self.source.check(&place, &bytes[start..])?;
            }
            Ok(bytes)
        })?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Reads whole tensors into buffers of their size.
    fn read(
        &self,
        py: Python<'_>,
        wanted: Vec<(usize, Bound<'_, PyAny>)>,
        verify: bool,
        threads: usize,
        report: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let into = |(number, out): &(usize, Bound<'_, PyAny>)| Ok((self.place(*number)?, Output::of(out)?));
        let mut wanted = wanted.iter().map(into).collect::<PyResult<Vec<_>>>()?;
        run(py, report.as_ref(), threads, move |progress| {
            progress.start(wanted.iter().map(|(place, _)| self.source.info(place).len_bytes()).sum());
            wanted.par_iter_mut().try_for_each(|(place, out)| {
                let rows = 0..self.source.info(place).shape.first().copied().unwrap_or(1);
                self.source.read_rows(place, rows, out.bytes(), progress)?;
                if verify { self.source.check(place, out.bytes()) } else { Ok(()) }
            })?;
            match &self.source {
                Source::Plain(checkpoint) => checkpoint.check_unchanged(),
                Source::Packed(_) => Ok(()),
            }
        })
    }

    /// Reads rows of a tensor, those of its first dimension, into a buffer of their size.
    fn read_rows(
        &self,
        py: Python<'_>,
        number: usize,
        rows: (u64, u64),
        out: Bound<'_, PyAny>,
        threads: usize,
    ) -> PyResult<()> {
        let (place, mut out) = (self.place(number)?, Output::of(&out)?);
        run(py, None, threads, move |progress| {
            self.source.read_rows(place, rows.0..rows.1, out.bytes(), progress)
        })
    }

    /// What differs between a tensor of a container and `old`, bytes of its size: the size of an
    /// element, the places of those that differ as integers of 32 bits (64 beyond 2^31 elements),
    /// and their bytes. `None` if that takes more than half of the tensor's bytes.
    #[expect(clippy::type_complexity, reason = "a tuple of Python")]
    fn changes<'py>(
        &self,
        py: Python<'py>,
        number: usize,
        old: Bound<'_, PyAny>,
        verify: bool,
        threads: usize,
    ) -> PyResult<Option<(usize, Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        let (place, old) = (self.place(number)?, Input::of(&old)?);
        let Source::Packed(resolved) = &self.source else {
            return Err(PyValueError::new_err("the file is not packed, so it has no changes"));
        };
        let found = run(py, None, threads, |progress| {
            Changed::find(resolved, place.number, old.bytes(), verify, progress)
        })?;
        let bytes = |bytes: &[u8]| PyBytes::new(py, bytes);
        Ok(found.map(|found| (found.size, bytes(&found.places), bytes(&found.values))))
    }

    /// What the index of a container says of a tensor, as JSON. `None` for plain files.
    fn describe(&self, py: Python<'_>, number: usize) -> PyResult<Option<String>> {
        let place = self.place(number)?;
        let Source::Packed(resolved) = &self.source else { return Ok(None) };
        let reports = self.reports.get_or_init(|| deltaloom::inspect(resolved.container()).tensors);
        let Some(report) = reports.get(place.number) else { return Ok(None) };
        let digest = resolved.container().digest(place.number).map(|digest| digest.to_hex().to_string());
        let json = to_json(&Described { report, digest });
        json.map(Some).map_err(|e| crate::errors::exception(py, &e))
    }
}
