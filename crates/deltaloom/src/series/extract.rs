//! Restores a step, or a part of it, by decoding the containers from its keyframe on, chunk by
//! chunk.
//! It never writes to the store.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::Series;
use super::content::{MODEL, OPTIMIZER};
use super::manifest::{PartLayout, StepEntry};
use crate::bases::{Base, Bases, ResolvedContainer};
use crate::checkpoint::Layout;
use crate::checkpoint::output::Inputs;
use crate::error::{Error, Missing, Result};
use crate::progress::Progress;
use crate::unpack::{
    Selection, UnpackOptions, UnpackReport, read_tensor, unpack_selected, unpack_selected_to,
};

/// The part of a step to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// Everything. If the step has only a model: the model as it was added. Else a directory with
    /// `model` and `optimizer` in it.
    All,
    /// The model, as it was added.
    Model,
    /// The optimizer's state, as it was added.
    Optimizer,
}

impl Series {
    /// Restores a step under the name `target`, which appears only when it is complete and every
    /// tensor has its digest.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a step or part that does not exist; what reading, decoding and
    /// writing give.
    pub fn extract(
        &self,
        step: u64,
        part: Part,
        target: &Path,
        options: &UnpackOptions,
        progress: &dyn Progress,
    ) -> Result<UnpackReport> {
        let (resolved, selection) = self.open_part(step, part)?;
        unpack_selected(&resolved, &selection, target, &self.inputs(), options, progress)
    }

    /// Writes the only file of a step, or of a part of it, to any writer, as [`crate::unpack_to`]
    /// does.
    ///
    /// # Errors
    /// As [`Self::extract`]; [`Error::InvalidArgument`] if there are several files.
    pub fn extract_to(
        &self,
        step: u64,
        part: Part,
        out: &mut (dyn Write + Send),
        options: &UnpackOptions,
        progress: &dyn Progress,
    ) -> Result<UnpackReport> {
        let (resolved, selection) = self.open_part(step, part)?;
        unpack_selected_to(&resolved, &selection, out, options, progress)
    }

    /// Opens a step, to read some of its tensors or to pack against it. Its files have the paths
    /// `model/...` and `optimizer/...`.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a step that does not exist; what reading gives.
    pub fn open_step(&self, step: u64) -> Result<Arc<ResolvedContainer>> {
        let catalog = self.catalog()?;
        self.resolve(&catalog.chain(&catalog.get(step)?)?)
    }

    /// Opens a step and selects the files of a part.
    fn open_part(&self, step: u64, part: Part) -> Result<(Arc<ResolvedContainer>, Selection)> {
        let catalog = self.catalog()?;
        let entry = catalog.get(step)?;
        let resolved = self.resolve(&catalog.chain(&entry)?)?;
        let selection = select(&resolved, &entry, part)?;
        Ok((resolved, selection))
    }

    /// The folder of the series, if it is in one, so that nothing else is written into it.
    #[must_use]
    pub fn inputs(&self) -> Inputs {
        let mut inputs = Inputs::default();
        self.store.folder().into_iter().for_each(|folder| inputs.add_store(folder));
        inputs
    }

    /// Writes the bytes of one tensor of a step.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a step or tensor that does not exist; what reading and decoding
    /// give.
    pub fn read_tensor(&self, step: u64, name: &str, out: &mut dyn Write) -> Result<()> {
        read_tensor(&*self.open_step(step)?, name, .., out)
    }

    /// Opens the last step of a chain that begins with a keyframe.
    pub(super) fn resolve(&self, chain: &[StepEntry]) -> Result<Arc<ResolvedContainer>> {
        Ok(self.open_chain(chain)?.1)
    }

    /// Opens a chain that begins with a keyframe: all steps but the last one as bases, and the last
    /// one.
    pub(super) fn open_chain(&self, chain: &[StepEntry]) -> Result<(Bases, Arc<ResolvedContainer>)> {
        self.open_chain_with(chain, &mut HashMap::new())
    }

    /// The same, reusing containers that are already open, by their objects.
    pub(super) fn open_chain_with(
        &self,
        chain: &[StepEntry],
        open: &mut HashMap<String, Arc<ResolvedContainer>>,
    ) -> Result<(Bases, Arc<ResolvedContainer>)> {
        let mut bases = Bases::default();
        let mut last: Option<Arc<ResolvedContainer>> = None;
        for entry in chain {
            if let Some(before) = last.take() {
                let path = before.container().path().to_path_buf();
                bases.push(Base::of_container(&path, before));
            }
            last = Some(match open.get(&entry.object) {
                Some(resolved) => Arc::clone(resolved),
                None => {
                    let resolved = Arc::new(ResolvedContainer::new(self.container(entry)?, &bases)?);
                    open.insert(entry.object.clone(), Arc::clone(&resolved));
                    resolved
                }
            });
        }
        let last = last.ok_or_else(|| Error::not_found(Missing::Step, "a step".to_owned()))?;
        Ok((bases, last))
    }
}

/// The members of a part, and their paths.
fn select(resolved: &ResolvedContainer, entry: &StepEntry, part: Part) -> Result<Selection> {
    let layout_of = |layout| match layout {
        PartLayout::File => Layout::File,
        PartLayout::Directory => Layout::Directory,
    };
    let parts = &entry.parts;
    let missing = || Error::not_found(Missing::Step, format!("the optimizer of step {}", entry.step));
    let (folder, layout) = match (part, parts.optimizer) {
        (Part::All, Some(_)) => ("", Layout::Directory),
        (Part::All | Part::Model, _) => (MODEL, layout_of(parts.model)),
        (Part::Optimizer, optimizer) => (OPTIMIZER, layout_of(optimizer.ok_or_else(missing)?)),
    };
    let members = &resolved.container().index().members;
    let path_of = |path: &str| match folder {
        "" => Some(path.to_owned()),
        folder => Some(path.strip_prefix(folder)?.strip_prefix('/')?.to_owned()),
    };
    let paths: Vec<Option<String>> = members.iter().map(|member| path_of(&member.path)).collect();
    let count = paths.iter().flatten().count();
    if count == 0 || (layout == Layout::File && count > 1) {
        let what =
            format!("the container of step {} does not have the files that the manifest says", entry.step);
        return Err(Error::corrupt(what).in_file(resolved.container().path()));
    }
    Ok(Selection { layout, paths })
}
