//! What the reader already has: the tensors of all bases, in plain files or in other containers,
//! found by digest.
//! It reads, decodes and predicts, also directly into a caller's memory. It does not choose among
//! references.

mod access;
mod hashed;
mod history;
mod identity;
mod modules;
mod prediction;
mod resolved;
mod source;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::checkpoint::output::Inputs;
use crate::checkpoint::peft::{Adapter, Module};
use crate::checkpoint::{Checkpoint, Contents, FileSource, Member, Role, Roles, Warning};
use crate::container::{BaseDigest, Container, KnownDigest, NamedBase};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::predict::names::Names;
use crate::tensor::TensorInfo;

pub use access::Changes;
use hashed::{Hashed, Kind};
pub(crate) use history::Memo;
pub(crate) use modules::Modules;
pub(crate) use prediction::{Inputs as PredictionInputs, predict_into, read_matrix};
pub use resolved::ResolvedContainer;
pub(crate) use source::{TensorId, TensorSource};

/// One base: a name for messages and its tensors. Clones share them.
#[derive(Clone)]
pub(crate) struct Base {
    path: PathBuf,
    /// Its name in containers, if that does not follow from the path.
    name: Option<String>,
    tensors: Vec<TensorSource>,
    /// Framed files as wholes, as containers know them that were packed before a reader could read
    /// them.
    files: Vec<TensorSource>,
    names: Names,
    /// Numbers of the tensors, ordered so that tensors that are alike are adjacent.
    by_kind: OnceLock<Vec<usize>>,
    /// If it is an adapter: what it changes.
    modules: Option<Modules>,
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
        let framed = |(_, member): &(usize, &Member)| matches!(member.contents, Contents::Framed(_));
        let framed = checkpoint.members.iter().enumerate().filter(framed);
        let files = framed.map(|(number, member)| source((number, member.tensors.len()))).collect();
        Self { files, ..Self::new(path.to_path_buf(), checkpoint.places().map(source).collect()) }
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

    /// Its name and digest, as containers store them.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn identity(&self) -> Result<NamedBase> {
        let name = self.name.clone().unwrap_or_else(|| identity::name_of(&self.path));
        Ok(NamedBase { name, digest: self.digest()? })
    }

    /// The digest that identifies it.
    ///
    /// # Errors
    /// What reading gives.
    pub(crate) fn digest(&self) -> Result<BaseDigest> {
        identity::digest(self)
    }

    /// Whether a tensor belongs to this base.
    pub(crate) fn has_origin_of(&self, source: &TensorSource) -> bool {
        self.tensors.first().is_some_and(|tensor| tensor.has_origin_of(source))
    }

    fn new(path: PathBuf, tensors: Vec<TensorSource>) -> Self {
        let names = Names::new(tensors.len(), |i| &tensors[i].info().name);
        let by_kind = OnceLock::new();
        Self { path, name: None, tensors, files: Vec::new(), names, by_kind, modules: None }
    }

    pub(crate) fn tensors(&self) -> &[TensorSource] {
        &self.tensors
    }

    /// The role of each tensor, in the same order.
    pub(crate) fn roles(&self) -> Vec<Role> {
        let Some(first) = self.tensors.first() else { return Vec::new() };
        let roles = Roles::of(first.place().0);
        self.tensors.iter().map(|source| roles.role(source.place().1)).collect()
    }

    /// The tensor with the place of the tensor `name`, among those that fit: the one with the same
    /// name, or the only one whose name differs just by a leading prefix.
    pub(crate) fn counterpart(
        &self,
        name: &str,
        fits: impl Fn(&TensorSource) -> bool,
    ) -> Option<&TensorSource> {
        if let Some(same) = self.named(name).find(|source| fits(source)) {
            return Some(same);
        }
        let renamed = self.names.renamed(name, |i| self.name_of(i)).into_iter();
        let mut renamed = renamed.map(|i| &self.tensors[i]).filter(|source| fits(source));
        let first = renamed.next()?;
        renamed.next().is_none().then_some(first)
    }

    /// If it is an adapter: what it changes.
    pub(crate) fn modules(&self) -> Option<&Modules> {
        self.modules.as_ref()
    }

    /// The factors A and B of a module, and the lengths of rows.
    pub(crate) fn factors_of(&self, module: &Module) -> Vec<&TensorSource> {
        [Some(module.a), Some(module.b), module.magnitude]
            .into_iter()
            .flatten()
            .map(|i| &self.tensors[i])
            .collect()
    }

    pub(crate) fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a TensorSource> + use<'a> {
        self.numbers_named(name).iter().map(|i| &self.tensors[*i])
    }

    fn numbers_named(&self, name: &str) -> &[usize] {
        self.names.named(name, |i| self.name_of(i))
    }

    fn name_of(&self, tensor: usize) -> &str {
        &self.tensors[tensor].info().name
    }

    /// The tensors with the same dtype and shape whose names differ just by numbers, as those of
    /// layers do.
    pub(crate) fn in_other_layers<'a>(&'a self, info: &TensorInfo) -> impl Iterator<Item = &'a TensorSource> {
        let alike = self.alike(info).1.iter().map(|i| &self.tensors[*i]);
        alike.filter(|source| {
            source.info().name != info.name && is_same_but_numbers(&source.info().name, &info.name)
        })
    }

    /// Numbers of the tensors with the same dtype and shape, and where they start in `by_kind`.
    fn alike(&self, wanted: &TensorInfo) -> (usize, &[usize]) {
        fn kind(info: &TensorInfo) -> (&str, &[u64], u64) {
            (info.dtype.name(), &info.shape, info.len_bytes())
        }
        let kind_of = |i: &usize| kind(self.tensors[*i].info());
        let by_kind = self.by_kind.get_or_init(|| {
            let mut by_kind: Vec<usize> = (0..self.tensors.len()).collect();
            by_kind.sort_by(|a, b| kind_of(a).cmp(&kind_of(b)));
            by_kind
        });
        let start = by_kind.partition_point(|i| kind_of(i) < kind(wanted));
        let count = by_kind[start..].partition_point(|i| kind_of(i) == kind(wanted));
        (start, &by_kind[start..start + count])
    }
}

