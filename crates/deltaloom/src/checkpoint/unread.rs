//! Files of a checkpoint whose weights are not read, so that they are stored as plain bytes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::{Checkpoint, Contents, Member, ReadAt, archive, explain};
use crate::error::Error;
use crate::foreign::Foreign;
use crate::limits::Limits;

/// Files up to this size that hold no weights are not worth a message.
const SMALL_FILE_BYTES: u64 = 64 << 10;

/// A file of a checkpoint that is stored as it is, although it may hold weights.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnreadFile {
    /// Its path in the checkpoint.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its kind, if it can be told.
    pub kind: Option<Foreign>,
    /// Why it cannot be read, if its kind can be.
    pub why: Option<String>,
}

/// All such files of a checkpoint together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unread {
    /// How many.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
    /// Files of each known kind.
    pub kinds: BTreeMap<Foreign, usize>,
    /// Why files of a kind that can be read cannot be, by their paths.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Files whose weights are not read: weights in another format, and large files of any kind.
    #[must_use]
    pub fn unread_files(&self) -> Vec<UnreadFile> {
        let opaque =
            self.members.iter().zip(&self.sources).filter(|(member, _)| member.contents == Contents::Opaque);
        let unread = |(member, (path, source)): (&Member, &(PathBuf, Arc<dyn ReadAt>))| {
            let kind = explain::kind_of(&**source);
            // One that can be read has no tensors.
            let read = archive::read(&member.path, &**source, path, &Limits::default());
            let why = match read {
                Ok(Some(_)) => return None,
                Ok(None) => None,
                Err(Error::Unread { why, .. }) => Some(why),
                Err(fault) => Some(fault.detail()),
            };
            Some(UnreadFile { path: member.path.clone(), bytes: member.len_bytes(), kind, why })
        };
        let is_told = |file: &UnreadFile| match file.kind {
            // Tokenizers and the like.
            Some(Foreign::ShardIndex | Foreign::Json) => false,
            kind => file.bytes > SMALL_FILE_BYTES || kind.is_some_and(Foreign::is_weights),
        };
        opaque.filter_map(unread).filter(is_told).collect()
    }

    /// The same files, counted; `None` if there are none.
    #[must_use]
    pub fn unread(&self) -> Option<Unread> {
        let unread = self.unread_files();
        let mut kinds = BTreeMap::new();
        unread.iter().filter_map(|file| file.kind).for_each(|kind| *kinds.entry(kind).or_default() += 1);
        let (files, bytes) = (unread.len(), unread.iter().map(|file| file.bytes).sum());
        let reasons = unread.into_iter().filter_map(|file| Some((file.path, file.why?))).collect();
        (files > 0).then_some(Unread { files, bytes, kinds, reasons })
    }
}
