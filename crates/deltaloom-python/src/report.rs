//! Reports as the JSON of the program, which Python reads.

use deltaloom::{Error, Result};
use serde::Serialize;

/// A report as JSON.
///
/// # Errors
/// [`Error::InvalidArgument`] for a value that JSON does not have, which no report has.
pub(crate) fn to_json(report: &impl Serialize) -> Result<String> {
    serde_json::to_string(report).map_err(|e| Error::InvalidArgument(e.to_string()))
}
