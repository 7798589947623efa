//! The manifest of a series and its pages, as in docs/series.md: which steps exist, where they are,
//! and what each depends on.
//! It writes pages but reads none: [`super::catalog`] does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::branch::{Branch, check_branches};
use super::store::Store;
use crate::error::{Error, Result};
use crate::options::setters;

const FORMAT: &str = "deltaloom series";
/// The version of a series with branches. Without branches it is 1.
const VERSION: u32 = 2;
/// Entries, or references to pages of one level, that form a page. A page is written when there are
/// twice as many.
const PAGE_ENTRIES: usize = 32;
/// A larger page was not written by this library.
pub(super) const MAX_PAGE_BYTES: u64 = 16 << 20;
/// Levels of pages: 32^8 entries are more than any series has.
pub(super) const MAX_LEVEL: u32 = 8;
/// The largest possible `max_chain`.
pub(crate) const MAX_CHAIN: u32 = 256;

/// How the references of a series are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SeriesOptions {
    /// Maximum number of steps between keyframes.
    pub keyframe_every: u32,
    /// Maximum number of deltas to decode on top of a keyframe.
    pub max_chain: u32,
}

setters!(SeriesOptions {
    with_keyframe_every(keyframe_every: u32),
    with_max_chain(max_chain: u32),
});

impl Default for SeriesOptions {
    fn default() -> Self {
        Self { keyframe_every: 16, max_chain: 8 }
    }
}

impl SeriesOptions {
    pub(crate) fn check(&self) -> Result<()> {
        if self.keyframe_every == 0 {
            return Err(Error::InvalidArgument("keyframes must be at least 1 step apart".into()));
        }
        if self.max_chain == 0 || self.max_chain > MAX_CHAIN {
            return Err(Error::InvalidArgument(format!("a chain has 1 to {MAX_CHAIN} hops")));
        }
        Ok(())
    }
}

/// Whether a part of a step is a file or a directory, when it is added and restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartLayout {
    /// A single file.
    File,
    /// A directory.
    Directory,
}

/// The parts of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Parts {
    /// The model.
    pub model: PartLayout,
    /// The optimizer's state, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<PartLayout>,
}

/// One step of a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepEntry {
    /// Its number.
    pub step: u64,
    /// Number of steps that had been added before it.
    pub ordinal: u64,
    /// BLAKE3 of its container, in hexadecimal.
    pub object: String,
    /// Size of its container.
    pub stored_bytes: u64,
    /// BLAKE3 of the restored files, in hexadecimal.
    pub content: String,
    /// Size of its files.
    pub original_bytes: u64,
    /// The step that it was packed against. `None` for a keyframe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<u64>,
    /// Number of deltas to decode on top of its keyframe.
    pub hops: u32,
    /// Steps since the last keyframe.
    pub since_keyframe: u32,
    /// Share of weights that differ from the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_fraction: Option<f64>,
    /// The same of each tensor of weights whose prediction is computed, so that the index of its
    /// container does not tell, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed_of_computed: Vec<Option<f64>>,
    /// Weights that are NaN or infinite.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nonfinite_weights: u64,
    /// Matrices that have a single value, but had several at the step that it was compared with.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub constant_matrices: u64,
    /// Its parts.
    pub parts: Parts,
    /// Text by name, as given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// When it was added, in seconds since 1970.
    pub added_unix: u64,
    /// How long adding it took.
    pub seconds: f64,
}

impl StepEntry {
    /// Key of its container in the store.
    #[must_use]
    pub fn key(&self) -> String {
        object_key(&self.object)
    }

    /// Whether it is a keyframe, which needs no other step.
    #[must_use]
    pub fn is_keyframe(&self) -> bool {
        self.reference.is_none()
    }

    /// Uses the container of another entry with the same content, and the steps that it needs.
    pub(crate) fn rest_on(&mut self, packed: &Self) {
        self.object.clone_from(&packed.object);
        self.stored_bytes = packed.stored_bytes;
        self.reference = packed.reference;
        self.hops = packed.hops;
        self.changed_fraction = packed.changed_fraction;
        self.changed_of_computed.clone_from(&packed.changed_of_computed);
    }

