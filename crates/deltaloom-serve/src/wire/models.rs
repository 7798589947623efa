//! What is served, and whether it is.

use schemars::JsonSchema;
use serde::Serialize;

/// All fine-tunes that a key may use.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelList {
    /// `list`.
    pub(crate) object: &'static str,
    pub(crate) data: Vec<ModelEntry>,
}

/// A fine-tune, or the base.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelEntry {
    pub(crate) id: String,
    /// `model`.
    pub(crate) object: &'static str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
    /// The base.
    pub(crate) root: String,
    pub(crate) max_model_len: usize,
    pub(crate) meta: ModelMeta,
}

/// What else is known.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelMeta {
    /// BLAKE3 of all weights.
    pub(crate) weights_digest: String,
    /// Bytes of the container, or of the base's weights.
    pub(crate) packed_bytes: u64,
    pub(crate) pinned: bool,
}

/// Whether the server works.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Status {
    /// `ok` or `draining`.
    pub(crate) status: &'static str,
}
