//! Maintains the objects of a series: removes those that nothing names, and checks the others.
//! It changes no manifest.

use std::collections::HashSet;
use std::time::Duration;

use rayon::prelude::*;
use serde::Serialize;

use super::Series;
use super::catalog::Catalog;
use super::content;
use super::manifest::{StepEntry, is_zero};
use crate::checkpoint::ReadAt;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};
use crate::verify::{Verifiable, verify};

/// Bytes that are read and hashed at a time.
const HASH_BLOCK_BYTES: u64 = 1 << 20;

/// The result of removing objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GcReport {
    /// Objects without a name that were removed, or would be.
    pub removed: u64,
    /// Their size.
    pub removed_bytes: u64,
    /// Objects without a name that are too young to remove: someone may be about to name them.
    pub too_young: u64,
}

/// The result of a verification.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SeriesVerifyReport {
    /// Whether there are no faults.
    pub ok: bool,
    /// Whether every step was decoded.
    pub deep: bool,
    /// Steps in the series.
    pub steps: u64,
    /// Steps on branches, if there are any.
    #[serde(skip_serializing_if = "is_zero")]
    pub branch_steps: u64,
    /// The faults, one line each.
    pub faults: Vec<String>,
}

impl Series {
    /// Removes objects that no manifest names and that are older than `grace`. That must be longer
    /// than adding a step takes.
    ///
    /// # Errors
    /// What the store gives.
    pub fn gc(&self, grace: Duration, dry_run: bool) -> Result<GcReport> {
        // The order matters: an object that is named after the listing is not in it, or was named
        // before.
        let listed = self.store.list("")?;
        let mut catalog = self.main_line()?;
        let mut named: HashSet<String> = HashSet::new();
        for line in catalog.lines() {
            catalog.branch = line;
            named.extend(catalog.all()?.iter().map(StepEntry::key));
            named.extend(catalog.page_keys()?);
        }
        let mut report = GcReport::default();
        for object in listed.iter().filter(|object| is_ours(&object.key) && !named.contains(&object.key)) {
            if object.age < grace {
                report.too_young += 1;
                continue;
            }
            if !dry_run {
                self.store.delete(&object.key)?;
            }
            report.removed += 1;
            report.removed_bytes += object.len_bytes;
        }
        Ok(report)
    }

    /// Checks that every step can be restored. Checks pages, the bytes and digests of all
    /// containers, and that the steps which each needs exist. With `deep`, also decodes every
    /// tensor and compares its digest.
    ///
    /// # Errors
    /// Only what prevents the verification: [`Error::Cancelled`], [`Error::NotASeries`], a manifest
    /// that cannot be read. Faults are in the report.
    pub fn verify(&self, deep: bool, threads: usize, progress: &dyn Progress) -> Result<SeriesVerifyReport> {
        let mut catalog = self.main_line()?;
        let mut report = SeriesVerifyReport { ok: true, deep, steps: 0, branch_steps: 0, faults: Vec::new() };
        let branches = catalog.manifest.branches.iter().map(|branch| branch.totals.stored_bytes);
        progress.start(catalog.manifest.totals.stored_bytes.saturating_add(branches.sum()));
        for line in catalog.lines() {
            catalog.branch = line;
            let count = self.verify_line(&catalog, deep, threads, progress, &mut report.faults)?;
            *if catalog.branch.is_some() { &mut report.branch_steps } else { &mut report.steps } += count;
        }
        report.ok = report.faults.is_empty();
        Ok(report)
    }

    /// Checks the steps of a catalog's current line. Returns their number.
    fn verify_line(
        &self,
        catalog: &Catalog<'_>,
        deep: bool,
        threads: usize,
        progress: &dyn Progress,
        faults: &mut Vec<String>,
    ) -> Result<u64> {
        let entries = catalog.all()?;
        let (totals, of) = match &catalog.branch {
            Some(branch) => (&branch.totals, format!("branch {}: ", branch.name)),
            None => (&catalog.manifest.totals, String::new()),
        };
        if entries.len() as u64 != totals.steps {
            let (counted, found) = (totals.steps, entries.len());
            faults.push(format!("{of}the manifest counts {counted} steps and has {found}"));
        }
        let shallow = |entry: &StepEntry| {
            check_cancelled(progress)?;
            let checked = self.check_object(catalog, entry, progress);
            fault_of(entry, checked)
        };
        let objects: Vec<Option<String>> =
            pipeline::with_threads(threads, || entries.par_iter().map(shallow).collect::<Result<_>>())?;
        for (entry, fault) in entries.iter().zip(objects) {
            let found = match fault {
                Some(fault) => vec![fault],
                None if deep => self.decode(catalog, entry, threads, progress)?,
                None => Vec::new(),
            };
            faults.extend(found.into_iter().map(|fault| format!("{of}{fault}")));
        }
        Ok(entries.len() as u64)
    }

    /// Checks the bytes of a container, and that it is the one that the manifest names.
    fn check_object(&self, catalog: &Catalog<'_>, entry: &StepEntry, progress: &dyn Progress) -> Result<()> {
        catalog.chain(entry)?;
        let container = self.container(entry)?;
        if content::of_index(container.index()) != entry.content {
            return Err(Error::corrupt("its container holds another step's content"));
        }
        let source = self.store.open(&entry.key())?;
        if hash(&*source, progress)? != entry.object {
            return Err(Error::corrupt("its container does not match its digest"));
        }
        Ok(())
    }

    fn decode(
        &self,
        catalog: &Catalog<'_>,
        entry: &StepEntry,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Vec<String>> {
        let decoded = self
            .resolve(&catalog.chain(entry)?)
            .and_then(|resolved| verify(&Verifiable::Resolved(&resolved), threads, progress));
        match decoded {
            Ok(report) => {
                Ok(report.faults.into_iter().map(|fault| format!("step {}: {fault}", entry.step)).collect())
            }
            Err(e) => fault_of(entry, Err(e)).map(|fault| fault.into_iter().collect()),
        }
    }
}

/// Objects of a series, and leftover files that did not become one. A store may also hold files of
/// others.
fn is_ours(key: &str) -> bool {
    ["objects/", "pages/", "tmp/"].iter().any(|prefix| key.starts_with(prefix))
}

fn fault_of(entry: &StepEntry, checked: Result<()>) -> Result<Option<String>> {
    match checked {
        Ok(()) => Ok(None),
        Err(Error::Cancelled) => Err(Error::Cancelled),
        Err(e) => Ok(Some(format!("step {}: {}", entry.step, e.detail()))),
    }
}

fn hash(source: &dyn ReadAt, progress: &dyn Progress) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; to_usize(HASH_BLOCK_BYTES.min(source.len_bytes()))];
    let mut at = 0;
    while at < source.len_bytes() {
        check_cancelled(progress)?;
        let len = to_usize(HASH_BLOCK_BYTES.min(source.len_bytes() - at));
        source.read_at(at, &mut block[..len]).map_err(Error::io(""))?;
        hasher.update(&block[..len]);
        at += len as u64;
        progress.advance(len as u64);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
