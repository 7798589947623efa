//! The options of `deltaloom lab simhash`.

use std::path::PathBuf;

use clap::Args;
use deltaloom_lab::simhash::Pieces;

use super::ReportArguments;
use crate::args::ThreadsArgument;
use crate::values::lab::{CorrectionName, HashOn, ProjectionName, parse_pieces, parse_shape};

/// EXPERIMENT, LOSSY: estimate products from bit signatures (SimHash).
///
/// Measures error, size and speed, next to int8, int4, int2 and the exact product. The rows of a
/// matrix, or of its blocks, are replaced by their norms and by signatures of random hyperplanes. A
/// product is estimated from the Hamming distance to the signature of the activations. The expected
/// error is NMSE = 2.47 d / b for d dimensions and b bits, so estimates are far from exact. No
/// other part of deltaloom uses them.
///
/// Activations are random normal numbers. Verdicts are computed from the results of the run. Times
/// are processor time on one thread.
///
/// With --index, signatures of whole tensors are used to find near-duplicates across checkpoints
/// instead.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab simhash
  deltaloom lab simhash --base base/ --tuned tuned/ --on delta --html simhash.html
  deltaloom lab simhash --base model.safetensors --tensor lm_head.weight --bits 256 --block 16x16
  deltaloom lab simhash --random 2048x2048 --tokens 4 --csv > simhash.csv
  deltaloom lab simhash --index base/ tuned/ other/ --similarity 0.95")]
pub(crate) struct SimHashArguments {
    /// Checkpoint with the matrix, or with the base for --on delta [default: bundled weights]
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) base: Option<PathBuf>,
    /// Fine-tune of the base; its matrix is multiplied
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) tuned: Option<PathBuf>,
    /// Name of a tensor with two dimensions [default: the largest one]
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Option<String>,
    /// Use a matrix of random normal weights instead of a file
    #[arg(long, value_name = "ROWSxCOLS", value_parser = parse_shape, conflicts_with_all = ["base", "tuned", "tensor", "index"])]
    pub(crate) random: Option<(usize, usize)>,
    /// Signature sizes in bits, multiples of 64 up to 1024 [default: 64,128,256, or 256 with
    /// --index]
    #[arg(long, value_name = "BITS", value_delimiter = ',')]
    pub(crate) bits: Vec<usize>,
    /// Unit that gets one signature: each row of a block of ROWSxCOLS, or each whole row
    #[arg(long, value_name = "ROWSxCOLS|row", value_delimiter = ',', default_value = "16x16,row", value_parser = parse_pieces)]
    pub(crate) block: Vec<Pieces>,
    /// What to hash
    #[arg(long, value_enum, default_value_t = HashOn::Weights)]
    pub(crate) on: HashOn,
    /// How to correct the estimates
    #[arg(long, value_enum, value_name = "NAMES", value_delimiter = ',', default_value = "none,topk,sample")]
    pub(crate) correct: Vec<CorrectionName>,
    /// Fraction of the columns to use for a correction, from 0 to 1
    #[arg(long, value_name = "F", default_value_t = 0.1)]
    pub(crate) fraction: f64,
    /// Number of tokens, which are rows of activations
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) tokens: usize,
    /// Distribution of the random hyperplanes
    #[arg(long, value_enum, default_value_t = ProjectionName::Gaussian)]
    pub(crate) projection: ProjectionName,
    /// Seed of the hyperplanes, activations and samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Find near-duplicate tensors across these checkpoints, or within one
    #[arg(long, value_name = "CHECKPOINT", num_args = 1.., conflicts_with_all = ["base", "tuned", "tensor", "html"])]
    pub(crate) index: Vec<PathBuf>,
    /// With --index: minimum estimated cosine of the pairs to report
    #[arg(
        long,
        value_name = "COSINE",
        default_value_t = 0.9,
        requires = "index",
        allow_negative_numbers = true
    )]
    pub(crate) similarity: f64,
    /// With --index: read every element instead of a sample of 4096 per tensor
    #[arg(long, requires = "index")]
    pub(crate) whole: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
