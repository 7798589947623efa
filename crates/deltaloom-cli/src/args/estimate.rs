//! The options of `deltaloom estimate`.

use std::path::PathBuf;

use clap::{Args, value_parser};

use super::ThreadsArgument;
use crate::values::compute::{CacheType, FormName, parse_fraction};

/// Estimate the memory that many fine-tunes of one base need.
///
/// Prints the total for every in-memory form. Keys, values and activations are included if
/// config.json is next to the base; activations are those of one decoding step, with one token per
/// sequence. Without --tuned, a fixed fraction of the elements is assumed to have changed.
///
/// With --check, the base and the fine-tunes are loaded in one form, and the memory used by the
/// process is compared with the estimate. Exit code 1 if they differ by more than 10 %.
///
/// The base is mapped: do not change its files while the command runs.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom estimate base/ --tenants 100
  deltaloom estimate base/ --tenants 100 --changed 0.03 --context 4096 --batch 8
  deltaloom estimate base/ --tenants 16 --tuned tuned/ --tuned other.loom --json
  deltaloom estimate base/ --tenants 16 --tuned tuned/ --check --form planes")]
pub(crate) struct EstimateArguments {
    /// Base: a .safetensors file or a folder
    #[arg(value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Number of fine-tunes
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) tenants: u32,
    /// A fine-tune or its container; may be repeated. All others are assumed to be like their mean
    #[arg(long, value_name = "FILE")]
    pub(crate) tuned: Vec<PathBuf>,
    /// Without --tuned: fraction of elements that changed, from 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.13, conflicts_with = "tuned", value_parser = parse_fraction)]
    pub(crate) changed: f64,
    /// Tokens per sequence
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = value_parser!(u32).range(1..))]
    pub(crate) context: u32,
    /// Sequences in a batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// Data type of keys and values
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = CacheType::Bf16)]
    pub(crate) dtype_cache: CacheType,
    /// Load everything and compare the memory used with the estimate (Linux only)
    #[arg(long, requires = "tuned")]
    pub(crate) check: bool,
    /// With --check: in-memory form of the matrices
    #[arg(long, value_enum, value_name = "FORM", default_value_t = FormName::Csr)]
    pub(crate) form: FormName,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
