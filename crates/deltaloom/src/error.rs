//! The library's one error type, grouped by who must act: the environment, the file, the base, or
//! the caller. It gives no advice: a program knows its own options, and chooses by [`Error::kind`]
//! and the variants.

use std::io;
use std::path::{Path, PathBuf};

use deltaloom_kernels::DecodeError;

use crate::foreign::{Foreign, Wanted};

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was being done with a file when the system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Looking for it, opening it or reading it.
    Read,
    /// Creating, writing, renaming or removing it.
    Write,
}

/// What was looked for by a name that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// A tensor of a container or checkpoint.
    Tensor,
    /// A step of a series, or a part of one.
    Step,
    /// An object of a store.
    Object,
    /// A layer, or a matrix of it.
    Layer,
    /// A fine-tune of a family.
    Tenant,
}

/// An error in one word, for programs that must act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A request that cannot be carried out as given.
    Usage,
    /// A file or object is not there.
    NotFound,
    /// A file is there and cannot be read.
    Unreadable,
    /// A file cannot be written.
    CannotWrite,
    /// The disk, or the quota or limit of the user, is full.
    DiskFull,
    /// A name inside a file or series does not exist: a tensor, a step.
    NoSuchName,
    /// Bytes break their format or do not match their digest.
    Corrupt,
    /// A file ends too early.
    Truncated,
    /// A version, or a kind of file, that cannot be read.
    Unsupported,
    /// A size is above a limit.
    LimitExceeded,
    /// The bases at hand are not those that are needed.
    WrongBase,
    /// No candidate is similar enough to serve as a base.
    NoUsefulBase,
    /// The target exists.
    Exists,
    /// The target must not be replaced.
    Protected,
    /// A file changed while it was read.
    Changed,
    /// An in-place change began and did not finish.
    Unfinished,
    /// The series has this step already, or a later one.
    StepTaken,
    /// A checkpoint is not like the step before it.
    StepDiffers,
    /// The caller asked to stop.
    Interrupted,
}

