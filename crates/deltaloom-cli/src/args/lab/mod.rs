//! The options of `deltaloom lab`.

pub(crate) mod layer;
pub(crate) mod matmul;
pub(crate) mod simhash;
pub(crate) mod tenants;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ReportArguments, ThreadsArgument};
use crate::commands::lab::{Adaptive, MethodName};

/// Try other ways to code weights beside our own, and measure what they do. Nothing here is needed to pack or unpack.
#[derive(Debug, Args)]
pub(crate) struct LabArguments {
    #[command(subcommand)]
    pub(crate) experiment: Experiment,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Experiment {
    Layer(layer::LayerArguments),
    Matmul(matmul::MatmulArguments),
    Positions(PositionsArguments),
    #[command(name = "simhash")]
    SimHash(Box<simhash::SimHashArguments>),
    Tenants(Box<tenants::TenantsArguments>),
    Tpde(TpdeArguments),
}

/// Code the positions of set bits by the 17 published combinations of zlib, LZ4, zstd, Golomb and Elias delta, by methods of our own, and compress the data itself beside them.
///
/// Every method writes a container to a temporary file, reads it back and compares every byte. The ratio counts coded bytes without the header, as published tables do. The data is
/// never held as a whole: patterns are made again, files read again, block by block.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab positions
  deltaloom lab positions --size 1GiB --pattern random --methods published
  deltaloom lab positions --pattern delta.bin --methods ours,elias_delta+zlib --json
  deltaloom lab positions --pattern clustered --csv > clustered.csv")]
pub(crate) struct PositionsArguments {
    /// Size of the pattern; a file has its own
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    pub(crate) size: u64,
    /// structured, random, sparse, clustered, or a file whose bits are coded
    #[arg(long, value_name = "PATTERN|FILE", default_value = "random")]
    pub(crate) pattern: String,
    /// all, published, ours, baselines, or names of methods, separated by commas
    #[arg(long, value_name = "NAMES", default_value = "all", value_delimiter = ',')]
    pub(crate) methods: Vec<String>,
    /// Another seed makes other data of the pattern
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

/// Run threshold methods ("TPDE") over checkpoints of one training run: LOSSY, measured beside the exact container.
///
/// The published form follows the published formulas, losses and all. The corrected form keeps the first checkpoint exact, compares every next one with what the reader
/// has, makes elements that differ by the threshold or more exact, and states the greatest error of each tensor. With -o its files are written, one folder for each method.
///
/// Ratios are all bytes in over all bytes out; the mean of the steps' ratios stands beside them. "update error" and "state error" are relative to the length of the true
/// update: 1 means that nothing of it came through. With --verify exit code 1 means that something is wrong.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab tpde step1.safetensors step2.safetensors step3.safetensors
  deltaloom lab tpde runs/7b --methods P1,P3+ --html methods.html
  deltaloom lab tpde step*.safetensors --methods P1,P3+ --form published --csv > steps.csv
  deltaloom lab tpde step*.safetensors --form corrected --adaptive quantile=0.97 --adaptive bytes=200000 -o lossy
  deltaloom lab tpde step*.safetensors --evaluate 'python3 evaluate.py {}'
  deltaloom lab tpde --verify lossy step*.safetensors")]
pub(crate) struct TpdeArguments {
    /// Checkpoints in the order of training: .safetensors files or directories; or a series
    #[arg(value_name = "CHECKPOINT|STORE", required_unless_present = "verify")]
    pub(crate) checkpoints: Vec<PathBuf>,
    /// Methods to run
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAMES", default_values_t = MethodName::usual())]
    pub(crate) methods: Vec<MethodName>,
    /// In which form; methods that are the same when corrected are run once
    #[arg(long, value_enum, default_value_t = FormArgument::Both)]
    pub(crate) form: FormArgument,
    /// A corrected row with its own thresholds: bytes=N (of each step's file), quantile=Q, lr-steps=LR,STEPS or threshold=T; may be repeated
    #[arg(long, value_name = "RULE", value_parser = Adaptive::parse)]
    pub(crate) adaptive: Vec<Adaptive>,
    /// Write the files of corrected rows into this new directory
    #[arg(short, long, value_name = "DIR", conflicts_with = "verify")]
    pub(crate) output: Option<PathBuf>,
    /// Run this for every reconstruction, its path in place of {}, and take the last number that it prints as the loss. Arguments are separated by blanks; there is no shell
    #[arg(long, value_name = "COMMAND")]
    pub(crate) evaluate: Option<String>,
    /// Check a directory that -o wrote, or one method's in it: every digest and, if the checkpoints are given, every bound
    #[arg(long, value_name = "DIR", conflicts_with_all = ["adaptive", "evaluate", "csv"])]
    pub(crate) verify: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormArgument {
    /// To the letter
    Published,
    /// As one would use it
    Corrected,
    /// Both
    Both,
}

/// A number of bytes with or without a unit: kB, MB and GB count in thousands, KiB, MiB and GiB in 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_bytes: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("{other:?} is no unit; there are B, kB, MB, GB, KiB, MiB and GiB")),
    };
    let number = number.parse::<u64>().map_err(|_| "expected a size such as 64MiB".to_owned())?;
    // What is larger could not be counted in bits.
    let bytes = number.checked_mul(unit_bytes).filter(|bytes| *bytes <= 1 << 60);
    bytes.ok_or_else(|| "at most 2^60 bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let good = [("0", 0), ("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("3kB", 3000), ("7B", 7)];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in ["", "MiB", "1.5GiB", "-1", "4 parsecs", "99999999999999999999", "2000000000GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
