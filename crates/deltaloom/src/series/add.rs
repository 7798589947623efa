//! Adds a step: packs it against an earlier one, stores the container, then names it in the
//! manifest by compare-and-swap.
//! Until the manifest names it, nothing has changed for anyone. A lost race is repeated on the
//! winner's manifest.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tempfile::NamedTempFile;

use super::Series;
use super::branch::BranchInfo;
use super::catalog::Catalog;
use super::chain::{Candidates, LOOK_BACK};
use super::content;
use super::input::Input;
use super::likeness::difference;
use super::manifest::{Parts, StepEntry};
use super::restored;
use super::soundness::{self, Inspection};
use crate::bases::{Base, Bases};
use crate::checkpoint::output::temporary_in;
use crate::checkpoint::{Checkpoint, Exclude, FileSource};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::options::setters;
use crate::pack::{PackOptions, pack_and_see};
use crate::progress::Progress;
use crate::sketch::Sketch;
use crate::summary::PackReport;

/// A delta does not pay if it takes at least this share of the expected size of a keyframe.
const KEYFRAME_SHARE: f64 = 0.96;
/// How much larger than the delta the keyframe may then be, since it makes chains shorter.
const KEYFRAME_ALLOWANCE: f64 = 1.03;
/// An older reference is tried if its expected size is at most this share. So chance does not make
/// chains irregular.
const NEARER: f64 = 0.9;

/// How often an addition replaces the manifest without an answer before it gives up.
const TRIES: usize = 3;

/// A checkpoint to add.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NewStep {
    /// Its number. `None` for one more than the newest step when it is added.
    pub step: Option<u64>,
    /// The weights.
    pub model: Input,
    /// The optimizer's state.
    pub optimizer: Option<Input>,
    /// The model of an earlier step, as it was given when that was added. If the new step is stored
    /// against that one, it is read here instead of being decoded. What it holds is compared with
    /// the digests of the series: another checkpoint only costs the time for that.
    pub previous: Option<Checkpoint>,
    /// What of these directories is left out.
    pub exclude: Vec<Exclude>,
    /// Texts by name, stored with the step.
    pub meta: BTreeMap<String, String>,
    /// The same, as a trainer logged them. `meta` comes first.
    pub metrics: BTreeMap<String, String>,
}

impl NewStep {
    /// The checkpoint at `model`, after the newest step.
    #[must_use]
    pub fn new(model: impl Into<Input>) -> Self {
        Self {
            step: None,
            model: model.into(),
            optimizer: None,
            previous: None,
            exclude: Vec::new(),
            meta: BTreeMap::new(),
            metrics: BTreeMap::new(),
        }
    }

    /// All texts that are stored with it.
    pub(super) fn texts(&self) -> BTreeMap<String, String> {
        let mut texts = self.metrics.clone();
        texts.extend(self.meta.clone());
        texts
    }
}

setters!(NewStep {
    with_step(step: Option<u64>),
    with_optimizer(optimizer: Option<Input>),
    with_previous(previous: Option<Checkpoint>),
    with_exclude(exclude: Vec<Exclude>),
    with_meta(meta: BTreeMap<String, String>),
    with_metrics(metrics: BTreeMap<String, String>),
});

/// How to add.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AddOptions {
    /// How to pack.
    pub pack: PackOptions,
    /// Pack it without a reference.
    pub keyframe: bool,
    /// Add it even if its tensors differ from those of the newest step.
    pub force: bool,
    /// If it does not follow the newest step: close the later steps as a branch, and continue
    /// before them.
    pub rewind: bool,
    /// The name of that branch.
    pub branch: Option<String>,
}

setters!(AddOptions {
    with_pack(pack: PackOptions),
    with_keyframe(keyframe: bool),
    with_force(force: bool),
    with_rewind(rewind: bool),
    with_branch(branch: Option<String>),
});

/// The result of adding a step.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Added {
    /// The step.
    #[serde(flatten)]
    pub entry: StepEntry,
    /// Whether it was added now. Otherwise it existed before.
    pub is_new: bool,
    /// The branch that now has the later steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<BranchInfo>,
    /// Texts for a step that already existed. They were not stored; `series set` does that.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta_not_stored: BTreeMap<String, String>,
    /// Contents of its container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<PackReport>,
}

