//! Rebuilds a series from some of its steps: pruning drops steps, and repacking packs all of them
//! again.
//! Steps that depend only on unchanged steps are not touched. [`super::sweep`] removes objects that
//! are no longer named.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::Series;
use super::add::{Source, place};
use super::branch::Branch;
use super::catalog::{Catalog, no_step};
use super::chain::{Candidates, LOOK_BACK};
use super::keep::{KeepRules, KeptStep};
use super::manifest::{SeriesOptions, StepEntry};
use crate::error::{Error, Result};
use crate::options::setters;
use crate::pack::PackOptions;
use crate::progress::{Progress, Silent, check_cancelled};

/// How to rebuild a series.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RebuildOptions {
    /// How to pack steps again.
    pub pack: PackOptions,
    /// New options for the series.
    pub series: Option<SeriesOptions>,
    /// Only report what would be done.
    pub dry_run: bool,
}

setters!(RebuildOptions {
    with_pack(pack: PackOptions),
    with_series(series: Option<SeriesOptions>),
    with_dry_run(dry_run: bool),
});

/// The result of a rebuild.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RebuildReport {
    /// Number of remaining steps.
    pub kept: u64,
    /// The remaining steps with the rules that keep them. Only after pruning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept_steps: Vec<KeptStep>,
    /// Dropped steps, of the main line or of the dropped branch.
    pub dropped: Vec<u64>,
    /// Steps that were packed again, since a step that they depended on was dropped or packed
    /// again.
    pub repacked: Vec<u64>,
    /// The same on branches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repacked_on_branches: Vec<BranchSteps>,
    /// Size of all containers before.
    pub stored_bytes_before: u64,
    /// Size of all containers now. Unknown in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

/// Steps of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BranchSteps {
    /// Its name.
    pub branch: String,
    /// The steps.
    pub steps: Vec<u64>,
}

/// Which steps of the main line are kept.
type Keep<'a> = &'a dyn Fn(&[StepEntry]) -> Result<Vec<KeptStep>>;

