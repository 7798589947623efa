//! The options of `deltaloom lab mixed`.

use std::path::PathBuf;

use clap::{Args, value_parser};

use crate::values;
use crate::values::compute::{FormName, parse_fraction};

/// Benchmark texts of many fine-tunes at a time: one engine on their base, beside dense copies.
///
/// Fine-tunes are generated: each changes a part of the base's weights by an ULP or a few. Each has
/// one text, whose next tokens are computed together. The same texts then come from an engine for
/// every dense fine-tune, and from the base alone. Exit code 1 if a text of an exact mode differs
/// from that of its dense fine-tune.
///
/// With one thread, the default, times are processor time.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab mixed base/
  deltaloom lab mixed base/ --changed 0.03 --form csr --fast
  deltaloom lab mixed base/ --tenants 64 --threads 2 --json")]
pub(crate) struct MixedArguments {
    /// Base: a folder of Hugging Face with weights in BF16 or FP32
    #[arg(value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Number of fine-tunes
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = values::measure::parse_tenants)]
    pub(crate) tenants: usize,
    /// Part of the weights that each changes, from 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.13, value_parser = parse_fraction)]
    pub(crate) changed: f64,
    /// Tokens of each prompt, which are not timed
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u16).range(1..))]
    pub(crate) prompt_tokens: u16,
    /// Tokens of each text
    #[arg(long, value_name = "N", default_value_t = 33, value_parser = value_parser!(u16).range(2..))]
    pub(crate) tokens: u16,
    /// Form of the fine-tunes in memory; default: the fastest
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) form: Option<FormName>,
    /// Share the base's product: results may differ in the last bits
    #[arg(long)]
    pub(crate) fast: bool,
    /// Number of timed rounds; the median is reported
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = values::measure::parse_rounds)]
    pub(crate) rounds: usize,
    /// Seed of the fine-tunes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Number of threads; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::parse_threads, allow_negative_numbers = true)]
    pub(crate) threads: usize,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
