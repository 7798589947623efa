//! Branches of a series: steps that were closed when the run went back before them, as
//! docs/series.md has them. A branch is never added to; what it rests on is found by
//! [`super::catalog`].

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::manifest::{MAX_LEVEL, Manifest, PageReference, StepEntry, Totals, check_pages, put_tree};
use super::store::Store;
use crate::error::{Error, Result};

/// Branches that a series may have: the manifest stays small.
const MAX_BRANCHES: usize = 256;
const MAX_NAME_BYTES: usize = 64;

/// Steps that were closed, oldest first in the pages below one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Branch {
    pub(crate) name: String,
    /// The branch on which the steps up to the fork are; the main line where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// The last step before the branch; absent where it begins with the first one.
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
    /// The branch that it leaves; the main line where it is absent.
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
    /// Closes steps, of which there is at least one.
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

/// Checks what a manifest says of its branches. A parent comes after its children: so nothing leads
/// in a circle.
pub(super) fn check_branches(branches: &[Branch]) -> Result<()> {
    let fault = |what: &str| Err(Error::corrupt(format!("the branches of the manifest: {what}")));
    if branches.len() > MAX_BRANCHES {
        return fault("there are too many");
    }
    for (i, branch) in branches.iter().enumerate() {
        check_name(&branch.name).or_else(|_| fault("a name"))?;
        check_pages(std::slice::from_ref(&branch.page), MAX_LEVEL)?;
        if branches[..i].iter().any(|other| other.name == branch.name) {
            return fault("two have one name");
        }
        if branch.fork.is_some_and(|fork| fork >= branch.page.first)
            || branch.totals.steps != branch.page.count
        {
            return fault("steps are not in order");
        }
        let parent = branch.parent.as_ref();
        if parent.is_some_and(|parent| branches[i + 1..].iter().all(|other| other.name != *parent)) {
            return fault("one leaves what is not there");
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

/// The name that a new branch gets: the one that was asked for, or one after its fork.
pub(super) fn new_name(manifest: &Manifest, asked: Option<&str>, fork: Option<u64>) -> Result<String> {
    if manifest.branches.len() >= MAX_BRANCHES {
        let what = format!("a series has at most {MAX_BRANCHES} branches; prune some first");
        return Err(Error::InvalidArgument(what));
    }
    let is_taken = |name: &str| manifest.branches.iter().any(|branch| branch.name == name);
    if let Some(name) = asked {
        check_name(name)?;
        if is_taken(name) {
            return Err(Error::InvalidArgument(format!("there is a branch {name:?} already")));
        }
        return Ok(name.to_owned());
    }
    let plain = fork.map_or_else(|| "from-start".to_owned(), |fork| format!("after-{fork}"));
    let numbered = (2u32..).map(|number| format!("{plain}-{number}"));
    Ok(std::iter::once(plain.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(plain))
}
