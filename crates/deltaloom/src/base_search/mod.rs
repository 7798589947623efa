//! Finds the best base of a checkpoint among the files of a folder: lists them, compares each with
//! a [`Sketch`], and ranks them.
//! Of plain files it reads only headers, samples and a few small tensors. References of containers
//! are hashed, since nothing less proves them.

mod list;
mod needed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use crate::bases::{Base, Bases, ResolvedContainer, TensorSource};
use crate::checkpoint::shards::is_index;
use crate::checkpoint::{Checkpoint, Contents, FileSource, Layout, Member, Warning};
use crate::container::{Container, Digest, PackedTensor};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};
use crate::sketch::{LEAST_IDENTICAL, LEAST_SAVING, Nearness, Sketch};
use crate::summary::ratio;
use crate::tensor::TensorInfo;

use list::{List, Plain};
pub use needed::{FoundBases, find_needed_bases};

/// Number of a container's smallest references by whose digests its bases are recognised.
const KEYS: usize = 8;

/// A checkpoint or container that was compared. Sizes are estimated from samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BaseCandidate {
    /// The path to pass as a base.
    pub path: String,
    /// Further bases that a container needs. They must be passed as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Original size over packed size against this base.
    pub estimated_ratio: f64,
    /// Share of the size of packing alone that this base saves.
    pub estimated_saving: f64,
    /// The same for tensors that are not identical. It shows a common origin, while constants may
    /// be equal by chance.
    pub estimated_changed_saving: f64,
    /// Share of the bytes in tensors that seem to be identical in the base, directly or after
    /// rounding.
    pub identical_fraction: f64,
    /// Share of the bytes in tensors with a counterpart of the same place and shape in the base.
    pub matched_fraction: f64,
}

/// A file that looked like a candidate and could not be used.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SkippedFile {
    /// Path of the file.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SearchReport {
    /// Path of the best candidate, if it is good enough.
    pub chosen: Option<String>,
    /// Original size over packed size without a base.
    pub alone_ratio: f64,
    /// A base is good enough with this `estimated_changed_saving`,
    pub least_changed_saving: f64,
    /// or with this `identical_fraction`.
    pub least_identical_fraction: f64,
    /// All candidates, the best first.
    pub candidates: Vec<BaseCandidate>,
    /// Files that could not be used.
    pub skipped: Vec<SkippedFile>,
    /// Duration of the search.
    pub seconds: f64,
}

/// A finished search.
pub struct BaseSearch {
    /// How similar each candidate is.
    pub report: SearchReport,
    /// The best base, and the bases that it needs.
    bases: Option<Bases>,
}

impl BaseSearch {
    /// The best base and the bases that it needs, ready to pack against. `folder` is for the
    /// message.
    ///
    /// # Errors
    /// [`Error::NoUsefulBase`].
    pub fn into_bases(self, folder: &Path) -> Result<Bases> {
        let none =
            Error::NoUsefulBase { folder: folder.to_path_buf(), candidates: self.report.candidates.len() };
        self.bases.ok_or(none)
    }
}

/// Compares a checkpoint with every file with weights, sharded checkpoint and container under
/// `folder`, except its own files and `exclude` (which need not exist). Containers take part if
/// everything that they need is there.
///
/// # Errors
/// [`Error::Io`] for the folder itself or the checkpoint; [`Error::Cancelled`]. Faults of
/// candidates are in the report.
pub fn find_base(
    checkpoint: &Checkpoint,
    folder: &Path,
    exclude: &[&Path],
    limits: &Limits,
    threads: usize,
    progress: &dyn Progress,
) -> Result<BaseSearch> {
    let start = Instant::now();
    let own = checkpoint.file_paths().chain(exclude.iter().copied());
    // Directories have other files with these names, too, which are compared as well.
    let is_other = |member: &&Member| !matches!(member.contents, Contents::Safetensors(_));
    let small = checkpoint.members.iter().filter(is_other);
    let small: BTreeSet<String> = match checkpoint.layout {
        Layout::Directory => small.map(|member| member.path.clone()).collect(),
        Layout::File => BTreeSet::new(),
    };
    let list = List::of(folder, own, small, limits)?;
    let search = Search { sketch: Sketch::of(checkpoint)?, limits, progress };
    progress.start(search.sketch.len_bytes() * list.candidates() as u64);
    let mut found = pipeline::with_threads(threads, || search.run(&list))?;
    found.report.seconds = start.elapsed().as_secs_f64();
    Ok(found)
}

/// A reference that helps to recognise a container's bases.
struct Key {
    wanted: TensorInfo,
    digest: Digest,
}

impl Key {
    /// Whether a base has the tensor under its name at the time of packing.
    fn is_in(&self, base: &Base) -> bool {
        let mut named = base.named(&self.wanted.name).filter(|source| source.is_like(&self.wanted));
        named.any(|source| source.digest().is_ok_and(|digest| digest == self.digest))
    }
}

