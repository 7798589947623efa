//! The options of `deltaloom lab tenants`.

use std::path::PathBuf;

use clap::Args;

use super::parse_size;
use crate::args::{ReportArguments, parse_rounds, parse_threads};

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
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_tenants)]
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
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = parse_rounds)]
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
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_threads)]
    pub(crate) threads: usize,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

/// So many bytes, or a share of those of dense copies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Budget {
    Bytes(u64),
    Percent(f64),
}

impl Budget {
    fn parse(text: &str) -> Result<Self, String> {
        let Some(percent) = text.trim().strip_suffix('%') else { return parse_size(text).map(Self::Bytes) };
        match percent.trim().parse::<f64>() {
            Ok(percent) if (0.0..=1000.0).contains(&percent) => Ok(Self::Percent(percent)),
            _ => Err("expected a size such as 4MiB, or from 0% to 1000%".to_owned()),
        }
    }

    /// In bytes.
    #[expect(clippy::cast_possible_truncation, reason = "a share")]
    pub(crate) fn of(self, dense_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (percent / 100.0 * dense_bytes as f64) as u64,
        }
    }
}

fn parse_tenants(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if (1..=4096).contains(&count) => Ok(count),
        Ok(_) => Err("between 1 and 4096".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_sizes_or_shares() {
        let good = [
            ("25%", Budget::Percent(25.0)),
            (" 0.5 %", Budget::Percent(0.5)),
            ("4MiB", Budget::Bytes(4 << 20)),
        ];
        for (text, budget) in good {
            assert_eq!(Budget::parse(text), Ok(budget));
        }
        assert!(["-1%", "x%", "%", "NaN%", "4"].iter().filter(|text| Budget::parse(text).is_ok()).eq(&["4"]));
        assert_eq!((Budget::Percent(25.0).of(1000), Budget::Bytes(7).of(1000)), (250, 7));
    }
}
