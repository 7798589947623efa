//! What the program answers when a command fails: the exit code, and the error for people and for
//! programs. The codes are those of docs/cli.md.

use std::io;
use std::process::ExitCode;

use deltaloom::{Error, ErrorKind};
use serde::Serialize;

use crate::{hints, signals, ui};

/// Refused: the command line, the base, the input or the target.
pub(crate) const REFUSED: u8 = 2;
/// A named file or object is not there, or cannot be read.
const NOT_THERE: u8 = 3;
/// Something cannot be written.
const CANNOT_WRITE: u8 = 4;
/// A store cannot be reached, or denies access.
#[cfg(feature = "object-store")]
const STORE: u8 = 5;

/// What `--json` prints instead of a result.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    error: &'a Failure,
}

/// An error, as the program tells it.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    kind: &'static str,
    message: String,
    hint: Option<String>,
    path: Option<String>,
    tensor: Option<String>,
    #[serde(skip)]
    code: u8,
}

impl Failure {
    /// A mistake on the command line.
    pub(crate) fn usage(message: String) -> Self {
        let hint = Some(hints::USAGE.to_owned());
        Self { kind: ErrorKind::Usage.name(), message, hint, path: None, tensor: None, code: REFUSED }
    }

    /// The user, or the system, asked to stop.
    pub(crate) fn interrupted() -> Self {
        Self::new(&Error::Cancelled.into())
    }

    pub(crate) fn new(error: &anyhow::Error) -> Self {
        let own_hint = error.downcast_ref::<ui::Hint>();
        let causes = error.chain().skip(usize::from(own_hint.is_some()));
        let mut causes: Vec<String> = causes.map(|cause| ui::printable(&cause.to_string())).collect();
        // Some messages name their source already; say it once.
        causes.dedup_by(|cause, before| before.ends_with(cause.as_str()));
        let ours = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
        let of_library_hint = || error.chain().find_map(|cause| hints::hint_of(cause.downcast_ref()?));
        let of_usage = |kind| (kind == ErrorKind::Usage.name()).then(|| hints::USAGE.to_owned());
        let (kind, code) = match ours {
            Some(ours) => of_library(ours),
            None => of_program(error),
        };
        Self {
            kind,
            message: causes.join(": "),
            hint: own_hint.map(|hint| hint.0.clone()).or_else(of_library_hint).or_else(|| of_usage(kind)),
            path: ours.and_then(Error::path).map(|path| path.display().to_string()),
            tensor: ours.and_then(Error::tensor).map(str::to_owned),
            code,
        }
    }

    /// Says it on standard error and, with `--json`, also on standard output.
    pub(crate) fn say(&self) {
        ui::print_error(&self.message, self.hint.as_deref());
        if ui::look().json {
            // The exit code says that something failed, also where nobody reads standard output.
            let _ignored = ui::print_json(&Printed { error: self });
        }
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

/// Kind and exit code of an error of the library.
fn of_library(error: &Error) -> (&'static str, u8) {
    #[cfg(feature = "object-store")]
    if let Some(fault) = deltaloom_object_store::fault(error) {
        use deltaloom_object_store::Cause;
        return match fault.cause() {
            Cause::Denied | Cause::NoCredentials => ("store_denied", STORE),
            Cause::NoBucket => ("not_found", NOT_THERE),
            Cause::Settings | Cause::NotEncrypted | Cause::NoConditions => ("store_settings", REFUSED),
            _ => ("store_unreachable", STORE),
        };
    }
    let code = match error.kind() {
        ErrorKind::NotFound | ErrorKind::Unreadable => NOT_THERE,
        ErrorKind::CannotWrite | ErrorKind::DiskFull => CANNOT_WRITE,
        ErrorKind::Interrupted => signals::exit_code(),
        _ => REFUSED,
    };
    (error.kind().name(), code)
}

/// Of an error that is not the library's: the system's, of what the program writes itself, or a
/// mistake.
fn of_program(error: &anyhow::Error) -> (&'static str, u8) {
    match error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind) {
        None => (ErrorKind::Usage.name(), REFUSED),
        Some(io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge) => {
            (ErrorKind::DiskFull.name(), CANNOT_WRITE)
        }
        Some(io::ErrorKind::AlreadyExists) => (ErrorKind::Exists.name(), REFUSED),
        Some(io::ErrorKind::NotFound) => (ErrorKind::NotFound.name(), NOT_THERE),
        Some(_) => (ErrorKind::CannotWrite.name(), CANNOT_WRITE),
    }
}
