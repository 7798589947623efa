//! The options of `deltaloom lab serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, value_parser};

use crate::values;

/// Put load on a server of this machine, and compare every answer with the dense fine-tune.
///
/// `deltaloom serve` must run. Requests are completions of token ids with random lengths, half of
/// them greedy; many of their prompts begin alike. --rate sends them at random times, whether
/// earlier ones are answered or not; without it, each client sends its next request when it has an
/// answer.
///
/// With --base, every answer is computed again on the dense fine-tune alone. Exit code 1 if an id
/// or a bit of a probability differs, or if an answer failed with anything but 429 or 503.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab serve --model pirate --model chat --seconds 10
  deltaloom lab serve --model a --model b --clients 64 --rate 20 --zipf 1 --json
  deltaloom lab serve --base base/ --tenants tuned/ --requests 1000
  deltaloom lab serve --base base/ --tenants tuned/ --requests 1000 --direct")]
pub(crate) struct ServeArguments {
    /// Where the server listens: an address of this machine
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    pub(crate) address: SocketAddr,
    /// Name of a model to ask; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Vec<String>,
    /// The base that is served, to compare answers with
    #[arg(long, value_name = "FOLDER")]
    pub(crate) base: Option<PathBuf>,
    /// Ask for every container in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) tenants: Option<PathBuf>,
    /// Put the load on an engine of this process instead of a server: what HTTP costs is the
    /// difference
    #[arg(long, requires = "base", conflicts_with_all = ["address", "key", "rate"])]
    pub(crate) direct: bool,
    /// Threads of the engine of --direct; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = values::parse_threads, allow_negative_numbers = true, requires = "direct")]
    pub(crate) threads: usize,
    /// With --direct: run the load twice, and report the second time, when fine-tunes are in memory
    #[arg(long, requires = "direct")]
    pub(crate) warm: bool,
    /// File of the key to send
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Most requests at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=4096))]
    pub(crate) clients: u32,
    /// Requests per second, at random times
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<f64>,
    /// How much more often earlier models are asked: model n has the weight 1 / n^ZIPF
    #[arg(long, value_name = "ZIPF", default_value_t = 0.0)]
    pub(crate) zipf: f64,
    /// Seconds during which requests are sent
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// Most requests
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub(crate) requests: u64,
    /// Most tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = value_parser!(u16).range(1..))]
    pub(crate) prompt_tokens: u16,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u16).range(1..))]
    pub(crate) max_tokens: u16,
    /// Ids of the model; more than it has are refused by the server
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = value_parser!(u32).range(1..))]
    pub(crate) vocabulary: u32,
    /// Seed of the requests
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