impl Added {
    /// A step that was added now.
    fn now(entry: StepEntry, closed: Option<BranchInfo>, packed: Option<PackedStep>) -> Self {
        let container = packed.map(|packed| packed.report);
        Self { entry, is_new: true, closed, meta_not_stored: BTreeMap::new(), container }
    }
}

/// The entry of a replacement without an answer, and the branch that it closes.
type Sent = (StepEntry, Option<BranchInfo>);

/// What is packed as a step.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) parts: Parts,
    /// Files of the step that it may be packed against.
    pub(super) previous: Option<&'a Checkpoint>,
}

/// A container that is ready to be stored, and its entry without the fields that depend on its
/// neighbours.
pub(super) struct PackedStep {
    /// Open until it has its name. Its lock tells other writers that it is in use.
    file: NamedTempFile,
    entry: StepEntry,
    /// The step that it was packed against, and the steps below that.
    chain: Vec<StepEntry>,
    report: PackReport,
    /// Matrices with a single value.
    constant: Vec<(String, String)>,
}

impl Series {
    /// Adds a checkpoint. Adding the newest content of a step again changes nothing.
    ///
    /// # Errors
    /// [`Error::StepTaken`], [`Error::StepOutOfOrder`], [`Error::StepDiffers`]; what reading,
    /// packing and storing give. The series is unchanged then. The exception is an [`Error::Io`]
    /// from replacing the manifest, which is tried three times: the step may be there after it,
    /// or appear later. Repeat it with the same step number. Without one, the error is
    /// [`Error::StepUnknown`], which has the number.
    pub fn add(&self, new: &NewStep, options: &AddOptions, progress: &dyn Progress) -> Result<Added> {
        let start = Instant::now();
        let catalog = self.main_line()?;
        let (checkpoint, parts) = content::open(new, &self.limits)?;
        if let Some(step) = new.step {
            match catalog.find(step)? {
                Some(entry) => {
                    let content = content::of_checkpoint(&checkpoint, progress)?;
                    if entry.content == content || !options.rewind {
                        return same_or_taken(entry, &content, new);
                    }
                }
                None if options.rewind => {}
                None => check_order(&catalog, step)?,
            }
        }
        if !options.force {
            self.check_likeness(&catalog, &checkpoint)?;
        }
        drop(catalog);
        let mut sent = Vec::new();
        let added = self.add_once((&checkpoint, parts), new, options, start, &mut sent, progress);
        added.map_err(|why| match (new.step, sent.last()) {
            (None, Some((entry, _))) => Error::StepUnknown { step: entry.step, source: Box::new(why) },
            _ => why,
        })
    }

    /// Packs and stores a checkpoint, and names it in the manifest. `sent` gets the entries of
    /// replacements without an answer. Each may take effect until another writer is faster, so they
    /// are looked for before anything is sent again.
    fn add_once(
        &self,
        (checkpoint, parts): (&Checkpoint, Parts),
        new: &NewStep,
        options: &AddOptions,
        start: Instant,
        sent: &mut Vec<Sent>,
        progress: &dyn Progress,
    ) -> Result<Added> {
        let mut packed: Option<PackedStep> = None;
        loop {
            let mut catalog = self.main_line()?;
            if let Some((entry, closed)) = arrived(&catalog, sent)? {
                return Ok(Added::now(entry, closed, packed));
            }
            // Another writer may have been faster with the same step.
            if let (Some(step), Some(ready)) = (new.step, &packed)
                && let Some(entry) = catalog.find(step)?
                && (entry.content == ready.entry.content || !options.rewind)
            {
                return same_or_taken(entry, &ready.entry.content, new);
            }
            let closed = match new.step {
                Some(step)
                    if options.rewind && catalog.newest_step().is_some_and(|newest| newest >= step) =>
                {
                    Some(catalog.rewind(step, options.branch.as_deref())?.info())
                }
                _ => None,
            };
            // Someone else may have removed the steps that the container needs.
            let ready = match packed.take() {
                Some(ready) if ready.stands_on(&catalog)? => ready,
                _ => {
                    let chain_of = |entry: &StepEntry| catalog.chain(entry);
                    let candidates = match options.keyframe {
                        true => Candidates::none(&chain_of),
                        false => {
                            let options = &catalog.manifest.options;
                            Candidates::new(catalog.last(LOOK_BACK)?, options, &chain_of)?
                        }
                    };
                    let previous = new.previous.clone();
                    let previous = previous
                        .map(|held| Checkpoint::side_by_side(vec![(content::MODEL, held)], &self.limits))
                        .transpose()?;
                    let source = Source { checkpoint, parts, previous: previous.as_ref() };
                    let mut ready = self.pack_step(source, &candidates, &options.pack, progress)?;
                    self.count_constant(&catalog, &mut ready)?;
                    self.store.put_file(&ready.entry.key(), ready.file())?;
                    ready
                }
            };
            let newest = catalog.manifest.newest();
            let step = new.step.unwrap_or_else(|| newest.map_or(0, |newest| newest.step + 1));
            if let Some(entry) = catalog.find(step)? {
                return same_or_taken(entry, &ready.entry.content, new);
            }
            check_order(&catalog, step)?;
            let mut entry = ready.entry.clone();
            entry.step = step;
            entry.meta = new.texts();
            entry.seconds = start.elapsed().as_secs_f64();
            place(&mut entry, newest, catalog.manifest.next_ordinal());
            catalog.manifest.push(entry.clone(), &*self.store)?;
            let replaced = self.replace_manifest(&mut catalog);
            packed = Some(ready);
            match replaced {
                Ok(true) => return Ok(Added::now(entry, closed, packed)),
                Ok(false) => {}
                Err(why) => {
                    sent.push((entry, closed));
                    if sent.len() == TRIES {
                        return Err(why);
                    }
                }
            }
        }
    }

