//! Errors of the library as Python exceptions. The classes are in `deltaloom/_errors.py`; here is
//! which of them an error becomes, and what a user of Python can do about it.

use std::io;

use deltaloom::{Error, Missing};
use deltaloom_object_store::Cause;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Error numbers of the system that Python maps to subclasses of `OSError`.
const NOT_FOUND: i32 = 2;
const DENIED: i32 = 13;
const INVALID: i32 = 22;
const IO: i32 = 5;

/// The exception for an error. One that Python code raised inside the call is that exception.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    if let Some(raised) = raised(error) {
        return raised.clone_ref(py);
    }
    if let Error::Cancelled = innermost(error) {
        return PyKeyboardInterrupt::new_err(());
    }
    make(py, error).unwrap_or_else(|fault| fault)
}

fn make(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let inner = innermost(error);
    let fields = PyDict::new(py);
    fields.set_item("message", error.with_path())?;
    fields.set_item("detail", error.detail())?;
    fields.set_item("hint", hint(inner))?;
    fields.set_item("path", error.path().map(|path| path.as_os_str().to_owned()))?;
    fields.set_item("tensor", error.tensor())?;
    match inner {
        Error::BaseMismatch { expected, found, .. } | Error::DigestMismatch { expected, found, .. } => {
            fields.set_item("expected", expected)?;
            fields.set_item("found", found)?;
        }
        Error::Io { source, .. } => {
            let number = source.raw_os_error().unwrap_or_else(|| number_of(inner, source));
            fields.set_item("errno", number)?;
            fields.set_item("detail", source.to_string())?;
        }
        _ => {}
    }
    fields.set_item("unfinished", matches!(error, Error::Unfinished { .. } | Error::CutShort { .. }))?;
    let class = class(inner);
    let made = py.import("deltaloom._errors")?.getattr("error_of")?.call1((class, fields))?;
    Ok(PyErr::from_value(made))
}

/// The error without the file that it is about.
fn innermost(error: &Error) -> &Error {
    match error {
        Error::InFile { source, .. } | Error::StepUnknown { source, .. } => innermost(source),
        other => other,
    }
}

/// The exception that Python code raised while bytes were read from it.
fn raised(error: &Error) -> Option<&PyErr> {
    match innermost(error) {
        Error::Io { source, .. } => source.get_ref()?.downcast_ref(),
        Error::Unfinished { source, .. } => raised(source),
        _ => None,
    }
}

fn number_of(error: &Error, source: &io::Error) -> i32 {
    if let Some(fault) = deltaloom_object_store::fault(error) {
        return match fault.cause() {
            Cause::Denied | Cause::NoCredentials | Cause::Expired => DENIED,
            Cause::NoBucket => NOT_FOUND,
            _ => IO,
        };
    }
    match source.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        io::ErrorKind::PermissionDenied => DENIED,
        io::ErrorKind::InvalidInput => INVALID,
        _ => IO,
    }
}

/// The class in `deltaloom/_errors.py`, or a built-in one.
fn class(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "OSError",
        Error::Corrupt { .. }
        | Error::Truncated { .. }
        | Error::DigestMismatch { .. }
        | Error::LimitExceeded { .. }
        | Error::Foreign { .. }
        | Error::Unread { .. }
        | Error::Lossy => "CorruptError",
        Error::BaseMismatch { .. } | Error::BaseNotFound { .. } | Error::NoUsefulBase { .. } => {
            "BaseMismatchError"
        }
        Error::UnsupportedVersion { .. } | Error::UnsupportedSeries { .. } => "VersionError",
        Error::NotFound { kind: Missing::Step, .. } => "StepNotFoundError",
        Error::NotFound { kind: Missing::Object, .. } => "FileNotFoundError",
        Error::NotFound { .. } => "TensorNotFoundError",
        Error::AlreadyExists { .. } | Error::Protected { .. } => "ExistsError",
        Error::NotInPlace { .. }
        | Error::SharedFile { .. }
        | Error::Unfinished { .. }
        | Error::CutShort { .. }
        | Error::Journal { .. } => "InPlaceError",
        Error::NotASeries { .. } => "NotASeriesError",
        Error::StepTaken { .. } => "StepTakenError",
        Error::StepOutOfOrder { .. } => "OutOfOrderError",
        Error::StepDiffers { .. } => "SeriesError",
        Error::InvalidArgument(_) | Error::UnsupportedName { .. } | Error::KeepRule { .. } => "ValueError",
        _ => "DeltaloomError",
    }
}

/// One sentence, if there is advice.
fn hint(error: &Error) -> Option<&'static str> {
    if let Some(fault) = deltaloom_object_store::fault(error) {
        return fault.hint();
    }
    Some(match error {
        Error::AlreadyExists { .. } => {
            "overwrite=True replaces it; without it, nothing is ever replaced, unlike in safetensors"
        }
        Error::Protected { is_input: true, .. } => {
            "choose another target; unpack(..., in_place=True) turns a base into its fine-tune"
        }
        Error::Protected { .. } => "choose another target",
        Error::BaseMismatch { .. } => {
            "pass every base that it was packed against as base=[...]; deltaloom.inspect lists them"
        }
        Error::BaseNotFound { .. } | Error::NoUsefulBase { .. } => "pass the base as base=...",
        Error::NotFound { kind: Missing::Tensor, .. } => "keys() lists the tensors",
        Error::NotFound { kind: Missing::Step, .. } => "Series.steps() lists the steps",
        Error::Truncated { .. } => "the file is incomplete; copy or download it again",
        Error::Corrupt { .. } | Error::DigestMismatch { .. } | Error::LimitExceeded { .. } => {
            "the file is damaged or of another kind; compare it with its source"
        }
        Error::UnsupportedVersion { .. } | Error::UnsupportedSeries { .. } => {
            "a newer version of deltaloom wrote it; update deltaloom to read it"
        }
        Error::NotASeries { .. } => "Series.init creates one",
        Error::StepTaken { .. } | Error::StepOutOfOrder { .. } => {
            "nothing was changed; steps are added in order, each once"
        }
        Error::StepDiffers { .. } => "nothing was stored; force=True adds it anyway",
        Error::Unfinished { .. } | Error::CutShort { .. } => {
            "make the same call again, with the same container: it resumes with the journal"
        }
        Error::NotInPlace { .. } => "unpack to a new file instead",
        Error::SharedFile { .. } => "copy the file first, or pass overwrite=True to change it anyway",
        Error::Changed { .. } => "try again when nothing is writing to the file",
        _ => return None,
    })
}
