//! All checkpoints of a training run, packed against each other in a store that concurrent writers
//! cannot damage.
//! It chooses references and keeps the manifest (docs/series.md). Packing and unpacking are those
//! of any container.

mod add;
mod branch;
mod catalog;
mod chain;
mod content;
mod directory;
mod extract;
mod incoming;
mod input;
mod keep;
mod likeness;
mod manifest;
mod pending;
mod rebuild;
mod records;
mod restored;
mod soundness;
mod store;
mod sweep;
mod trainer;

pub use add::{AddOptions, Added, NewStep};
pub use branch::BranchInfo;
pub use directory::Directory;
pub use extract::Part;
pub use incoming::{Arrivals, Incoming, incoming, step_of_name};
pub use input::Input;
pub use keep::{KeepRules, KeptStep};
pub use manifest::{PartLayout, Parts, SeriesOptions, StepEntry, Totals};
pub use pending::{Pending, Taking};
pub use rebuild::{BranchSteps, RebuildOptions, RebuildReport};
pub use records::{StepRecord, TensorRecord};
pub use store::{ObjectInfo, Revision, Store};
pub use sweep::{GcReport, SeriesVerifyReport};
pub use trainer::trainer_metrics;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::container::Container;
use crate::error::{Error, Missing, Result};
use crate::inspect::inspect;
use crate::limits::Limits;
use crate::summary::PackReport;

use branch::Branch;
use catalog::Catalog;
use manifest::Manifest;

/// A series in a store.
pub struct Series {
    store: Box<dyn Store>,
    limits: Limits,
    /// The branch to read. `None` for the main line.
    branch: Option<String>,
}

/// A summary of a series.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SeriesInfo {
    /// Its folder or URL.
    pub location: String,
    /// How references are chosen.
    pub options: SeriesOptions,
    /// Sums over its steps.
    pub totals: Totals,
    /// Its last step.
    pub newest: Option<u64>,
    /// Steps that were closed when the run went back, in the order of closing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<BranchInfo>,
}

impl Series {
    /// Creates an empty series.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if there is one, [`Error::InvalidArgument`], what the store gives.
    pub fn init(store: Box<dyn Store>, options: &SeriesOptions) -> Result<Self> {
        options.check()?;
        let manifest = Manifest::new(options.clone()).to_bytes()?;
        if store.read_manifest()?.is_some() || !store.replace_manifest(&manifest, None)? {
            return Err(Error::AlreadyExists { path: store.location().into() });
        }
        Ok(Self { store, limits: Limits::default(), branch: None })
    }

    /// Opens a series.
    ///
    /// # Errors
    /// [`Error::NotASeries`], what is wrong with its manifest, what the store gives.
    pub fn open(store: Box<dyn Store>) -> Result<Self> {
        let series = Self { store, limits: Limits::default(), branch: None };
        series.catalog()?;
        Ok(series)
    }

    /// Reads the steps of a branch from now on. Nothing can be added to a branch. Only
    /// [`Self::repack`] and [`Self::prune_branch`] change its steps.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Self::open`].
    pub fn on_branch(self, name: &str) -> Result<Self> {
        let series = Self { branch: Some(name.to_owned()), ..self };
        series.catalog()?;
        Ok(series)
    }

    /// Its folder or URL.
    #[must_use]
    pub fn location(&self) -> String {
        self.store.location()
    }

    fn catalog(&self) -> Result<Catalog<'_>> {
        let mut catalog = Catalog::open(&*self.store)?;
        if let Some(branch) = &self.branch {
            catalog.turn_to(branch)?;
        }
        Ok(catalog)
    }

    /// The catalog of the main line, to change it.
    fn main_line(&self) -> Result<Catalog<'_>> {
        if let Some(branch) = &self.branch {
            return Err(Error::InvalidArgument(format!("branch {branch:?} is closed")));
        }
        self.catalog()
    }

    /// A summary without the steps.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn summary(&self) -> Result<SeriesInfo> {
        let catalog = self.catalog()?;
        let newest = catalog.newest_step();
        let manifest = catalog.manifest;
        Ok(SeriesInfo {
            location: self.location(),
            newest,
            branches: manifest.branches.iter().map(Branch::info).collect(),
            options: manifest.options,
            totals: catalog.branch.map_or(manifest.totals, |branch| branch.totals),
        })
    }

    /// The newest `count` steps, oldest first.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn last(&self, count: usize) -> Result<Vec<StepEntry>> {
        self.catalog()?.last(count)
    }

    /// A step, if it exists.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn find(&self, step: u64) -> Result<Option<StepEntry>> {
        self.catalog()?.find(step)
    }

    /// Changes the texts of a step: `Some` sets the text with a name, `None` removes it. Returns
    /// the new entry.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a step that does not exist, or for a name to remove that it does not
    /// have; as [`Self::open`]. The series is unchanged then.
    pub fn set_meta(&self, step: u64, changes: &BTreeMap<String, Option<String>>) -> Result<StepEntry> {
        loop {
            let mut catalog = self.main_line()?;
            let old = catalog.get(step)?;
            let mut entry = old.clone();
            for (name, value) in changes {
                match value {
                    Some(value) => drop(entry.meta.insert(name.clone(), value.clone())),
                    None if entry.meta.remove(name).is_some() => {}
                    None => {
                        return Err(Error::not_found(Missing::Step, format!("text {name:?} of step {step}")));
                    }
                }
            }
            if entry == old {
                return Ok(entry);
            }
            catalog.replace(entry.clone())?;
            if self.replace_manifest(&mut catalog)? {
                return Ok(entry);
            }
        }
    }

    /// The steps that must be decoded for one, from its keyframe to itself.
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Self::open`].
    pub fn chain(&self, step: u64) -> Result<Vec<StepEntry>> {
        let catalog = self.catalog()?;
        catalog.chain(&catalog.get(step)?)
    }

    /// The contents of a step's container, from its index.
    ///
    /// # Errors
    /// What reading gives.
    pub fn inspect(&self, entry: &StepEntry) -> Result<PackReport> {
        Ok(inspect(&self.container(entry)?))
    }

    /// Path of the container of a step, for messages.
    fn path(&self, entry: &StepEntry) -> PathBuf {
        PathBuf::from(format!("{}/{}", self.location(), entry.key()))
    }

    fn container(&self, entry: &StepEntry) -> Result<Container> {
        let key = entry.key();
        let path = self.path(entry);
        let source = self.store.open(&key)?;
        if source.len_bytes() != entry.stored_bytes {
            let found = source.len_bytes();
            let what =
                format!("step {} has {found} bytes and should have {}", entry.step, entry.stored_bytes);
            return Err(Error::corrupt(what).in_file(&path));
        }
        Container::from_source(&path, source, &self.limits)
    }
}
