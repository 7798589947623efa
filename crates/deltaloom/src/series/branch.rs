//! Branches of a series, as in docs/series.md: steps that were closed when the run went back before
//! them. Nothing is added to a branch. [`super::catalog`] finds the steps that it depends on.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::manifest::{MAX_LEVEL, Manifest, PageReference, StepEntry, Totals, check_pages, put_tree};
use super::store::Store;
use crate::error::{Error, Result};

/// Most branches of a series, so that the manifest stays small.
const MAX_BRANCHES: usize = 256;
const MAX_NAME_BYTES: usize = 64;

/// Closed steps, oldest first, in the pages below the root page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Branch {
    pub(crate) name: String,
    /// The branch with the steps up to the fork. Absent for the main line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// The last step before the branch. Absent if the branch begins with the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fork: Option<u64>,
    closed_unix: u64,
    pub(crate) totals: Totals,
    pub(crate) page: PageReference,
}

/// A branch as a whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BranchInfo {
    /// Its name.
    pub name: String,
    /// The branch from which it forks. Absent for the main line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The last step before it.
    pub fork: Option<u64>,
    /// Its first step.
    pub first: u64,
    /// Its last step.
    pub last: u64,
    /// When it was closed, in seconds since 1970.
    pub closed_unix: u64,
    /// Sums over its steps.
    pub totals: Totals,
}

impl Branch {
    /// Closes steps, at least one.
    pub(crate) fn close(
        name: String,
        parent: Option<String>,
        fork: Option<u64>,
        entries: &[StepEntry],
        store: &dyn Store,
    ) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let page = put_tree(store, entries)?;
        Ok(Self { name, parent, fork, closed_unix: now.as_secs(), totals: Totals::of(entries), page })
    }

    /// The same with other entries and another place.
    pub(crate) fn rebuilt(
        &self,
        parent: Option<String>,
        fork: Option<u64>,
        entries: &[StepEntry],
        store: &dyn Store,
    ) -> Result<Self> {
        let closed_unix = self.closed_unix;
        Ok(Self { closed_unix, ..Self::close(self.name.clone(), parent, fork, entries, store)? })
    }

    pub(crate) fn info(&self) -> BranchInfo {
        BranchInfo {
            name: self.name.clone(),
            parent: self.parent.clone(),
            fork: self.fork,
            first: self.page.first,
            last: self.page.last,
            closed_unix: self.closed_unix,
            totals: self.totals.clone(),
        }
    }
}

/// Checks the branches of a manifest. A parent comes after its children, so there are no cycles.
pub(super) fn check_branches(branches: &[Branch]) -> Result<()> {
    let fault =
        |what: &str| Err(Error::corrupt(format!("the branches of the manifest are not valid: {what}")));
    if branches.len() > MAX_BRANCHES {
        return fault("there are too many of them");
    }
    for (i, branch) in branches.iter().enumerate() {
        check_name(&branch.name).or_else(|_| fault("a name is not allowed"))?;
        check_pages(std::slice::from_ref(&branch.page), MAX_LEVEL)?;
        if branches[..i].iter().any(|other| other.name == branch.name) {
            return fault("two have the same name");
        }
        if branch.fork.is_some_and(|fork| fork >= branch.page.first)
            || branch.totals.steps != branch.page.count
        {
            return fault("steps are not in order");
        }
        let parent = branch.parent.as_ref();
        if parent.is_some_and(|parent| branches[i + 1..].iter().all(|other| other.name != *parent)) {
            return fault("one forks from a line that does not exist");
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.chars().all(is_plain) {
        return Ok(());
    }
    let what = format!(
        "a branch {name:?}: names have 1 to {MAX_NAME_BYTES} letters, digits, dots, underscores and hyphens"
    );
    Err(Error::InvalidArgument(what))
}

/// The name of a new branch: the requested one, or one derived from its fork.
pub(super) fn new_name(manifest: &Manifest, asked: Option<&str>, fork: Option<u64>) -> Result<String> {
    if manifest.branches.len() >= MAX_BRANCHES {
        let what = format!("a series has at most {MAX_BRANCHES} branches; prune some first");
        return Err(Error::InvalidArgument(what));
    }
    let is_taken = |name: &str| manifest.branches.iter().any(|branch| branch.name == name);
    if let Some(name) = asked {
        check_name(name)?;
        if is_taken(name) {
            return Err(Error::InvalidArgument(format!("branch {name:?} already exists")));
        }
        return Ok(name.to_owned());
    }
    let plain = fork.map_or_else(|| "from-start".to_owned(), |fork| format!("after-{fork}"));
    let numbered = (2u32..).map(|number| format!("{plain}-{number}"));
    Ok(std::iter::once(plain.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(plain))
}
