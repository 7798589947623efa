//! Finds the bases of a container in a folder: by their digests if the container names them,
//! otherwise by digests of single tensors. Headers and samples rule candidates out. The digest of
//! each reference is the final proof.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;

use super::list::{List, Plain};
use crate::bases::{Base, Bases, ResolvedContainer};
use crate::checkpoint::{Checkpoint, Contents, FileSource};
use crate::container::{BaseDigest, Container, KnownDigest, PackedTensor};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};
use crate::tensor::TensorInfo;

/// Depth of containers whose references are in containers.
const MAX_DEPTH: usize = 16;
/// Larger tensors are searched only by their names.
const RENAMED_BYTES: u64 = 1 << 20;
/// Number of unreadable candidates that a message names.
const SHOWN_FAULTS: usize = 3;

/// The bases that a container needs.
#[non_exhaustive]
pub struct FoundBases {
    /// The given bases and those that were found.
    pub bases: Bases,
    /// Paths of the bases that were found.
    pub paths: Vec<PathBuf>,
}

/// Finds under `folder` the bases of a container that are not among those given. With a name, only
/// the bases of that tensor. The folder may be a hub cache. If no base is missing, nothing is
/// searched.
///
/// # Errors
/// [`Error::BaseNotFound`]; [`Error::Io`] for the folder itself; [`Error::NotFound`] for a tensor
/// that the container does not have; [`Error::Cancelled`].
pub fn find_needed_bases(
    container: &Container,
    tensor: Option<&str>,
    given: Bases,
    folder: &Path,
    limits: &Limits,
    threads: usize,
    progress: &dyn Progress,
) -> Result<FoundBases> {
    let index = container.index();
    let numbers = match tensor {
        Some(name) => index.needed_for(container.find(name)?),
        None => (0..index.tensors.len()).collect(),
    };
    pipeline::with_threads(threads, || {
        let mut found = FoundBases { bases: given, paths: Vec::new() };
        let wanted = references(container, &numbers);
        if missing(wanted, &found.bases)?.is_empty() {
            return Ok(found);
        }
        let own = std::iter::once(container.path());
        let list = List::of(folder, own, BTreeSet::new(), limits)?;
        let mut search = Search::new(&list, limits, progress);
        match search.complete(container, &numbers, &mut found, 0)? {
            None => Ok(found),
            Some(missing) => Err(Error::BaseNotFound {
                folder: folder.to_path_buf(),
                needed: index.identity.needed(),
                tensor: missing.wanted.name,
                candidates: list.candidates(),
                skipped: search.describe_faults(),
            }),
        }
    })
}

/// A tensor that a container takes from a base.
struct Reference {
    wanted: TensorInfo,
    digest: KnownDigest,
}

