//! The options of `deltaloom lab matmul`.

use std::path::PathBuf;

use clap::Args;

use crate::args::page::ReportArguments;
use crate::values;
use crate::values::lab::{Modes, Weight};

/// Multiply one matrix of a fine-tune in every way: dense, in our resident forms, and as tiles and blocks that zstd has compressed.
///
/// Every product is checked against the dense fine-tune: bit for bit in mode bit-exact, to 1e-5 of
/// the sum of the absolute products in mode fast. Then all ways take turns in rounds; times are
/// medians, "x raw" is the median of the quotients of each round. Exit code 1 means that a product
/// was wrong.
///
/// Without files a matrix is made, and of its weights a share is moved by one to four ULPs. With files it is a matrix of a checkpoint and its counterpart in a base;
/// the fine-tune may be a container, whose chunks are then the tiles. csr-differences is only what a fine-tune adds to a product of the base that others share.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab matmul
  deltaloom lab matmul --rows 3072 --cols 768 --tokens 1,64 --forms raw,csr,csr-differences
  deltaloom lab matmul --base base --tuned tuned.loom --tensor model.layers.0.mlp.down_proj.weight
  deltaloom lab matmul --base base --tuned tuned --mode both --rounds 21 --html matmul.html
  deltaloom lab matmul --csv > matmul.csv")]
pub(crate) struct MatmulArguments {
    /// The base: a .safetensors file or a directory
    #[arg(short, long, value_name = "BASE", requires = "tuned")]
    pub(crate) base: Option<PathBuf>,
    /// The fine-tune: a .safetensors file, a directory, or a container against the base
    #[arg(long, value_name = "TUNED", requires = "base")]
    pub(crate) tuned: Option<PathBuf>,
    /// Name of the matrix; the largest one that differs if left out
    #[arg(long, value_name = "NAME", requires = "tuned")]
    pub(crate) tensor: Option<String>,
    /// Rows of a matrix that is made: the length of a result
    #[arg(long, value_name = "N", default_value_t = 4096, conflicts_with = "tuned")]
    pub(crate) rows: usize,
    /// Columns of a matrix that is made: the length of an activation
    #[arg(long, value_name = "N", default_value_t = 4096, conflicts_with = "tuned")]
    pub(crate) cols: usize,
    /// Share of its weights that differ from the base
    #[arg(long, value_name = "SHARE", default_value_t = 0.03, conflicts_with = "tuned")]
    pub(crate) changed: f64,
    /// Type of its weights
    #[arg(long, value_enum, default_value_t = Weight::Bf16, conflicts_with = "tuned")]
    pub(crate) dtype: Weight,
    /// Another seed makes another matrix, and other activations
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Numbers of tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    pub(crate) tokens: Vec<usize>,
    /// all, ours, zstd, or names of forms; raw is always measured
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all")]
    pub(crate) forms: Vec<String>,
    /// What of a product may depend on how it is computed: nothing, or the last bits
    #[arg(long, value_enum, default_value_t = Modes::Fast)]
    pub(crate) mode: Modes,
    /// Rounds in which every way is timed once
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = values::measure::rounds())]
    pub(crate) rounds: usize,
    /// Threads to use; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::threads())]
    pub(crate) threads: usize,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
