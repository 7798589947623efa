//! What the reader already has: the tensors of all bases, found by digest, whether they lie in plain files or in other containers.
//! It reads, decodes and predicts, also straight into a caller's memory; it does not choose among references.

mod access;
mod history;
mod identity;
mod prediction;
mod resolved;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::output::Inputs;
use crate::checkpoint::peft::{self, Module};
use crate::checkpoint::{Checkpoint, FileSource, Warning};
use crate::container::{BaseDigest, Container, KnownDigest, NamedBase};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::predict::names;
use crate::tensor::TensorInfo;

pub(crate) use history::Memo;
pub(crate) use prediction::{adam_into, predict_into};
pub use resolved::ResolvedContainer;
pub(crate) use source::TensorSource;

/// One base: a name for messages and its tensors. Clones share them.
#[derive(Clone)]
pub(crate) struct Base {
    path: PathBuf,
    /// What it is called in containers, where that does not follow from the path.
    name: Option<String>,
    tensors: Vec<TensorSource>,
    /// Numbers of the tensors, ordered by their names, which may be long and are not to be there
    /// twice.
    by_name: Vec<usize>,
    /// If it is an adapter, what its tensors change.
    modules: Vec<Module>,
}

impl Base {
    pub(crate) fn of_checkpoint(path: &Path, checkpoint: impl Into<Arc<Checkpoint>>) -> Self {
        let checkpoint: Arc<Checkpoint> = checkpoint.into();
        let source = |(member, place): (usize, usize)| TensorSource::Plain {
            checkpoint: Arc::clone(&checkpoint),
            member,
            place,
            digest: Arc::default(),
        };
        Self::new(path.to_path_buf(), checkpoint.places().map(source).collect())
    }

    pub(crate) fn of_container(path: &Path, resolved: impl Into<Arc<ResolvedContainer>>) -> Self {
        let resolved: Arc<ResolvedContainer> = resolved.into();
        let count = resolved.container().index().tensors.len();
        let source = |number| TensorSource::Packed { resolved: Arc::clone(&resolved), number };
        Self::new(path.to_path_buf(), (0..count).map(source).collect())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its name and digest, as containers have them.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn identity(&self) -> Result<NamedBase> {
        let name = self.name.clone().unwrap_or_else(|| identity::name_of(&self.path));
        Ok(NamedBase { name, digest: self.digest()? })
    }

    /// By what it is known among others.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn digest(&self) -> Result<BaseDigest> {
        identity::digest(self)
    }

    /// Whether a tensor is one of its.
    pub(crate) fn has_origin_of(&self, source: &TensorSource) -> bool {
        self.tensors.first().is_some_and(|tensor| tensor.has_origin_of(source))
    }

    fn new(path: PathBuf, tensors: Vec<TensorSource>) -> Self {
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_by_key(|i| tensors[*i].info().name.as_str());
        Self { path, name: None, tensors, by_name, modules: Vec::new() }
    }

    pub(crate) fn tensors(&self) -> &[TensorSource] {
        &self.tensors
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

    /// If it is an adapter: its modules, each with the factors A and B.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (&Module, [&TensorSource; 2])> {
        self.modules.iter().map(|module| (module, [&self.tensors[module.a], &self.tensors[module.b]]))
    }

    pub(crate) fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a TensorSource> + use<'a> {
        let of = |i: &usize| self.tensors[*i].info().name.as_str();
        let start = self.by_name.partition_point(|i| of(i) < name);
        let count = self.by_name[start..].partition_point(|i| of(i) == name);
        self.by_name[start..start + count].iter().map(|i| &self.tensors[*i])
    }
}

/// All tensors of all bases. Their order does not matter.
#[derive(Default)]
pub struct Bases {
    bases: Vec<Base>,
    /// Every tensor whose digest is known: a renamed reference is then found without hashing its neighbours again.
    by_digest: Mutex<BTreeMap<[u8; 32], TensorSource>>,
    /// Steps of a series among the bases, newest first, by number.
    history: Vec<usize>,
    /// Of checkpoints that were opened.
    warnings: Vec<Warning>,
}

