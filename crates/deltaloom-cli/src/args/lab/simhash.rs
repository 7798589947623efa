//! The options of `deltaloom lab simhash`.

use std::path::PathBuf;

use clap::Args;
use deltaloom_lab::simhash::Pieces;

use crate::args::ThreadsArgument;
use crate::args::page::ReportArguments;
use crate::values::lab::{CorrectionName, HashOn, ProjectionName, parse_pieces, parse_shape};

/// EXPERIMENT: estimate products from bit signatures (SimHash) and measure their error, size and speed beside int8, int4, int2 and the exact product.
///
/// Rows of a matrix, or their pieces in blocks, become signatures of random hyperplanes and norms; a product is estimated from the Hamming distance to the signature of the
/// activations. The error to expect is NMSE = 2.47 d / b for d dimensions and b bits, so estimates are LOSSY and far from exact; nothing else of deltaloom uses them.
/// Activations are random normal numbers. Verdicts are computed from the run; times are processor time of one thread.
///
/// Without files the bundled weights are taken. With --index, signatures of whole tensors find near-duplicates across checkpoints instead.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab simhash
  deltaloom lab simhash --base base/ --tuned tuned/ --on delta --html simhash.html
  deltaloom lab simhash --base model.safetensors --tensor lm_head.weight --bits 256 --block 16x16 --correct topk --fraction 0.05
  deltaloom lab simhash --random 2048x2048 --tokens 4 --csv > simhash.csv
  deltaloom lab simhash --index base/ tuned/ other/ --similarity 0.95")]
pub(crate) struct SimHashArguments {
    /// Checkpoint with the matrix, or with the exact base for --on delta
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) base: Option<PathBuf>,
    /// Checkpoint made from it; its matrix is the one that is multiplied
    #[arg(long, value_name = "CHECKPOINT")]
    pub(crate) tuned: Option<PathBuf>,
    /// A tensor of two dimensions; without it the largest one
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Option<String>,
    /// A matrix of random normal weights instead of a file
    #[arg(long, value_name = "ROWSxCOLS", value_parser = parse_shape, conflicts_with_all = ["base", "tuned", "tensor", "index"])]
    pub(crate) random: Option<(usize, usize)>,
    /// Bits of a signature: multiples of 64 up to 1024 [default: 64,128,256; with --index one, 256]
    #[arg(long, value_name = "BITS", value_delimiter = ',')]
    pub(crate) bits: Vec<usize>,
    /// What has a signature: each row of a block of ROWSxCOLS, or each whole row
    #[arg(long, value_name = "ROWSxCOLS|row", value_delimiter = ',', default_value = "16x16,row", value_parser = parse_pieces)]
    pub(crate) block: Vec<Pieces>,
    /// Hash the weights, or only their difference to a base whose product is exact
    #[arg(long, value_enum, default_value_t = HashOn::Weights)]
    pub(crate) on: HashOn,
    /// Corrections: none, exact top columns by |x| times norm beside the estimate, or an unbiased sample of columns
    #[arg(long, value_enum, value_name = "NAMES", value_delimiter = ',', default_value = "none,topk,sample")]
    pub(crate) correct: Vec<CorrectionName>,
    /// Columns of a correction, as a fraction
    #[arg(long, value_name = "F", default_value_t = 0.1)]
    pub(crate) fraction: f64,
    /// Rows of activations
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) tokens: usize,
    /// How the directions are drawn
    #[arg(long, value_enum, default_value_t = ProjectionName::Gaussian)]
    pub(crate) projection: ProjectionName,
    /// Another seed makes other directions, activations and samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Find near-duplicate tensors across these checkpoints; with one, within it
    #[arg(long, value_name = "CHECKPOINT", num_args = 1.., conflicts_with_all = ["base", "tuned", "tensor", "html"])]
    pub(crate) index: Vec<PathBuf>,
    /// With --index: least cosine, as estimated, of a pair that is reported
    #[arg(
        long,
        value_name = "COSINE",
        default_value_t = 0.9,
        requires = "index",
        allow_negative_numbers = true
    )]
    pub(crate) similarity: f64,
    /// With --index: read every element, not a sample of 4096 of each tensor
    #[arg(long, requires = "index")]
    pub(crate) whole: bool,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}