    /// Size of its files over that of its container.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        crate::summary::ratio(self.original_bytes, self.stored_bytes)
    }

    /// A text of it as a number, if it is a finite one.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.meta.get(name)?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// All texts of it that are finite numbers.
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let metric = |name: &String| Some((name.clone(), self.metric(name)?));
        self.meta.keys().filter_map(metric).collect()
    }

    /// Whether its weights show nothing unusual.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.nonfinite_weights == 0 && self.constant_matrices == 0
    }

    fn check(&self) -> Result<()> {
        check_digest(&self.object)?;
        check_digest(&self.content)?;
        let is_chained = match self.reference {
            None => self.hops == 0,
            Some(reference) => reference < self.step && (1..=MAX_CHAIN).contains(&self.hops),
        };
        let fault = || Error::corrupt(format!("step {} does not follow from its reference", self.step));
        if is_chained { Ok(()) } else { Err(fault()) }
    }
}

pub(super) fn is_zero(count: &u64) -> bool {
    *count == 0
}

pub(crate) fn object_key(object: &str) -> String {
    format!("objects/{}/{object}.loom", &object[..2])
}

fn check_digest(hex: &str) -> Result<()> {
    let is_digest = hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
    if is_digest { Ok(()) } else { Err(Error::corrupt("a digest is not 64 hexadecimal digits")) }
}

/// Sums over all entries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Totals {
    /// Entries.
    pub steps: u64,
    /// Size of all files.
    pub original_bytes: u64,
    /// Size of all containers.
    pub stored_bytes: u64,
    /// Number of keyframes among them.
    pub keyframes: u64,
    /// Size of the keyframes' files.
    pub keyframe_original_bytes: u64,
    /// Size of the keyframes' containers.
    pub keyframe_bytes: u64,
    /// Sum of the ratios of the steps that are not keyframes.
    pub ratio_sum: f64,
}

impl Totals {
    pub(super) fn of(entries: &[StepEntry]) -> Self {
        let mut totals = Self::default();
        entries.iter().for_each(|entry| totals.add(entry));
        totals
    }

    /// The sums without the given ones, which are part of them.
    pub(super) fn minus(&self, other: &Self) -> Self {
        Self {
            steps: self.steps.saturating_sub(other.steps),
            original_bytes: self.original_bytes.saturating_sub(other.original_bytes),
            stored_bytes: self.stored_bytes.saturating_sub(other.stored_bytes),
            keyframes: self.keyframes.saturating_sub(other.keyframes),
            keyframe_original_bytes: self
                .keyframe_original_bytes
                .saturating_sub(other.keyframe_original_bytes),
            keyframe_bytes: self.keyframe_bytes.saturating_sub(other.keyframe_bytes),
            ratio_sum: self.ratio_sum - other.ratio_sum,
        }
    }

    fn add(&mut self, entry: &StepEntry) {
        self.steps += 1;
        self.original_bytes = self.original_bytes.saturating_add(entry.original_bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(entry.stored_bytes);
        if entry.is_keyframe() {
            self.keyframes += 1;
            self.keyframe_original_bytes = self.keyframe_original_bytes.saturating_add(entry.original_bytes);
            self.keyframe_bytes = self.keyframe_bytes.saturating_add(entry.stored_bytes);
        } else {
            self.ratio_sum += entry.ratio();
        }
    }

    /// Size of all files over that of all containers.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        crate::summary::ratio(self.original_bytes, self.stored_bytes)
    }

    /// The same without keyframes, if there are other steps.
    #[must_use]
    pub fn delta_ratio(&self) -> Option<f64> {
        let original = self.original_bytes.saturating_sub(self.keyframe_original_bytes);
        let stored = self.stored_bytes.saturating_sub(self.keyframe_bytes);
        (stored > 0).then(|| crate::summary::ratio(original, stored))
    }

