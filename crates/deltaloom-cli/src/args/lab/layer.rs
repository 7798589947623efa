//! The options of `deltaloom lab layer`.

use std::path::PathBuf;

use clap::Args;

use super::super::page::PageArguments;
use crate::args::ThreadsArgument;
use crate::values::compute::FormName;
use crate::values::measure::parse_size;

/// Benchmark a transformer layer on packed weights.
///
/// Compares it with the layer on the fine-tune's own weights: sizes, times, memory of many tenants,
/// and whether the outputs have the same bits. Activations are random numbers.
///
/// Without files, it uses a generated reference layer (33,472 FP32 parameters) and a fine-tune of
/// it. With files, it uses one layer of the two checkpoints: PyTorch's TransformerEncoderLayer,
/// which needs --heads, or Hugging Face's LLaMA, which needs config.json next to the weights.
///
/// Every in-memory form is measured in two modes. In mode exact, every output must have the
/// bits of the dense layer. In mode fast, every product must be within 1e-5 of the sum of its
/// absolute products. Exit code 1 if any output misses its tolerance.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  deltaloom lab layer
  deltaloom lab layer --tokens 1,8,64 --html layer.html
  deltaloom lab layer base/ tuned/ --layer 3 --form tiles,planes --threads 1
  deltaloom lab layer base.safetensors tuned.safetensors --heads 8 --budget 200kB --json")]
pub(crate) struct LayerArguments {
    /// Base: a .safetensors file or a folder [default: the generated reference layer]
    #[arg(value_name = "BASE", requires = "tuned")]
    pub(crate) base: Option<PathBuf>,
    /// Fine-tune of the base
    #[arg(value_name = "TUNED")]
    pub(crate) tuned: Option<PathBuf>,
    /// Number of the layer in the model, from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "base")]
    pub(crate) layer: usize,
    /// Number of attention heads of a PyTorch layer
    #[arg(long, value_name = "N", requires = "base")]
    pub(crate) heads: Option<usize>,
    /// Sequence lengths in tokens; each one is measured
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,16")]
    pub(crate) tokens: Vec<usize>,
    /// In-memory forms of the matrices
    #[arg(
        long,
        value_enum,
        value_name = "FORMS",
        value_delimiter = ',',
        default_value = "tiles,planes,bitmap,csr,dense"
    )]
    pub(crate) form: Vec<FormName>,
    /// Also measure the fastest forms that fit in this much memory on top of the base
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) budget: Option<u64>,
    /// Number of timed repeats
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub(crate) repeats: usize,
    /// Tenant counts to report memory for
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,4,16")]
    pub(crate) tenants: Vec<u64>,
    /// Seed of the activations and of the reference layer
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
