//! How the program reports that a command failed: the exit code, and the error for people and for
//! programs. docs/cli.md lists the codes.

use std::io;

use deltaloom::{Error, ErrorKind};
use serde::Serialize;

use crate::{hints, signals, ui};

/// Refused: the command line, the base, the input or the output.
pub(crate) const REFUSED: u8 = 2;
/// A named file or object is missing or unreadable.
const NOT_THERE: u8 = 3;
/// Something cannot be written.
const CANNOT_WRITE: u8 = 4;
/// An object store is unreachable or denies access.
#[cfg(feature = "object-store")]
const STORE: u8 = 5;

/// The JSON that is printed instead of a result.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    error: &'a Failure,
}

/// An error as it is reported.
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
        // Some messages already contain their source.
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

    /// Prints it on standard error and, with `--json`, also on standard output.
    pub(crate) fn say(&self) {
        ui::print_error(&self.message, self.hint.as_deref());
        if ui::look().json {
            // The exit code reports the failure even if standard output is closed.
            let _ignored = ui::print_json(&Printed { error: self });
        }
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

/// Kind and exit code of an error of the library.
fn of_library(error: &Error) -> (&'static str, u8) {
    #[cfg(feature = "object-store")]
    if let Some(fault) = deltaloom_object_store::fault(error) {
        use deltaloom_object_store::Cause;
        return match fault.cause() {
            Cause::Denied | Cause::NoCredentials | Cause::Expired | Cause::ClockSkew => {
                ("store_denied", STORE)
            }
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

/// Kind and exit code of any other error: of the system, for files that the program writes itself,
/// or a mistake on the command line.
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
