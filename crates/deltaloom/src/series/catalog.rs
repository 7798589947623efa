//! The manifest of a store with its pages, which are read when needed. Finds entries, the newest
//! ones, and chains.
//! It changes nothing. [`super::manifest`] knows the rules.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::branch::{Branch, new_name};
use super::manifest::{MAX_PAGE_BYTES, Manifest, Page, PageReference, StepEntry, put_page};
use super::store::{Revision, Store};
use crate::error::{Error, Missing, Result};
use crate::limits::to_usize;

/// The error for a step that does not exist.
pub(crate) fn no_step(step: u64) -> Error {
    Error::not_found(Missing::Step, format!("step {step}"))
}

/// The error for a branch that does not exist.
pub(crate) fn no_branch(name: &str) -> Error {
    Error::not_found(Missing::Step, format!("branch {name:?}"))
}

/// A manifest with its pages, which are read when needed and kept.
pub(crate) struct Catalog<'a> {
    store: &'a dyn Store,
    pub(crate) manifest: Manifest,
    pub(crate) revision: Revision,
    /// The branch whose steps are used. `None` for the main line.
    pub(crate) branch: Option<Branch>,
    pages: Mutex<HashMap<String, Arc<Page>>>,
}

impl<'a> Catalog<'a> {
    /// Reads the manifest of a store.
    pub(crate) fn open(store: &'a dyn Store) -> Result<Self> {
        let found = store.read_manifest()?;
        let (bytes, revision) = found.ok_or_else(|| Error::NotASeries { location: store.location() })?;
        let manifest = Manifest::parse(&bytes).map_err(|e| e.in_file(store.location().as_ref()))?;
        Ok(Self { store, manifest, revision, branch: None, pages: Mutex::default() })
    }

    fn page(&self, reference: &PageReference) -> Result<Arc<Page>> {
        let held = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = held().get(&reference.page) {
            return Ok(Arc::clone(page));
        }
        let key = reference.key();
        let read = || {
            let source = self.store.open(&key)?;
            if source.len_bytes() > MAX_PAGE_BYTES {
                return Err(Error::corrupt("a manifest page is too large"));
            }
            let mut bytes = vec![0; to_usize(source.len_bytes())];
            source.read_at(0, &mut bytes).map_err(Error::io(&key))?;
            if blake3::hash(&bytes).to_hex().as_str() != reference.page {
                return Err(Error::corrupt("a manifest page does not match its digest"));
            }
            Page::parse(&bytes, reference.level).map(Arc::new)
        };
        let page = read().map_err(|e| e.in_file(format!("{}/{key}", self.store.location()).as_ref()))?;
        held().insert(reference.page.clone(), Arc::clone(&page));
        Ok(page)
    }

    /// Switches to the steps of a branch.
    pub(crate) fn turn_to(&mut self, name: &str) -> Result<()> {
        let found = self.manifest.branches.iter().find(|branch| branch.name == name);
        self.branch = Some(found.ok_or_else(|| no_branch(name))?.clone());
        Ok(())
    }

    /// All lines: the main one, then the branches, each after the line from which it forks.
    pub(crate) fn lines(&self) -> Vec<Option<Branch>> {
        let branches = self.manifest.branches.iter().rev().cloned().map(Some);
        std::iter::once(None).chain(branches).collect()
    }

    /// The newest step of the current line.
    pub(crate) fn newest_step(&self) -> Option<u64> {
        match &self.branch {
            Some(branch) => Some(branch.page.last),
            None => self.manifest.newest().map(|entry| entry.step),
        }
    }

    /// The entry of a step of the current line.
    pub(crate) fn find(&self, step: u64) -> Result<Option<StepEntry>> {
        match &self.branch {
            Some(branch) => self.find_in(vec![branch.page.clone()], step),
            None => self.find_on_main(step),
        }
    }

