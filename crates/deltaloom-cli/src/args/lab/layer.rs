//! The options of `deltaloom lab layer`.

use std::path::PathBuf;

use clap::Args;

use crate::args::ThreadsArgument;
use crate::args::page::PageArguments;
use crate::values::compute::FormName;
use crate::values::measure::parse_size;

/// Compute a transformer layer on packed weights, beside the fine-tune's own weights: sizes, times, memory of many tenants, and whether every output has the same bits.
///
/// Without files it makes the reference layer (33,472 FP32 parameters) and a fine-tune of it. With files it takes one layer from both: PyTorch's TransformerEncoderLayer, whose
/// number of heads must be given, or Hugging Face's LLaMA, whose config.json is looked for beside the weights. Activations are random numbers.
///
/// Each form of the weights is computed in mode bit-exact, where all output bits must be those of the fine-tune's own weights, and in mode fast, where the relative error must be
/// below 1e-5. Exit code 1 means that one is not so.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab layer
  deltaloom lab layer --tokens 1,8,64 --html layer.html
  deltaloom lab layer base/ tuned/ --layer 3 --form tiles,planes --threads 1
  deltaloom lab layer base.safetensors tuned.safetensors --heads 8 --budget 200kB --json")]
pub(crate) struct LayerArguments {
    /// Base: a .safetensors file or a directory; without it the reference layer is made
    #[arg(value_name = "BASE", requires = "tuned")]
    pub(crate) base: Option<PathBuf>,
    /// Fine-tune of it
    #[arg(value_name = "TUNED")]
    pub(crate) tuned: Option<PathBuf>,
    /// Which layer of the model
    #[arg(long, value_name = "N", default_value_t = 0, requires = "base")]
    pub(crate) layer: usize,
    /// Heads of a PyTorch layer
    #[arg(long, value_name = "N", requires = "base")]
    pub(crate) heads: Option<usize>,
    /// Tokens of a sequence, one run for each number
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 16])]
    pub(crate) tokens: Vec<usize>,
    /// How matrices lie in memory
    #[arg(long, value_enum, value_name = "FORMS", value_delimiter = ',', default_values_t = FormName::ALL)]
    pub(crate) form: Vec<FormName>,
    /// Also the fastest forms that take at most this many bytes beside the base
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) budget: Option<u64>,
    /// How often each run is timed
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub(crate) repeats: usize,
    /// Numbers of tenants whose memory is told
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 4, 16])]
    pub(crate) tenants: Vec<u64>,
    /// Another seed makes other activations, and another reference layer
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) threads: ThreadsArgument,
    /// Print everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) page: PageArguments,
}