/// Whether names differ just by decimal numbers between dots.
fn is_same_but_numbers(a: &str, b: &str) -> bool {
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b || (is_number(a) && is_number(b)) => {}
            _ => return false,
        }
    }
}

/// All tensors of all bases. Their order does not matter.
#[derive(Default)]
pub struct Bases {
    bases: Vec<Base>,
    hashed: Mutex<Hashed>,
    /// Numbers of the bases that are steps of a series, newest first.
    history: Vec<usize>,
    /// From opening checkpoints.
    warnings: Vec<Warning>,
}

impl Bases {
    /// Opens safetensors files, directories and containers, in any order. Containers take their
    /// references from the other bases.
    ///
    /// # Errors
    /// What is wrong with a file; [`Error::BaseMismatch`] for a container whose references are in
    /// none of the others.
    pub fn open(paths: &[PathBuf], limits: &Limits) -> Result<Self> {
        let mut bases = Self::default();
        bases.push_paths(paths, limits)?;
        Ok(bases)
    }

    /// Opens more bases, as [`Self::open`] does.
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
        // A container may need another one: repeat until no more can be opened.
        loop {
            let mut stuck = Vec::new();
            for path in &waiting {
                // Read and not mapped: most bases are read as a whole.
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

    /// Opens a checkpoint, or a container whose references are in these bases, as the only base of
    /// a new set.
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

    /// Warnings about the checkpoints that were opened by their paths.
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

    /// Adds the tensors of an opened container, which others may share; `path` is for messages.
    pub fn push_container(&mut self, path: &Path, resolved: impl Into<Arc<ResolvedContainer>>) {
        self.push(Base::of_container(path, resolved));
    }

    /// Adds the tensors of a base, which others may share.
    pub(crate) fn push(&mut self, base: Base) {
        tracing::info!(base = %base.path.display(), tensors = base.tensors.len(), "opened a base");
        self.bases.push(base);
    }

    /// Adds an adapter: a folder in the format of peft, or a file of factors. Its tensors become a
    /// base, and tensors are predicted from the modules that change them. There are warnings about
    /// an adapter of a type that is not LoRA, and about modules that cannot be used.
    ///
    /// # Errors
    /// What is wrong with its files. [`Error::InvalidArgument`] if nothing in them is part of an
    /// adapter.
    pub fn push_adapter(&mut self, path: &Path, limits: &Limits) -> Result<()> {
        let Adapter { checkpoint, modules, is_flat, warnings } = Adapter::open(path, limits)?;
        self.warnings.extend(warnings);
        let mut base = Base::of_checkpoint(path, checkpoint);
        base.modules = Some(Modules::new(modules, is_flat));
        self.push(base);
        Ok(())
    }

    /// Sets the names of bases in the containers that are packed against them. Bases are given by
    /// the paths they were added under. By default, a name is the last part or the last two parts
    /// of the path.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a path that is not a base.
    pub fn set_names<'a>(&mut self, names: impl IntoIterator<Item = (&'a Path, &'a str)>) -> Result<()> {
        for (path, name) in names {
            let number = self.number_of(path)?;
            self.bases[number].name = Some(name.to_owned());
        }
        Ok(())
    }

    fn number_of(&self, path: &Path) -> Result<usize> {
        let found = self.bases.iter().position(|base| base.path == path);
        found.ok_or_else(|| Error::InvalidArgument(format!("{} is not one of the bases", path.display())))
    }

    /// Declares bases, given by the paths they were added under, to be steps of one series, newest
    /// first. Packing predicts from the newest and uses the earlier states of a weight as a
    /// context. The earlier steps are then no references of their own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a path that is not a base.
    pub fn set_history(&mut self, newest_first: &[PathBuf]) -> Result<()> {
        self.history = newest_first.iter().map(|path| self.number_of(path)).collect::<Result<_>>()?;
        Ok(())
    }

    /// If a tensor belongs to the newest step of the history: the steps before that one.
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

    /// The adapters among them, in the order in which they were added.
    pub(crate) fn adapters(&self) -> impl Iterator<Item = (&Base, &Modules)> {
        self.direct().filter_map(|base| Some((base, base.modules()?)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Base> {
        self.bases.iter()
    }

    /// Whether a plain base is, or contains, the file at this canonical path.
    pub(crate) fn has_file(&self, canonical: &Path) -> bool {
        self.checkpoints()
            .flat_map(|checkpoint| checkpoint.file_paths())
            .any(|path| path.canonicalize().is_ok_and(|path| path == canonical))
    }

    /// The bases that are plain files.
    fn checkpoints(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        self.iter().filter_map(|base| match base.tensors.first()? {
            TensorSource::Plain { checkpoint, .. } => Some(checkpoint),
            TensorSource::Packed { .. } => None,
        })
    }

    /// The files of all bases, so that no target replaces one.
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

    fn hashed(&self) -> MutexGuard<'_, Hashed> {
        self.hashed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is any base.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// The reference that `wanted` describes and that has this digest. Tensors with its name are
    /// tried first.
    pub(crate) fn find(&self, wanted: &TensorInfo, expected: KnownDigest) -> Result<TensorSource> {
        let alike = self.bases.iter().map(|base| base.alike(wanted)).enumerate();
        let alike = alike.map(|(number, (start, alike))| ((number, start), alike));
        let alike: Vec<(Kind, &[usize])> = alike.filter(|(_, alike)| !alike.is_empty()).collect();
        let known = || {
            let hashed = self.hashed();
            let find = |(kind, _): &(Kind, _)| {
                hashed.find(*kind, expected).map(|tensor| &self.bases[kind.0].tensors[tensor])
            };
            alike.iter().find_map(find).cloned()
        };
        if let Some(found) = known() {
            return Ok(found);
        }
        let name = &wanted.name;
        let mut found: Vec<String> = Vec::new();
        for (kind, _) in &alike {
            let base = &self.bases[kind.0];
            for tensor in base.numbers_named(name).iter().filter(|i| base.tensors[**i].is_like(wanted)) {
                let digest = base.tensors[*tensor].digest()?;
                self.hashed().insert(*kind, digest, *tensor);
                if expected.is_of(&digest) {
                    return Ok(base.tensors[*tensor].clone());
                }
                found.push(format!("{} has {}", base.path.display(), digest.to_hex()));
            }
        }
        for (kind, alike) in &alike {
            // Continue where the last search stopped. Ask for that place first: another thread may
            // add digests meanwhile.
            loop {
                let next = self.hashed().in_order(*kind);
                if let Some(found) = known() {
                    return Ok(found);
                }
                let Some(tensor) = alike.get(next) else { break };
                let digest = self.bases[kind.0].tensors[*tensor].digest()?;
                let mut hashed = self.hashed();
                hashed.insert(*kind, digest, *tensor);
                hashed.set_in_order(*kind, next + 1);
            }
        }
        for file in self.bases.iter().flat_map(|base| &base.files).filter(|file| file.is_like(wanted)) {
            if expected.is_of(&file.digest()?) {
                return Ok(file.clone());
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
