//! The work of turning a base into the fine-tune in place: which chunks are written, and in which
//! order.
//! It depends on the container, the header of the base, and the other bases. It writes nothing.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bases::{Bases, ResolvedContainer, TensorSource};
use crate::checkpoint::{Checkpoint, Contents, Layout, Member};
use crate::codec::Codec;
use crate::container::{Container, Digest, KnownDigest, PackedTensor};
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::scratch::Scratch;
use crate::tensor::TensorInfo;

/// What a job writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A chunk of a tensor, by number.
    Chunk(usize, usize),
    /// The header of the file.
    Header,
}

/// One write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) what: What,
    /// Offset in the file.
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    /// Whether the new bytes follow from the old ones, so that they cannot be there already.
    pub(super) is_change: bool,
}

/// All jobs and what they need.
pub(super) struct Work {
    path: PathBuf,
    resolved: ResolvedContainer,
    base: Arc<Checkpoint>,
    jobs: Vec<Job>,
    /// The jobs of each tensor.
    jobs_of: Vec<Range<usize>>,
    /// For each tensor, the digest of the reference at its place.
    digests_before: Vec<Option<Digest>>,
    old_header: Vec<u8>,
    new_header: Vec<u8>,
    identity: Digest,
}

/// Where the reference of a tensor is.
struct Reference {
    source: TensorSource,
    /// The number of the tensor whose place in the file it has. `None` for another base.
    place: Option<usize>,
}