    /// Replaces the manifest. Returns false if another writer was faster.
    pub(super) fn replace_manifest(&self, catalog: &mut Catalog<'_>) -> Result<bool> {
        catalog.manifest.next_generation();
        self.store.replace_manifest(&catalog.manifest.to_bytes()?, Some(&catalog.revision))
    }

    /// Checks whether a checkpoint could be added now, as far as that is known before packing.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn check_new(&self, new: &NewStep, options: &AddOptions) -> Result<()> {
        let catalog = self.main_line()?;
        if let (Some(step), false) = (new.step, options.rewind) {
            check_order(&catalog, step)?;
        }
        if options.force {
            return Ok(());
        }
        let (checkpoint, _) = content::open(new, &self.limits)?;
        self.check_likeness(&catalog, &checkpoint)
    }

    /// The branch that has this checkpoint under the same step, if there is one.
    ///
    /// # Errors
    /// What reading gives.
    pub fn branch_with(&self, new: &NewStep, progress: &dyn Progress) -> Result<Option<String>> {
        let mut catalog = self.main_line()?;
        let Some(step) = new.step else { return Ok(None) };
        let mut content = None;
        for branch in catalog.lines().into_iter().flatten() {
            catalog.branch = Some(branch.clone());
            let Some(entry) = catalog.find(step)? else { continue };
            if content.is_none() {
                let (checkpoint, _) = content::open(new, &self.limits)?;
                content = Some(content::of_checkpoint(&checkpoint, progress)?);
            }
            if content.as_ref() == Some(&entry.content) {
                return Ok(Some(branch.name));
            }
        }
        Ok(None)
    }

    /// Whether a checkpoint has most of the tensors of the newest step.
    fn check_likeness(&self, catalog: &Catalog<'_>, checkpoint: &Checkpoint) -> Result<()> {
        let Some(newest) = catalog.manifest.newest() else { return Ok(()) };
        let found = difference(&self.container(newest)?.index().members, &checkpoint.members);
        if found.is_unlike() {
            return Err(Error::StepDiffers { newest: newest.step, difference: found.to_string() });
        }
        Ok(())
    }

    /// Counts matrices that have a single value now and had more at the step before.
    fn count_constant(&self, catalog: &Catalog<'_>, ready: &mut PackedStep) -> Result<()> {
        let before = match ready.chain.last() {
            _ if ready.constant.is_empty() => return Ok(()),
            Some(_) => ready.chain.clone(),
            None => match catalog.manifest.newest() {
                Some(newest) => catalog.chain(newest)?,
                None => return Ok(()),
            },
        };
        let before = self.resolve(&before)?;
        ready.entry.constant_matrices = soundness::became_constant(&ready.constant, &before)?;
        Ok(())
    }

    /// Packs a checkpoint against the step that the rule names. If that step is unusual, against an
    /// older one. If a keyframe is almost as small, on its own.
    pub(super) fn pack_step(
        &self,
        source: Source<'_>,
        candidates: &Candidates<'_>,
        options: &PackOptions,
        progress: &dyn Progress,
    ) -> Result<PackedStep> {
        let mut packed = self.pack_against(source, candidates.chain.clone(), options, progress)?;
        if packed.chain.is_empty() || (packed.pays() && candidates.is_usual(1.0 / packed.entry.ratio())) {
            return Ok(packed);
        }
        if let Some(chain) = self.nearer(source.checkpoint, candidates)? {
            let other = self.pack_against(source, chain, options, progress)?;
            if other.entry.stored_bytes < packed.entry.stored_bytes {
                packed = other;
            }
        }
        if packed.pays() {
            return Ok(packed);
        }
        let alone = self.pack_against(source, Vec::new(), options, progress)?;
        let keyframe_pays = alone.stored_bytes() <= KEYFRAME_ALLOWANCE * packed.stored_bytes();
        Ok(if keyframe_pays { alone } else { packed })
    }

    /// The chain of an older step that is clearly more similar to a checkpoint than the step that
    /// the rule names, which then is unusual. Only samples are compared.
    fn nearer(&self, checkpoint: &Checkpoint, candidates: &Candidates<'_>) -> Result<Option<Vec<StepEntry>>> {
        let older = candidates.older()?;
        if older.is_empty() {
            return Ok(None);
        }
        let sketch = Sketch::of(checkpoint)?;
        // Chains share their first steps.
        let mut open = HashMap::new();
        let mut expected = |chain: &[StepEntry]| -> Result<u64> {
            let (_, resolved) = self.open_chain_with(chain, &mut open)?;
            let path = resolved.container().path().to_path_buf();
            Ok(sketch.compare(&Base::of_container(&path, resolved))?.given_bytes)
        };
        let mut least = expected(&candidates.chain)? as f64 * NEARER;
        let mut nearest = None;
        for chain in older {
            let bytes = expected(&chain)? as f64;
            if bytes < least {
                (least, nearest) = (bytes, Some(chain));
            }
        }
        Ok(nearest)
    }

    fn pack_against(
        &self,
        source: Source<'_>,
        chain: Vec<StepEntry>,
        options: &PackOptions,
        progress: &dyn Progress,
    ) -> Result<PackedStep> {
        let Source { checkpoint, parts, previous } = source;
        let (bases, before) = match chain.last() {
            Some(_) => self.bases_of(&chain, previous, options.threads, progress)?,
            None => (Bases::default(), None),
        };
        let mut file = self.new_file()?;
        let path = file.path().to_path_buf();
        let inspection = Inspection::new(checkpoint);
        let see = |number: usize, bytes: &[u8]| inspection.see(number, bytes);
        let report = pack_and_see(checkpoint, &bases, file.as_file_mut(), options, progress, &see)
            .map_err(|e| e.of_writer(&path))?;
        let mut hasher = blake3::Hasher::new();
        let hashed = File::open(&path).and_then(|file| hasher.update_reader(file).map(|_| ()));
        hashed.map_err(Error::io(&path))?;
        let container = Container::from_source(&path, Box::new(FileSource::open(&path)?), &self.limits)?;
        let reference = chain.last();
        let oddities = inspection.finish(container.index(), reference.is_some_and(StepEntry::is_sound))?;
        let (changed_fraction, changed_of_computed) = match &before {
            Some(before) => soundness::changes(checkpoint, container.index(), before)?,
            None => (None, Vec::new()),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let entry = StepEntry {
            step: 0,
            ordinal: 0,
            object: hasher.finalize().to_hex().to_string(),
            stored_bytes: container.len_bytes(),
            content: content::of_index(container.index()),
            original_bytes: checkpoint.len_bytes(),
            reference: reference.map(|reference| reference.step),
            hops: reference.map_or(0, |reference| reference.hops + 1),
            since_keyframe: 0,
            changed_fraction,
            changed_of_computed,
            nonfinite_weights: oddities.nonfinite,
            constant_matrices: 0,
            parts,
            meta: BTreeMap::new(),
            added_unix: now.as_secs(),
            seconds: 0.0,
        };
        Ok(PackedStep { file, entry, chain, report, constant: oddities.constant })
    }

    /// The last step of a chain, decoded, as a base, with the steps below it as its history. Also
    /// returns that step. Its files that `previous` has are not decoded.
    fn bases_of(
        &self,
        chain: &[StepEntry],
        previous: Option<&Checkpoint>,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<(Bases, Option<Checkpoint>)> {
        let (mut bases, resolved) = self.open_chain(chain)?;
        let folder = self.scratch_folder();
        let reference = restored::checkpoint(&resolved, previous, &folder, &self.limits, threads, progress)?;
        bases.push_checkpoint(resolved.container().path(), reference.clone());
        let newest_first: Vec<PathBuf> = chain.iter().rev().map(|entry| self.path(entry)).collect();
        bases.set_history(&newest_first)?;
        Ok((bases, Some(reference)))
    }

    /// A file for a container that will be stored.
    fn new_file(&self) -> Result<NamedTempFile> {
        let folder = self.scratch_folder();
        temporary_in(&folder).map_err(Error::writing(folder))
    }

    /// Where files are written that will be stored or dropped.
    fn scratch_folder(&self) -> PathBuf {
        self.store.scratch_folder().map_or_else(std::env::temp_dir, ToOwned::to_owned)
    }

    /// The last step of a chain that begins with a keyframe, decoded to a temporary file.
    pub(super) fn restore(
        &self,
        chain: &[StepEntry],
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Checkpoint> {
        let resolved = self.resolve(chain)?;
        restored::checkpoint(&resolved, None, &self.scratch_folder(), &self.limits, threads, progress)
    }
}

impl PackedStep {
    pub(super) fn entry(&self) -> &StepEntry {
        &self.entry
    }

    pub(super) fn file(&self) -> &std::path::Path {
        self.file.path()
    }

    fn stored_bytes(&self) -> f64 {
        self.entry.stored_bytes as f64
    }

    /// The step that it was packed against, and the steps below that.
    pub(super) fn chain(&self) -> &[StepEntry] {
        &self.chain
    }

    /// Whether it takes clearly less than it would on its own, estimated from its keyframe. True
    /// for a keyframe.
    fn pays(&self) -> bool {
        let expected = |keyframe| expected_keyframe_bytes(keyframe, self.entry.original_bytes);
        self.chain.first().is_none_or(|keyframe| self.stored_bytes() <= KEYFRAME_SHARE * expected(keyframe))
    }

    /// Whether all steps that it needs still exist unchanged.
    fn stands_on(&self, catalog: &Catalog<'_>) -> Result<bool> {
        for entry in &self.chain {
            let found = catalog.find(entry.step)?;
            if found.is_none_or(|found| found.object != entry.object) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Sets the fields of an entry that depend on the newest one before it.
pub(super) fn place(entry: &mut StepEntry, newest: Option<&StepEntry>, ordinal: u64) {
    entry.ordinal = ordinal;
    entry.since_keyframe = match newest {
        Some(newest) if !entry.is_keyframe() => newest.since_keyframe.saturating_add(1),
        _ => 0,
    };
}

/// The entry of a replacement without an answer that did take effect.
fn arrived(catalog: &Catalog<'_>, sent: &[Sent]) -> Result<Option<Sent>> {
    for (mine, closed) in sent {
        let found = catalog.find(mine.step)?;
        // Pruning may have packed it again.
        let is_mine = |entry: &StepEntry| {
            (&entry.content, &entry.meta, entry.added_unix) == (&mine.content, &mine.meta, mine.added_unix)
        };
        if let Some(entry) = found.filter(is_mine) {
            return Ok(Some((entry, closed.clone())));
        }
    }
    Ok(None)
}

fn same_or_taken(entry: StepEntry, content: &str, new: &NewStep) -> Result<Added> {
    if entry.content == content {
        let mut meta_not_stored = new.meta.clone();
        meta_not_stored.retain(|name, value| entry.meta.get(name) != Some(value));
        return Ok(Added { entry, is_new: false, closed: None, meta_not_stored, container: None });
    }
    Err(Error::StepTaken { step: entry.step })
}

fn check_order(catalog: &Catalog<'_>, step: u64) -> Result<()> {
    match catalog.manifest.newest() {
        Some(newest) if newest.step > step => Err(Error::StepOutOfOrder { step, newest: newest.step }),
        _ => Ok(()),
    }
}

/// Expected size of a checkpoint of this size on its own, estimated from the last keyframe.
fn expected_keyframe_bytes(keyframe: &StepEntry, original_bytes: u64) -> f64 {
    original_bytes as f64 / keyframe.ratio()
}
