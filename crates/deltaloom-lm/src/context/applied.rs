//! Plans of attention that a container or a folder carries, and how many tokens fit in memory.

use std::path::Path;

use deltaloom::{Error, Result};
use serde::{Deserialize, Serialize};

use super::resolve::Resolved;
use super::tester::kv_bytes;
use crate::layer::{AttentionPlan, KvType, MAX_POSITIONS, TenantId};
use crate::model::{Model, ModelConfig, PLAN_FILE};
use crate::tenancy::{FamilyOptions, PreparedTenant};

/// The name of the file that has the plans.
pub const CONTEXT_FILE: &str = PLAN_FILE;

/// Most bytes of it.
const LARGEST: u64 = 16 << 20;

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Applied {
    /// The recipe as it was read, for people.
    pub recipe: serde_json::Value,
    /// What runs.
    pub plan: Resolved,
}

impl Applied {
    /// A recipe with its plans.
    #[must_use]
    pub fn new(recipe: serde_json::Value, plan: Resolved) -> Self {
        Self { recipe, plan }
    }

    /// Reads the contents of a file.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for anything but such a file of this version.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: String| Error::InvalidArgument(format!("{CONTEXT_FILE}: {what}"));
        let applied: Self = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        match applied.plan.version {
            1 => Ok(applied),
            other => Err(wrong(format!("version {other}, and only 1 is known"))),
        }
    }
}

/// Adds a fine-tune, and gives the model the plans that it carries, if it does. Such a fine-tune
/// runs alone: the base has its plans, too.
///
/// # Errors
/// As [`Applied::parse`], [`Model::with_attention`] and [`Model::admit`].
pub fn admit(mut model: Model, prepared: PreparedTenant) -> Result<(Model, TenantId)> {
    match prepared.file(CONTEXT_FILE, LARGEST)? {
        None => {
            let tenant = model.admit(prepared)?;
            Ok((model, tenant))
        }
        Some(bytes) => {
            let plan = Applied::parse(&bytes)?.plan;
            let tenant = model.admit_with_plans(prepared)?;
            Ok((plan.on(model)?, tenant))
        }
    }
}

/// Opens a folder or a GGUF file, and runs the plans that the folder has, if it does.
///
/// # Errors
/// As [`Model::open`] and [`with_plans_of`].
pub fn open(path: &Path, options: FamilyOptions) -> Result<Model> {
    let model = Model::open(path, options)?;
    if path.is_dir() { with_plans_of(model, path) } else { Ok(model) }
}

/// Gives a model the plans that its folder has, if it does.
///
/// # Errors
/// A file that cannot be read; as [`Applied::parse`] and [`Model::with_attention`].
pub fn with_plans_of(model: Model, folder: &Path) -> Result<Model> {
    let path = folder.join(CONTEXT_FILE);
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(model),
        Err(error) => Err(Error::io(&path)(error)),
        Ok(found) => {
            deltaloom::Limits::check("bytes of deltaloom_context.json", found.len(), LARGEST)?;
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            let applied = Applied::parse(&bytes).map_err(|error| error.in_file(folder))?;
            applied.plan.on(model)
        }
    }
}

/// How many tokens a sequence may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Limit {
    /// The most tokens.
    pub tokens: usize,
    /// What they end by.
    pub ends_by: End,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// What the tokens of a sequence end by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum End {
    /// The memory.
    Memory,
    /// The table of positions.
    Table,
    /// The largest position that is computed.
    Positions,
}

impl End {
    /// For people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Memory => "memory ends there",
            Self::Table => "the table of positions ends there",
            Self::Positions => "the largest position that is computed",
        }
    }
}

/// How many tokens fit in so many bytes of keys and values.
#[must_use]
pub fn limit(config: &ModelConfig, plans: &[AttentionPlan], kv: KvType, memory_bytes: u64) -> Limit {
    let bytes = |tokens: usize| kv_bytes(config, plans, tokens, kv);
    let fits = |tokens: usize| bytes(tokens).is_some_and(|bytes| bytes <= memory_bytes);
    let (end, ends_by) = match config.table_end() {
        end if end < MAX_POSITIONS => (end, End::Table),
        _ => (MAX_POSITIONS, End::Positions),
    };
    if fits(end) {
        return Limit { tokens: end, ends_by, bytes: bytes(end).unwrap_or(u64::MAX) };
    }
    // Bytes never fall as tokens grow.
    let (mut low, mut high) = (0, end);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    Limit { tokens: low, ends_by: End::Memory, bytes: bytes(low).unwrap_or(u64::MAX) }
}
