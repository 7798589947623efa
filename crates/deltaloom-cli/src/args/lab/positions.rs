//! The options of `deltaloom lab positions`.

use clap::Args;

use super::ReportArguments;
use crate::args::ThreadsArgument;
use crate::values::measure::parse_size;

/// Compare methods for coding the positions of set bits.
///
/// Measures the 17 published combinations of zlib, LZ4, zstd, Golomb and Elias delta codes, our own
/// methods, and plain compression of the data. Every method writes a container to a temporary file,
/// reads it back and compares every byte. As in published tables, the ratio counts the coded bytes
/// without the header. Data is generated or read block by block, and never held in memory as a
/// whole.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab positions
  deltaloom lab positions --size 1GiB --pattern random --methods published
  deltaloom lab positions --pattern delta.bin --methods ours,elias_delta+zlib --json
  deltaloom lab positions --pattern clustered --csv > clustered.csv")]
pub(crate) struct PositionsArguments {
    /// Size of a generated pattern, such as 64MiB or 1GB
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_size)]
    pub(crate) size: u64,
    /// Pattern to generate (structured, random, sparse or clustered), or a file to read
    #[arg(long, value_name = "PATTERN|FILE", default_value = "random")]
    pub(crate) pattern: String,
    /// Methods to measure, separated by commas: all, published, ours, baselines, or single methods
    #[arg(long, value_name = "NAMES", default_value = "all", value_delimiter = ',')]
    pub(crate) methods: Vec<String>,
    /// Seed of the generated pattern
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
