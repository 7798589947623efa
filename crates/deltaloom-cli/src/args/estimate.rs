//! The options of `deltaloom estimate`.

use std::path::PathBuf;

use clap::{Args, value_parser};

use super::ThreadsArgument;
use crate::values::compute::{CacheType, FormName, parse_fraction};

/// Say how much memory many fine-tunes of one base take, in each form that they can have, with keys, values and activations.
///
/// Without --tuned a share of the elements is assumed to differ. Keys, values and activations are counted where config.json is beside the base; activations are those of a step
/// of one token of each sequence of the batch. With --check the base and the tenants are really loaded in one form, and the memory that this process then takes is compared
/// with the estimate: exit code 1 means that they differ by more than 10 %.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom estimate base/ --tenants 100
  deltaloom estimate base/ --tenants 100 --changed 0.03 --context 4096 --batch 8
  deltaloom estimate base/ --tenants 16 --tuned tuned/ --tuned other.loom --json
  deltaloom estimate base/ --tenants 16 --tuned tuned/ --check --form planes")]
pub(crate) struct EstimateArguments {
    /// Base: a .safetensors file or a directory
    #[arg(value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// How many fine-tunes
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) tenants: u32,
    /// A fine-tune, or the container of one; may be repeated. Their mean stands for the others
    #[arg(long, value_name = "FILE")]
    pub(crate) tuned: Vec<PathBuf>,
    /// Share of the elements that differ, from 0 to 1, if no fine-tune is given
    #[arg(long, value_name = "SHARE", default_value_t = 0.13, conflicts_with = "tuned", value_parser = parse_fraction)]
    pub(crate) changed: f64,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = value_parser!(u32).range(1..))]
    pub(crate) context: u32,
    /// Sequences at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// Type of keys and values
    #[arg(long, value_enum, default_value_t = CacheType::Bf16)]
    pub(crate) dtype_cache: CacheType,
    /// Load base and tenants, and compare with what this process takes
    #[arg(long, requires = "tuned")]
    pub(crate) check: bool,
    /// With --check: the form of matrices
    #[arg(long, value_enum, value_name = "FORM", default_value_t = FormName::Csr)]
    pub(crate) form: FormName,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