    /// An entry that one of this line may depend on: an entry of this line, or of the lines from
    /// which it forks, before the fork.
    fn find_below(&self, step: u64) -> Result<Option<StepEntry>> {
        let mut at = self.branch.as_ref();
        while let Some(branch) = at {
            if step >= branch.page.first {
                return self.find_in(vec![branch.page.clone()], step);
            }
            if branch.fork.is_none_or(|fork| step > fork) {
                return Ok(None);
            }
            at = match &branch.parent {
                Some(parent) => {
                    let found = self.manifest.branches.iter().find(|other| other.name == *parent);
                    Some(found.ok_or_else(|| no_branch(parent))?)
                }
                None => None,
            };
        }
        self.find_on_main(step)
    }

    fn find_on_main(&self, step: u64) -> Result<Option<StepEntry>> {
        if let Ok(at) = self.manifest.recent.binary_search_by_key(&step, |entry| entry.step) {
            return Ok(Some(self.manifest.recent[at].clone()));
        }
        self.find_in(self.manifest.pages.clone(), step)
    }

    fn find_in(&self, mut pages: Vec<PageReference>, step: u64) -> Result<Option<StepEntry>> {
        loop {
            let Some(reference) = pages.iter().find(|page| (page.first..=page.last).contains(&step)) else {
                return Ok(None);
            };
            match &*self.page(reference)? {
                Page::Entries(entries) => {
                    return Ok(entries.iter().find(|entry| entry.step == step).cloned());
                }
                Page::Pages(below) => pages = below.clone(),
            }
        }
    }

    /// The entry of a step that must exist.
    pub(crate) fn get(&self, step: u64) -> Result<StepEntry> {
        self.find(step)?.ok_or_else(|| no_step(step))
    }

    /// The newest `count` entries, oldest first. Reads only the pages that hold them.
    pub(crate) fn last(&self, count: usize) -> Result<Vec<StepEntry>> {
        let (pages, recent) = self.line();
        let mut entries: Vec<StepEntry> = recent.iter().rev().take(count).cloned().collect();
        self.push_older(pages, count, &mut entries)?;
        entries.reverse();
        Ok(entries)
    }

    /// Pages and recent entries of the current line.
    fn line(&self) -> (&[PageReference], &[StepEntry]) {
        match &self.branch {
            Some(branch) => (std::slice::from_ref(&branch.page), &[]),
            None => (&self.manifest.pages, &self.manifest.recent),
        }
    }

    /// Appends entries of pages, newest first, until there are `count`.
    fn push_older(&self, pages: &[PageReference], count: usize, entries: &mut Vec<StepEntry>) -> Result<()> {
        for reference in pages.iter().rev() {
            let missing = count.saturating_sub(entries.len());
            if missing == 0 {
                break;
            }
            match &*self.page(reference)? {
                Page::Entries(older) => entries.extend(older.iter().rev().take(missing).cloned()),
                Page::Pages(below) => self.push_older(below, count, entries)?,
            }
        }
        Ok(())
    }

    /// Replaces the entry of a step. Rewrites the pages above it and no others.
    pub(crate) fn replace(&mut self, entry: StepEntry) -> Result<()> {
        if let Ok(at) = self.manifest.recent.binary_search_by_key(&entry.step, |entry| entry.step) {
            self.manifest.recent[at] = entry;
            return Ok(());
        }
        let pages = std::mem::take(&mut self.manifest.pages);
        self.manifest.pages = self.replaced(pages, &entry)?;
        Ok(())
    }

    fn replaced(&self, mut pages: Vec<PageReference>, entry: &StepEntry) -> Result<Vec<PageReference>> {
        let holds = |page: &&mut PageReference| (page.first..=page.last).contains(&entry.step);
        let reference = pages.iter_mut().find(holds).ok_or_else(|| no_step(entry.step))?;
        let page = match &*self.page(reference)? {
            Page::Pages(below) => Page::Pages(self.replaced(below.clone(), entry)?),
            Page::Entries(entries) => {
                let mut entries = entries.clone();
                let found = entries.iter_mut().find(|old| old.step == entry.step);
                *found.ok_or_else(|| no_step(entry.step))? = entry.clone();
                Page::Entries(entries)
            }
        };
        reference.page = put_page(self.store, &page)?;
        Ok(pages)
    }