impl Reference {
    /// Whether a plain base has it under its name, or under any name if it is small.
    fn is_in(&self, base: &Base) -> Result<bool> {
        let is_small = self.wanted.len_bytes() <= RENAMED_BYTES;
        let fits = |source: &&crate::bases::TensorSource| {
            let is_named = source.info().name == self.wanted.name;
            (is_named || is_small) && source.is_like(&self.wanted)
        };
        let mut fitting: Vec<_> = base.tensors().iter().filter(fits).collect();
        fitting.sort_by_key(|source| source.info().name != self.wanted.name);
        for source in fitting {
            if self.digest.is_of(&source.digest()?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a container restores it, according to its index.
    fn is_in_container(&self, container: &Container) -> bool {
        let index = container.index();
        let mut tensors = index.tensors.iter();
        tensors.any(|tensor| self.digest.is_of(&tensor.digest) && index.info(tensor).same_type(&self.wanted))
    }
}

/// All references of these tensors, the smallest first.
fn references(container: &Container, numbers: &[usize]) -> Vec<Reference> {
    let index = container.index();
    let of_one = |number: &usize| {
        let tensor = &index.tensors[*number];
        let wanted = tensor.predictor.references(index.info(tensor));
        let digests = tensor.reference_digests.clone();
        wanted.into_iter().zip(digests).map(|(wanted, digest)| Reference { wanted, digest })
    };
    let mut all: Vec<Reference> = numbers.iter().flat_map(of_one).collect();
    all.sort_by_key(|reference| reference.wanted.len_bytes());
    all
}

/// The references that the bases do not have.
fn missing(wanted: Vec<Reference>, bases: &Bases) -> Result<Vec<Reference>> {
    let lacks = |reference: Reference| match bases.find(&reference.wanted, reference.digest) {
        Ok(_) => Ok(None),
        Err(Error::BaseMismatch { .. }) => Ok(Some(reference)),
        Err(e) => Err(e),
    };
    let found: Vec<Option<Reference>> = wanted.into_par_iter().map(lacks).collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// Names of the other files from which a container takes references. Only plain relative paths.
fn small_files(container: &Container) -> BTreeSet<String> {
    let index = container.index();
    let names = |tensor: &PackedTensor| -> Vec<String> {
        let member = &index.members[tensor.place.0];
        match member.contents {
            Contents::Safetensors(_) => Vec::new(),
            Contents::Opaque => {
                let wanted = tensor.predictor.references(index.info(tensor));
                wanted.into_iter().map(|wanted| wanted.name).collect()
            }
            Contents::Framed(_) => vec![member.path.clone()],
        }
    };
    let is_below = |name: &String| {
        !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
    };
    index.tensors.iter().flat_map(names).filter(is_below).collect()
}

/// How many parts of a base's name occur in a path. `org/model@revision` also matches
/// `models--org--model/snapshots/revision`.
fn likeness(name: &str, path: &Path) -> usize {
    let parts: Vec<String> =
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let words: BTreeSet<&str> = parts
        .iter()
        .flat_map(|part| match part.strip_prefix("models--") {
            Some(repository) => repository.split("--").collect(),
            None => vec![part.as_str()],
        })
        .collect();
    name.split(['/', '@']).filter(|part| words.contains(part)).count()
}

struct Search<'a> {
    list: &'a List,
    limits: &'a Limits,
    progress: &'a dyn Progress,
    /// Digests of the plain checkpoints that were computed.
    digests: Vec<Option<BaseDigest>>,
    /// Checkpoints and containers that are bases already, are being completed, or cannot be used.
    plain_done: Vec<bool>,
    containers_done: Vec<bool>,
    faults: Vec<String>,
}

impl<'a> Search<'a> {
    fn new(list: &'a List, limits: &'a Limits, progress: &'a dyn Progress) -> Self {
        Self {
            list,
            limits,
            progress,
            digests: vec![None; list.plain.len()],
            plain_done: vec![false; list.plain.len()],
            containers_done: vec![false; list.containers.len()],
            faults: Vec::new(),
        }
    }

    /// Adds the bases that the tensors of a container need. Returns the first reference that cannot
    /// be found.
    fn complete(
        &mut self,
        container: &Container,
        numbers: &[usize],
        found: &mut FoundBases,
        depth: usize,
    ) -> Result<Option<Reference>> {
        let small = small_files(container);
        let mut wanted = missing(references(container, numbers), &found.bases)?;
        for named in &container.index().identity.bases {
            if !wanted.is_empty()
                && let Some(base) = self.find_by_digest(&named.name, named.digest, &small, &wanted)?
            {
                push(base, found);
            }
        }
        loop {
            wanted = missing(wanted, &found.bases)?;
            let Some(first) = wanted.first() else { return Ok(None) };
            let names = container.index().identity.bases.iter().map(|base| base.name.as_str());
            let base = match self.find_by_tensor(names.collect(), &small, &wanted)? {
                Some(base) => Some(base),
                None => self.find_container(first, found, depth)?,
            };
            match base {
                Some(base) => push(base, found),
                None => return Ok(Some(wanted.swap_remove(0))),
            }
        }
    }

    /// Numbers of the remaining plain checkpoints. Those whose paths resemble one of the names come
    /// first.
    fn ordered(&self, names: &[&str]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.list.plain.len()).filter(|i| !self.plain_done[*i]).collect();
        let like = |i: &usize| names.iter().map(|name| likeness(name, &self.list.plain[*i].path)).max();
        order.sort_by_cached_key(|i| Reverse(like(i)));
        order
    }

    /// The plain checkpoint with that digest.
    fn find_by_digest(
        &mut self,
        name: &str,
        digest: BaseDigest,
        small: &BTreeSet<String>,
        wanted: &[Reference],
    ) -> Result<Option<Base>> {
        for i in self.ordered(&[name]) {
            check_cancelled(self.progress)?;
            if self.digests[i].is_some_and(|known| known != digest) {
                continue;
            }
            let Some(base) = self.open_plain(i, small)? else { continue };
            // Of models of another kind, only the header is read.
            let is_kin = |reference: &Reference| {
                base.named(&reference.wanted.name).any(|source| source.is_like(&reference.wanted))
            };
            if !wanted.iter().any(is_kin) {
                continue;
            }
            match base.digest() {
                Ok(found) => self.digests[i] = Some(found),
                Err(e) => self.give_up_plain(i, e)?,
            }
            if self.digests[i] == Some(digest) {
                self.plain_done[i] = true;
                return Ok(Some(base));
            }
        }
        Ok(None)
    }

    /// A plain checkpoint that has the smallest missing tensor. If there are several, one that also
    /// has the largest, since fine-tunes share frozen tensors.
    fn find_by_tensor(
        &mut self,
        names: Vec<&str>,
        small: &BTreeSet<String>,
        wanted: &[Reference],
    ) -> Result<Option<Base>> {
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(None) };
        let mut second_best = None;
        for i in self.ordered(&names) {
            check_cancelled(self.progress)?;
            let Some(base) = self.open_plain(i, small)? else { continue };
            let has = |reference: &Reference| reference.is_in(&base);
            match has(first).and_then(|has_first| Ok((has_first, has_first && has(last)?))) {
                Ok((_, true)) => {
                    self.plain_done[i] = true;
                    return Ok(Some(base));
                }
                Ok((true, false)) => second_best = second_best.or(Some((i, base))),
                Ok((false, _)) => {}
                Err(e) => self.give_up_plain(i, e)?,
            }
        }
        Ok(second_best.map(|(i, base)| {
            self.plain_done[i] = true;
            base
        }))
    }

    /// A container that restores a tensor, if all its bases are available.
    fn find_container(
        &mut self,
        wanted: &Reference,
        found: &mut FoundBases,
        depth: usize,
    ) -> Result<Option<Base>> {
        if depth == MAX_DEPTH {
            return Ok(None);
        }
        for i in 0..self.list.containers.len() {
            check_cancelled(self.progress)?;
            if self.containers_done[i] {
                continue;
            }
            let path = &self.list.containers[i];
            let opened = FileSource::open(path)
                .and_then(|source| Container::from_source(path, Box::new(source), self.limits));
            let container = match opened {
                Ok(container) => container,
                Err(e) => {
                    self.containers_done[i] = true;
                    self.note(path, e)?;
                    continue;
                }
            };
            if !wanted.is_in_container(&container) {
                continue;
            }
            // Set even while it is being completed, so that no two containers need each other.
            self.containers_done[i] = true;
            let numbers: Vec<usize> = (0..container.index().tensors.len()).collect();
            if self.complete(&container, &numbers, found, depth + 1)?.is_none() {
                let resolved = ResolvedContainer::new(container, &found.bases)?;
                return Ok(Some(Base::of_container(path, resolved)));
            }
        }
        Ok(None)
    }

    fn open_plain(&mut self, i: usize, small: &BTreeSet<String>) -> Result<Option<Base>> {
        let Plain { path, root, names } = &self.list.plain[i];
        let small = small.iter().filter(|name| root.join(name).is_file());
        let names: BTreeSet<&String> = names.iter().chain(small).collect();
        match Checkpoint::open_files(root, names.into_iter().cloned().collect(), self.limits) {
            Ok(checkpoint) => Ok(Some(Base::of_checkpoint(path, checkpoint))),
            Err(e) => self.give_up_plain(i, e).map(|()| None),
        }
    }

    fn give_up_plain(&mut self, i: usize, error: Error) -> Result<()> {
        self.plain_done[i] = true;
        let path = &self.list.plain[i].path;
        self.note(path, error)
    }

    /// Remembers why a candidate is skipped.
    fn note(&mut self, path: &Path, error: Error) -> Result<()> {
        if matches!(error, Error::Cancelled) {
            return Err(error);
        }
        self.faults.push(format!("{}: {}", path.display(), error.detail()));
        Ok(())
    }

    fn describe_faults(&self) -> String {
        let shown = self.faults.iter().take(SHOWN_FAULTS).cloned().collect::<Vec<_>>().join("; ");
        match self.faults.len() {
            0 => String::new(),
            count if count <= SHOWN_FAULTS => format!("; not readable: {shown}"),
            count => format!("; not readable: {shown}; and {} more", count - SHOWN_FAULTS),
        }
    }
}

fn push(base: Base, found: &mut FoundBases) {
    found.paths.push(base.path().to_path_buf());
    found.bases.push(base);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_like_paths_that_have_their_parts() {
        let snapshot = Path::new("hub/models--org--llama/snapshots/abc1");
        assert_eq!(likeness("org/llama@abc1", snapshot), 3);
        assert_eq!(likeness("org/llama@other", snapshot), 2);
        assert_eq!(likeness("base/model.safetensors", Path::new("x/base/model.safetensors")), 2);
        assert_eq!(likeness("base", Path::new("x/based")), 0);
    }
}
