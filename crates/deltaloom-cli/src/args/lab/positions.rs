//! The options of `deltaloom lab positions`.

use clap::Args;

use crate::args::ThreadsArgument;
use crate::args::page::ReportArguments;
use crate::values::measure::parse_size;

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
