//! The library's one error type, grouped by who must act: the environment, the file, the base, or the caller.
//! It prints no hints on standard error itself; programs do, from [`Error::hint`].

use std::io;
use std::path::{Path, PathBuf};

use deltaloom_kernels::DecodeError;

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something is wrong in a named file.
    #[error("{}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },
    /// Bytes that break their format.
    #[error("corrupt: {what}")]
    Corrupt {
        /// Which rule is broken, and where.
        what: String,
    },
    /// A file that ends too early.
    #[error("truncated: {what} needs {needed} bytes, {available} are there")]
    Truncated {
        /// What does not fit.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// A container of a version that this reader does not know.
    #[error("container version {found} is not supported")]
    UnsupportedVersion {
        /// Version in the file.
        found: u16,
    },
    /// A step of a lossy threshold method where something exact is wanted.
    #[error("this is a lossy step of a threshold method, from which nothing can be restored exactly")]
    Lossy,
    /// The bases at hand do not hold a reference tensor.
    #[error("no base has the reference of tensor {tensor:?}: expected BLAKE3 {expected}, {found}")]
    BaseMismatch {
        /// Tensor that needs the reference.
        tensor: String,
        /// Digest of the reference.
        expected: String,
        /// What the bases have instead.
        found: String,
    },
    /// None of many checkpoints is near enough to be a base.
    #[error("{}: no useful base (candidates: {candidates})", folder.display())]
    NoUsefulBase {
        /// Where they were looked for.
        folder: PathBuf,
        /// How many could be compared.
        candidates: usize,
    },
    /// A decoded tensor is not what was packed.
    #[error("tensor {tensor:?} does not have its digest: expected BLAKE3 {expected}, found {found}")]
    DigestMismatch {
        /// The tensor.
        tensor: String,
        /// Digest in the index.
        expected: String,
        /// Digest of what was decoded.
        found: String,
    },
    /// A name that does not exist.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The target exists and may not be replaced.
    #[error("{} exists", path.display())]
    AlreadyExists {
        /// The target.
        path: PathBuf,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// A size beyond [`crate::Limits`].
    #[error("{what} is {found}, the limit is {limit}")]
    LimitExceeded {
        /// Which size.
        what: &'static str,
        /// The size.
        found: u64,
        /// Its limit.
        limit: u64,
    },
    /// A file that cannot be changed in place.
    #[error("{} cannot be changed in place: {why}", path.display())]
    NotInPlace {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A file that may be in use under another name.
    #[error("{} {how}", path.display())]
    SharedFile {
        /// The file.
        path: PathBuf,
        /// Under which.
        how: &'static str,
    },
    /// A change in place that began and did not end; it can go on.
    #[error("{} is changed in part", path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// Why it ended early.
        source: Box<Error>,
    },
    /// A journal that does not fit what is being done.
    #[error("{}: {what}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A place that holds no series.
    #[error("{location}: there is no series here")]
    NotASeries {
        /// The folder or URL.
        location: String,
    },
    /// A series of a version that this reader does not know.
    #[error("series version {found} is not supported")]
    UnsupportedSeries {
        /// Version in the manifest.
        found: u32,
    },
    /// Another checkpoint has this step already.
    #[error("step {step} is in the series with other content")]
    StepTaken {
        /// The step.
        step: u64,
    },
    /// A step before the newest one.
    #[error("step {step} is before the newest step {newest}")]
    StepOutOfOrder {
        /// The step.
        step: u64,
        /// The last one in the series.
        newest: u64,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// Rules of pruning that keep nothing, or name what is not there.
    #[error("{what}")]
    KeepRule {
        /// Which, and what is there.
        what: String,
    },
    /// A checkpoint whose tensors are not those of the step before.
    #[error("the checkpoint is not like step {newest}, the newest one: {difference}")]
    StepDiffers {
        /// The step it was compared with.
        newest: u64,
        /// How many tensors differ, and their share of the bytes.
        difference: String,
    },
}

impl Error {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }

    /// The same error, said of a file.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Io { .. }
            | Self::InFile { .. }
            | Self::Cancelled
            | Self::AlreadyExists { .. }
            | Self::NotInPlace { .. } => self,
            other => Self::InFile { path: path.to_path_buf(), source: Box::new(other) },
        }
    }

    /// What is wrong, without the file in which it is.
    pub(crate) fn detail(&self) -> String {
        match self {
            Self::InFile { source, .. } => source.detail(),
            other => other.to_string(),
        }
    }

    /// What the user can do about it, where something can be said.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::InFile { source, .. } => source.hint(),
            Self::BaseMismatch { .. } => Some(
                "give every base that the file was packed against with --base; `deltaloom inspect --json` names their tensors",
            ),
            Self::NoUsefulBase { .. } => {
                Some("leave --base-dir out to pack it on its own, or give a base of your choice with --base")
            }
            Self::AlreadyExists { .. } => Some("give --overwrite to replace it"),
            Self::NotInPlace { .. } => Some("unpack to a new file with --output"),
            Self::SharedFile { .. } => Some(
                "a shared cache may rely on it: copy it first, or give --overwrite to change it all the same",
            ),
            Self::Unfinished { source, .. } if matches!(**source, Self::Io { .. } | Self::Cancelled) => {
                Some("run the same command again: the journal beside the file lets it go on where it stopped")
            }
            Self::Unfinished { .. } => Some(
                "nothing leads on from here: put the original file back, delete the journal and start anew",
            ),
            Self::Journal { .. } => Some(
                "run again the very command that left the journal; or put the original file back, delete the journal and start anew",
            ),
            Self::NotASeries { .. } => Some("`deltaloom series init` makes one"),
            Self::StepTaken { .. } => Some(
                "nothing was changed; give it another --step, or where the run went back, --rewind: later steps become a branch",
            ),
            Self::StepOutOfOrder { .. } => Some(
                "steps are added in order; where the run went back, give --rewind: later steps become a branch",
            ),
            Self::KeepRule { .. } => Some(
                "nothing was changed; `deltaloom series log --all` lists the steps with their text, and `last 1` keeps only the newest",
            ),
            Self::StepDiffers { .. } => {
                Some("nothing was stored; if it is the right checkpoint, give --force")
            }
            Self::UnsupportedVersion { .. } | Self::UnsupportedSeries { .. } => {
                Some("a newer deltaloom wrote this file; update to read it")
            }
            Self::Lossy => Some(
                "`deltaloom lab tpde --verify` checks the folder that it is in; no other command reads it",
            ),
            Self::Truncated { .. } => Some("the file was cut off; copy or download it again"),
            Self::NotFound { .. } => Some(
                "`deltaloom inspect --tensors` lists the tensors of a container, `deltaloom series ls --all` the steps of a series",
            ),
            Self::Corrupt { .. } | Self::DigestMismatch { .. } | Self::LimitExceeded { .. } => {
                Some("the file is damaged or not of this kind; compare it with its source")
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("the disk is full; nothing was written under the target's name")
            }
            _ => None,
        }
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::corrupt(match error {
            DecodeError::Truncated => "a chunk ends early",
            DecodeError::Trailing => "a chunk has bytes left over",
            DecodeError::BadSymbol => "a chunk has a symbol that its dtype does not have",
        })
    }
}