impl Bases {
    /// Opens safetensors files, directories and containers. Containers take their references from the other bases, in whatever order they are given.
    ///
    /// # Errors
    /// What is wrong with a file; [`Error::BaseMismatch`] for a container whose references are in none of the others.
    pub fn open(paths: &[PathBuf], limits: &Limits) -> Result<Self> {
        let mut bases = Self::default();
        bases.push_paths(paths, limits)?;
        Ok(bases)
    }

    /// Adds what [`Self::open`] opens, to references that are there already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn push_paths(&mut self, paths: &[PathBuf], limits: &Limits) -> Result<()> {
        let mut waiting = Vec::new();
        for path in paths {
            if path.is_file() && Container::is_container(path)? {
                waiting.push(path);
            } else {
                self.open_checkpoint(path, limits)?;
            }
        }
        // A container may rest on another: go round until nobody gets further.
        loop {
            let mut stuck = Vec::new();
            for path in &waiting {
                // Read and not mapped: a base is gone through as a whole more often than not.
                let source = Box::new(FileSource::open(path)?);
                match ResolvedContainer::new(Container::from_source(path, source, limits)?, self) {
                    Ok(resolved) => self.push(Base::of_container(path, resolved)),
                    Err(e) => stuck.push((*path, e)),
                }
            }
            if stuck.is_empty() {
                return Ok(());
            }
            if stuck.len() == waiting.len() {
                return Err(stuck.swap_remove(0).1);
            }
            waiting = stuck.into_iter().map(|(path, _)| path).collect();
        }
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
            one.push(Base::of_container(path, ResolvedContainer::new(container, self)?));
        } else {
            one.open_checkpoint(path, limits)?;
        }
        Ok(one)
    }

    fn open_checkpoint(&mut self, path: &Path, limits: &Limits) -> Result<()> {
        let checkpoint = Checkpoint::open(path, limits)?;
        self.warnings.extend(checkpoint.warnings(limits)?);
        self.push_checkpoint(path, checkpoint);
        Ok(())
    }

    /// What is odd about the checkpoints that were opened by their paths.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    pub(crate) fn push_warnings(&mut self, warnings: Vec<Warning>) {
        self.warnings.extend(warnings);
    }

    /// Adds the tensors of an opened checkpoint, which others may share; `path` is for messages.
    pub fn push_checkpoint(&mut self, path: &Path, checkpoint: impl Into<Arc<Checkpoint>>) {
        self.push(Base::of_checkpoint(path, checkpoint));
    }

    /// Adds the tensors of a base, which others may share.
    pub(crate) fn push(&mut self, base: Base) {
        tracing::info!(base = %base.path.display(), tensors = base.tensors.len(), "opened a base");
        self.bases.push(base);
    }

    /// Adds the adapter in a directory, in the format of peft: its tensors, and what they change.
    ///
    /// # Errors
    /// What is wrong with its two files; [`Error::InvalidArgument`] for other kinds of adapters than LoRA and for one in which no pair of factors is found.
    pub fn push_adapter(&mut self, directory: &Path, limits: &Limits) -> Result<()> {
        let config = peft::Config::open(directory)?;
        let checkpoint = Checkpoint::open(&peft::weights_of(directory), limits)?;
        let modules = config.modules(checkpoint.tensors().map(|(_, info)| info));
        if modules.is_empty() {
            let what = format!("{}: no tensor has a lora_A and a lora_B", directory.display());
            return Err(Error::InvalidArgument(what));
        }
        self.push_checkpoint(directory, checkpoint);
        self.bases.last_mut().into_iter().for_each(|base| base.modules.clone_from(&modules));
        Ok(())
    }

    /// Says what bases are called in the containers that are packed against them, by the paths they
    /// were added under. Without it that is the last part or the last two parts of the path.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a path that is no base.
    pub fn set_names<'a>(&mut self, names: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Result<()> {
        for (path, name) in names {
            let number = self.number_of(path)?;
            self.bases[number].name = Some(name.to_owned());
        }
        Ok(())
    }

    fn number_of(&self, path: &Path) -> Result<usize> {
        let found = self.bases.iter().position(|base| base.path == path);
        found.ok_or_else(|| Error::InvalidArgument(format!("{} is not among the bases", path.display())))
    }

    /// Says which of the bases, by the paths they were added under, are steps of one series, newest first: packing predicts from the newest, and takes what a weight
    /// was in the others as a context. They are then no references of their own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a path that is no base.
    pub fn set_history(&mut self, newest_first: &[PathBuf]) -> Result<()> {
        self.history = newest_first.iter().map(|path| self.number_of(path)).collect::<Result<_>>()?;
        Ok(())
    }

    /// The steps before the newest one of the history, if a tensor is of that.
    pub(crate) fn ancestors_of(&self, reference: &TensorSource) -> impl Iterator<Item = &Base> {
        let newest = self.history.first().and_then(|newest| self.bases[*newest].tensors.first());
        let is_newest = newest.is_some_and(|tensor| tensor.has_origin_of(reference));
        self.history.iter().skip(1).filter(move |_| is_newest).map(|number| &self.bases[*number])
    }

    /// The bases that packing may take references from.
    pub(crate) fn direct(&self) -> impl Iterator<Item = &Base> {
        let is_direct = |number: &usize| !self.history.iter().skip(1).any(|ancestor| ancestor == number);
        (0..self.bases.len()).filter(is_direct).map(|number| &self.bases[number])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Base> {
        self.bases.iter()
    }

    /// Whether a plain base is, or has among its files, the one at this canonical path.
    pub(crate) fn has_file(&self, canonical: &Path) -> bool {
        self.checkpoints()
            .flat_map(|checkpoint| checkpoint.file_paths())
            .any(|path| path.canonicalize().is_ok_and(|path| path == canonical))
    }

    /// Those bases that are plain files.
    fn checkpoints(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        self.iter().filter_map(|base| match base.tensors.first()? {
            TensorSource::Plain { checkpoint, .. } => Some(checkpoint),
            TensorSource::Packed { .. } => None,
        })
    }

    /// The files of all bases, so that no target takes their place.
    #[must_use]
    pub fn inputs(&self) -> Inputs {
        let mut inputs = Inputs::default();
        self.checkpoints().flat_map(|checkpoint| checkpoint.file_paths()).for_each(|path| inputs.add(path));
        self.iter().for_each(|base| inputs.add(&base.path));
        inputs
    }

    /// Checks that no plain base has changed since it was opened.
    ///
    /// # Errors
    /// As [`Checkpoint::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.checkpoints().try_for_each(|checkpoint| checkpoint.check_unchanged())
    }

    /// Whether there is any base.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// The reference that `wanted` describes, with this digest. Those with its name are looked at first.
    pub(crate) fn find(&self, wanted: &TensorInfo, expected: KnownDigest) -> Result<TensorSource> {
        let name = &wanted.name;
        let fits = |source: &&TensorSource| source.is_like(wanted);
        let found = {
            let known = self.by_digest.lock().unwrap_or_else(PoisonError::into_inner);
            let mut lowest = [0; 32];
            lowest[..expected.as_bytes().len()].copy_from_slice(expected.as_bytes());
            let mut from = known.range(lowest..);
            from.next().filter(|(digest, _)| digest.starts_with(expected.as_bytes())).map(|(_, s)| s.clone())
        };
        if let Some(found) = found.filter(|source| fits(&source)) {
            return Ok(found);
        }
        let named = || self.bases.iter().flat_map(|base| base.named(name)).filter(fits);
        let others =
            self.bases.iter().flat_map(|base| &base.tensors).filter(|s| s.info().name != *name).filter(fits);
        for source in named().chain(others) {
            let digest = source.digest()?;
            self.by_digest
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(*digest.as_bytes(), source.clone());
            if expected.is_of(&digest) {
                return Ok(source.clone());
            }
        }
        let mut found: Vec<String> = Vec::new();
        for base in &self.bases {
            for source in base.named(name).filter(fits) {
                found.push(format!("{} has {}", base.path.display(), source.digest()?.to_hex()));
            }
        }
        let given = || {
            let paths = self.bases.iter().map(|base| base.path.display().to_string());
            paths.collect::<Vec<_>>().join(", ")
        };
        Err(Error::BaseMismatch {
            tensor: name.clone(),
            expected: expected.to_hex(),
            found: match (self.bases.is_empty(), found.is_empty()) {
                (true, _) => "no base was given".to_owned(),
                (_, true) => {
                    let (given, dtype, shape) = (given(), &wanted.dtype, &wanted.shape);
                    format!("no base has a tensor {name:?} of {dtype} {shape:?} (given: {given})")
                }
                _ => found.join(", "),
            },
            needed: String::new(),
        })
    }
}