impl ErrorKind {
    /// Its name in reports of programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Unreadable => "unreadable",
            Self::CannotWrite => "cannot_write",
            Self::DiskFull => "disk_full",
            Self::NoSuchName => "no_such_name",
            Self::Corrupt => "corrupt",
            Self::Truncated => "truncated",
            Self::Unsupported => "unsupported",
            Self::LimitExceeded => "limit_exceeded",
            Self::WrongBase => "wrong_base",
            Self::NoUsefulBase => "no_useful_base",
            Self::Exists => "exists",
            Self::Protected => "protected",
            Self::Changed => "changed",
            Self::Unfinished => "unfinished",
            Self::StepTaken => "step_taken",
            Self::StepDiffers => "step_differs",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory concerned.
        path: PathBuf,
        /// Whether it was to be read or written.
        access: Access,
        /// What the system said.
        source: io::Error,
    },
    /// Something is wrong in a file whose name is known.
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
        /// Offset in the file, where it is known.
        offset: Option<u64>,
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
    /// A container whose version this reader does not know.
    #[error("container version {found} is not supported")]
    UnsupportedVersion {
        /// Version in the file.
        found: u16,
    },
    /// A lossy step of a threshold method, where exact data is needed.
    #[error("this is a lossy step of a threshold method, from which nothing can be restored exactly")]
    Lossy,
    /// None of the bases holds a reference tensor.
    #[error(
        "{}no base has the reference of tensor {tensor:?}: expected BLAKE3 {expected}, {found}",
        needing(needed)
    )]
    BaseMismatch {
        /// Tensor that needs the reference.
        tensor: String,
        /// Digest of the reference.
        expected: String,
        /// What the bases have instead.
        found: String,
        /// The bases that the container names, with their digests. Empty if it names none.
        needed: String,
    },
    /// None of the candidates is similar enough to serve as a base.
    #[error("{}: no useful base (candidates: {candidates})", folder.display())]
    NoUsefulBase {
        /// The folder that was searched.
        folder: PathBuf,
        /// Number of candidates that were compared.
        candidates: usize,
    },
    /// A decoded tensor does not match its digest.
    #[error("tensor {tensor:?} does not match its digest: expected BLAKE3 {expected}, found {found}")]
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
        /// What kind of thing it is.
        kind: Missing,
        /// What was looked for.
        what: String,
    },
    /// The target exists and may not be replaced.
    #[error("{} exists", path.display())]
    AlreadyExists {
        /// The target.
        path: PathBuf,
    },
    /// The target must not be replaced, even with the permission to overwrite.
    #[error("{} {why}", path.display())]
    Protected {
        /// The target.
        path: PathBuf,
        /// What it is: a link, a device, an input file.
        why: String,
        /// Whether it is an input file.
        is_input: bool,
    },
    /// A file that another process changed while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A name of a file that not every system supports.
    #[error("{}: file names {why} are not supported", path.display())]
    UnsupportedName {
        /// The file.
        path: PathBuf,
        /// What the name has.
        why: &'static str,
    },
    /// A request that cannot be carried out as given.
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
    /// A file that other names lead to, so that others may be using it.
    #[error("{} {how}", path.display())]
    SharedFile {
        /// The file.
        path: PathBuf,
        /// The other names: a link or hard links.
        how: &'static str,
    },
    /// An in-place change that began and did not finish. Running it again resumes it.
    #[error("{} is changed in part", path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// Why it ended early.
        source: Box<Error>,
    },
    /// A file that is changed in part, where it should be read.
    #[error("{}: a change in place was cut short: it is neither what it was nor what it was to become", path.display())]
    CutShort {
        /// The file.
        path: PathBuf,
    },
    /// A journal that does not belong to this operation.
    #[error("{}: {what}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A place without a series.
    #[error("{location}: there is no series here")]
    NotASeries {
        /// The folder or URL.
        location: String,
    },
    /// A series whose version this reader does not know.
    #[error("series version {found} is not supported")]
    UnsupportedSeries {
        /// Version in the manifest.
        found: u32,
    },
    /// The series already has this step, with other content.
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
    /// A store did not say whether it named a step that was added without a number. It may be
    /// there, or appear later.
    #[error("it is unknown whether step {step} was added: {source}")]
    StepUnknown {
        /// The number that it has, or would have.
        step: u64,
        /// What the store said.
        source: Box<Self>,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// A file of another kind than expected.
    #[error("this is {found}, not {wanted}")]
    Foreign {
        /// What it is.
        found: Foreign,
        /// What it should be.
        wanted: Wanted,
    },
    /// A file of a kind that can be read, but not this one.
    #[error("this is {found} that cannot be read: {why}")]
    Unread {
        /// What it is.
        found: Foreign,
        /// What is wrong with it, or needs more than is known.
        why: String,
    },
    /// A folder does not contain the bases of a container.
    #[error("{}: {} is not among its {candidates} candidates: none has the reference of tensor {tensor:?}{skipped}", folder.display(), if needed.is_empty() { "the base" } else { needed })]
    BaseNotFound {
        /// The folder that was searched.
        folder: PathBuf,
        /// The bases that the container names, with their digests. Empty if it names none.
        needed: String,
        /// A tensor whose reference was not found.
        tensor: String,
        /// Number of checkpoints and containers that were compared.
        candidates: usize,
        /// Which of them could not be read, and why. Empty if all could.
        skipped: String,
    },
    /// Pruning rules that keep nothing or name steps that do not exist.
    #[error("{what}")]
    KeepRule {
        /// Which rule, and which steps exist.
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

/// The start of a message about bases, if the bases have names.
fn needing(needed: &str) -> String {
    if needed.is_empty() { String::new() } else { format!("this container needs {needed}; ") }
}

impl Error {
    /// Bytes that are damaged or hostile; `what` says what is wrong with them.
    #[must_use]
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), offset: None }
    }

    pub(crate) fn corrupt_at(offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), offset: Some(offset) }
    }

    /// A thing that was named and is not there.
    #[must_use]
    pub fn not_found(kind: Missing, what: impl Into<String>) -> Self {
        Self::NotFound { kind, what: what.into() }
    }

    /// For a failure while looking for or reading a file.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, access: Access::Read, source }
    }

    /// For a failure while writing a file.
    pub fn writing(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, access: Access::Write, source }
    }

    /// The same error, with the file that it is about.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Io { .. }
            | Self::InFile { .. }
            | Self::Cancelled
            | Self::AlreadyExists { .. }
            | Self::Changed { .. }
            | Self::CutShort { .. }
            | Self::Protected { .. }
            | Self::UnsupportedName { .. }
            | Self::NotInPlace { .. } => self,
            other => Self::InFile { path: path.to_path_buf(), source: Box::new(other) },
        }
    }

    /// The same error with the name of the writer's file, which the writer did not know.
    pub(crate) fn of_writer(self, name: &Path) -> Self {
        match self {
            Self::Io { path, access, source } if path.as_os_str().is_empty() => {
                Self::Io { path: name.to_path_buf(), access, source }
            }
            other => other,
        }
    }

    /// What is wrong, without the name of the file.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::InFile { source, .. } => source.detail(),
            other => other.to_string(),
        }
    }

    /// The error in words, with the file that it is about.
    #[must_use]
    pub fn with_path(&self) -> String {
        match self {
            Self::InFile { path, source } => format!("{}: {}", path.display(), source.detail()),
            other => other.to_string(),
        }
    }

    /// The error in one word.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { access, source, .. } => io_kind(*access, source.kind()),
            Self::InFile { source, .. } | Self::StepUnknown { source, .. } => source.kind(),
            // The cause says who must act; the hint says that running again resumes the change.
            Self::Unfinished { source, .. } => match source.kind() {
                ErrorKind::Corrupt => ErrorKind::Unfinished,
                why => why,
            },
            Self::Corrupt { .. } | Self::DigestMismatch { .. } => ErrorKind::Corrupt,
            Self::Truncated { .. } => ErrorKind::Truncated,
            Self::UnsupportedVersion { .. } | Self::UnsupportedSeries { .. } | Self::Lossy => {
                ErrorKind::Unsupported
            }
            Self::BaseMismatch { .. } => ErrorKind::WrongBase,
            Self::BaseNotFound { .. } => ErrorKind::NotFound,
            Self::NoUsefulBase { .. } => ErrorKind::NoUsefulBase,
            Self::NotFound { kind: Missing::Object, .. } | Self::NotASeries { .. } => ErrorKind::NotFound,
            Self::NotFound { .. } => ErrorKind::NoSuchName,
            Self::AlreadyExists { .. } => ErrorKind::Exists,
            Self::Protected { .. } | Self::NotInPlace { .. } | Self::SharedFile { .. } => {
                ErrorKind::Protected
            }
            Self::Changed { .. } => ErrorKind::Changed,
            Self::Foreign { .. } | Self::Unread { .. } => ErrorKind::Unsupported,
            Self::InvalidArgument(_) | Self::UnsupportedName { .. } => ErrorKind::Usage,
            Self::LimitExceeded { .. } => ErrorKind::LimitExceeded,
            Self::Journal { .. } | Self::CutShort { .. } => ErrorKind::Unfinished,
            Self::StepTaken { .. } | Self::StepOutOfOrder { .. } => ErrorKind::StepTaken,
            Self::KeepRule { .. } => ErrorKind::Usage,
            Self::StepDiffers { .. } => ErrorKind::StepDiffers,
            Self::Cancelled => ErrorKind::Interrupted,
        }
    }

    /// The file that the error is about, if any.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. }
            | Self::InFile { path, .. }
            | Self::AlreadyExists { path }
            | Self::Protected { path, .. }
            | Self::Changed { path }
            | Self::UnsupportedName { path, .. }
            | Self::CutShort { path }
            | Self::NotInPlace { path, .. }
            | Self::SharedFile { path, .. }
            | Self::Unfinished { path, .. }
            | Self::Journal { path, .. } => Some(path),
            Self::NoUsefulBase { folder, .. } | Self::BaseNotFound { folder, .. } => Some(folder),
            Self::StepUnknown { source, .. } => return source.path(),
            _ => None,
        }
        .filter(|path| !path.as_os_str().is_empty())
        .map(PathBuf::as_path)
    }

    /// The tensor that the error is about, if any.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Self::InFile { source, .. } | Self::Unfinished { source, .. } => source.tensor(),
            Self::BaseMismatch { tensor, .. }
            | Self::BaseNotFound { tensor, .. }
            | Self::DigestMismatch { tensor, .. } => Some(tensor),
            _ => None,
        }
    }
}

fn io_kind(access: Access, kind: io::ErrorKind) -> ErrorKind {
    use io::ErrorKind as Io;
    match (kind, access) {
        (Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge, _) => ErrorKind::DiskFull,
        (Io::ReadOnlyFilesystem, _) | (_, Access::Write) => ErrorKind::CannotWrite,
        (Io::NotFound | Io::NotADirectory, Access::Read) => ErrorKind::NotFound,
        // A pipe, a device or a folder where a regular file is needed.
        (Io::InvalidInput | Io::IsADirectory, Access::Read) => ErrorKind::Unsupported,
        (_, Access::Read) => ErrorKind::Unreadable,
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