    /// Closes the steps of the main line from `step` on, at least one, as a branch.
    pub(crate) fn rewind(&mut self, step: u64, name: Option<&str>) -> Result<Branch> {
        let mut later = self.all()?;
        let fork = later.iter().rev().find(|entry| entry.step < step).map(|entry| entry.step);
        later.retain(|entry| entry.step >= step);
        let name = new_name(&self.manifest, name, fork)?;
        let branch = Branch::close(name.clone(), None, fork, &later, self.store)?;
        let (mut pages, mut recent) = (Vec::new(), Vec::new());
        self.keep_before(step, &self.manifest.pages, &mut pages, &mut recent)?;
        recent.extend(self.manifest.recent.iter().filter(|entry| entry.step < step).cloned());
        let manifest = &mut self.manifest;
        (manifest.pages, manifest.recent) = (pages, recent);
        manifest.totals = manifest.totals.minus(&branch.totals);
        // Branches that forked from the main line at these steps now fork from the new branch.
        for other in &mut manifest.branches {
            if other.parent.is_none() && other.fork.is_some_and(|other| fork.is_none_or(|fork| other > fork))
            {
                other.parent = Some(name.clone());
            }
        }
        manifest.branches.push(branch.clone());
        Ok(branch)
    }

    /// The pages that have only steps before `step`, and the earlier entries of the page that has
    /// both.
    fn keep_before(
        &self,
        step: u64,
        of: &[PageReference],
        pages: &mut Vec<PageReference>,
        recent: &mut Vec<StepEntry>,
    ) -> Result<()> {
        for reference in of.iter().filter(|page| page.first < step) {
            if reference.last < step {
                pages.push(reference.clone());
                continue;
            }
            match &*self.page(reference)? {
                Page::Entries(entries) => {
                    recent.extend(entries.iter().filter(|entry| entry.step < step).cloned());
                }
                Page::Pages(below) => self.keep_before(step, below, pages, recent)?,
            }
        }
        Ok(())
    }

    /// All entries, oldest first.
    pub(crate) fn all(&self) -> Result<Vec<StepEntry>> {
        self.last(usize::MAX)
    }

    /// Keys of all pages of the current line.
    pub(crate) fn page_keys(&self) -> Result<Vec<String>> {
        fn collect(catalog: &Catalog<'_>, pages: &[PageReference], keys: &mut Vec<String>) -> Result<()> {
            for reference in pages {
                keys.push(reference.key());
                if reference.level > 0
                    && let Page::Pages(below) = &*catalog.page(reference)?
                {
                    collect(catalog, below, keys)?;
                }
            }
            Ok(())
        }
        let mut keys = Vec::new();
        collect(self, self.line().0, &mut keys)?;
        Ok(keys)
    }

    /// The entries from a keyframe up to and including `entry`, all of which must be decoded for
    /// it.
    pub(crate) fn chain(&self, entry: &StepEntry) -> Result<Vec<StepEntry>> {
        let mut chain = vec![entry.clone()];
        let mut at = entry.clone();
        while let Some(reference) = at.reference {
            let missing =
                || Error::corrupt(format!("step {} needs step {reference}, which does not exist", at.step));
            let next = self.find_below(reference)?.ok_or_else(missing)?;
            if next.hops + 1 != at.hops {
                return Err(Error::corrupt(format!("step {} does not follow from its reference", at.step)));
            }
            chain.push(next.clone());
            at = next;
        }
        chain.reverse();
        Ok(chain)
    }
}
