//! What is served, and whether it is.

use deltaloom_lm::tenancy::TenantResidency;
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

/// Where the weights of a fine-tune are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// In the mapped file.
    Mapped,
    /// Some are in memory.
    Partly,
    /// All that differ from the base are in memory.
    Resident,
}

impl State {
    pub(crate) fn of(residency: &TenantResidency) -> Self {
        match (residency.resident_matrices, residency.changed_matrices) {
            (0, changed) if changed > 0 => Self::Mapped,
            (resident, changed) if resident < changed => Self::Partly,
            _ => Self::Resident,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mapped => "mapped",
            Self::Partly => "partly",
            Self::Resident => "resident",
        }
    }
}

/// What else is known.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelMeta {
    /// BLAKE3 of all weights.
    pub(crate) weights_digest: String,
    /// Bytes of the container, or of the base's weights.
    pub(crate) packed_bytes: u64,
    /// Bytes in memory, beside the base and the container.
    pub(crate) resident_bytes: u64,
    pub(crate) state: State,
    pub(crate) pinned: bool,
}

/// Whether the server works.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Status {
    /// `ok` or `draining`.
    pub(crate) status: &'static str,
}
