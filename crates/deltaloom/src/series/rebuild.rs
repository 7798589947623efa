//! Makes the series anew from some of its steps: pruning leaves steps out, repacking packs all of them again.
//! What rests only on steps that stay as they are is not touched; objects that nothing names any more are [`super::sweep`]'s work.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::Series;
use super::add::place;
use super::catalog::{Catalog, no_step};
use super::chain::{Candidates, LOOK_BACK};
use super::keep::{KeepRules, KeptStep};
use super::manifest::{SeriesOptions, StepEntry};
use crate::error::{Error, Result};
use crate::pack::PackOptions;
use crate::progress::{Progress, Silent, check_cancelled};

/// How to make a series anew.
#[derive(Debug, Clone, Default)]
pub struct RebuildOptions {
    /// How to pack what must be packed again.
    pub pack: PackOptions,
    /// Other options for the series.
    pub series: Option<SeriesOptions>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct RebuildReport {
    /// Steps that are there now.
    pub kept: u64,
    /// The same, one by one, with the rules that keep them; only of pruning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept_steps: Vec<KeptStep>,
    /// Steps that were left out.
    pub dropped: Vec<u64>,
    /// Steps that were packed again, since what they rested on was left out or was packed again.
    pub repacked: Vec<u64>,
    /// Size of all containers before.
    pub stored_bytes_before: u64,
    /// Size of all containers now; not known in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

impl Series {
    /// Leaves out all steps but those that the rules keep; what rested on them is packed again first. Objects stay until [`Self::gc`].
    ///
    /// # Errors
    /// [`Error::KeepRule`]; what reading, packing and storing give. The series is unchanged then.
    pub fn prune(
        &self,
        keep: &KeepRules,
        options: &RebuildOptions,
        progress: &dyn Progress,
    ) -> Result<RebuildReport> {
        self.rebuild(|entries| keep.kept(entries), false, options, progress)
    }

    /// Leaves out these steps; what rested on them is packed again first. Objects stay until [`Self::gc`].
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
        let mut report = self.rebuild(keep, false, options, progress)?;
        report.kept_steps.clear();
        Ok(report)
    }

    /// Packs all steps again, with other options.
    ///
    /// # Errors
    /// As [`Self::prune`].
    pub fn repack(&self, options: &RebuildOptions, progress: &dyn Progress) -> Result<RebuildReport> {
        let mut report = self.rebuild(|entries| Ok(unruled(entries.iter())), true, options, progress)?;
        report.kept_steps.clear();
        Ok(report)
    }

    fn rebuild(
        &self,
        keep: impl Fn(&[StepEntry]) -> Result<Vec<KeptStep>>,
        pack_all: bool,
        options: &RebuildOptions,
        progress: &dyn Progress,
    ) -> Result<RebuildReport> {
        // Steps that were packed again, by what they restore and rest on: a lost race then repeats only the books.
        let mut done: HashMap<(String, Option<String>), Packed> = HashMap::new();
        loop {
            let mut catalog = self.catalog()?;
            let series = options.series.clone().unwrap_or_else(|| catalog.manifest.options.clone());
            series.check()?;
            let entries = catalog.all()?;
            let kept_steps = keep(&entries)?;
            let kept: HashSet<u64> = kept_steps.iter().map(|kept| kept.step).collect();
            let repacked = entries_to_pack(&entries, &kept, pack_all);
            let stored_bytes_before = catalog.manifest.totals.stored_bytes;
            let report = |stored_bytes| RebuildReport {
                kept: kept.len() as u64,
                kept_steps: kept_steps.clone(),
                dropped: entries.iter().map(|e| e.step).filter(|step| !kept.contains(step)).collect(),
                repacked: entries.iter().map(|e| e.step).filter(|step| repacked.contains(step)).collect(),
                stored_bytes_before,
                stored_bytes,
            };
            if options.dry_run || (kept.len() == entries.len() && repacked.is_empty()) {
                let is_same = !options.dry_run;
                return Ok(report(is_same.then_some(stored_bytes_before)));
            }
            let to_pack = || entries.iter().filter(|entry| repacked.contains(&entry.step));
            progress.start(to_pack().map(|entry| entry.original_bytes).sum());
            let mut new = Rebuilt::default();
            for entry in entries.iter().filter(|entry| kept.contains(&entry.step)) {
                let mut entry = entry.clone();
                if repacked.contains(&entry.step) {
                    check_cancelled(progress)?;
                    let chain_of = |entry: &StepEntry| Ok(new.chain(entry));
                    let candidates = Candidates::new(new.newest(), &series, &chain_of)?;
                    let reference = candidates.chain.last();
                    let known = (entry.content.clone(), reference.map(|reference| reference.object.clone()));
                    let packed = match done.remove(&known).filter(|packed| new.has(&packed.chain)) {
                        Some(packed) => packed,
                        None => self.pack_again(&catalog, &entry, &candidates, &options.pack)?,
                    };
                    entry.rest_on(&packed.entry);
                    done.insert(known, packed);
                    progress.advance(entry.original_bytes);
                }
                new.push(entry);
            }
            catalog.manifest = catalog.manifest.rebuilt(new.entries, &series, &*self.store)?;
            let stored_bytes = catalog.manifest.totals.stored_bytes;
            if self.replace_manifest(&mut catalog)? {
                return Ok(report(Some(stored_bytes)));
            }
        }
    }

    /// Packs a step against those before it in the series to be.
    fn pack_again(
        &self,
        catalog: &Catalog<'_>,
        entry: &StepEntry,
        candidates: &Candidates<'_>,
        options: &PackOptions,
    ) -> Result<Packed> {
        let checkpoint = self.restore(&catalog.chain(entry)?, options.threads, &Silent)?;
        let packed = self.pack_step(&checkpoint, entry.parts, candidates, options, &Silent)?;
        if packed.entry().content != entry.content {
            return Err(Error::corrupt(format!("step {} is not what was added", entry.step)));
        }
        self.store.put_file(&packed.entry().key(), packed.file())?;
        Ok(Packed { entry: packed.entry().clone(), chain: packed.chain().to_vec() })
    }
}

/// A step that was packed again, and the steps it rests on.
struct Packed {
    entry: StepEntry,
    chain: Vec<StepEntry>,
}

/// Steps that no rule keeps, but which stay.
fn unruled<'a>(entries: impl Iterator<Item = &'a StepEntry>) -> Vec<KeptStep> {
    entries.map(|entry| KeptStep { step: entry.step, rules: Vec::new() }).collect()
}

/// Steps that must be packed again: all, or those that rest on one that is left out or packed again.
fn entries_to_pack(entries: &[StepEntry], kept: &HashSet<u64>, pack_all: bool) -> HashSet<u64> {
    let mut to_pack = HashSet::new();
    for entry in entries.iter().filter(|entry| kept.contains(&entry.step)) {
        let stands = |reference: u64| kept.contains(&reference) && !to_pack.contains(&reference);
        if pack_all || !entry.reference.is_none_or(stands) {
            to_pack.insert(entry.step);
        }
    }
    to_pack
}

/// The entries of a series to be.
#[derive(Default)]
struct Rebuilt {
    entries: Vec<StepEntry>,
}

impl Rebuilt {
    fn push(&mut self, mut entry: StepEntry) {
        let ordinal = entry.ordinal;
        place(&mut entry, self.entries.last(), ordinal);
        self.entries.push(entry);
    }

    /// The newest entries, as many as a reference is looked for in.
    fn newest(&self) -> Vec<StepEntry> {
        self.entries[self.entries.len().saturating_sub(LOOK_BACK)..].to_vec()
    }

    /// Whether all these entries are there as they were.
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
