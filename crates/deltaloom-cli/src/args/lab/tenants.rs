//! The options of `deltaloom lab tenants`.

use std::path::PathBuf;

use clap::Args;

use super::ReportArguments;
use crate::values;
use crate::values::lab::Budget;

/// Benchmark one batch with tokens of many fine-tunes ("tenants") of one base.
///
/// The base's product is computed once and the differences of each tenant are added. This is
/// compared with swapping dense weights and with a dense copy per tenant. Then requests are served
/// for more tenants than the memory budget holds: random ones, and each tenant one token in turn.
/// Every output is compared with that of the dense fine-tune. Exit code 1 if any output misses its
/// tolerance.
///
/// Without files, it generates a LLaMA-shaped layer (320 wide, 5 heads, feed-forward width 864) and
/// fine-tunes of it. With files, it uses one layer of both: the first tenant is the fine-tune; the
/// others change the same elements by the same number of ULPs, half of them in the other direction.
///
/// With one thread, the default, times are processor time.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab tenants
  deltaloom lab tenants --tenants 64 --density 0.03 --budget 10%
  deltaloom lab tenants base/ tuned/ --layer 3 --html tenants.html
  deltaloom lab tenants base/ tuned/ --tokens-per-tenant 8 --threads 2 --csv > ways.csv")]
pub(crate) struct TenantsArguments {
    /// Base: a .safetensors file or a folder, with config.json next to the weights [default: a
    /// generated layer]
    #[arg(value_name = "BASE", requires = "tuned")]
    pub(crate) base: Option<PathBuf>,
    /// Fine-tune of the base
    #[arg(value_name = "TUNED")]
    pub(crate) tuned: Option<PathBuf>,
    /// Number of fine-tunes in the batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = values::measure::parse_tenants)]
    pub(crate) tenants: usize,
    /// Number of the layer in the model, from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "base")]
    pub(crate) layer: usize,
    /// Number of attention heads of a PyTorch layer
    #[arg(long, value_name = "N", requires = "base")]
    pub(crate) heads: Option<usize>,
    /// Tokens per tenant in the batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) tokens_per_tenant: usize,
    /// Memory budget for all tenants together: a size, or a percentage of dense copies
    #[arg(long, value_name = "SIZE|%", default_value = "25%", value_parser = Budget::parse)]
    pub(crate) budget: Budget,
    /// Fraction of elements that a generated fine-tune changes, from 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.13, conflicts_with = "base")]
    pub(crate) density: f64,
    /// Number of timed rounds; the median is reported
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = values::measure::parse_rounds)]
    pub(crate) rounds: usize,
    /// Number of requests to serve with too small a budget; 0 skips this part
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) requests: usize,
    /// Tokens per request
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) request_tokens: usize,
    /// Number of requests served at the same time
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) active: usize,
    /// Seed of the generated fine-tunes, the activations and the requests
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Number of threads; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::parse_threads, allow_negative_numbers = true)]
    pub(crate) threads: usize,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