/// The kind of rebuild.
#[derive(Clone, Copy)]
enum Change<'a> {
    Keep(Keep<'a>),
    PackAll,
    DropBranch(&'a str),
}

impl Series {
    /// Drops all steps except those that the rules keep. Steps that depended on them, also on
    /// branches, are packed again first. Objects stay until [`Self::gc`].
    ///
    /// # Errors
    /// [`Error::KeepRule`]; what reading, packing and storing give. The series is unchanged then.
    pub fn prune(
        &self,
        keep: &KeepRules,
        options: &RebuildOptions,
        progress: &dyn Progress,
    ) -> Result<RebuildReport> {
        self.rebuild(Change::Keep(&|entries| keep.kept(entries)), options, progress)
    }

    /// Drops a branch. Branches that fork from it are packed again where they depended on it.
    /// Objects stay until [`Self::gc`].
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Self::prune`].
    pub fn prune_branch(
        &self,
        name: &str,
        options: &RebuildOptions,
        progress: &dyn Progress,
    ) -> Result<RebuildReport> {
        self.rebuild(Change::DropBranch(name), options, progress)
    }

    /// Drops these steps. Steps that depended on them are packed again first. Objects stay until
    /// [`Self::gc`].
    ///
    /// # Errors
    /// [`Error::NotFound`]; as [`Self::prune`].
    pub fn remove(
        &self,
        steps: &[u64],
        options: &RebuildOptions,
        progress: &dyn Progress,
    ) -> Result<RebuildReport> {
        let keep = |entries: &[StepEntry]| {
            let there = |step: &u64| entries.binary_search_by_key(step, |entry| entry.step).is_ok();
            if let Some(step) = steps.iter().find(|step| !there(step)) {
                return Err(no_step(*step));
            }
            Ok(unruled(entries.iter().filter(|entry| !steps.contains(&entry.step))))
        };
        self.rebuild(Change::Keep(&keep), options, progress)
    }

    /// Packs all steps again with other options.
    ///
    /// # Errors
    /// As [`Self::prune`].
    pub fn repack(&self, options: &RebuildOptions, progress: &dyn Progress) -> Result<RebuildReport> {
        self.rebuild(Change::PackAll, options, progress)
    }

    fn rebuild(
        &self,
        change: Change<'_>,
        options: &RebuildOptions,
        progress: &dyn Progress,
    ) -> Result<RebuildReport> {
        // Repacked steps, by their content and their references: after a lost race, only the
        // manifest is made again.
        let mut done = Done::new();
        loop {
            let mut catalog = self.main_line()?;
            let series = options.series.clone().unwrap_or_else(|| catalog.manifest.options.clone());
            series.check()?;
            let (plans, kept_steps) = plan(&mut catalog, change)?;
            let mut report = report(&plans, kept_steps);
            if options.dry_run {
                return Ok(report);
            }
            if plans.iter().all(Plan::changes_nothing) {
                report.stored_bytes = Some(report.stored_bytes_before);
                return Ok(report);
            }
            progress.start(plans.iter().map(Plan::bytes_to_pack).sum());
            let mut lines: HashMap<Option<String>, Line> = HashMap::new();
            let mut branches = Vec::new();
            for plan in &plans {
                catalog.branch.clone_from(&plan.branch);
                let left = plan.branch.as_ref().and_then(|branch| lines.get(&branch.parent));
                let base = left.zip(plan.fork()).map(|(left, fork)| left.entries.up_to(fork));
                let parent = left.and_then(|left| left.name.clone());
                let mut new = base.unwrap_or_default();
                let (own, fork) = (new.entries.len(), new.entries.last().map(|entry| entry.step));
                for entry in plan.entries.iter().filter(|entry| plan.kept.contains(&entry.step)) {
                    let mut entry = entry.clone();
                    if plan.to_pack.contains(&entry.step) {
                        check_cancelled(progress)?;
                        self.pack_once(&catalog, &mut entry, &new, &mut done, (&series, &options.pack))?;
                        progress.advance(entry.original_bytes);
                    }
                    new.push(entry);
                }
                let is_left = own < new.entries.len();
                if let (Some(branch), true) = (&plan.branch, is_left) {
                    let is_same = plan.to_pack.is_empty() && branch.parent == parent && branch.fork == fork;
                    branches.push(match is_same {
                        true => branch.clone(),
                        false => branch.rebuilt(parent.clone(), fork, &new.entries[own..], &*self.store)?,
                    });
                }
                // A branch that forked from a dropped branch now forks from the line before it.
                let name = plan.branch.as_ref().map(|branch| branch.name.clone());
                let of = if is_left { name.clone() } else { parent };
                lines.insert(name, Line { name: of, entries: new });
            }
            catalog.branch = None;
            branches.reverse();
            let main = lines.remove(&None).map(|main| main.entries.entries).unwrap_or_default();
            catalog.manifest = catalog.manifest.rebuilt(main, &series, branches, &*self.store)?;
            let stored_bytes = catalog.manifest.stored_bytes();
            if self.replace_manifest(&mut catalog)? {
                return Ok(RebuildReport { stored_bytes: Some(stored_bytes), ..report });
            }
        }
    }

    /// Packs a step again, unless that was already done for the same reference.
    fn pack_once(
        &self,
        catalog: &Catalog<'_>,
        entry: &mut StepEntry,
        new: &Rebuilt,
        done: &mut Done,
        (series, pack): (&SeriesOptions, &PackOptions),
    ) -> Result<()> {
        let chain_of = |entry: &StepEntry| Ok(new.chain(entry));
        let candidates = Candidates::new(new.newest(), series, &chain_of)?;
        let reference = candidates.chain.last();
        let known = (entry.content.clone(), reference.map(|reference| reference.object.clone()));
        let packed = match done.remove(&known).filter(|packed| new.has(&packed.chain)) {
            Some(packed) => packed,
            None => self.pack_again(catalog, entry, &candidates, pack)?,
        };
        entry.rest_on(&packed.entry);
        done.insert(known, packed);
        Ok(())
    }

    /// Packs a step against those before it in the new series.
    fn pack_again(
        &self,
        catalog: &Catalog<'_>,
        entry: &StepEntry,
        candidates: &Candidates<'_>,
        options: &PackOptions,
    ) -> Result<Packed> {
        let checkpoint = self.restore(&catalog.chain(entry)?, options.threads, &Silent)?;
        let source = Source { checkpoint: &checkpoint, parts: entry.parts, previous: None };
        let packed = self.pack_step(source, candidates, options, &Silent)?;
        if packed.entry().content != entry.content {
            return Err(Error::corrupt(format!(
                "step {} does not match the content that was added",
                entry.step
            )));
        }
        self.store.put_file(&packed.entry().key(), packed.file())?;
        Ok(Packed { entry: packed.entry().clone(), chain: packed.chain().to_vec() })
    }
}

/// A step that was packed again, and the steps that it needs.
struct Packed {
    entry: StepEntry,
    chain: Vec<StepEntry>,
}

/// Steps that stay although no rule keeps them.
fn unruled<'a>(entries: impl Iterator<Item = &'a StepEntry>) -> Vec<KeptStep> {
    entries.map(|entry| KeptStep { step: entry.step, rules: Vec::new() }).collect()
}

type Done = HashMap<(String, Option<String>), Packed>;

/// What happens to the steps of a line.
struct Plan {
    branch: Option<Branch>,
    entries: Vec<StepEntry>,
    kept: HashSet<u64>,
    to_pack: HashSet<u64>,
    /// Steps that no step can depend on any more, of the line and of those from which it forks.
    gone: HashSet<u64>,
}

impl Plan {
    /// Either all kept steps are packed again, or only those that depend on a dropped or repacked
    /// step.
    fn new(
        branch: Option<Branch>,
        entries: Vec<StepEntry>,
        kept: HashSet<u64>,
        pack_all: bool,
        mut gone: HashSet<u64>,
    ) -> Self {
        let mut to_pack = HashSet::new();
        gone.extend(entries.iter().map(|entry| entry.step).filter(|step| !kept.contains(step)));
        for entry in entries.iter().filter(|entry| kept.contains(&entry.step)) {
            if pack_all || entry.reference.is_some_and(|reference| gone.contains(&reference)) {
                to_pack.insert(entry.step);
                gone.insert(entry.step);
            }
        }
        Self { branch, entries, kept, to_pack, gone }
    }

    fn fork(&self) -> Option<u64> {
        self.branch.as_ref()?.fork
    }

    fn changes_nothing(&self) -> bool {
        self.kept.len() == self.entries.len() && self.to_pack.is_empty()
    }

    fn bytes_to_pack(&self) -> u64 {
        self.repacked().map(|entry| entry.original_bytes).sum()
    }

    fn repacked(&self) -> impl Iterator<Item = &StepEntry> {
        self.entries.iter().filter(|entry| self.to_pack.contains(&entry.step))
    }

    fn dropped(&self) -> impl Iterator<Item = &StepEntry> {
        self.entries.iter().filter(|entry| !self.kept.contains(&entry.step))
    }
}

/// A plan for each line, after the plan of the line from which it forks. Also returns the kept
/// steps of the main line.
fn plan(catalog: &mut Catalog<'_>, change: Change<'_>) -> Result<(Vec<Plan>, Vec<KeptStep>)> {
    if let Change::DropBranch(name) = change {
        catalog.turn_to(name)?;
    }
    let mut plans: Vec<Plan> = Vec::new();
    let mut kept_steps = Vec::new();
    for line in catalog.lines() {
        catalog.branch.clone_from(&line);
        let entries = catalog.all()?;
        let mut gone = HashSet::new();
        let kept = match (&line, change) {
            (None, Change::Keep(keep)) => keep(&entries)?,
            (Some(branch), Change::DropBranch(name)) if branch.name == name => Vec::new(),
            _ => unruled(entries.iter()),
        };
        if let Some(Branch { parent, fork: Some(fork), .. }) = &line {
            let is_left = |plan: &&Plan| plan.branch.as_ref().map(|branch| &branch.name) == parent.as_ref();
            let left = plans.iter().find(is_left);
            gone.extend(left.iter().flat_map(|left| &left.gone).filter(|step| *step <= fork));
        }
        let steps = kept.iter().map(|kept| kept.step).collect();
        if line.is_none() {
            kept_steps = kept;
        }
        plans.push(Plan::new(line, entries, steps, matches!(change, Change::PackAll), gone));
    }
    catalog.branch = None;
    Ok((plans, kept_steps))
}

fn report(plans: &[Plan], mut kept_steps: Vec<KeptStep>) -> RebuildReport {
    let kept = kept_steps.len() as u64;
    // Without rules, single steps need no mention.
    kept_steps.retain(|kept| !kept.rules.is_empty());
    let steps = |entries: &mut dyn Iterator<Item = &StepEntry>| entries.map(|entry| entry.step).collect();
    let on_branches = plans.iter().filter_map(|plan| {
        let (branch, steps) = (plan.branch.as_ref()?.name.clone(), steps(&mut plan.repacked()));
        Some(BranchSteps { branch, steps })
    });
    RebuildReport {
        kept,
        kept_steps,
        dropped: plans.iter().flat_map(Plan::dropped).map(|entry| entry.step).collect(),
        repacked: plans.first().map_or_else(Vec::new, |main| steps(&mut main.repacked())),
        repacked_on_branches: on_branches.filter(|on| !on.steps.is_empty()).collect(),
        stored_bytes_before: plans
            .iter()
            .flat_map(|plan| &plan.entries)
            .map(|entry| entry.stored_bytes)
            .sum(),
        stored_bytes: None,
    }
}

/// A line of the new series.
struct Line {
    /// Its name. For a dropped branch: the name of the line from which it forked.
    name: Option<String>,
    /// Its entries, and those of the lines from which it forks, up to the forks.
    entries: Rebuilt,
}

/// The entries of a new line, with those of the lines from which it forks, up to the forks.
#[derive(Default)]
struct Rebuilt {
    entries: Vec<StepEntry>,
}

impl Rebuilt {
    /// The entries up to a step.
    fn up_to(&self, step: u64) -> Self {
        Self { entries: self.entries.iter().filter(|entry| entry.step <= step).cloned().collect() }
    }

    fn push(&mut self, mut entry: StepEntry) {
        let ordinal = entry.ordinal;
        place(&mut entry, self.entries.last(), ordinal);
        self.entries.push(entry);
    }

    /// The newest entries, as many as the choice of a reference needs.
    fn newest(&self) -> Vec<StepEntry> {
        self.entries[self.entries.len().saturating_sub(LOOK_BACK)..].to_vec()
    }

    /// Whether all these entries exist unchanged.
    fn has(&self, chain: &[StepEntry]) -> bool {
        chain.iter().all(|entry| self.find(entry.step).is_some_and(|found| found.object == entry.object))
    }

    fn find(&self, step: u64) -> Option<&StepEntry> {
        let at = self.entries.binary_search_by_key(&step, |entry| entry.step).ok()?;
        self.entries.get(at)
    }

    fn chain(&self, entry: &StepEntry) -> Vec<StepEntry> {
        let mut chain = vec![entry.clone()];
        while let Some(reference) = chain.last().and_then(|entry| entry.reference) {
            let Some(found) = self.find(reference) else { break };
            chain.push(found.clone());
        }
        chain.reverse();
        chain
    }
}
