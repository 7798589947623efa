//! docs/api.md: the endpoints of the server, from the table of its routes.

use anyhow::Result;

use crate::{Mode, settle};

/// Writes or checks the page.
///
/// # Errors
/// The page differs, or cannot be written.
pub fn run(mode: Mode) -> Result<()> {
    settle(mode, "docs/api.md", deltaloom_serve::api_markdown().as_bytes(), "api")
}