/// The smallest references of a container.
fn keys(container: &Container) -> Vec<Key> {
    let index = container.index();
    let of_one = |packed: &PackedTensor| -> Vec<Key> {
        let wanted = packed.predictor.references(index.info(packed)).into_iter();
        let digests = packed.reference_digests.iter();
        let whole = wanted.zip(digests).filter_map(|(wanted, digest)| Some((wanted, digest.whole()?)));
        whole.map(|(wanted, digest)| Key { wanted, digest }).collect()
    };
    let mut keys: Vec<Key> = index.tensors.iter().flat_map(of_one).collect();
    keys.sort_by_key(|key| key.wanted.len_bytes());
    keys.truncate(KEYS);
    keys
}

/// Open plain checkpoints that containers need, by the number of the container.
type Origins = BTreeMap<usize, Vec<Base>>;

/// A base that was compared, and the other bases that it needs.
struct Compared {
    path: PathBuf,
    needs: Vec<PathBuf>,
    nearness: Nearness,
    /// Open only if opening it again would be expensive.
    bases: Vec<Base>,
}

struct Search<'a> {
    sketch: Sketch,
    limits: &'a Limits,
    progress: &'a dyn Progress,
}

impl Search<'_> {
    fn run(&self, list: &List) -> Result<BaseSearch> {
        let mut skipped = Vec::new();
        let mut containers: Vec<(&Path, Vec<Key>)> = Vec::new();
        for path in &list.containers {
            match self.open_container(path) {
                Ok(container) => containers.push((path, keys(&container))),
                Err(e) => skipped.push(skip(path, &e)),
            }
        }
        let (mut compared, origins) = self.compare_plain(list, &containers, &mut skipped)?;
        self.compare_containers(&containers, &origins, &mut compared, &mut skipped)?;
        compared.sort_by_key(|one| {
            let nearness = &one.nearness;
            (!nearness.is_useful(), nearness.given_bytes, one.needs.len(), one.path.clone())
        });
        let alone = self.sketch.alone();
        let mut report = SearchReport {
            chosen: None,
            alone_ratio: ratio(alone.original_bytes, alone.alone_bytes),
            least_changed_saving: ratio(LEAST_SAVING, 10_000),
            least_identical_fraction: ratio(LEAST_IDENTICAL, 10_000),
            candidates: compared.iter().map(candidate).collect(),
            skipped,
            seconds: 0.0,
        };
        let best = compared.into_iter().next().filter(|best| best.nearness.is_useful());
        let Some(best) = best else { return Ok(BaseSearch { report, bases: None }) };
        report.chosen = Some(best.path.display().to_string());
        let mut bases = Bases::default();
        match list.plain.iter().find(|plain| plain.path == best.path) {
            Some(plain) => {
                bases.push(self.open_plain(plain)?);
                bases.push_warnings(self.warnings_of(plain)?);
            }
            None => best.bases.into_iter().for_each(|base| bases.push(base)),
        }
        Ok(BaseSearch { report, bases: Some(bases) })
    }

    fn open_plain(&self, plain: &Plain) -> Result<Base> {
        let checkpoint = Checkpoint::open_files(&plain.root, plain.names.clone(), self.limits)?;
        Ok(Base::of_checkpoint(&plain.path, checkpoint))
    }

    /// Warnings about the indexes in the folder of a base.
    fn warnings_of(&self, plain: &Plain) -> Result<Vec<Warning>> {
        if plain.path != plain.root {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&plain.root).map_err(Error::io(&plain.root))?;
        let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let indexes = files.filter(|name| is_index(name));
        let names: BTreeSet<String> = indexes.chain(plain.names.iter().cloned()).collect();
        Checkpoint::open_files(&plain.root, names.into_iter().collect(), self.limits)?.warnings(self.limits)
    }

    fn open_container(&self, path: &Path) -> Result<Container> {
        Container::from_source(path, Box::new(FileSource::open(path)?), self.limits)
    }

    /// Compares the plain checkpoints, and keeps each open only as long as necessary. Also returns
    /// those that containers need, open, by the number of the container.
    fn compare_plain(
        &self,
        list: &List,
        containers: &[(&Path, Vec<Key>)],
        skipped: &mut Vec<SkippedFile>,
    ) -> Result<(Vec<Compared>, Origins)> {
        let compare = |plain: &Plain| {
            check_cancelled(self.progress)?;
            let base = self.open_plain(plain)?;
            if !base.tensors().iter().any(TensorSource::is_typed) {
                return Ok(None);
            }
            let nearness = self.sketch.compare(&base)?;
            let has = |key: &Key| key.is_in(&base);
            let rests = |(i, (_, keys)): (usize, &(&Path, Vec<Key>))| keys.iter().any(has).then_some(i);
            let resting: Vec<usize> = containers.iter().enumerate().filter_map(rests).collect();
            self.progress.advance(self.sketch.len_bytes());
            let compared =
                Compared { path: plain.path.clone(), needs: Vec::new(), nearness, bases: Vec::new() };
            Ok(Some((compared, (!resting.is_empty()).then_some(base), resting)))
        };
        let all: Vec<Result<_>> = list.plain.par_iter().map(compare).collect();
        let (mut done, mut origins) = (Vec::new(), Origins::new());
        for (plain, result) in list.plain.iter().zip(all) {
            match result {
                // It has none of the weights that its name promises.
                Ok(None) => {}
                Ok(Some((compared, base, resting))) => {
                    done.push(compared);
                    for (i, base) in resting.into_iter().zip(base.iter().cycle()) {
                        origins.entry(i).or_default().push(base.clone());
                    }
                }
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(e) => skipped.push(skip(&plain.path, &e)),
            }
        }
        Ok((done, origins))
    }

    /// Compares the containers whose references are in checkpoints of the folder, or in containers
    /// that were resolved before.
    fn compare_containers(
        &self,
        containers: &[(&Path, Vec<Key>)],
        origins: &Origins,
        compared: &mut Vec<Compared>,
        skipped: &mut Vec<SkippedFile>,
    ) -> Result<()> {
        let mut waiting: Vec<usize> = (0..containers.len()).collect();
        let mut resolved: Vec<Origin> = Vec::new();
        loop {
            let (mut stuck, mut faults, before) = (Vec::new(), Vec::new(), resolved.len());
            for i in waiting {
                check_cancelled(self.progress)?;
                let (path, keys) = &containers[i];
                let plain = origins.get(&i).into_iter().flatten().cloned().map(Origin::plain);
                let packed = resolved.iter().filter(|origin| keys.iter().any(|key| key.is_in(&origin.base)));
                let near: Vec<Origin> = plain.chain(packed.cloned()).collect();
                match self.compare_container(path, &near) {
                    Ok(one) => {
                        let base = one.bases.first().cloned();
                        resolved.extend(base.map(|base| Origin { base, needs: one.needs.clone() }));
                        compared.push(one);
                        self.progress.advance(self.sketch.len_bytes());
                    }
                    Err(Error::Cancelled) => return Err(Error::Cancelled),
                    Err(e) => {
                        stuck.push(i);
                        faults.push(skip(path, &e));
                    }
                }
            }
            if stuck.is_empty() || resolved.len() == before {
                skipped.append(&mut faults);
                return Ok(());
            }
            waiting = stuck;
        }
    }

    fn compare_container(&self, path: &Path, near: &[Origin]) -> Result<Compared> {
        let mut bases = Bases::default();
        near.iter().for_each(|origin| bases.push(origin.base.clone()));
        let resolved = ResolvedContainer::new(self.open_container(path)?, &bases)?;
        let is_used =
            |origin: &&Origin| origin.base.tensors().first().is_some_and(|source| resolved.rests_on(source));
        let used: Vec<&Origin> = near.iter().filter(is_used).collect();
        let needs: BTreeSet<PathBuf> = used.iter().flat_map(|origin| origin.all_paths()).collect();
        let base = Base::of_container(path, resolved);
        Ok(Compared {
            path: path.to_path_buf(),
            needs: needs.into_iter().collect(),
            nearness: self.sketch.compare(&base)?,
            bases: std::iter::once(base).chain(used.iter().map(|origin| origin.base.clone())).collect(),
        })
    }
}

/// A base that a container may need, and the bases that it needs in turn.
#[derive(Clone)]
struct Origin {
    base: Base,
    needs: Vec<PathBuf>,
}

impl Origin {
    fn plain(base: Base) -> Self {
        Self { base, needs: Vec::new() }
    }

    fn all_paths(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.base.path().to_path_buf()).chain(self.needs.iter().cloned())
    }
}

fn skip(path: &Path, error: &Error) -> SkippedFile {
    SkippedFile { path: path.display().to_string(), why: error.detail() }
}

fn candidate(compared: &Compared) -> BaseCandidate {
    let nearness = &compared.nearness;
    BaseCandidate {
        path: compared.path.display().to_string(),
        needs: compared.needs.iter().map(|path| path.display().to_string()).collect(),
        estimated_ratio: ratio(nearness.original_bytes, nearness.given_bytes),
        estimated_saving: ratio(nearness.saving(), 10_000),
        estimated_changed_saving: ratio(nearness.changed_saving(), 10_000),
        identical_fraction: ratio(nearness.identical_bytes, nearness.original_bytes),
        matched_fraction: ratio(nearness.matched_bytes, nearness.original_bytes),
    }
}
