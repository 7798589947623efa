//! The options of `deltaloom serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, value_parser};

use super::eval::ComputingArguments;
use crate::values::measure::parse_size;

/// Serve a model and many fine-tunes of it by the API of OpenAI.
///
/// BASE is a folder of Hugging Face or a GGUF file, as for `generate`; demo is a small bundled
/// model, where no file has that name. Fine-tunes are containers that were packed against it. The
/// name of each is the stem of its file, which requests have as "model". The base is in memory
/// once, and every fine-tune as its difference; tokens of all fine-tunes are computed in one batch.
/// A fine-tune gets the same text whoever else is in the batch.
///
/// The server listens on this machine only, unless --host says otherwise: that needs keys. At / is
/// a page to try it, and at /openapi.json a description of every endpoint.
///
/// Files are mapped: do not change them while the server runs. Ctrl-C or SIGTERM lets running
/// requests end first; a second one ends at once.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_long_help = "Examples:
  deltaloom serve demo --tenant demo:pirate --tenant demo:chat     # bundled; then open http://127.0.0.1:8000
  deltaloom serve base/ --tenants tuned/ --memory 2GB
  deltaloom serve model.gguf --tenant support=v7.loom --port 9000
  deltaloom serve base/ --tenants tuned/ --host 0.0.0.0 --keys keys.txt
  curl http://127.0.0.1:8000/v1/completions -H 'content-type: application/json' \\
      -d '{\"model\": \"pirate\", \"prompt\": \"Once upon a time\", \"max_tokens\": 40}'

A line of the file of --keys is a key, then optionally a name for it, then the fine-tunes that it may
use, separated by commas:
  3f9c0e...  alice  pirate,chat"
)]
pub(crate) struct ServeArguments {
    /// Model: a folder or a GGUF file
    #[arg(value_name = "BASE")]
    pub(crate) base: PathBuf,
    /// Serve every container (.loom) in this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) tenants: Option<PathBuf>,
    /// Serve this container, too, under a name if one is given; may be repeated
    #[arg(long, value_name = "[NAME=]FILE", value_parser = parse_tenant)]
    pub(crate) tenant: Vec<Tenant>,
    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub(crate) port: u16,
    /// Memory for steps, keys and values, and fine-tunes together; without it, fine-tunes have no
    /// limit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
    /// Of it, memory for keys and values
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) kv_memory: Option<u64>,
    #[command(flatten)]
    pub(crate) access: AccessArguments,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
    #[command(flatten)]
    pub(crate) computing: ComputingArguments,
    /// Print the address as a line of JSON once it listens
    #[arg(long)]
    pub(crate) json: bool,
}

/// Who may ask.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArguments {
    /// File of keys, one of which a request must have
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// File of the key that may load, replace and remove fine-tunes of --tenants
    #[arg(long, value_name = "FILE")]
    pub(crate) admin_key: Option<PathBuf>,
    /// Listen at another address than this machine's own without keys
    #[arg(long, conflicts_with = "keys")]
    pub(crate) no_key: bool,
    /// Show /metrics without a key
    #[arg(long)]
    pub(crate) open_metrics: bool,
    /// Let pages of this origin ask from a browser, such as https://chat.example.org
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Option<String>,
}

/// How much is computed and accepted.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArguments {
    /// Most tokens that are computed together
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = value_parser!(u32).range(1..=65_536))]
    pub(crate) step_tokens: u32,
    /// Most fine-tunes in a batch; others wait for at most eight batches
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(1..=4096))]
    pub(crate) step_tenants: u32,
    /// Most requests that are computed at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=65_536))]
    pub(crate) max_running: u32,
    /// Most requests that wait; others are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_waiting: u32,
    /// Most tokens of their prompts
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = value_parser!(u32).range(1..))]
    pub(crate) max_waiting_tokens: u32,
    /// Most requests of a key at a time; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) max_per_key: u32,
    /// Most seconds of a request; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) request_seconds: u32,
    /// Seconds for running requests to end after Ctrl-C or SIGTERM
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub(crate) drain_seconds: u32,
    /// Refuse requests with fields that are not known
    #[arg(long)]
    pub(crate) strict: bool,
}

/// A container, with a name if one is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) name: Option<String>,
    pub(crate) path: PathBuf,
}

fn parse_tenant(text: &str) -> Result<Tenant, String> {
    match text.split_once('=') {
        // A file may have such a name itself.
        Some((name, path)) if !std::path::Path::new(text).exists() => {
            if name.is_empty() || path.is_empty() {
                return Err("expected FILE or NAME=FILE".to_owned());
            }
            Ok(Tenant { name: Some(name.to_owned()), path: path.into() })
        }
        _ => Ok(Tenant { name: None, path: text.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_may_have_a_name() {
        let tenant =
            |name: Option<&str>, path: &str| Ok(Tenant { name: name.map(str::to_owned), path: path.into() });
        assert_eq!(parse_tenant("a/b.loom"), tenant(None, "a/b.loom"));
        assert_eq!(parse_tenant("demo:chat"), tenant(None, "demo:chat"));
        assert_eq!(parse_tenant("x=a/b.loom"), tenant(Some("x"), "a/b.loom"));
        assert!(parse_tenant("=b.loom").is_err() && parse_tenant("x=").is_err());
    }
}
