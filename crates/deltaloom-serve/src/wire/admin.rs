//! Fine-tunes that come and go.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::State;

/// A fine-tune to load.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct NewTenant {
    /// How requests name it.
    pub(crate) name: String,
    /// Its container, below the folder of fine-tunes.
    pub(crate) path: String,
    /// Whether it can only be removed by force.
    pub(crate) pinned: Option<bool>,
    /// Takes the place of one with the same name, which finishes its requests.
    pub(crate) replace: Option<bool>,
}

/// The same, as vLLM calls it.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Lora {
    pub(crate) lora_name: String,
    /// Its container, below the folder of fine-tunes. Only to load.
    pub(crate) lora_path: Option<String>,
    /// Takes the place of one with the same name.
    pub(crate) load_inplace: Option<bool>,
}

/// All fine-tunes.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TenantList {
    pub(crate) tenants: Vec<TenantEntry>,
}

/// A fine-tune that is served.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TenantEntry {
    pub(crate) name: String,
    /// BLAKE3 of all weights.
    pub(crate) digest: String,
    /// Bytes of the container.
    pub(crate) packed_bytes: u64,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Requests that run or wait.
    pub(crate) in_flight: usize,
    pub(crate) pinned: bool,
    pub(crate) state: State,
    /// Bytes in memory, beside the base and the container.
    pub(crate) resident_bytes: u64,
    /// Number of matrices in each form, among those that are the base's or have been decoded.
    pub(crate) forms: BTreeMap<&'static str, usize>,
    /// Uses of a matrix in memory.
    pub(crate) hits: u64,
    /// Uses of a matrix that was not.
    pub(crate) misses: u64,
    /// Those that were multiplied directly from the container.
    pub(crate) direct: u64,
    /// Matrices that went for others.
    pub(crate) evictions: u64,
    /// Seconds since 1970; absent before the first request.
    pub(crate) last_used: Option<u64>,
}

/// A fine-tune that goes.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Unloaded {
    pub(crate) name: String,
    /// Requests that it finishes first.
    pub(crate) in_flight: usize,
}