    /// Mean of the ratios of the steps that are not keyframes, if there are any.
    #[must_use]
    pub fn mean_delta_ratio(&self) -> Option<f64> {
        let deltas = self.steps.saturating_sub(self.keyframes);
        (deltas > 0).then(|| self.ratio_sum / deltas as f64)
    }
}

/// A reference to entries in a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PageReference {
    pub(super) page: String,
    pub(super) level: u32,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) count: u64,
    last_ordinal: u64,
}

impl PageReference {
    /// Writes a page of entries or page references, at least one, and returns a reference to it.
    fn put(store: &dyn Store, page: &Page) -> Result<Self> {
        let name = put_page(store, page)?;
        let empty = || Error::InvalidArgument("a manifest page without entries".to_owned());
        Ok(match page {
            Page::Entries(entries) => {
                let (begin, end) = entries.first().zip(entries.last()).ok_or_else(empty)?;
                Self {
                    page: name,
                    level: 0,
                    first: begin.step,
                    last: end.step,
                    count: entries.len() as u64,
                    last_ordinal: end.ordinal,
                }
            }
            Page::Pages(pages) => {
                let (begin, end) = pages.first().zip(pages.last()).ok_or_else(empty)?;
                Self {
                    page: name,
                    level: begin.level + 1,
                    first: begin.first,
                    last: end.last,
                    count: pages.iter().map(|page| page.count).sum(),
                    last_ordinal: end.last_ordinal,
                }
            }
        })
    }

    pub(super) fn key(&self) -> String {
        page_key(&self.page)
    }
}

fn page_key(page: &str) -> String {
    format!("pages/{page}.json")
}

/// An object with entries, or with references to pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Page {
    Entries(Vec<StepEntry>),
    Pages(Vec<PageReference>),
}

impl Page {
    /// Reads and checks a page of the given level.
    pub(super) fn parse(bytes: &[u8], level: u32) -> Result<Self> {
        let page =
            serde_json::from_slice(bytes).map_err(|e| Error::corrupt(format!("a manifest page: {e}")))?;
        match (&page, level.checked_sub(1)) {
            (Self::Entries(entries), None) => check_entries(entries)?,
            (Self::Pages(pages), Some(level)) => check_pages(pages, level)?,
            _ => return Err(Error::corrupt("a manifest page has the wrong level")),
        }
        Ok(page)
    }
}

/// The root object of a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: String,
    version: u32,
    pub(crate) options: SeriesOptions,
    generation: u64,
    pub(crate) totals: Totals,
    pub(super) pages: Vec<PageReference>,
    pub(super) recent: Vec<StepEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) branches: Vec<Branch>,
}

