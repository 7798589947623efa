//! Fine-tunes that come and go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
}

/// A fine-tune that goes.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Unloaded {
    pub(crate) name: String,
    /// Requests that it finishes first.
    pub(crate) in_flight: usize,
}
