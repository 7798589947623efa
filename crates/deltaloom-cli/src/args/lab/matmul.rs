//! The options of `deltaloom lab matmul`.

use std::path::PathBuf;

use clap::Args;

use super::ReportArguments;
use crate::values;
use crate::values::lab::{Modes, Weight};

/// Benchmark one matrix product: dense weights, in-memory forms, and zstd-compressed blocks.
///
/// Every product is checked against the dense fine-tune: bit for bit in mode exact, to within
/// 1e-5 of the sum of the absolute products in mode fast. The variants are then timed in
/// alternating rounds. Times are medians; "x raw" is the median of each round's time over that of
/// the dense product. Exit code 1 if a product is wrong.
///
/// Without files, a matrix is generated, and a fraction of its weights moves by one to four ULPs.
/// With files, it is a matrix of a checkpoint and its counterpart in the base; if the fine-tune is
/// a container, its chunks are the tiles. csr-differences is only the part that a fine-tune adds to
/// a base product shared with others.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab matmul
  deltaloom lab matmul --rows 3072 --cols 768 --tokens 1,64 --forms raw,csr,csr-differences
  deltaloom lab matmul --base base --tuned tuned.loom --tensor model.layers.0.mlp.down_proj.weight
  deltaloom lab matmul --base base --tuned tuned --mode both --rounds 21 --html matmul.html
  deltaloom lab matmul --csv > matmul.csv")]
pub(crate) struct MatmulArguments {
    /// Base: a .safetensors file or a folder
    #[arg(short, long, value_name = "BASE", requires = "tuned")]
    pub(crate) base: Option<PathBuf>,
    /// Fine-tune: a .safetensors file, a folder, or a container packed against the base
    #[arg(long, value_name = "TUNED", requires = "base")]
    pub(crate) tuned: Option<PathBuf>,
    /// Name of the matrix [default: the largest one that differs from the base]
    #[arg(long, value_name = "NAME", requires = "tuned")]
    pub(crate) tensor: Option<String>,
    /// Rows of a generated matrix, which is the length of a result
    #[arg(long, value_name = "N", default_value_t = 4096, conflicts_with = "tuned")]
    pub(crate) rows: usize,
    /// Columns of a generated matrix, which is the length of an activation
    #[arg(long, value_name = "N", default_value_t = 4096, conflicts_with = "tuned")]
    pub(crate) cols: usize,
    /// Fraction of the generated weights that differ from the base, from 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.03, conflicts_with = "tuned")]
    pub(crate) changed: f64,
    /// Data type of the generated weights
    #[arg(long, value_enum, default_value_t = Weight::Bf16, conflicts_with = "tuned")]
    pub(crate) dtype: Weight,
    /// Seed of the generated matrix and of the activations
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Batch sizes in tokens; each one is measured
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,16,64,256")]
    pub(crate) tokens: Vec<usize>,
    /// Forms to measure, separated by commas: all, ours, zstd, or single forms. raw, the dense
    /// matrix, is always measured
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all")]
    pub(crate) forms: Vec<String>,
    /// Numerical guarantee
    #[arg(long, value_enum, default_value_t = Modes::Fast)]
    pub(crate) mode: Modes,
    /// Number of timed rounds
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = values::measure::parse_rounds)]
    pub(crate) rounds: usize,
    /// Number of threads; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::parse_threads, allow_negative_numbers = true)]
    pub(crate) threads: usize,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
