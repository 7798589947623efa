//! The options of `deltaloom lab tenants`.

use std::path::PathBuf;

use clap::Args;

use crate::args::page::ReportArguments;
use crate::values;
use crate::values::lab::Budget;

/// Multiply a batch with tokens of many fine-tunes of one base: the base's product once and each one's differences, beside dense swaps and dense copies.
///
/// Without files it makes a LLaMA-shaped layer (320 wide, 5 heads, 864 inside) and fine-tunes of it. With files it takes a layer of both; the first tenant then is the fine-tune,
/// the others change the same elements by as many ULPs, half of them in the other direction. Then requests for more tenants than the budget holds are served, and for each
/// tenant one token in turn. Every output is compared with that of the dense fine-tunes; exit code 1 means that one is not right.
///
/// With one thread, the default, time is that of the processor.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab tenants
  deltaloom lab tenants --tenants 64 --density 0.03 --budget 10%
  deltaloom lab tenants base/ tuned/ --layer 3 --html tenants.html
  deltaloom lab tenants base/ tuned/ --tokens-per-tenant 8 --threads 2 --csv > ways.csv")]
pub(crate) struct TenantsArguments {
    /// Base: a .safetensors file or a directory, with its config.json beside the weights
    #[arg(value_name = "BASE", requires = "tuned")]
    pub(crate) base: Option<PathBuf>,
    /// Fine-tune of it
    #[arg(value_name = "TUNED")]
    pub(crate) tuned: Option<PathBuf>,
    /// Fine-tunes in the batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = values::count(1..=4096))]
    pub(crate) tenants: usize,
    /// Which layer of the model
    #[arg(long, value_name = "N", default_value_t = 0, requires = "base")]
    pub(crate) layer: usize,
    /// Heads of a PyTorch layer
    #[arg(long, value_name = "N", requires = "base")]
    pub(crate) heads: Option<usize>,
    /// Tokens of each tenant in the batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) tokens_per_tenant: usize,
    /// Bytes for all tenants where forms are chosen: a size, or a share of what dense copies take
    #[arg(long, value_name = "SIZE|%", default_value = "25%", value_parser = Budget::parse)]
    pub(crate) budget: Budget,
    /// Share of the elements that a made fine-tune changes
    #[arg(long, value_name = "SHARE", default_value_t = 0.13, conflicts_with = "base")]
    pub(crate) density: f64,
    /// How often each way is timed; the median counts
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = values::measure::rounds())]
    pub(crate) rounds: usize,
    /// Requests to serve with budgets that are too small; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) requests: usize,
    /// Tokens of a request
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) request_tokens: usize,
    /// Requests that run at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) active: usize,
    /// Another seed makes other fine-tunes, activations and requests
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Threads to use; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::threads())]
    pub(crate) threads: usize,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