impl Work {
    /// Finds the references and orders the chunks to write.
    ///
    /// # Errors
    /// [`Error::NotInPlace`] if base and fine-tune have different layouts, or if tensors would have
    /// to swap places; [`Error::BaseMismatch`].
    pub(super) fn new(path: &Path, container: Container, base: Checkpoint, others: &Bases) -> Result<Self> {
        let refuse = |why: String| Error::NotInPlace { path: path.to_path_buf(), why };
        let member = single_member(&container).map_err(refuse)?;
        let new_header =
            header_bytes(member).ok_or_else(|| refuse("it is not a safetensors file".to_owned()))?;
        let old_header = header_bytes(&base.members[0]).unwrap_or_default();
        check_layout(&base.members[0], member).map_err(refuse)?;

        let base = Arc::new(base);
        let places = base.members[0].tensors.iter().enumerate();
        let places = places.map(|(place, tensor)| (tensor.name.as_str(), place)).collect();
        let find = |number| {
            let found = find_references(&container, number, &base, &places, others);
            found.map_err(|e| container.index().named_in(e).in_file(path))
        };
        let references: Vec<Vec<Reference>> =
            (0..container.index().tensors.len()).map(find).collect::<Result<_>>()?;
        for (number, tensor) in container.index().tensors.iter().enumerate() {
            let info = container.index().info(tensor);
            if is_at_home(number, &references) && !tensor.predictor.is_aligned(info) {
                let why = "is predicted from other parts of itself, which would be overwritten";
                return Err(refuse(format!("tensor {:?} {why}", info.name)));
            }
        }
        let chunks: Vec<Vec<usize>> =
            (0..references.len()).map(|number| chunks_to_write(&container, number, &references)).collect();
        let order = order(&container, &references, &chunks).map_err(refuse)?;

        let mut jobs = Vec::new();
        let mut jobs_of = vec![0..0; chunks.len()];
        for number in order {
            let start = jobs.len();
            jobs.extend(
                chunks[number].iter().map(|chunk| chunk_job(&container, number, *chunk, &references)),
            );
            jobs_of[number] = start..jobs.len();
        }
        // Last, so that a partly changed file still has a header.
        if old_header != new_header {
            let len_bytes = new_header.len() as u64;
            jobs.push(Job { what: What::Header, offset: 0, len_bytes, is_change: true });
        }
        let identity = identity(&container, &jobs)?;
        let digests_before = (0..references.len())
            .map(|number| {
                let home = references[number].iter().position(|reference| reference.place == Some(number))?;
                container.index().tensors[number].reference_digests.get(home)?.whole()
            })
            .collect();
        let sources = |of_one: Vec<Reference>| of_one.into_iter().map(|reference| reference.source).collect();
        let references = references.into_iter().map(sources).collect();
        let resolved = ResolvedContainer::with_references(container, references);
        Ok(Self {
            path: path.to_path_buf(),
            resolved,
            base,
            jobs,
            jobs_of,
            digests_before,
            old_header,
            new_header,
            identity,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn resolved(&self) -> &ResolvedContainer {
        &self.resolved
    }

    pub(super) fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    pub(super) fn jobs_of(&self, tensor: usize) -> Range<usize> {
        self.jobs_of[tensor].clone()
    }

    /// The digest that a tensor's place must have before it is written, if the tensor is predicted
    /// from it.
    pub(super) fn digest_before(&self, tensor: usize) -> Option<Digest> {
        self.digests_before[tensor]
    }

    pub(super) fn old_header(&self) -> &[u8] {
        &self.old_header
    }

    /// Identifies this work by the container and by what it writes where.
    pub(super) fn identity(&self) -> Digest {
        self.identity
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.base.len_bytes()
    }

    /// The job that writes a chunk, if there is one.
    pub(super) fn job_of_chunk(&self, tensor: usize, chunk: usize) -> Option<usize> {
        let range = self.jobs_of(tensor);
        let key = |job: &Job| match job.what {
            What::Chunk(_, chunk) => chunk,
            What::Header => usize::MAX,
        };
        self.jobs[range.clone()].binary_search_by_key(&chunk, key).ok().map(|i| range.start + i)
    }

    /// The present contents of a tensor's place.
    pub(super) fn current(&self, tensor: usize) -> TensorSource {
        in_file(&self.base, tensor)
    }

    /// The present contents of a chunk's place.
    pub(super) fn current_chunk(&self, tensor: usize, chunk: usize) -> Result<Scratch> {
        let range = self.resolved.tensor(tensor).grid.chunk_bytes(chunk as u64);
        let mut bytes = Scratch::of_len(to_usize(range.end - range.start));
        self.current(tensor).read_into(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// The new bytes for the place of a job, computed from the present contents. `None` if they are
    /// there already.
    pub(super) fn new_bytes(&self, job: &Job) -> Result<Option<Scratch>> {
        match job.what {
            What::Header => Ok(Some(self.new_header.clone().into())),
            What::Chunk(tensor, chunk) => {
                let bytes = self.resolved.chunk(tensor, chunk)?;
                let is_there = !job.is_change && *bytes == *self.current_chunk(tensor, chunk)?;
                Ok((!is_there).then_some(bytes))
            }
        }
    }
}

fn in_file(base: &Arc<Checkpoint>, place: usize) -> TensorSource {
    TensorSource::Plain { checkpoint: Arc::clone(base), member: 0, place, digest: Arc::default() }
}

fn single_member(container: &Container) -> Result<&Member, String> {
    match (container.index().layout, &container.index().members[..]) {
        (Layout::File, [member]) => Ok(member),
        _ => Err("the container holds a directory".to_owned()),
    }
}

fn header_bytes(member: &Member) -> Option<Vec<u8>> {
    match &member.contents {
        Contents::Safetensors(header) => Some([&(header.len() as u64).to_le_bytes(), &header[..]].concat()),
        Contents::Opaque | Contents::Framed(_) => None,
    }
}

/// Checks that every tensor of the fine-tune has the place of one of the base.
fn check_layout(base: &Member, tuned: &Member) -> Result<(), String> {
    if base.data_offset() != tuned.data_offset() {
        let (old, new) = (base.data_offset(), tuned.data_offset());
        return Err(format!("the fine-tune's header takes {new} bytes, and this file's {old}"));
    }
    let places = |member: &Member| member.tensors.iter().map(|t| (t.begin, t.end)).collect::<Vec<_>>();
    let (old, new) = (places(base), places(tuned));
    match new.iter().zip(&old).position(|(new, old)| new != old) {
        Some(i) => Err(format!("tensor {:?} has another place or size in it", tuned.tensors[i].name)),
        None if new.len() != old.len() => {
            Err(format!("the fine-tune has {} tensors, and this file {}", new.len(), old.len()))
        }
        None => Ok(()),
    }
}

/// Asks the other bases by digest. References that they do not have must be in the file, under
/// their name or at the tensor's own place. The file is not hashed for that: the results reveal a
/// wrong guess. `places` has the tensors of the file by name.
fn find_references(
    container: &Container,
    number: usize,
    base: &Arc<Checkpoint>,
    places: &HashMap<&str, usize>,
    others: &Bases,
) -> Result<Vec<Reference>> {
    let tensor = &container.index().tensors[number];
    let wanted = tensor.predictor.references(container.index().info(tensor));
    let find = |(wanted, digest): (&TensorInfo, &KnownDigest)| {
        if !others.is_empty() {
            match others.find(wanted, *digest) {
                Ok(source) => return Ok(Reference { source, place: None }),
                Err(Error::BaseMismatch { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let named = places.get(wanted.name.as_str()).copied();
        let fits = |i: &usize| in_file(base, *i).is_like(wanted);
        match named.filter(fits).or(Some(number).filter(fits)) {
            Some(place) if digest.whole().is_some() => {
                Ok(Reference { source: in_file(base, place), place: Some(place) })
            }
            // The error says what is missing. An ancestor is never in the file, which holds only
            // one step.
            _ => others.find(wanted, *digest).map(|source| Reference { source, place: None }),
        }
    };
    wanted.iter().zip(&tensor.reference_digests).map(find).collect()
}

/// Whether a tensor is predicted from its own place.
fn is_at_home(number: usize, references: &[Vec<Reference>]) -> bool {
    references[number].iter().any(|reference| reference.place == Some(number))
}

fn chunks_to_write(container: &Container, number: usize, references: &[Vec<Reference>]) -> Vec<usize> {
    let tensor = &container.index().tensors[number];
    let chunks = 0..to_usize(tensor.grid.chunk_count());
    if !tensor.predictor.is_reference() || !is_at_home(number, references) {
        return chunks.collect();
    }
    let differs = |i: &usize| tensor.chunks.get(*i).is_some_and(|chunk| chunk.codec != Codec::Same);
    chunks.filter(differs).collect()
}

fn chunk_job(container: &Container, number: usize, chunk: usize, references: &[Vec<Reference>]) -> Job {
    let tensor = &container.index().tensors[number];
    let member = &container.index().members[0];
    let range = tensor.grid.chunk_bytes(chunk as u64);
    let uses_prediction =
        |tensor: &PackedTensor| tensor.chunks.get(chunk).is_some_and(|chunk| chunk.codec.uses_prediction());
    Job {
        what: What::Chunk(number, chunk),
        offset: member.data_offset() + container.index().info(tensor).begin + range.start,
        len_bytes: range.end - range.start,
        is_change: is_at_home(number, references) && uses_prediction(tensor),
    }
}

/// The tensors with chunks to write, ordered so that a place is read for another tensor before it
/// is written. In file order, except that a tensor that reads another one's place comes before that
/// one.
fn order(
    container: &Container,
    references: &[Vec<Reference>],
    chunks: &[Vec<usize>],
) -> Result<Vec<usize>, String> {
    let writes = |number: &usize| !chunks[*number].is_empty();
    // A tensor that depends on another one of the file reads what that one reads.
    let successors = |number: usize| {
        let needed = container.index().needed_for(number);
        let places =
            needed.into_iter().flat_map(|needed| &references[needed]).filter_map(|reference| reference.place);
        places.filter(move |place| *place != number).filter(writes).collect::<BTreeSet<usize>>()
    };
    let touched: Vec<usize> = (0..chunks.len()).filter(writes).collect();
    let mut waits_for = vec![0usize; chunks.len()];
    touched.iter().flat_map(|number| successors(*number)).for_each(|next| waits_for[next] += 1);
    let mut ready: BTreeSet<usize> = touched.iter().copied().filter(|n| waits_for[*n] == 0).collect();
    let mut order = Vec::with_capacity(touched.len());
    while let Some(number) = ready.pop_first() {
        order.push(number);
        for next in successors(number) {
            waits_for[next] -= 1;
            if waits_for[next] == 0 {
                ready.insert(next);
            }
        }
    }
    match touched.iter().find(|number| waits_for[**number] > 0) {
        None => Ok(order),
        Some(number) => {
            let name = &container.index().info(&container.index().tensors[*number]).name;
            Err(format!("tensors change places in it, {name:?} among them"))
        }
    }
}

fn identity(container: &Container, jobs: &[Job]) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(container.index_digest()?.as_bytes());
    for job in jobs {
        hasher.update(&job.offset.to_le_bytes());
        hasher.update(&job.len_bytes.to_le_bytes());
    }
    Ok(hasher.finalize())
}