impl Manifest {
    pub(crate) fn new(options: SeriesOptions) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: 1,
            options,
            generation: 0,
            totals: Totals::default(),
            pages: Vec::new(),
            recent: Vec::new(),
            branches: Vec::new(),
        }
    }

    /// Reads and checks a manifest.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        /// The fields of every version.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let bad = |e: serde_json::Error| Error::corrupt(format!("the manifest: {e}"));
        let head: Head = serde_json::from_slice(bytes).map_err(bad)?;
        if head.format != FORMAT {
            return Err(Error::corrupt(format!("the manifest has the unknown format {:?}", head.format)));
        }
        if head.version > VERSION {
            return Err(Error::UnsupportedSeries { found: head.version });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(bad)?;
        manifest.options.check()?;
        check_entries(&manifest.recent)?;
        check_pages(&manifest.pages, MAX_LEVEL)?;
        let ends = manifest.pages.last().map(|page| page.last).zip(manifest.recent.first());
        if ends.is_some_and(|(last, first)| last >= first.step) {
            return Err(Error::corrupt("the steps of the manifest are not in order"));
        }
        if manifest.version == 1 && !manifest.branches.is_empty() {
            return Err(Error::corrupt("a series of version 1 has no branches"));
        }
        check_branches(&manifest.branches)?;
        Ok(manifest)
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        // Programs that do not know branches must not write to a series that has some.
        let version = if self.branches.is_empty() { 1 } else { VERSION };
        to_json(&Self { version, ..self.clone() })
    }

    pub(crate) fn newest(&self) -> Option<&StepEntry> {
        self.recent.last()
    }

    /// The ordinal of the next entry.
    pub(crate) fn next_ordinal(&self) -> u64 {
        let last = self.newest().map(|entry| entry.ordinal);
        last.or(self.pages.last().map(|page| page.last_ordinal)).map_or(0, |last| last + 1)
    }

    /// Adds an entry, and writes the pages that it completes.
    pub(crate) fn push(&mut self, entry: StepEntry, store: &dyn Store) -> Result<()> {
        self.totals.add(&entry);
        self.recent.push(entry);
        if self.recent.len() < 2 * PAGE_ENTRIES {
            return Ok(());
        }
        let older: Vec<StepEntry> = self.recent.drain(..PAGE_ENTRIES).collect();
        self.pages.push(PageReference::put(store, &Page::Entries(older))?);
        for level in 0..MAX_LEVEL {
            let is_of_level = |page: &&PageReference| page.level == level;
            if self.pages.iter().filter(is_of_level).count() < 2 * PAGE_ENTRIES {
                break;
            }
            let start = self.pages.iter().position(|page| page.level == level).unwrap_or(0);
            let older = self.pages[start..start + PAGE_ENTRIES].to_vec();
            let reference = PageReference::put(store, &Page::Pages(older))?;
            self.pages.splice(start..start + PAGE_ENTRIES, [reference]);
        }
        Ok(())
    }

    /// Size of the containers of all steps, including branches.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let branches = self.branches.iter().map(|branch| branch.totals.stored_bytes);
        branches.fold(self.totals.stored_bytes, u64::saturating_add)
    }

    pub(crate) fn next_generation(&mut self) {
        self.generation += 1;
    }

    /// The same series with other entries.
    pub(crate) fn rebuilt(
        &self,
        entries: Vec<StepEntry>,
        options: &SeriesOptions,
        branches: Vec<Branch>,
        store: &dyn Store,
    ) -> Result<Self> {
        let mut manifest = Self { generation: self.generation, branches, ..Self::new(options.clone()) };
        entries.into_iter().try_for_each(|entry| manifest.push(entry, store))?;
        Ok(manifest)
    }
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::InvalidArgument(format!("the manifest: {e}")))
}

pub(super) fn put_page(store: &dyn Store, page: &Page) -> Result<String> {
    let bytes = to_json(page)?;
    let name = blake3::hash(&bytes).to_hex().to_string();
    store.put(&page_key(&name), &bytes)?;
    Ok(name)
}

/// Writes entries, at least one, as a tree of pages, and returns its root.
pub(super) fn put_tree(store: &dyn Store, entries: &[StepEntry]) -> Result<PageReference> {
    let pages =
        entries.chunks(PAGE_ENTRIES).map(|page| PageReference::put(store, &Page::Entries(page.to_vec())));
    let mut pages = pages.collect::<Result<Vec<_>>>()?;
    while pages.len() > 1 {
        let above =
            pages.chunks(PAGE_ENTRIES).map(|page| PageReference::put(store, &Page::Pages(page.to_vec())));
        pages = above.collect::<Result<_>>()?;
    }
    pages.pop().ok_or_else(|| Error::InvalidArgument("a branch without steps".to_owned()))
}

fn check_entries(entries: &[StepEntry]) -> Result<()> {
    entries.iter().try_for_each(StepEntry::check)?;
    if !entries.is_sorted_by(|a, b| a.step < b.step && a.ordinal < b.ordinal) {
        return Err(Error::corrupt("the steps of the manifest are not in order"));
    }
    Ok(())
}

pub(super) fn check_pages(pages: &[PageReference], max_level: u32) -> Result<()> {
    pages.iter().try_for_each(|page| check_digest(&page.page))?;
    if !pages.iter().all(|page| page.first <= page.last && page.level <= max_level)
        || !pages.is_sorted_by(|a, b| a.last < b.first)
    {
        return Err(Error::corrupt("the pages of the manifest are not in order"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::Directory;
    use super::super::catalog::Catalog;
    use super::*;

    pub(crate) fn entry(step: u64, reference: Option<u64>, hops: u32, since_keyframe: u32) -> StepEntry {
        StepEntry {
            step,
            ordinal: step,
            object: blake3::hash(&step.to_le_bytes()).to_hex().to_string(),
            stored_bytes: 10,
            content: blake3::hash(b"content").to_hex().to_string(),
            original_bytes: 100,
            reference,
            hops,
            since_keyframe,
            changed_fraction: None,
            changed_of_computed: Vec::new(),
            nonfinite_weights: 0,
            constant_matrices: 0,
            parts: Parts { model: PartLayout::File, optimizer: None },
            meta: BTreeMap::from([("loss".to_owned(), format!("{step}.5"))]),
            added_unix: 0,
            seconds: 0.0,
        }
    }

    #[test]
    fn every_entry_is_found_with_few_pages_and_a_small_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::new(folder.path());
        let mut manifest = Manifest::new(SeriesOptions::default());
        let count = 3_000;
        let mut largest = 0;
        for step in 0..count {
            manifest.push(entry(2 * step, None, 0, 0), &store).unwrap();
            if step % 100 == 99 {
                largest = largest.max(manifest.to_bytes().unwrap().len());
            }
        }
        assert!(largest < 50_000, "{largest}");
        assert!(store.replace_manifest(&manifest.to_bytes().unwrap(), None).unwrap());
        let catalog = Catalog::open(&store).unwrap();
        assert_eq!(catalog.manifest, manifest);
        assert_eq!(catalog.manifest.next_ordinal(), 2 * (count - 1) + 1);
        for step in [0, 1, 62, 64, 66, 2_048, 5_998] {
            assert_eq!(catalog.find(2 * step).unwrap().is_some(), step < count);
            assert!(catalog.find(2 * step + 1).unwrap().is_none());
        }
        let last: Vec<u64> = catalog.last(100).unwrap().iter().map(|entry| entry.step).collect();
        assert_eq!(last, (count - 100..count).map(|step| 2 * step).collect::<Vec<_>>());
        assert_eq!(catalog.all().unwrap().len() as u64, count);
        assert_eq!(catalog.manifest.totals.steps, count);
        let keys = catalog.page_keys().unwrap();
        assert!(keys.iter().all(|key| store.len_bytes(key).unwrap().is_some()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let bytes = Manifest::new(SeriesOptions::default()).to_bytes().unwrap();
        let text = String::from_utf8(bytes).unwrap();
        Manifest::parse(text.as_bytes()).unwrap();
        let newer = text.replace("\"version\":1", "\"version\":3");
        assert!(matches!(Manifest::parse(newer.as_bytes()), Err(Error::UnsupportedSeries { found: 3 })));
        for (from, to) in [("deltaloom series", "other"), ("\"max_chain\":8", "\"max_chain\":0"), ("{", "[")]
        {
            assert!(Manifest::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
        let mut manifest = Manifest::new(SeriesOptions::default());
        manifest.recent = vec![entry(2, None, 0, 0), entry(1, None, 0, 0)];
        assert!(Manifest::parse(&manifest.to_bytes().unwrap()).is_err());
        manifest.recent = vec![entry(2, Some(2), 1, 1)];
        assert!(Manifest::parse(&manifest.to_bytes().unwrap()).is_err());
        let outside = StepEntry { object: "../".repeat(21) + "a", ..entry(1, None, 0, 0) };
        manifest.recent = vec![outside];
        assert!(Manifest::parse(&manifest.to_bytes().unwrap()).is_err());
    }
}
